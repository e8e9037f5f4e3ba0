"""The kernels compute exact numbers, in Triton's interpreter; where they do not serve, it is known why."""

import pytest
import torch

from calotype_worker.kernels import serve

from .conftest import assert_in_tritons_interpreter


def test_the_kernels_agree_with_exact_numbers_in_tritons_interpreter() -> None:
    assert_in_tritons_interpreter("tests.exact_kernels", "exact")


class _OnADevice(torch.Tensor):
    """A tensor of the host that calls itself a device's."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def _fails(error: Exception) -> torch.Tensor:
    raise error


def test_a_kernel_that_does_not_build_is_replaced_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_kernels", serve._Kernels())
    serve._kernels.problem = None
    input, plain = torch.ones(2).as_subclass(_OnADevice), torch.zeros(2)
    built: list[int] = []

    def fused() -> torch.Tensor:
        built.append(1)
        return _fails(RuntimeError("no C compiler"))

    for _ in range(2):
        assert serve.computed(input, fused, lambda: plain) is plain
    assert len(built) == 1
    assert serve.problem() == "RuntimeError: no C compiler"


def test_missing_memory_is_no_problem_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_kernels", serve._Kernels())
    serve._kernels.problem = None
    input = torch.ones(2).as_subclass(_OnADevice)
    with pytest.raises(torch.OutOfMemoryError):
        serve.computed(input, lambda: _fails(torch.OutOfMemoryError("full")), lambda: input)
    assert serve.problem() is None


def test_a_tensor_of_the_host_is_computed_by_pytorch() -> None:
    assert serve.computed(torch.ones(1), lambda: "kernel", lambda: "pytorch") == "pytorch"
