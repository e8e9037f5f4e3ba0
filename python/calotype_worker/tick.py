"""The tick loop: holds models and jobs, and does one piece of work at a time.

Between two pieces it takes messages, so that a job joins, leaves, pauses or is cancelled at any step.

1. Steps that are over are reported.
2. A job whose pictures have arrived on the host is delivered.
3. A job whose sampling is over is decoded, or enlarged for its second pass.
4. A waiting job is prepared: LoRAs are bound, text and images encoded.
5. Else the jobs that fit together share one run of the denoiser and take a step each.

Knows no pipe, no thread and no process: messages come by `handle` and leave by a function.
"""

from collections.abc import Callable, Sequence

import torch

from calotype_worker import intake, phases
from calotype_worker.channel import Buffer, Frame
from calotype_worker.device import Device
from calotype_worker.errors import DeviceLost, InvalidInput, WorkerError, told
from calotype_worker.held import Delivering, Held, Waiting
from calotype_worker.job import Sampling, Tally
from calotype_worker.peaks import Peaks
from calotype_worker.pipelines import registry
from calotype_worker.pipelines.adapted import PLAIN, adapter_key
from calotype_worker.pipelines.annotators.preprocessor import Preprocessor
from calotype_worker.pipelines.control import ControlNet
from calotype_worker.pipelines.family import Family
from calotype_worker.pixels import bytes_from, from_numbers, halved, image_ref
from calotype_worker.pulse import Pulse
from calotype_worker.step import Ended, Landed, Stepper
from calotype_worker.wire import down, up
from calotype_worker.wire.words import LogLevel, Message, Phase
from calotype_worker.wire.work import Generate

IDLE_SETS_SHARE = 1 / 16
"""The most of the device's memory for merged LoRAs that no job uses: a part of what the engine does not lease."""
MOST_KEPT_BYTES = 256 << 20
"""What may be held more after memory ran out than before: libraries' workspaces, which come with the first use."""
Say = Callable[[Message, Sequence[Buffer]], None]


class Loop:
    """The loop's state. `say` is told everything that goes up."""

    def __init__(self, device: Device, pulse: Pulse, say: Say) -> None:
        self.device = device
        self.stepper = Stepper(device)
        self.models: dict[str, registry.Resident] = {}
        self.jobs: list[Held] = []
        self.pulse = pulse
        self._say = say
        self.arrivals = 0
        self.draining = False
        self._peaks = Peaks(device.end_lap, self._idle_sets_bytes)
        self._jobs_before = 0
        self._held_bytes: int | None = None
        """What tensors held when the last phase began."""

    def handle(self, frame: Frame[down.Down]) -> bool:
        """Take one message. Gives whether the process goes on."""
        with torch.no_grad():
            leaves = intake.take(self, frame)
        self._settle()
        return not leaves and self._goes_on()

    def has_work(self) -> bool:
        """Whether a tick would do anything."""
        return any(not held.paused for held in self.jobs)

    def tick(self) -> bool:
        """Do one piece of work. Gives whether the process goes on."""
        self.pulse.begin()
        with torch.no_grad():
            self._work(sorted((h for h in self.jobs if not h.paused), key=lambda h: (-h.priority, h.arrival)))
        self.pulse.end()
        self._settle()
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
            self.report(self.stepper.land(0))
            phases.deliver(self, *arrived)
        elif sampled is not None and isinstance(sampled.stage, Sampling) and sampled.stage.second is not None:
            phases.enlarge(self, sampled)
        elif sampled is not None:
            phases.decode(self, order)
        elif waiting is not None:
            phases.prepare(self, waiting)
        elif steps:
            self._step(order)

    def _step(self, order: list[Held]) -> None:
        chosen = self.stepper.companions(order)
        self.enter("denoise", *(held for held, _ in chosen), anew=self.stepper.measures(chosen))
        try:
            failed = self.stepper.launch(chosen, self.family(chosen[0][1].leg.model))
        except WorkerError as error:
            failed = [(held, error) for held, _ in chosen]
        for held, problem in failed:
            self.fail_all([held], problem)
        self.report(self.stepper.land(self.device.run_ahead))

    def report(self, landed: list[Landed]) -> None:
        """Tell of steps that are over."""
        said = self.stepper.graphs.compiler.said
        while said:
            self.log(*said.popleft())
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
            phases.follow_vae_plan(model, ended.held)
            painted = from_numbers(model.sketch(ended.latents[:1]))[0]
            small = halved(ended.sampling.finished(painted).cpu())
        except Exception as error:
            # The picture itself may still come out, in tiles.
            return self.log("warn", f"no preview: {told(error, self.device.numbers()).message}", ended.held.job)
        image = image_ref(small, 0)
        preview = up.Preview(job=ended.held.job, attempt=ended.held.attempt, done=step.done, image=image)
        return self._say(preview, [bytes_from(small)])

    def say(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        """Send a message up."""
        self._say(message, blobs)

    def log(self, level: LogLevel, message: str, job: str | None = None) -> None:
        """Send a line for the log."""
        self.say(up.Log(level=level, job=job, message=message))

    def progress(self, held: Held, phase: Phase, done: int, total: int, step_ms: float) -> None:
        """Tell of a piece of work that has ended."""
        self.say(up.Progress(job=held.job, attempt=held.attempt, phase=phase, done=done, total=total, step_ms=step_ms))

    def enter(self, phase: Phase, *jobs: Held, anew: bool = False) -> None:
        """These jobs are in a phase from now on; `anew` tells it apart from what they did before in the same one."""
        tallies = [held.tally for held in jobs]
        if self._peaks.begin(phase, tallies, self._running_tallies(), anew):
            self._held_bytes = self.device.held_bytes()

    def settle_peaks(self) -> None:
        """Give every job its share of the peaks so far, but for those that are paused: what they hold is not here."""
        self._peaks.end(self._running_tallies())

    def _running_tallies(self) -> list[Tally]:
        return [held.tally for held in self.jobs if not held.paused]

    def make_room(self) -> None:
        """Give back what can be made again: graphs, merged LoRAs that no job uses, texts, copies of weights, blocks."""
        self.report(self.stepper.land(0))
        self.stepper.graphs.clear()
        self.forget_idle_sets(0)
        for model in self.models.values():
            model.trim()
        # What waits on the host otherwise has copies here.
        self.device.whereabouts.bring()
        self.device.trim()

    def fail(self, held: Held, problem: WorkerError) -> None:
        """Drop a job without a picture. A device that is lost ends the process instead."""
        if isinstance(problem, DeviceLost):
            raise problem
        self.jobs.remove(held)
        self.say(up.Failed(job=held.job, attempt=held.attempt, failure=problem.failure()))

    def fail_all(self, jobs: Sequence[Held], problem: WorkerError) -> None:
        """Drop several jobs for one reason, and give back what they held; raises `DeviceLost` where it stays held."""
        for held in jobs:
            self.fail(held, problem)
        if problem.outcome == "out_of_memory":
            self.make_room()
            self.prove_clean(self._held_bytes)
        elif problem.outcome == "failed":
            self.device.prove()

    def prove_clean(self, before_bytes: int | None) -> None:
        """Raise `DeviceLost` if the device does not work, or much more is held than before what failed."""
        self.device.prove()
        now = self.device.held_bytes()
        if before_bytes is not None and now is not None and now - before_bytes > MOST_KEPT_BYTES:
            raise DeviceLost(f"{now - before_bytes} bytes of what failed did not come back")

    def family(self, id: str) -> Family:
        """A resident model."""
        model = self._resident(id)
        if not isinstance(model, Family):
            raise InvalidInput(f"`{id}` is a {_kind(model)}, not a model")
        return model

    def control_net(self, id: str) -> ControlNet:
        """A resident ControlNet."""
        model = self._resident(id)
        if not isinstance(model, ControlNet):
            raise InvalidInput(f"`{id}` is a {_kind(model)}, not a ControlNet")
        return model

    def preprocessor(self, id: str) -> Preprocessor:
        """A resident network that makes the pictures of control units."""
        model = self._resident(id)
        if not isinstance(model, Preprocessor):
            raise InvalidInput(f"`{id}` is a {_kind(model)}, not a preprocessor")
        return model

    def _resident(self, id: str) -> registry.Resident:
        model = self.models.get(id)
        if model is None:
            raise WorkerError(f"the model `{id}` is not resident")
        return model

    def drop(self, id: str) -> None:
        """Forget a model, and the graphs that hold its weights."""
        model = self.models.pop(id, None)
        if isinstance(model, (Family, ControlNet)):
            self.stepper.graphs.forget(model)
        self.stepper.forget(id)

    def forget_idle_sets(self, most_bytes: int) -> None:
        """Forget merged LoRAs that no job uses, until those of all models take no more than so many bytes."""
        used = self._used_sets()
        for model in self._families():
            self.stepper.graphs.forget_sets(model.forget_idle_sets(used, most_bytes))
            most_bytes = max(most_bytes - model.adapted.idle_bytes(used), 0)

    def _used_sets(self) -> set[str]:
        used = {PLAIN.key}
        for held in self.jobs:
            if isinstance(held.stage, Sampling):
                # One that was offloaded holds none.
                used.update(leg.bound.key for leg in held.stage.legs)
            elif isinstance(held.stage, Waiting) and isinstance(held.stage.work, Generate):
                used.add(adapter_key(held.stage.work.adapters))
        return used

    def _families(self) -> list[Family]:
        return [model for model in self.models.values() if isinstance(model, Family)]

    def _idle_sets_bytes(self) -> int:
        # A processor's peak is told with all that the process holds, and compared with what it held before.
        if self.device.held_bytes() is None:
            return 0
        used = self._used_sets()
        return sum(model.adapted.idle_bytes(used) for model in self._families())

    def _settle(self) -> None:
        """What a job that has left leaves behind, and what the beat tells."""
        if len(self.jobs) < self._jobs_before:
            self.forget_idle_sets(int(self.device.total_and_free_bytes()[0] * IDLE_SETS_SHARE))
        self._jobs_before = len(self.jobs)
        self.pulse.show(list(self.models), [held.job for held in self.jobs])

    def _goes_on(self) -> bool:
        if self.draining and not self.jobs:
            self.say(up.Bye())
            return False
        return True


def _kind(model: registry.Resident) -> str:
    match model:
        case Preprocessor():
            return "preprocessor"
        case ControlNet():
            return "ControlNet"
        case Family():
            return "model"
