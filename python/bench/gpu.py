"""Measures a CUDA device: the worker's loop against plain diffusers, eager and compiled, in the same run.

    python bench/gpu.py --models sd15:512 sdxl:1024 --steps 30 --json out.json --markdown out.md
    python bench/gpu.py --models sd15:512 --compile-ours    # the worker's own plan `compile`, its warm-up told apart
    python bench/gpu.py --models sd15:512 --profile         # the kernels that a step of 16 samples spends its time in
    python bench/gpu.py --models sdxl --uploads             # only how fast its UNet reaches the device, by which way
    python bench/gpu.py --models sdxl --switches            # only how long one takes in another's place from memory

For each model: seconds an image alone, images a second at 1 to 16 concurrent jobs, the device's busy share, the
latency of a cancel, the peak of memory, and what is held after an unload. Random weights, f16, Euler, guidance 5.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench import steps as kernels
from bench import switches, uploads
from bench.sizes import DEVICE, DTYPE, family, plain_pipeline
from calotype_worker import noise
from calotype_worker.channel import Buffer, Frame
from calotype_worker.device import Device
from calotype_worker.kernels import serve
from calotype_worker.pulse import Pulse
from calotype_worker.tick import Loop
from calotype_worker.wire import down, up
from calotype_worker.wire.words import BlobRef, Message
from calotype_worker.wire.work import Generate, Span

CONCURRENT = (1, 2, 4, 8, 16)
PROMPT, GUIDANCE = "a red apple on the beach", 5.0


class Bench:
    """A loop with one model in it."""

    def __init__(self, name: str, edge: int, steps: int, compiles: bool) -> None:
        self.name, self.edge, self.steps = name, edge, steps
        self.device = Device("cuda", torch.device(DEVICE, 0))
        self.loop = Loop(self.device, Pulse(), self._hear)
        self.loop.models[name] = family(name)
        self.loop.models[name].plan = down.LoadPlan(compile=compiles)  # type: ignore[union-attr]
        self.said: list[str] = []
        self.results: list[up.Result] = []
        self.jobs = 0

    def _hear(self, message: Message, blobs: Sequence[Buffer] = ()) -> None:
        if isinstance(message, (up.Failed, up.Fatal)):
            raise RuntimeError(str(message))
        if isinstance(message, up.Log):
            self.said.append(message.message)
        if isinstance(message, up.Result):
            self.results.append(message)

    def submit(self) -> str:
        """One more job."""
        return self._submit(*self._job())

    def _submit(self, run: down.Run, blob: bytearray) -> str:
        self.loop.handle(Frame(run, [blob]))
        return run.job

    def _job(self) -> tuple[down.Run, bytearray]:
        self.jobs += 1
        edge = self.edge // 8
        numbers = noise.normal(self.jobs, noise.INITIAL, (4, edge, edge))
        work = Generate(
            model=self.name,
            mode="text_to_image",
            prompt=[Span(text=PROMPT, weight=1.0)],
            width=self.edge,
            height=self.edge,
            steps=self.steps,
            guidance=GUIDANCE,
            sampler="euler",
            schedule="default",
            seeds=[self.jobs],
            noise="philox",
            initial_noise=BlobRef(blob=0, dtype="f32", shape=[1, 4, edge, edge]),
            strength=1.0,
        )
        run = down.Run(job=f"job_{self.jobs}", attempt=1, step="generate", work=work)
        return run, bytearray(numbers.tobytes())

    def together(self, count: int) -> float:
        """Seconds from the first submit to the last result of `count` jobs; their noise is the orchestrator's work."""
        jobs = [self._job() for _ in range(count)]
        started = time.perf_counter()
        for run, blob in jobs:
            self._submit(run, blob)
        while self.loop.has_work():
            self.loop.tick()
        return time.perf_counter() - started

    def warm_up_s(self) -> float:
        """Seconds from the first job until the compiled denoiser serves."""
        started = time.perf_counter()
        for _ in range(2):
            # The first captures a graph, which serves while the compiler works.
            self.together(1)
        self.loop.stepper.graphs.compiler.wait()
        taken = time.perf_counter() - started
        self.together(1)
        return taken

    def cancel_ms(self) -> float:
        """From a cancel in the middle of a run to an idle device."""
        job = self.submit()
        while self.loop.jobs[0].steps_done < self.steps // 2:
            self.loop.tick()
        started = time.perf_counter()
        self.loop.handle(Frame(down.Cancel(job=job, attempt=1)))
        self.device.synchronize()
        return (time.perf_counter() - started) * 1e3


@contextmanager
def busy_share(samples: list[float]) -> Iterator[None]:
    """Fills `samples` with the device's busy share, as its driver tells it, while the body runs."""
    over = threading.Event()

    def sample() -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"]
        while not over.is_set():
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0 and answer.stdout.strip().isdigit():
                samples.append(float(answer.stdout) / 100)
            over.wait(0.1)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def seconds(work: Callable[[], object], runs: int) -> float:
    """The median of `runs`, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:])


def plain(pipeline: Any, edge: int, steps: int, runs: int) -> float:
    """Seconds an image of diffusers' own pipeline."""

    def next_step(_: Any, __: int, ___: Any, kept: dict[str, Any]) -> dict[str, Any]:
        # A compiled UNet's output is overwritten by its next run, which it must be told of.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return kept

    def image() -> None:
        pipeline(
            PROMPT,
            height=edge,
            width=edge,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            callback_on_step_end=next_step,
        )

    return seconds(image, runs)


def measure(name: str, edge: int, steps: int, runs: int, compiled: bool, ours_compiled: bool) -> dict[str, Any]:
    """All figures of one model at one size."""
    pipeline = plain_pipeline(name)
    found: dict[str, Any] = {
        "model": name,
        "edge": edge,
        "steps": steps,
        "plain_eager_s": plain(pipeline, edge, steps, runs),
    }
    if compiled:
        found |= _compiled(pipeline, edge, steps, runs)
    del pipeline
    torch.cuda.empty_cache()
    held_before = torch.cuda.memory_allocated()
    bench = Bench(name, edge, steps, ours_compiled)
    weights = torch.cuda.memory_allocated() - held_before
    if ours_compiled:
        found["ours_compile_warm_up_s"] = bench.warm_up_s()
    found["concurrent"] = {}
    for count in CONCURRENT:
        # Twice: the second meeting of a shape captures its graph.
        for _ in range(2):
            bench.together(count)
        bench.device.reset_peak()
        busy: list[float] = []
        with busy_share(busy):
            times = [bench.together(count) for _ in range(runs)]
        found["concurrent"][count] = {
            "s": median(times),
            "images_per_s": count / median(times),
            "busy_share": mean(busy) if busy else None,
            "batch_sizes": sorted(set(bench.results[-1].batch_sizes)),
            "step_ms": bench.results[-1].timings_ms["denoise"] / steps,
            "decode_ms": bench.results[-1].timings_ms["decode"],
            "peak_bytes": bench.device.peak_bytes(),
            "over_resident_bytes": over_resident(bench.results[-count:], held_before + weights),
            "plan": bench.results[-1].plan,
        }
    found["problems"] = {"graphs": bench.loop.stepper.graphs.problem, "kernels": serve.problem(), "said": bench.said}
    found["cancel_ms"] = bench.cancel_ms()
    if ours_compiled:
        model = bench.loop.family(name)
        network = bench.loop.stepper.graphs.compiler.compiled(model)
        print(f"compiled, {kernels.compiled_kernels(model, network, edge)}", flush=True)
        del model, network
    bench.loop.handle(Frame(down.Unload(unload="u")))
    del bench
    found["weights_bytes"] = weights
    found["held_after_unload_bytes"] = torch.cuda.memory_allocated() - held_before
    alone = found["concurrent"][1]["s"]
    found["one_image_speedup"] = found["plain_eager_s"] / alone
    found["eight_jobs_speedup"] = found["concurrent"][8]["images_per_s"] * found["plain_eager_s"]
    return found


def over_resident(results: Sequence[up.Result], resident_bytes: int) -> dict[str, int]:
    """What jobs took beside the weights, at their peak and by phase: what an estimate of a job must not be below."""
    found = {"all": max(result.peak_bytes for result in results) - resident_bytes}
    for result in results:
        for phase, peak in (result.phase_peaks_bytes or {}).items():
            found[phase] = max(found.get(phase, 0), peak - resident_bytes)
    return found


def peak_lines(found: dict[str, Any]) -> str:
    """The peaks above the weights, by concurrency and phase."""
    lines = [f"peak above the {found['weights_bytes'] / 1e9:.2f} GB of weights, {found['model']} {found['edge']}²:"]
    for count, figures in found["concurrent"].items():
        parts = (f"{phase} {over / 1e6:.0f} MB" for phase, over in figures["over_resident_bytes"].items())
        lines.append(f"  {count:2d} jobs: {', '.join(parts)}")
    return "\n".join(lines)


def _compiled(pipeline: Any, edge: int, steps: int, runs: int) -> dict[str, Any]:
    started = time.perf_counter()
    unet = pipeline.unet
    try:
        pipeline.unet = torch.compile(unet, mode="reduce-overhead")
        seconds_an_image = plain(pipeline, edge, steps, runs)
    except Exception as error:
        # A machine without a C compiler still has the other figures.
        pipeline.unet = unet
        return {"plain_compiled_error": f"{type(error).__name__}: {error}"[:300]}
    warm_up = time.perf_counter() - started - runs * seconds_an_image
    return {"plain_compiled_s": seconds_an_image, "compile_warm_up_s": warm_up}


def table(all_found: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    heads = [
        "model",
        "plain eager, s",
        "plain compiled, s",
        "ours alone, s",
        "alone, gain",
        *(f"{count} jobs, images/s" for count in CONCURRENT),
        "8 jobs, gain",
        "busy at 8",
        "cancel, ms",
    ]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for found in all_found:
        concurrent = found["concurrent"]
        busy = concurrent[8]["busy_share"]
        lines.append(
            _row(
                [
                    f"{found['model']} {found['edge']}², {found['steps']} steps",
                    f"{found['plain_eager_s']:.3f}",
                    f"{found['plain_compiled_s']:.3f}" if "plain_compiled_s" in found else "-",
                    f"{concurrent[1]['s']:.3f}",
                    f"{found['one_image_speedup']:.2f}",
                    *(f"{concurrent[count]['images_per_s']:.2f}" for count in CONCURRENT),
                    f"{found['eight_jobs_speedup']:.2f}",
                    "-" if busy is None else f"{busy:.0%}",
                    f"{found['cancel_ms']:.1f}",
                ]
            )
        )
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sd15:512", "sdxl:1024"], help="architecture:edge")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the compiled baseline (minutes of warm-up)"
    )
    parser.add_argument("--compile-ours", action="store_true", help="the worker compiles too, before it is timed")
    parser.add_argument("--profile", action="store_true", help="only print where a step of 16 samples spends its time")
    parser.add_argument("--uploads", action="store_true", help="only measure how fast weights reach the device")
    parser.add_argument("--switches", action="store_true", help="only measure how long a model in memory takes to load")
    parser.add_argument("--attention", choices=["default", *kernels.ATTENTION], default="default", help="for all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {DTYPE}", flush=True)
    all_found = []
    for model in arguments.models:
        name, _, edge = model.partition(":")
        if arguments.profile:
            print(kernels.profile(name, int(edge)), flush=True)
            continue
        if arguments.uploads:
            print(json.dumps(uploads.measure(name), indent=1), flush=True)
            continue
        if arguments.switches:
            print(json.dumps(switches.measure(name), indent=1), flush=True)
            continue
        settings = arguments.steps, arguments.runs, not arguments.no_compile, arguments.compile_ours
        with kernels.attention(arguments.attention):
            found = measure(name, int(edge), *settings)
        print(json.dumps(found), flush=True)
        print(peak_lines(found), flush=True)
        all_found.append(found)
        # A run that is cut off keeps what it has.
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"device": torch.cuda.get_device_name(), "results": all_found}, indent=1)
            )
        if arguments.markdown:
            arguments.markdown.write_text(table(all_found) + "\n")
    if all_found:
        print(table(all_found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
