"""Takes fd 1 away for the protocol and puts stderr in its place, before anything else can print.

`__main__` imports this first. From then on `print`, progress bars, C libraries and grandchildren that write to
stdout land in stderr, which the orchestrator drains. Knows nothing else and imports nothing that could print.
"""

import os
import sys


def claim() -> int:
    """Give the descriptor that the protocol writes to from now on. It is closed in every child process."""
    protocol = os.dup(1)  # Not inheritable: exec closes it.
    os.dup2(2, 1)
    # A fork without exec would hold the stream open after our end.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: os.close(protocol))
    sys.stdout = sys.stderr
    return protocol
