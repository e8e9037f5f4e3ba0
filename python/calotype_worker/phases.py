"""What a job goes through beside its steps: preparation, decoding, delivery."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from calotype_worker.errors import InvalidInput, NotSupported, OutOfMemory, WorkerError, told
from calotype_worker.held import Delivering, Held, Waiting
from calotype_worker.job import MAX_EDGE, MOST_IMAGES, Sampling
from calotype_worker.pipelines.family import Family
from calotype_worker.pipelines.offloaded import plan_words
from calotype_worker.pixels import Blobs, bytes_from, from_numbers, image_of, image_ref, numbers_of, to_numbers
from calotype_worker.second_pass import SecondPass, larger_latents, larger_picture
from calotype_worker.wire import up
from calotype_worker.wire.words import BlobRef, Phase
from calotype_worker.wire.work import Decode, Encode, Generate

if TYPE_CHECKING:
    from calotype_worker.tick import Loop

WORK = ("generate", "encode", "decode")
"""The kinds of work that are served."""


def prepare(loop: Loop, held: Held) -> None:
    """Encode what a job brings; work without steps is done at once."""
    waiting = held.stage
    if not isinstance(waiting, Waiting):
        return
    work = waiting.work
    encodes = isinstance(work, Encode) or (isinstance(work, Generate) and work.init_image is not None)
    problem: WorkerError
    while True:
        try:
            return _prepared(loop, held, waiting)
        except Exception as error:
            problem = told(error, loop.device.numbers())
        if not (encodes and _in_tiles(loop, held, problem)):
            return loop.fail_all([held], problem)


def _prepared(loop: Loop, held: Held, waiting: Waiting) -> None:
    match waiting.work:
        case Generate() as work:
            _start(loop, held, work, waiting.blobs)
        case Encode() as work:
            _encode_alone(loop, held, work, waiting.blobs)
        case Decode() as work:
            _decode_alone(loop, held, work, waiting.blobs)
        case other:
            kind = other.__struct_config__.tag
            raise NotSupported(f"this worker does {', '.join(WORK)}; `{kind}` needs a worker that says so in `ready`")


def _in_tiles(loop: Loop, held: Held, problem: WorkerError) -> bool:
    """Whether a VAE that ran out of memory shall try once more, in tiles, after room was made."""
    model = loop.models.get(held.model)
    if not isinstance(problem, OutOfMemory) or not isinstance(model, Family) or model.vae_is_tiled:
        return False
    model.keep_to_tiles()
    loop.log("warn", f"the VAE works in tiles from now on: {problem.detail}", held.job)
    loop.make_room()
    return True


def follow_vae_plan(model: Family, *group: Held) -> None:
    """Have the VAE do what comes next as the plan of these jobs says, which is the same for all of them."""
    model.use_tiles(group[0].vae == "tiling")
    word = "vae_tiling" if model.vae_is_tiled else f"vae_{group[0].vae}"
    if word != "vae_whole":
        for held in group:
            held.tally.plan.add(word)


def _start(loop: Loop, held: Held, work: Generate, blobs: Blobs) -> None:
    model = loop.family(held.model)
    follow_vae_plan(model, held)
    started = time.perf_counter()
    if work.adapters:
        loop.enter("bind", held)
    bound = model.bind(work.adapters)
    # Not again where the encoding is tried once more.
    if work.adapters and "bind" not in held.tally.timings_ms:
        _spent(loop, held, "bind", started)
    loop.enter("encode", held)
    started = time.perf_counter()
    held.stage = Sampling(work, blobs, model, bound, loop.family, loop.control_net, loop.preprocessor)
    for unit in held.stage.units:
        held.tally.plan.update(plan_words(unit.net.offload))
    loop.device.fence().wait()
    _spent(loop, held, "encode", started)


def _spent(loop: Loop, held: Held, phase: Phase, started: float) -> None:
    ms = (time.perf_counter() - started) * 1e3
    held.tally.spend(phase, ms)
    loop.progress(held, phase, 1, 1, ms)


def _encode_alone(loop: Loop, held: Held, work: Encode, blobs: Blobs) -> None:
    model = loop.family(held.model)
    loop.enter("encode", held)
    started = time.perf_counter()
    follow_vae_plan(model, held)
    image = image_of("the image", work.image, blobs)
    for edge in image.shape[:2]:
        if edge > MAX_EDGE or edge % model.scale:
            raise InvalidInput(f"an edge of {edge} is not a multiple of {model.scale} up to {MAX_EDGE}")
    latents = model.encode_image(to_numbers(image)).cpu()
    _spent(loop, held, "encode", started)
    ref = BlobRef(blob=0, dtype="f32", shape=list(latents.shape))
    _result(loop, held, [ref], [bytes_from(latents)], [])


def _decode_alone(loop: Loop, held: Held, work: Decode, blobs: Blobs) -> None:
    model = loop.family(held.model)
    shape = work.latents.shape
    if len(shape) != 4:
        raise InvalidInput("the latents are not [images, channels, height, width]")
    images, channels, height, width = shape
    most = MAX_EDGE // model.scale
    fits = 1 <= height <= most and 1 <= width <= most and 1 <= images <= MOST_IMAGES
    if not fits or channels != model.latent_channels:
        raise InvalidInput(f"latents of {shape} are not taken")
    loop.enter("decode", held)
    latents = numbers_of("the latents", work.latents, blobs).to(model.device)
    started = time.perf_counter()
    pictures = decoded(loop, [held], model, latents)
    held.stage = Delivering([picture.cpu() for picture in pictures], loop.device.fence(), started, 0, [], None)


def decoded(loop: Loop, group: Sequence[Held], model: Family, latents: torch.Tensor) -> list[torch.Tensor]:
    """The pictures of jobs with one VAE plan, `[height, width, 3]` of u8.

    Where memory does not suffice one by one, and then in tiles.
    """
    pixels = latents.shape[-1] * latents.shape[-2] * model.scale**2
    at_once = loop.device.pictures_at_once(pixels) if group[0].vae == "whole" else 1
    while True:
        if model.decodes_anew(group[0].vae, at_once, latents.shape):
            # Kernels may have to be made before it is launched, for many seconds: the last step is told of before.
            loop.report(loop.stepper.land(0))
        # After that: previews follow the plans of their own jobs.
        follow_vae_plan(model, *group)
        try:
            parts = [from_numbers(model.decode(part)) for part in torch.split(latents, at_once)]
            return [picture for part in parts for picture in part]
        except Exception as error:
            problem = told(error, loop.device.numbers())
        if not isinstance(problem, OutOfMemory) or (at_once == 1 and not _in_tiles(loop, group[0], problem)):
            raise problem
        loop.device.trim()
        at_once = 1


def enlarge(loop: Loop, held: Held) -> None:
    """Begin the second pass of a job whose first is over."""
    sampling = held.stage
    if not isinstance(sampling, Sampling) or sampling.second is None:
        return
    second, started = sampling.second, time.perf_counter()
    loop.enter("encode", held)
    problem: WorkerError
    while True:
        try:
            model = loop.family(held.model)
            follow_vae_plan(model, held)
            larger = _enlarged(loop, held, model, sampling, second)
            sampling.begin_second(second, larger, model)
            return held.tally.spend("encode", (time.perf_counter() - started) * 1e3)
        except Exception as error:
            problem = told(error, loop.device.numbers())
        # Once it has begun there is no way back to the first pass.
        if sampling.second is None or not _in_tiles(loop, held, problem):
            return loop.fail_all([held], problem)


def _enlarged(loop: Loop, held: Held, model: Family, sampling: Sampling, second: SecondPass) -> torch.Tensor:
    if second.by_latents:
        return larger_latents(sampling.latents, second.latent)
    height, width = (edge * model.scale for edge in second.latent[1:])
    pictures = decoded(loop, [held], model, sampling.latents)
    return torch.cat([model.encode_image(larger_picture(picture, height, width)) for picture in pictures])


def decode(loop: Loop, order: Sequence[Held]) -> None:
    """Launch the decoding of the first job whose sampling is over, and of those that fit to it, together."""
    group: list[tuple[Held, Sampling]] = []
    for held in order:
        sampling = held.stage
        if not isinstance(sampling, Sampling) or not sampling.is_done or sampling.second is not None:
            continue
        first = group[0] if group else (held, sampling)
        if (held.model, held.vae, sampling.latent) == (first[0].model, first[0].vae, first[1].latent):
            group.append((held, sampling))
    loop.enter("decode", *(held for held, _ in group))
    started = time.perf_counter()
    problem: WorkerError
    try:
        model = loop.family(group[0][0].model)
        # Weights that come and go do so in the order of one stream.
        with loop.device.beside() if model.can_capture else nullcontext():
            latents = torch.cat([sampling.latents for _, sampling in group])
            pictures = decoded(loop, [held for held, _ in group], model, latents)
            on_host: list[list[torch.Tensor]] = []
            for _, sampling in group:
                own, pictures = pictures[: len(sampling.seeds)], pictures[len(sampling.seeds) :]
                on_host.append([loop.device.to_host(sampling.finished(picture)) for picture in own])
            fence = loop.device.fence()
        for (held, sampling), own in zip(group, on_host):
            held.stage = Delivering(own, fence, started, sampling.total, sampling.seeds, sampling)
        return
    except Exception as error:
        problem = told(error, loop.device.numbers())
    loop.fail_all([held for held, _ in group], problem)


def deliver(loop: Loop, held: Held, stage: Delivering) -> None:
    """Say the result of a job whose pictures have arrived."""
    problem: WorkerError
    try:
        stage.fence.wait()
        _spent(loop, held, "decode", stage.started)
        images = [image_ref(picture, blob) for blob, picture in enumerate(stage.pictures)]
        _result(loop, held, images, [bytes_from(picture) for picture in stage.pictures], stage.seeds)
        return
    except Exception as error:
        problem = told(error, loop.device.numbers())
    loop.fail_all([held], problem)


def _result(loop: Loop, held: Held, images: list[BlobRef], blobs: Sequence[memoryview], seeds: list[int]) -> None:
    loop.settle_peaks()
    loop.jobs.remove(held)
    loop.say(
        up.Result(
            job=held.job,
            attempt=held.attempt,
            images=images,
            seeds=seeds,
            timings_ms=held.tally.timings_ms,
            peak_bytes=held.tally.peak_bytes or loop.device.peak_bytes(),
            phase_peaks_bytes=held.tally.phase_peaks or None,
            batch_sizes=held.tally.batch_sizes,
            engine=loop.device.engine(),
            plan=sorted(held.tally.plan.union(loop.family(held.model).plan_words())) or None,
        ),
        blobs,
    )
