"""Which family serves which word on the wire, and in which formats."""

from collections.abc import Callable

from calotype_worker.device import Device
from calotype_worker.errors import NotSupported
from calotype_worker.pipelines import sd
from calotype_worker.pipelines.family import Family, Progress
from calotype_worker.wire.down import Load

LOADERS: dict[str, Callable[[Load, Device, Progress], Family]] = {"sd": sd.load}
FORMATS = ("diffusers",)
ADAPTERS = ("lora", "embedding")


def load(asked: Load, device: Device, progress: Progress) -> Family:
    """Make a model resident."""
    family, format = asked.model.family, asked.model.format
    if family not in LOADERS:
        raise NotSupported(f"models of the family `{family}` are not served here; {', '.join(LOADERS)} are")
    if format not in FORMATS:
        raise NotSupported(f"models in the format `{format}` are not served here; {', '.join(FORMATS)} are")
    return LOADERS[family](asked, device, progress)
