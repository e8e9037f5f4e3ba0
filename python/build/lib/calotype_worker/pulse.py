"""What the beat tells: written by the loop, read by the beat's thread."""

import threading
import time


class Pulse:
    """Resident models, jobs held, and since when the piece of work under way lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resident: list[str] = []
        self._running: list[str] = []
        self._since: float | None = None

    def show(self, resident: list[str], running: list[str]) -> None:
        """Tell which models and jobs there are."""
        with self._lock:
            self._resident, self._running = resident, running

    def begin(self) -> None:
        """A piece of work begins."""
        with self._lock:
            self._since = time.monotonic()

    def end(self) -> None:
        """No work is under way."""
        with self._lock:
            self._since = None

    def read(self) -> tuple[list[str], list[str], int]:
        """Resident models, running jobs, and milliseconds since the work under way began; 0 when idle."""
        with self._lock:
            since = 0 if self._since is None else int((time.monotonic() - self._since) * 1e3)
            return self._resident, self._running, since
