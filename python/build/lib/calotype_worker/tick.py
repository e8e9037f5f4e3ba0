"""The tick loop: holds models and jobs, and does one piece of work at a time.

Between two pieces it takes messages, so that a job joins, leaves, pauses or is cancelled at any step.

1. Steps that are over are reported.
2. A job whose pictures have arrived on the host is delivered.
3. A job whose sampling is over is decoded.
4. A waiting job is prepared: LoRAs are bound, text and images encoded.
5. Else the jobs that fit together share one run of the denoiser and take a step each.

Knows no pipe, no thread and no process: messages come by `handle` and leave by a function.
"""

from collections.abc import Callable, Sequence

import torch

from calotype_worker import phases, probe
from calotype_worker.channel import Buffer, Frame
from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, InvalidInput, WorkerError, told
from calotype_worker.held import Delivering, Held, Waiting
from calotype_worker.job import Sampling
from calotype_worker.pipelines import registry
from calotype_worker.pipelines.control import ControlNet
from calotype_worker.pipelines.family import Family
from calotype_worker.pixels import bytes_from, halved, image_ref
from calotype_worker.pulse import Pulse
from calotype_worker.step import Ended, Landed, Stepper
from calotype_worker.wire import down, up
from calotype_worker.wire.words import LogLevel, Message, Phase

Say = Callable[[Message, Sequence[Buffer]], None]


class Loop:
    """The loop's state. `say` is told everything that goes up."""

    def __init__(self, device: Device, pulse: Pulse, say: Say) -> None:
        self.device = device
        self.stepper = Stepper(device)
        self.models: dict[str, registry.Resident] = {}
        self.jobs: list[Held] = []
        self._pulse = pulse
        self._say = say
        self._arrivals = 0
        self._draining = False

    # --- Messages ---

    def handle(self, frame: Frame[down.Down]) -> bool:
        """Take one message. Gives whether the process goes on."""
        message = frame.message
        with torch.no_grad():
            match message:
                case down.Run():
                    self._take(message, frame.blobs)
                case down.Cancel():
                    self._cancel(message)
                case down.Pause():
                    self._pause(message)
                case down.Resume():
                    self._resume(message)
                case down.Load():
                    self._load(message)
                case down.Unload():
                    self._unload(message)
                case down.AskMemory():
                    self._memory(message)
                case down.Probe():
                    self._probe(message)
                case down.Release():
                    self.say(up.Released(segment=message.segment))
                case down.Ping():
                    self.say(up.Pong(seq=message.seq))
                case down.Drain():
                    self._draining = True
                    for held in [held for held in self.jobs if held.paused]:
                        self.fail(held, WorkerError("the worker left while the job was paused"))
                case down.Exit() | down.Dismissed():
                    return False
                case down.Welcome():
                    self.log("warn", "a second welcome was ignored")
        self._show()
        return self._goes_on()

    def _take(self, run: down.Run, blobs: Sequence[bytearray]) -> None:
        if any((held.job, held.attempt) == (run.job, run.attempt) for held in self.jobs):
            return self.log("warn", "a job that is here already was sent again", run.job)
        if self._draining:
            failure = WorkerError("the worker is leaving and takes nothing new").failure()
            return self.say(up.Failed(job=run.job, attempt=run.attempt, failure=failure))
        if not self.jobs:
            self.device.reset_peak()
        self._arrivals += 1
        self.jobs.append(Held.of(run, blobs, self._arrivals))
        return None

    def _known(self, what: str, job: str, attempt: int) -> Held | None:
        held = next((held for held in self.jobs if (held.job, held.attempt) == (job, attempt)), None)
        if held is None:
            self.log("debug", f"{what} of a job that is not here (attempt {attempt})", job)
        return held

    def _cancel(self, message: down.Cancel) -> None:
        held = self._known("cancel", message.job, message.attempt)
        if held is not None:
            self.jobs.remove(held)
            self.say(up.Cancelled(job=held.job, attempt=held.attempt, at_step=held.steps_done))

    def _pause(self, message: down.Pause) -> None:
        held = self._known("pause", message.job, message.attempt)
        if held is None:
            return
        self._report(self.stepper.land(0))
        held.paused = True
        if message.offload and isinstance(held.stage, Sampling) and self.device.torch.type != "cpu":
            held.stage.move(torch.device("cpu"))
            held.offloaded = True
        self.say(up.Paused(job=held.job, attempt=held.attempt, at_step=held.steps_done))

    def _resume(self, message: down.Resume) -> None:
        held = self._known("resume", message.job, message.attempt)
        if held is None:
            return
        if held.offloaded and isinstance(held.stage, Sampling):
            try:
                held.stage.move(self.device.torch)
            except Exception as error:
                return self.fail(held, told(error, self.device.numbers()))
        held.paused = held.offloaded = False
        return self.say(up.Resumed(job=held.job, attempt=held.attempt, at_step=held.steps_done))

    def _load(self, load: down.Load) -> None:
        self._report(self.stepper.land(0))
        self._drop(load.model.id)
        self._pulse.begin()

        def progress(done: int, total: int) -> None:
            self.say(up.LoadProgress(load=load.load, done_bytes=done, total_bytes=total))

        problem: WorkerError | None = None
        try:
            self.models[load.model.id] = registry.load(load, self.device, progress)
        except Exception as error:
            problem = told(error, self.device.numbers())
        self._pulse.end()
        if problem is None:
            model = self.models[load.model.id]
            self.say(
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
        self.device.trim()
        self.say(up.LoadFailed(load=load.load, failure=problem.failure()))

    def _unload(self, unload: down.Unload) -> None:
        self._report(self.stepper.land(0))
        leaving = [id for id in self.models if unload.model in (None, id)]
        for held in [held for held in self.jobs if unload.model is None or held.uses(unload.model)]:
            self.fail(held, WorkerError("the job's model was unloaded"))
        before = self.device.used_bytes()
        for id in leaving:
            self._drop(id)
        self.device.trim()
        self.say(up.Unloaded(unload=unload.unload, freed_bytes=max(before - self.device.used_bytes(), 0)))

    def _drop(self, id: str) -> None:
        model = self.models.pop(id, None)
        if isinstance(model, Family):
            self.stepper.graphs.forget(model)

    def _memory(self, ask: down.AskMemory) -> None:
        if ask.op == "trim":
            for model in self.models.values():
                model.trim()
            self._report(self.stepper.land(0))
            self.stepper.graphs.clear()
        elif ask.op == "reset_peak":
            self.device.reset_peak()
        self.say(up.Memory(seq=ask.seq, report=self.device.report()))

    def _probe(self, ask: down.Probe) -> None:
        try:
            figures = probe.figures(self, ask.op)
        except Exception as error:
            problem = told(error, self.device.numbers())
            if isinstance(problem, DeviceLost):
                raise problem from None
            self.log("warn", f"the device was not measured: {problem.message}")
            figures = probe.figures(self, "device")
        self.say(up.Probed(seq=ask.seq, figures=figures))

    # --- Work ---

    def has_work(self) -> bool:
        """Whether a tick would do anything."""
        return any(not held.paused for held in self.jobs)

    def tick(self) -> bool:
        """Do one piece of work. Gives whether the process goes on."""
        self._pulse.begin()
        with torch.no_grad():
            self._work(sorted((h for h in self.jobs if not h.paused), key=lambda h: (-h.priority, h.arrival)))
        self._pulse.end()
        self._show()
        return self._goes_on()

    def _work(self, order: list[Held]) -> None:
        arriving = [(held, held.stage) for held in order if isinstance(held.stage, Delivering)]
        steps = any(isinstance(held.stage, Sampling) and not held.stage.is_done for held in order)
        sampled = next((h for h in order if isinstance(h.stage, Sampling) and h.stage.is_done), None)
        waiting = next((held for held in order if isinstance(held.stage, Waiting)), None)
        arrived = next((pair for pair in arriving if pair[1].fence.ready()), None)
        if arrived is None and arriving and not steps and sampled is None and waiting is None:
            arrived = arriving[0]
        if arrived is not None:
            self._report(self.stepper.land(0))
            phases.deliver(self, *arrived)
        elif sampled is not None:
            phases.decode(self, sampled)
        elif waiting is not None:
            phases.prepare(self, waiting)
        elif steps:
            self._step(order)

    def _step(self, order: list[Held]) -> None:
        chosen = self.stepper.companions(order)
        try:
            failed = self.stepper.launch(chosen, self.family(chosen[0][1].leg.model))
        except WorkerError as error:
            failed = [(held, error) for held, _ in chosen]
        for held, problem in failed:
            self.fail_all([held], problem)
        self._report(self.stepper.land(self.device.run_ahead))

    def _report(self, landed: list[Landed]) -> None:
        for one in landed:
            for held in one.flight.jobs:
                held.tally.spend("denoise", one.step_ms)
                held.tally.batch_sizes.append(one.flight.samples)
            for ended in one.flight.ended:
                if ended.held in self.jobs:
                    self.progress(ended.held, "denoise", ended.step.done, ended.step.total, one.step_ms)
                    self._preview(ended)

    def _preview(self, ended: Ended) -> None:
        every, step = ended.sampling.preview_every, ended.step
        model = self.models.get(ended.held.model)
        if not every or step.done % every or step.done == step.total or not isinstance(model, Family):
            return
        try:
            small = halved(ended.sampling.picture(model, ended.latents[0]).cpu())
        except Exception as error:
            # The picture itself may still come out, in tiles.
            return self.log("warn", f"no preview: {told(error, self.device.numbers()).message}", ended.held.job)
        image = image_ref(small, 0)
        preview = up.Preview(job=ended.held.job, attempt=ended.held.attempt, done=step.done, image=image)
        return self._say(preview, [bytes_from(small)])

    # --- What goes up ---

    def say(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        """Send a message up."""
        self._say(message, blobs)

    def log(self, level: LogLevel, message: str, job: str | None = None) -> None:
        """Send a line for the log."""
        self.say(up.Log(level=level, job=job, message=message))

    def progress(self, held: Held, phase: Phase, done: int, total: int, step_ms: float) -> None:
        """Tell of a piece of work that has ended."""
        self.say(up.Progress(job=held.job, attempt=held.attempt, phase=phase, done=done, total=total, step_ms=step_ms))

    def fail(self, held: Held, problem: WorkerError) -> None:
        """Drop a job without a picture. A device that is lost ends the process instead."""
        if isinstance(problem, DeviceLost):
            raise problem
        self.jobs.remove(held)
        self.say(up.Failed(job=held.job, attempt=held.attempt, failure=problem.failure()))

    def fail_all(self, jobs: Sequence[Held], problem: WorkerError) -> None:
        """Drop several jobs for one reason, and give back what they held."""
        for held in jobs:
            self.fail(held, problem)
        if problem.outcome == "out_of_memory":
            self.device.trim()

    def family(self, id: str) -> Family:
        """A resident model."""
        model = self._resident(id)
        if not isinstance(model, Family):
            raise InvalidInput(f"`{id}` is a ControlNet, not a model")
        return model

    def control_net(self, id: str) -> ControlNet:
        """A resident ControlNet."""
        model = self._resident(id)
        if not isinstance(model, ControlNet):
            raise InvalidInput(f"`{id}` is a model, not a ControlNet")
        return model

    def _resident(self, id: str) -> registry.Resident:
        model = self.models.get(id)
        if model is None:
            raise WorkerError(f"the model `{id}` is not resident")
        return model

    def _show(self) -> None:
        self._pulse.show(list(self.models), [held.job for held in self.jobs])

    def _goes_on(self) -> bool:
        if self._draining and not self.jobs:
            self.say(up.Bye())
            return False
        return True
