"""`python -m calotype_worker`: the worker as a process, on stdin and what was stdout."""

# Before any other import: whatever prints from here on cannot corrupt the stream.
from calotype_worker.stdout import claim

PROTOCOL_FD = claim()

import sys  # noqa: E402

from calotype_worker.serve import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(PROTOCOL_FD))
