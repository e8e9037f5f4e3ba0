"""Words and records that both directions share."""

from typing import Literal, get_args

import msgspec

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 0

Dtype = Literal["u8", "f16", "bf16", "f32"]
DTYPE_BYTES: dict[Dtype, int] = {"u8": 1, "f16": 2, "bf16": 2, "f32": 4}
Mode = Literal["text_to_image", "image_to_image", "inpaint"]
Sampler = Literal[
    "ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpm2", "dpm2_ancestral", "lms", "dpmpp_2m",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "unipc", "pndm", "lcm", "tcd",
]  # fmt: skip
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Schedule = Literal["default", "karras", "exponential", "sgm_uniform", "simple", "normal", "beta"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
MODES: tuple[Mode, ...] = get_args(Mode)
NoiseSource = Literal["philox"]
Phase = Literal["bind", "encode", "denoise", "decode"]
ModelFormat = Literal["diffusers", "onnx", "checkpoint"]
Outcome = Literal[
    "done", "invalid_input", "not_supported", "out_of_memory", "cancelled", "model_load", "failed", "fatal"
]
LogLevel = Literal["debug", "info", "warn", "error"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every record on the wire has in common."""


class Version(Message, frozen=True, kw_only=True):
    """Version of the protocol; peers of different majors do not talk."""

    major: int
    minor: int


class BlobRef(Message, frozen=True, kw_only=True):
    """A tensor whose bytes are blob number `blob` of the same frame, row-major and little-endian."""

    blob: int
    dtype: Dtype
    shape: list[int]
