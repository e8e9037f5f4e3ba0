"""A compiled denoiser comes beside the work, gives the same pictures, and its failure changes nothing."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from calotype_worker.compiling import Compiler
from calotype_worker.wire import down, up

from . import tiny
from .desk import Desk, folder_spec, generate, psnr


def desk_of(monkeypatch: pytest.MonkeyPatch, folder: Path, backend: Any) -> Desk:
    monkeypatch.setattr(Compiler, "backend", staticmethod(backend))
    desk = Desk()
    spec = folder_spec("sd", tiny.saved(tiny.sd(), folder))
    desk.tell(down.Load(load="l", model=spec, dtype="f32", budget_bytes=0, plan=down.LoadPlan(compile=True)))
    assert desk.loop.models, desk.said[-1]
    return desk


def pictures(desk: Desk, seeds: list[int]) -> tuple[list[Any], list[str] | None]:
    jobs = []
    for seed in seeds:
        work, blobs = generate([seed], model="sd", edge=32, scale=2, steps=2)
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    return [desk.picture(job) for job in jobs], desk.result(jobs[0])[0].plan


def test_a_compiled_denoiser_takes_over_serves_all_batches_and_leaves_with_its_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled: list[int] = []
    runs: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))

        def run(*arguments: Any) -> Any:
            runs.append(1)
            return graph.forward(*arguments)

        return run

    desk = desk_of(monkeypatch, tmp_path, counting)
    expected = pictures(desk, [1, 2, 3])[0]
    desk.loop.stepper.graphs.compiler.wait()
    assert len(compiled) == 1, desk.all(up.Log)
    for count in (1, 2, 3):
        runs.clear()
        ours, plan = pictures(desk, [1, 2, 3][:count])
        assert plan == ["compiled"]
        assert len(runs) == 2
        assert all(psnr(a, b) >= 50 for a, b in zip(ours, expected))
    assert len(compiled) == 1
    assert any("is compiled" in message.message for message in desk.all(up.Log))

    references = [weakref.ref(part) for part in desk.loop.family("sd").denoiser.modules()]
    desk.tell(down.Unload(unload="u"))
    gc.collect()
    assert [reference() for reference in references if reference() is not None] == []


def test_a_failing_compiler_is_said_once_and_work_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    desk = desk_of(monkeypatch, tmp_path, broken)
    for _ in range(3):
        assert pictures(desk, [1])[1] is None
        desk.loop.stepper.graphs.compiler.wait()
    told = [message.message for message in desk.all(up.Log) if message.level == "warn"]
    assert len(told) == 1
    assert "no compiler here" in told[0]
    torch.compiler.reset()
