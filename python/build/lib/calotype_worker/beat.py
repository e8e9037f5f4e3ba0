"""The pulse, on a thread of its own: as long as the interpreter lives, it beats, whatever the work does."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from calotype_worker.pulse import Pulse
from calotype_worker.wire import up

if TYPE_CHECKING:
    from calotype_worker.device import Device

LEAST_MS = 10


def start(say: Callable[[up.Beat], None], pulse: Pulse, device: "Device", every_ms: int) -> None:
    """Beat until the process ends."""

    def beats() -> None:
        seq = 0
        while True:
            seq += 1
            resident, running, oldest_step_ms = pulse.read()
            say(
                up.Beat(
                    seq=seq,
                    free_bytes=device.total_and_free_bytes()[1],
                    used_bytes=device.used_bytes(),
                    resident=resident,
                    running=running,
                    oldest_step_ms=oldest_step_ms,
                )
            )
            time.sleep(max(every_ms, LEAST_MS) / 1e3)

    threading.Thread(target=beats, name="beat", daemon=True).start()
