"""Why there is no picture: one tree, whose classes name their outcome.

WorkerError            failed           any other error, with the traceback's tail
├── InvalidInput       invalid_input    the request cannot be served as written
├── NotSupported       not_supported    this worker cannot; the message says why
├── OutOfMemory        out_of_memory    device or host, with numbers
├── ModelLoad          model_load       weights missing, corrupt or wrong; file and tensor in the detail
└── DeviceLost         fatal            the device's context is gone; the process leaves after saying so
"""

import re
import traceback
from typing import ClassVar

from calotype_worker.wire.up import Failure
from calotype_worker.wire.words import Outcome

DETAIL_CHARACTERS = 2000
"""Most of a traceback that goes up; its end, which names the cause."""


class WorkerError(Exception):
    """Something that ends a job or a load."""

    outcome: ClassVar[Outcome] = "failed"

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail

    def failure(self) -> Failure:
        """What goes up."""
        return Failure(outcome=self.outcome, message=self.message, detail=self.detail)


class InvalidInput(WorkerError):
    """The request cannot be served as written."""

    outcome = "invalid_input"


class NotSupported(WorkerError):
    """Not here: this worker cannot serve the request; another might."""

    outcome = "not_supported"


class OutOfMemory(WorkerError):
    """Memory of the device or of the host did not suffice; the detail has the numbers."""

    outcome = "out_of_memory"


class ModelLoad(WorkerError):
    """Weights or their description are missing, corrupt or wrong; the detail names file and tensor."""

    outcome = "model_load"


class DeviceLost(WorkerError):
    """The device's context cannot be used any more."""

    outcome = "fatal"


# What frameworks say when memory is short. A C++ allocator has no exception class of its own in Python, and libraries
# that allocate by themselves (cuBLAS, rocBLAS, MIOpen, Level Zero, Metal) only have a status, which torch puts behind
# the words of a device error.
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|can(?:'t|not) allocate memory|not enough memory|bad allocation|bad_alloc"
    r"|_STATUS_ALLOC_FAILED|StatusAllocFailed|rocblas_status_memory_error"
    r"|(?:UR_RESULT|PI)_ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)|Invalid buffer size",
    re.IGNORECASE,
)
_DEVICE_LOST = re.compile(
    r"CUDA error|CUDA driver error|HIP error|cudaError|hipError|CUBLAS_STATUS_|HIPBLAS_STATUS_|device-side assert"
    r"|UR_RESULT_ERROR_DEVICE_LOST|PI_ERROR_DEVICE_NOT_AVAILABLE"
)


def told(error: BaseException, memory: str = "") -> WorkerError:
    """`error` as one of ours. `memory` are the numbers that an out-of-memory error carries.

    What is given holds no traceback: its frames would keep the tensors of what failed.
    """
    if isinstance(error, WorkerError):
        error.__context__ = error.__cause__ = error.__traceback__ = None
        return error
    text = str(error)
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or _NO_MEMORY.search(text):
        return OutOfMemory("memory ran out", f"{first_line(text)}; {memory}" if memory else first_line(text))
    if kind == "AcceleratorError" or (isinstance(error, RuntimeError) and _DEVICE_LOST.search(text)):
        return DeviceLost(f"the device failed: {first_line(text)}")
    tail = "".join(traceback.format_exception(error))[-DETAIL_CHARACTERS:]
    return WorkerError(f"{kind}: {first_line(text)}", tail)


def first_line(text: str) -> str:
    """The first line of a message, not longer than 300 characters."""
    return (text.strip().splitlines() or [""])[0][:300]
