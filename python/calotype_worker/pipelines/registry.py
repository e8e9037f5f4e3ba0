"""Which family serves which word on the wire, and in which formats."""

from collections.abc import Callable

from calotype_worker.device import Device
from calotype_worker.errors import NotSupported
from calotype_worker.pipelines import control, flux, sd, sd3, sdxl
from calotype_worker.pipelines.annotators import preprocessor
from calotype_worker.pipelines.annotators.preprocessor import Preprocessor
from calotype_worker.pipelines.control import ControlNet
from calotype_worker.pipelines.family import Family, Progress
from calotype_worker.wire.down import Load, LoadPlan

Resident = Family | ControlNet | Preprocessor
"""What a `load` can make resident."""

LOADERS: dict[str, Callable[[Load, Device, Progress], Resident]] = {
    "sd": sd.load,
    "sdxl": sdxl.load,
    "sdxl_refiner": sdxl.load,
    "sd3": sd3.load,
    "flux": flux.load,
    "controlnet": control.load,
    "preprocessor": preprocessor.load,
}
FORMATS = ("diffusers", "checkpoint")
ADAPTERS = (
    *("lora", "embedding", "controlnet", "controlnet_modes", "preprocessor"),
    *("refiner", "hires", "inpaint_unet", "clip_skip"),
)


def load(asked: Load, device: Device, progress: Progress) -> Resident:
    """Make a model resident."""
    family, format = asked.model.family, asked.model.format
    if family not in LOADERS:
        raise NotSupported(f"models of the family `{family}` are not served here; {', '.join(LOADERS)} are")
    if format not in FORMATS:
        raise NotSupported(f"models in the format `{format}` are not served here; {', '.join(FORMATS)} are")
    with device.segments.read_for(asked.model):
        model = LOADERS[family](asked, device, progress)
    model.follow(asked.plan or LoadPlan(), device)
    return model
