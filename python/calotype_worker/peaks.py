"""Peaks of memory by phase. Knows no device: it is told the most that was held in each lap.

A lap goes on while the same jobs are in the same phase, so that steps that follow one another cost nothing. Its peak is
that of the phase for the jobs that took part; jobs that share a run share its figure, which is an upper bound for each.
For a job as a whole everything counts that was held since it came, whoever needed it.
"""

from collections.abc import Callable, Iterable, Sequence

from calotype_worker.job import Tally
from calotype_worker.wire.words import Phase


class Peaks:
    """Whose phase it is, and what goes to whom at the end of a lap."""

    def __init__(self, lap: Callable[[], int | None], idle: Callable[[], int]) -> None:
        """`lap` ends a lap and gives its peak in bytes, None where that is not known.

        `idle` are bytes that the peak tells of and that are no job's: merged LoRAs which are kept for the next one.
        """
        self._lap = lap
        self._idle = idle
        self._idle_bytes = 0
        self._phase: Phase | None = None
        self._own: list[Tally] = []

    def begin(self, phase: Phase, own: Sequence[Tally], everyone: Iterable[Tally], anew: bool = False) -> bool:
        """These jobs are in a phase from now on. Gives whether that is a new lap; `anew` makes it one."""
        same = len(own) == len(self._own) and all(one is other for one, other in zip(own, self._own))
        if phase == self._phase and same and not anew:
            return False
        self.end(everyone)
        self._phase, self._own = phase, list(own)
        return True

    def end(self, everyone: Iterable[Tally]) -> None:
        """End a lap; what comes next is of no phase."""
        peak = self._lap()
        if peak is not None:
            # As it was at the lap's begin: what is kept from then on was used until then.
            peak -= self._idle_bytes
            for tally in self._own:
                if self._phase is not None:
                    tally.phase_peaks[self._phase] = max(tally.phase_peaks.get(self._phase, 0), peak)
            for tally in (*self._own, *everyone):
                tally.peak_bytes = max(tally.peak_bytes, peak)
        self._idle_bytes = self._idle()
        self._phase, self._own = None, []
