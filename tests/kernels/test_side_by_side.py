"""Several recurrences in one call: each gives what it gives in a call of its own, wherever in memory it lies."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lstmlm import kernels
from lstmlm.kernels import MANY, Activations, Kernel
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_tiles import Chip, tiles
from lstmlm.training.backprop import Backprop
from tests.helpers import small_model
from tests.kernels.test_persistent import CUDA, DEVICE, H200, Cut, prepared, with_triton

UNTOUCHED = 7.0


class Chunks(NamedTuple):
    """M members of L layers each, layer l of which runs chunk k - l of c steps, with what lies around the chunks in memory.

    buffers: All that a call may see of each name: what no chunk covers holds `UNTOUCHED`.
    views: The diagonal of the chunks. (M, L, ...)
    """

    buffers: dict[str, Tensor]
    views: dict[str, Tensor]


def staggered(buffer: Tensor, c: int, before: int) -> Tensor:
    """Return c steps of every layer, those of layer l beginning c steps before those of layer l - 1. (M, L, c, B, width)

    Args:
        buffer: (M, L, before + c L, B, width)
        c: Steps.
        before: Slots in front of the first step.
    """
    M, L, T, B, width = buffer.shape
    step = B * width
    strides = (L * T * step, (T - c) * step, step, width, 1)
    return buffer.as_strided((M, L, c, B, width), strides, (before + c * (L - 1)) * step)


def chunks(M: int, L: int, c: int, B: int, S: int, *, bias: bool, dtype: torch.dtype, device: str = "cpu") -> Chunks:
    """Draw a problem."""
    generator = torch.Generator().manual_seed(M * 1000 + L * 100 + c * 10 + S)
    T = c * L

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)

    buffers, views = {}, {}
    for name, before, width in (("gates", 0, 4 * S), ("C", 1, S), ("H", 1, S), ("dH", 0, S)):
        buffers[name] = torch.full((M, L, before + T, B, width), UNTOUCHED, dtype=dtype, device=device)
        views[name] = staggered(buffers[name], c, before)
        views[name].copy_(drawn(M, L, c, B, width))
    for name, what in (("C", "C_0"), ("H", "H_0")):
        row = staggered(buffers[name], c, 0)[:, :, 0]
        views[what] = row.copy_(drawn(M, L, B, S).tanh())
    buffers["W"] = views["W"] = drawn(M, L, S, 4 * S) * 1.5 * S**-0.5
    # Gradients of a state lie layer by layer, members behind one another in each.
    buffers["dC_T"] = drawn(L, M, B, S)
    views["dC_T"] = buffers["dC_T"].transpose(0, 1)
    if bias:
        buffers["bias"] = drawn(L, 4 * S)
        views["bias"] = buffers["bias"].expand(M, L, 4 * S)
    return Chunks(buffers, views)


def together(kernel: Kernel, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run both passes of all recurrences in one call each, in the memory of the views."""
    W = x["W"].to(kernel.factors or x["W"].dtype)
    into = Activations(x["gates"], x["C"], x["H"])
    assert kernel.forward(x["gates"], W, x["H_0"], x["C_0"], bias=x.get("bias"), into=into) is not None
    found = {name: x[name].clone() for name in ("gates", "C", "H")}
    da, found["dH_0"], found["dC_0"] = kernel.backward(x["dH"], x["dC_T"], x["gates"], x["C"], x["C_0"], W)
    assert da.data_ptr() == x["gates"].data_ptr()
    return {**found, "da": da.clone()}


def apart(kernel: Kernel, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what calls for one recurrence each give."""
    M, L = x["W"].shape[:2]
    all_found: dict[str, list[Tensor]] = {}
    for m in range(M):
        for layer in range(L):
            one = {name: part[m, layer].clone() for name, part in x.items()}
            gates, C, H = kernel.forward(one["gates"], one["W"], one["H_0"], one["C_0"], bias=one.get("bias"))
            kept = gates.clone()
            da, dH_0, dC_0 = kernel.backward(one["dH"], one["dC_T"], gates, C, one["C_0"], one["W"])
            found = {"gates": kept, "C": C, "H": H, "dH_0": dH_0, "dC_0": dC_0, "da": da}
            for name, part in found.items():
                all_found.setdefault(name, []).append(part)
    return {name: torch.stack(parts).view(M, L, *parts[0].shape) for name, parts in all_found.items()}


def assert_only_the_diagonal_is_written(problem: Chunks, before: Chunks) -> None:
    """Compare what the call only reads, and what lies between the chunks, with how it was."""
    for name in ("W", "dH", "dC_T", "bias"):
        assert name not in before.buffers or torch.equal(problem.buffers[name], before.buffers[name]), name
    for name in ("gates", "C", "H"):
        problem.views[name].copy_(before.views[name])
        assert torch.equal(problem.buffers[name], before.buffers[name]), name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("M", "L"), [(2, 3), (1, 3), (3, 1), (1, 1)])
def test_eager_equals_calls_of_their_own(M: int, L: int, bias: bool) -> None:
    """Both passes of M x L recurrences on a diagonal of chunks are those of single calls, and write nothing but the diagonal."""
    before, problem = (chunks(M, L, 3, 4, 5, bias=bias, dtype=torch.float64) for _ in range(2))
    kernel = EagerKernel(side_by_side=MANY)

    found = together(kernel, problem.views)

    for name, value in apart(kernel, before.views).items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-12), name
    assert_only_the_diagonal_is_written(problem, before)


def test_eager_gives_new_memory_for_the_first_state() -> None:
    """The gradients of the first states lie side by side, and not where those of the last ones came in, however these lay."""
    x = chunks(2, 2, 2, 3, 4, bias=False, dtype=torch.float64).views
    for dC_T in (x["dC_T"], torch.zeros((), dtype=torch.float64).expand(2, 2, 3, 4)):
        copy = dC_T.clone()

        _, dH_0, dC_0 = EagerKernel(side_by_side=MANY).backward(x["dH"], dC_T, x["gates"], x["C"], x["C_0"], x["W"])

        assert dH_0.is_contiguous()
        assert dC_0.is_contiguous()
        assert torch.equal(dC_T, copy)


@pytest.mark.parametrize(("device", "count"), [("cpu", 1), ("cuda", MANY)])
def test_what_eager_is_worth(device: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU a recurrence has a call and the bits of its own; on a device many share the calls, for scores too."""
    monkeypatch.delenv("LSTMLM_KERNEL", raising=False)
    for precision in ("auto", "float32"):
        kernel, _ = kernels.choose("eager", precision, device)

        assert kernel.side_by_side(64, 512) == kernel.strict.side_by_side(64, 512) == count
        assert kernel.factors is kernel.strict.factors is None


@with_triton
@pytest.mark.parametrize(
    ("precision", "M", "L", "B", "bias"),
    [("float32", 2, 2, 17, True), ("bfloat16", 2, 2, 3, True), ("float32", 1, 2, 3, False), ("bfloat16", 2, 1, 17, False)],
)
def test_triton_equals_calls_of_their_own(
    precision: str, M: int, L: int, B: int, bias: bool, loaded: dict[str, PersistentKernel], cut: Cut
) -> None:
    """Cut up alike, M x L recurrences have the bits of single calls, and nothing but the diagonal is written."""
    cut(together=CUDA)
    before, problem = (chunks(M, L, 2, B, 18, bias=bias, dtype=torch.float32, device=DEVICE) for _ in range(2))
    kernel = loaded[precision]

    found = together(kernel, problem.views)

    for name, value in apart(kernel, before.views).items():
        assert torch.equal(found[name], value), name
    assert_only_the_diagonal_is_written(problem, before)


@with_triton
def test_triton_as_it_cuts_itself(loaded: dict[str, PersistentKernel]) -> None:
    """With tiles chosen for so many on this machine, the results are eager's to float32's rounding."""
    before, problem = (chunks(1, 3, 2, 3, 7, bias=True, dtype=torch.float32, device=DEVICE) for _ in range(2))

    found = together(loaded["float32"], problem.views)

    exact = apart(EagerKernel(), {name: view.double() for name, view in before.views.items()})
    for name, value in exact.items():
        assert torch.allclose(found[name].double(), value, rtol=0, atol=1e-5), name


@with_triton
@pytest.mark.parametrize(("precision", "within", "cosine"), [("float32", 1e-5, 1 - 1e-9), ("bfloat16", 3e-2, 0.999)])
def test_triton_runs_layers_as_a_wavefront(
    precision: str, within: float, cosine: float, loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole step with two layers side by side has eager's loss and gradients, to the rounding of the products."""
    calls, kernel, model, T, B = [], loaded[precision], small_model(hidden=9), 16, 2
    forward = kernel.forward

    def noted(a: Tensor, W: Tensor, *given: Any, **options: Any) -> Activations:
        calls.append((*W.shape[:-2], W.dtype))
        return forward(a, W, *given, **options)

    monkeypatch.setattr(PersistentKernel, "side_by_side", lambda *_: 2)
    monkeypatch.setattr(kernel, "forward", noted)
    slow, fast = prepared(model, EagerKernel(), torch.float64, "cpu"), prepared(model, kernel, torch.float32, DEVICE)
    ids = torch.randint(11, (T + 1, B))

    expected, _ = Backprop(slow, B, T)(ids[:-1], ids[1:], slow.initial_state(B), 1.0)
    found, _ = Backprop(fast, B, T)(ids[:-1].to(DEVICE), ids[1:].to(DEVICE), fast.initial_state(B), 1.0)

    assert (1, 2, kernel.factors or torch.float32) in calls
    assert float(found) == pytest.approx(float(expected), rel=within)
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert functional.cosine_similarity(p.grad.flatten(), q.grad.double().cpu().flatten(), dim=0) > cosine, name


@with_triton
def test_triton_refuses_what_is_not_contiguous_behind(loaded: dict[str, PersistentKernel]) -> None:
    """What the device code would misread is refused in a line; so is another number of dimensions in front."""
    kernel, x = loaded["float32"], chunks(2, 2, 2, 3, 4, bias=True, dtype=torch.float32, device=DEVICE).views

    def forward(**changes: Tensor) -> None:
        y = {**x, **changes}
        kernel.forward(y["gates"], y["W"], y["H_0"], y["C_0"], bias=y["bias"], into=Activations(y["gates"], y["C"], y["H"]))

    def backward(**changes: Tensor) -> None:
        y = {**x, **changes}
        kernel.backward(y["dH"], y["dC_T"], y["gates"], y["C"], y["C_0"], y["W"])

    for name in ("gates", "C", "H", "C_0", "W", "bias"):
        wide = torch.stack([x[name]] * 2, dim=-1)[..., 0]
        with pytest.raises(ValueError, match=rf"^{name}: expected contiguous \(.*\) of float32, 2 x 2 of them, found [^\n]*$"):
            forward(**{name: wide})
    for name in ("dH", "dC_T", "gates", "C", "C_0", "W"):
        wide = torch.stack([x[name]] * 2, dim=-1)[..., 0]
        with pytest.raises(ValueError, match=rf"^{name}: expected contiguous \(.*\) of float32, 2 x 2 of them, found [^\n]*$"):
            backward(**{name: wide})
    with pytest.raises(ValueError, match=r"^C: expected"):
        forward(C=x["C"][:, :1])
    with pytest.raises(ValueError, match=r"^W: expected"):
        forward(W=x["W"].bfloat16())
    with pytest.raises(ValueError, match=r"^gates: .* one or M x L of them"):
        kernel.forward(x["gates"][0], x["W"][0], x["H_0"][0], x["C_0"][0])
    into = Activations(x["gates"].transpose(0, 1), x["C"], x["H"])
    with pytest.raises(ValueError, match=r"^gates: expected the memory of a"):
        kernel.forward(x["gates"], x["W"], x["H_0"], x["C_0"], into=into)


@with_triton
@pytest.mark.parametrize(
    ("chip", "B", "S", "count"),
    [(H200, 64, 512, 8), (H200, 64, 1024, 2), (H200, 64, 4096, 1), (Chip(0, 232_448), 64, 512, 1)],
    ids=str,
)
def test_what_triton_is_worth(chip: Chip, B: int, S: int, count: int) -> None:
    """As many as run at once with their weights on chip, and no more."""
    kernel = PersistentKernel(torch.bfloat16, chip)

    assert kernel.side_by_side(B, S) == count
    for more in range(count + 1, MANY + 1):
        assert not all(cut.together and cut.kept for cut in (tiles(B, S, K, 2, chip, more) for K in (S, 4 * S)))


@with_triton
def test_what_triton_keeps(loaded: dict[str, PersistentKernel]) -> None:
    """Weights are best kept as rounded products take them; where programs cannot wait, one recurrence is worth a call."""
    assert loaded["bfloat16"].factors == torch.bfloat16
    assert loaded["float32"].factors is None
    assert CUDA or loaded["bfloat16"].side_by_side(64, 512) == 1
    assert PersistentKernel(torch.bfloat16, Chip(10**6, 232_448)).side_by_side(1, 16) == MANY
    assert PersistentKernel(torch.float32, H200).side_by_side(64, 512) > 1
