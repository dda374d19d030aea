"""Several recurrences in one call: each gives what it gives in a call of its own, wherever in memory it lies."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lstmlm import kernels
from lstmlm.kernels import MANY, Activations, Kernel
from lstmlm.kernels.eager import EagerKernel

UNTOUCHED = 7.0


class Chunks(NamedTuple):
    """M members of L layers each, layer l of which runs chunk k - l of c steps, with what lies around the chunks in memory.

    rooms: All that a call may see of each name: what no chunk covers holds `UNTOUCHED`.
    views: The diagonal of the chunks. (M, L, ...)
    """

    rooms: dict[str, Tensor]
    views: dict[str, Tensor]


def diagonal(room: Tensor, c: int, before: int) -> Tensor:
    """Return c steps of every layer, those of layer l beginning c steps before those of layer l - 1. (M, L, c, B, width)

    Args:
        room: (M, L, before + c L, B, width)
        c: Steps.
        before: Slots in front of the first step.
    """
    M, L, T, B, width = room.shape
    step = B * width
    strides = (L * T * step, (T - c) * step, step, width, 1)
    return room.as_strided((M, L, c, B, width), strides, (before + c * (L - 1)) * step)


def chunks(M: int, L: int, c: int, B: int, S: int, dtype: torch.dtype, *, bias: bool) -> Chunks:
    """Draw a problem."""
    generator = torch.Generator().manual_seed(M * 1000 + L * 100 + c * 10 + S)
    T = c * L

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    rooms, views = {}, {}
    for name, before, width in (("gates", 0, 4 * S), ("C", 1, S), ("H", 1, S), ("dH", 0, S)):
        rooms[name] = torch.full((M, L, before + T, B, width), UNTOUCHED, dtype=dtype)
        views[name] = diagonal(rooms[name], c, before)
        views[name].copy_(drawn(M, L, c, B, width))
    for name, what in (("C", "C_0"), ("H", "H_0")):
        row = diagonal(rooms[name], c, 0)[:, :, 0]
        views[what] = row.copy_(drawn(M, L, B, S).tanh())
    rooms["W"] = views["W"] = drawn(M, L, S, 4 * S) * 1.5 * S**-0.5
    # Gradients of a state lie layer by layer, members behind one another in each.
    rooms["dC_T"] = drawn(L, M, B, S)
    views["dC_T"] = rooms["dC_T"].transpose(0, 1)
    if bias:
        rooms["bias"] = drawn(L, 4 * S)
        views["bias"] = rooms["bias"].expand(M, L, 4 * S)
    return Chunks(rooms, views)


def together(kernel: Kernel, x: dict[str, Tensor], factors: torch.dtype | None = None) -> dict[str, Tensor]:
    """Run both passes of all recurrences in one call each, in the memory of the views."""
    W = x["W"] if factors is None else x["W"].to(factors)
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
        assert name not in before.rooms or torch.equal(problem.rooms[name], before.rooms[name]), name
    for name in ("gates", "C", "H"):
        problem.views[name].copy_(before.views[name])
        assert torch.equal(problem.rooms[name], before.rooms[name]), name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("M", "L"), [(2, 3), (1, 3), (3, 1), (1, 1)])
def test_eager_equals_calls_of_their_own(M: int, L: int, bias: bool) -> None:
    """Both passes of M x L recurrences on a diagonal of chunks are those of single calls, and write nothing but the diagonal."""
    before, problem = (chunks(M, L, 3, 4, 5, torch.float64, bias=bias) for _ in range(2))
    kernel = EagerKernel(side_by_side=MANY)

    found = together(kernel, problem.views)

    for name, value in apart(kernel, before.views).items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-12), name
    assert_only_the_diagonal_is_written(problem, before)


def test_eager_gives_new_memory_for_the_first_state() -> None:
    """The gradients of the first states lie side by side, and not where those of the last ones came in, however these lay."""
    x = chunks(2, 2, 2, 3, 4, torch.float64, bias=False).views
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
