"""What the loop does with each message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from calotype_worker import probe
from calotype_worker.channel import Frame
from calotype_worker.errors import DeviceLost, WorkerError, told
from calotype_worker.held import Delivering, Held
from calotype_worker.job import Sampling
from calotype_worker.pipelines import registry
from calotype_worker.wire import down, up

if TYPE_CHECKING:
    from calotype_worker.tick import Loop


def take(loop: Loop, frame: Frame[down.Down]) -> bool:
    """Do what a message asks. Gives whether the process leaves at once."""
    message = frame.message
    match message:
        case down.Run():
            _run(loop, message, frame.blobs)
        case down.Cancel():
            _cancel(loop, message)
        case down.Pause():
            _pause(loop, message)
        case down.Resume():
            _resume(loop, message)
        case down.Load():
            _load(loop, message)
            _released(loop, loop.device.segments.settle())
        case down.Unload():
            _unload(loop, message)
            _released(loop, loop.device.segments.settle())
        case down.AskMemory():
            _memory(loop, message)
        case down.Probe():
            _probe(loop, message)
        case down.Release():
            # Whatever was launched with its weights has landed before anything is unmapped.
            loop.report(loop.stepper.land(0))
            _released(loop, loop.device.segments.release(message.segment))
        case down.Ping():
            loop.say(up.Pong(seq=message.seq))
        case down.Drain():
            loop.draining = True
            for held in [held for held in loop.jobs if held.paused]:
                loop.fail(held, WorkerError("the worker left while the job was paused"))
        case down.Exit() | down.Dismissed():
            return True
        case down.Welcome():
            loop.log("warn", "a second welcome was ignored")
    return False


def _run(loop: Loop, run: down.Run, blobs: Sequence[bytearray]) -> None:
    if any((held.job, held.attempt) == (run.job, run.attempt) for held in loop.jobs):
        return loop.log("warn", "a job that is here already was sent again", run.job)
    if loop.draining:
        failure = WorkerError("the worker is leaving and takes nothing new").failure()
        return loop.say(up.Failed(job=run.job, attempt=run.attempt, failure=failure))
    loop.settle_peaks()
    if not loop.jobs:
        loop.device.reset_peak()
    loop.arrivals += 1
    loop.jobs.append(Held.of(run, blobs, loop.arrivals))
    return None


def _known(loop: Loop, what: str, job: str, attempt: int) -> Held | None:
    held = next((held for held in loop.jobs if (held.job, held.attempt) == (job, attempt)), None)
    if held is None:
        loop.log("debug", f"{what} of a job that is not here (attempt {attempt})", job)
    return held


def _cancel(loop: Loop, message: down.Cancel) -> None:
    held = _known(loop, "cancel", message.job, message.attempt)
    if held is not None:
        loop.jobs.remove(held)
        loop.say(up.Cancelled(job=held.job, attempt=held.attempt, at_step=held.steps_done))


def _pause(loop: Loop, message: down.Pause) -> None:
    held = _known(loop, "pause", message.job, message.attempt)
    if held is None:
        return
    loop.report(loop.stepper.land(0))
    loop.settle_peaks()
    held.paused = True
    if message.offload:
        _offload(loop, held)
    loop.say(up.Paused(job=held.job, attempt=held.attempt, at_step=held.steps_done))


def _offload(loop: Loop, held: Held) -> None:
    """Leave nothing of a paused job on the device but what is not its own: the model's weights."""
    if isinstance(held.stage, Sampling) and not held.offloaded:
        held.offloaded = True
        held.stage.move(torch.device("cpu"))
        held.stage.release_adapters()
    elif isinstance(held.stage, Delivering):
        # Once its pictures are on the host nothing reads its latents any more.
        held.stage.fence.wait()
        held.stage = replace(held.stage, source=None)
    loop.forget_idle_sets(0)
    if loop.device.torch.type != "cpu":
        # What was cached for its steps is another's to take, in whatever process.
        loop.device.trim()


def _resume(loop: Loop, message: down.Resume) -> None:
    held = _known(loop, "resume", message.job, message.attempt)
    if held is None:
        return
    if held.offloaded and isinstance(held.stage, Sampling):
        try:
            held.stage.move(loop.device.torch)
            held.stage.bind_adapters(loop.family(held.model))
        except Exception as error:
            problem = told(error, loop.device.numbers())
            loop.fail(held, problem)
            return loop.make_room() if problem.outcome == "out_of_memory" else None
    loop.settle_peaks()
    held.paused = held.offloaded = False
    return loop.say(up.Resumed(job=held.job, attempt=held.attempt, at_step=held.steps_done))


def _log_segments(loop: Loop) -> None:
    said = loop.device.segments.said
    while said:
        loop.log(*said.popleft())


def _released(loop: Loop, gone: Sequence[str]) -> None:
    """Say which segments are unmapped."""
    _log_segments(loop)
    for id in gone:
        loop.say(up.Released(segment=id))


def _load(loop: Loop, load: down.Load) -> None:
    loop.report(loop.stepper.land(0))
    # What a load takes is no job's phase, and it may need what nobody uses.
    loop.settle_peaks()
    loop.forget_idle_sets(0)
    loop.drop(load.model.id)
    held_bytes = loop.device.held_bytes()
    loop.pulse.begin()

    def progress(done: int, total: int) -> None:
        loop.say(up.LoadProgress(load=load.load, done_bytes=done, total_bytes=total))

    problem: WorkerError | None = None
    try:
        loop.models[load.model.id] = registry.load(load, loop.device, progress)
    except Exception as error:
        problem = told(error, loop.device.numbers())
    loop.pulse.end()
    _log_segments(loop)
    if problem is None:
        model = loop.models[load.model.id]
        loop.say(
            up.Loaded(
                load=load.load,
                model=model.id,
                resident_bytes=model.resident_bytes,
                phases_ms=model.phases_ms,
            )
        )
        return
    if isinstance(problem, DeviceLost):
        raise problem
    if problem.outcome == "out_of_memory":
        loop.make_room()
    loop.device.trim()
    loop.say(up.LoadFailed(load=load.load, failure=problem.failure()))
    loop.prove_clean(held_bytes)


def _unload(loop: Loop, unload: down.Unload) -> None:
    loop.report(loop.stepper.land(0))
    leaving = [id for id in loop.models if unload.model in (None, id)]
    for held in [held for held in loop.jobs if unload.model is None or held.uses(unload.model)]:
        loop.fail(held, WorkerError("the job's model was unloaded"))
    before = loop.device.used_bytes()
    for id in leaving:
        loop.drop(id)
    loop.device.trim()
    loop.say(up.Unloaded(unload=unload.unload, freed_bytes=max(before - loop.device.used_bytes(), 0)))


def _memory(loop: Loop, ask: down.AskMemory) -> None:
    if ask.op == "trim":
        for model in loop.models.values():
            model.trim()
        loop.report(loop.stepper.land(0))
        loop.forget_idle_sets(0)
        loop.stepper.graphs.clear()
    elif ask.op == "reset_peak":
        loop.device.reset_peak()
    loop.say(up.Memory(seq=ask.seq, report=loop.device.report()))


def _probe(loop: Loop, ask: down.Probe) -> None:
    loop.settle_peaks()
    try:
        figures = probe.figures(loop, ask.op)
    except Exception as error:
        problem = told(error, loop.device.numbers())
        if isinstance(problem, DeviceLost):
            raise problem from None
        loop.log("warn", f"the device was not measured: {problem.message}")
        figures = probe.figures(loop, "device")
    loop.say(up.Probed(seq=ask.seq, figures=figures))
