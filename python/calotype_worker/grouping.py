"""How many samples go together in a run of the denoiser, by the memory that they are known to take.

Pure: figures come from those who run and measure. Nothing is taken for granted of a shape that was never run: its first
run is of one job, and each next at most twice as large as the largest so far, which is measured again. What a sample
takes becomes smaller as the group grows, since some of it is taken once for all.
"""

from dataclasses import dataclass, replace

from calotype_worker.job import Shape

SHARE = 0.8
"""The most of the free memory that a run is to take; the rest is for fragments and for what runs beside it."""


@dataclass(frozen=True)
class Known:
    """The largest group that ran, and the bytes a sample of the largest that was measured."""

    samples: int
    bytes_a_sample: float


class GroupSizes:
    """What is known of each shape. LoRAs change weights and not what a run takes: they are no part of it."""

    def __init__(self, most: int) -> None:
        """`most` samples are worth while at all."""
        self.most = most
        self._known: dict[Shape, Known] = {}
        self._halved: dict[Shape, int] = {}

    def limit(self, shape: Shape, room_bytes: int | None, captured: int = 0) -> int:
        """The most samples for a group's next run; 0 is one job alone, whatever it brings.

        `room_bytes` can be had without freeing anything that is in use; None where that is not told. `captured` samples
        have their memory already, in a graph's pool.
        """
        kind = _kind(shape)
        most = min(self.most, self._halved.get(kind, self.most))
        if room_bytes is None:
            return most
        known = self._known.get(kind)
        if known is None:
            return min(most, captured)
        fitting = int(max(room_bytes, 0) * SHARE / known.bytes_a_sample)
        return min(most, 2 * max(known.samples, captured), max(fitting, captured))

    def is_new(self, shape: Shape, samples: int) -> bool:
        """Whether a group of so many is larger than all that ran."""
        known = self._known.get(_kind(shape))
        return known is None or samples > known.samples

    def ran(self, shape: Shape, samples: int, taken_bytes: int | None) -> None:
        """A run has ended well; `taken_bytes` is what it took at its peak, None where that was not seen."""
        kind = _kind(shape)
        known = self._known.get(kind)
        if known is not None and samples <= known.samples:
            return
        if taken_bytes is not None and taken_bytes > 0:
            self._known[kind] = Known(samples, taken_bytes / samples)
        elif known is not None:
            self._known[kind] = replace(known, samples=samples)

    def halve(self, shape: Shape, samples: int) -> None:
        """So many were too many."""
        self._halved[_kind(shape)] = samples // 2

    def forget(self, model: str) -> None:
        """A model is gone; another of its name may take more."""
        self._known = {kind: known for kind, known in self._known.items() if kind.model != model}
        self._halved = {kind: most for kind, most in self._halved.items() if kind.model != model}


def _kind(shape: Shape) -> Shape:
    return replace(shape, adapters="")
