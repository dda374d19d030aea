"""Which kernel is chosen for a device, and what is said where it cannot be had."""

from typing import Any

import pytest
import torch

from lstmlm import kernels
from lstmlm.errors import UsageError
from lstmlm.kernels import native
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from tests.helpers import normal


@pytest.fixture(autouse=True)
def _nothing_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSTMLM_KERNEL", raising=False)


@pytest.mark.parametrize(("device", "best"), [("cpu", "native"), ("cuda", "triton")])
def test_a_device_has_its_kernel(device: str, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrequested, a device gets the one made for it; where that is missing eager and a line why; a request is then refused."""
    made = EagerKernel()
    monkeypatch.setattr(kernels, "_load", lambda name, *_: made if name == best else None)
    assert kernels.choose("auto", device=device) == kernels.choose(best, device=device) == (made, "")

    def missing(*_: str) -> None:
        raise Unavailable("it is Sunday")

    monkeypatch.setattr(kernels, "_load", missing)
    kernel, why = kernels.choose("auto", device=device)
    assert isinstance(kernel, EagerKernel)
    assert why == f"kernel {kernel.name}: {best} is not available (it is Sunday)"
    with pytest.raises(UsageError, match=f"kernel {best}: .* it is Sunday"):
        kernels.choose(best, device=device)


def test_what_a_kernel_does_without_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where norm and dropout are torch's, though the kernel is Triton's, the line says so."""
    made = EagerKernel()
    made.note = "norm and dropout are torch's (it is Sunday)"  # type: ignore[attr-defined]  # Triton's has it
    monkeypatch.setattr(kernels, "_load", lambda *_: made)

    assert kernels.choose("auto", device="cuda") == (made, "norm and dropout are torch's (it is Sunday)")


@pytest.mark.parametrize("slower", [True, False])
def test_a_run_begins_with_the_quicker_and_keeps_it(slower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrequested, a run that begins takes eager where native is slower, and says so; one that goes on keeps what it began with,
    whatever is quicker now. Scores are native's in any case, and so is all that trains nothing.
    """
    try:
        made = native.load("float32")
    except Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr(native, "is_slower", lambda kernel, eager: slower)

    kernel, why = kernels.choose("auto", "float32", keep="")
    assert kernel.name == ("eager" if slower else made.name)
    assert why == (f"kernel eager: quicker here than {made.name}" if slower else "")
    for keep in ("eager", made.name):
        kernel, why = kernels.choose("auto", "float32", keep=keep)
        assert (kernel.name, why) == (keep, "")
        assert kernel.strict.name == made.name
    assert kernels.choose("auto", "float32")[0].name == made.name
    assert kernels.choose("native", "float32", keep="")[0].name == made.name
    assert kernels.choose("eager", "float32", keep=made.name)[0].name == "eager"


@pytest.mark.parametrize(("requested", "device"), [("native", "cuda"), ("triton", "cpu"), ("fast", "cpu")])
def test_a_kernel_of_another_device_is_refused(requested: str, device: str) -> None:
    """A kernel that cannot run there, and one that nobody knows, are usage errors that name it."""
    with pytest.raises(UsageError, match=requested):
        kernels.choose(requested, device=device)


@pytest.mark.parametrize(
    ("device", "precision", "fast"),
    [("cpu", "auto", False), ("cuda", "auto", True), ("cuda", "bfloat16", True), ("cuda", "float32", False)],
)
def test_products_are_rounded_only_where_that_was_allowed(
    device: str, precision: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA float32 means strict float32, and all else TF32; scores are strict, and so is all else."""
    kernel, _ = kernels.choose("eager", precision, device)
    seen: list[tuple[str, str]] = []
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision

    def spy(name: str) -> None:
        own = getattr(torch.Tensor, name)

        def seeing(*given: Any) -> Any:
            seen.append((name, switch.fp32_precision))
            return own(*given)

        monkeypatch.setattr(torch.Tensor, name, seeing)

    spy("addmm_")
    spy("__matmul__")
    for which in (kernel, kernel.strict):
        W, H, C = normal(2, 8), normal(3, 2), normal(3, 2)
        gates, C_, _ = which.forward(normal(4, 3, 8), W, H, C)
        which.backward(normal(4, 3, 2), C, gates, C_, C, W)
        which.product(W, W.t())
        which.pointwise.scatter(torch.tensor([1, 0, 1]), normal(3, 8), W, None)
        found = {precision == "tf32" for _, precision in seen}
        assert {name for name, _ in seen} == {"addmm_", "__matmul__"}
        assert found == {fast and which is kernel}
        seen.clear()
    assert switch.fp32_precision == before
    assert kernel.strict.name == "eager"
    with pytest.raises(RuntimeError):
        kernel.product(normal(2, 3), normal(2, 3))
    assert switch.fp32_precision == before
