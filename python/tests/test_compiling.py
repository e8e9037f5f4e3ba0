"""A compiled denoiser comes beside the work, gives the same pictures, and its failure changes nothing."""

from typing import Any

import pytest
import torch

from calotype_worker.compiling import Compiler
from calotype_worker.wire import down, up

from .desk import TINY, Desk, folder_spec, generate, psnr


def desk_of(monkeypatch: pytest.MonkeyPatch, backend: Any) -> Desk:
    monkeypatch.setattr(Compiler, "backend", staticmethod(backend) if callable(backend) else backend)
    desk = Desk()
    plan = down.LoadPlan(compile=True)
    desk.tell(down.Load(load="l", model=folder_spec("calotype-tiny", TINY), dtype="f32", budget_bytes=0, plan=plan))
    assert desk.loop.models, desk.said[-1]
    return desk


def pictures(desk: Desk, seeds: list[int]) -> tuple[list[Any], list[str]]:
    jobs = []
    for seed in seeds:
        work, blobs = generate([seed])
        jobs.append(desk.run(work, *blobs))
    desk.finish()
    return [desk.picture(job) for job in jobs], desk.result(jobs[0])[0].plan or []


def test_a_compiled_denoiser_takes_over_and_one_compilation_serves_all_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    desk = desk_of(monkeypatch, counting)
    expected, plan = pictures(desk, [1, 2])
    assert plan == []
    desk.loop.stepper.graphs.compiler.wait()
    compiled = len(graphs)
    assert compiled == 1, desk.all(up.Log)
    for seeds in ([1], [1, 2], [1, 2, 3]):
        ours, plan = pictures(desk, seeds)
        assert plan == ["compiled"]
        assert all(psnr(a, b) >= 50 for a, b in zip(ours, expected))
    assert len(graphs) == compiled
    assert any("is compiled" in message.message for message in desk.all(up.Log))
    desk.tell(down.Unload(unload="u"))


def test_a_failing_compiler_is_said_once_and_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    desk = desk_of(monkeypatch, broken)
    for _ in range(2):
        assert pictures(desk, [1])[1] == []
        desk.loop.stepper.graphs.compiler.wait()
    pictures(desk, [1])
    told = [message.message for message in desk.all(up.Log) if message.level == "warn"]
    assert len(told) == 1
    assert "no compiler here" in told[0]
    torch.compiler.reset()
