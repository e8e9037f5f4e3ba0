"""The command line of the scripts that measure the whole program, and their results as JSON."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse(description: str | None, parts: Sequence[str], folder: Path) -> argparse.Namespace:
    """The server's binary, the working folder, the file for the results, and the parts to run."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--calotype", type=Path, required=True, help="the server's binary")
    parser.add_argument(
        "--folder", type=Path, default=folder, help="models, data and logs of the servers (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="the results, written after each part")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    return parser.parse_args()


class Report:
    """Results by part: printed as each part ends, and written to a file if there is one."""

    def __init__(self, path: Path | None, **facts: Any) -> None:
        self.path = path
        self.found: dict[str, Any] = facts

    def add(self, part: str, values: dict[str, Any]) -> None:
        """The results of a part."""
        self.found[part] = values
        print(json.dumps({part: values}, indent=1), flush=True)
        if self.path:
            self.path.write_text(json.dumps(self.found, indent=1))
