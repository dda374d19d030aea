"""The bits of a result do not depend on where in a cache line its tensors begin."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, Rows, native
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.pointwise import Adam, Norm, Pointwise

FLOATS = range(1, 16)  # 4 to 60 bytes
Place = Callable[[Tensor], Tensor]

SIZES = [(7, 5, 9), (3, 2, 16), (2, 21, 37)]  # T, B, S


@pytest.fixture(scope="module", params=["eager", "float32", "auto"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Return each of the kernels that run on the CPU."""
    try:
        return EagerKernel() if request.param == "eager" else native.load(request.param)
    except native.Unavailable as error:
        pytest.skip(str(error))


def moved(floats: int) -> Place:
    """Return what copies a tensor to so many floats behind a multiple of 64 bytes."""

    def place(x: Tensor) -> Tensor:
        unit = 4 // x.element_size() or 1
        memory = torch.empty(x.numel() + 16 * unit, dtype=x.dtype)
        begin = (-memory.data_ptr() // x.element_size()) % (64 // x.element_size())
        there = memory[begin + floats * unit :][: x.numel()].view(x.shape)
        assert (there.data_ptr() - 4 * floats * (x.element_size() // 4 or 1)) % 64 == 0
        return there.copy_(x)

    return place


def same_bits(run: Callable[[Place], list[Tensor]]) -> list[int]:
    """Return the shifts, in floats, at which the results have other bits."""
    expected = run(moved(0))
    return [
        floats
        for floats in FLOATS
        if not all(torch.equal(one, other) for one, other in zip(run(moved(floats)), expected, strict=True))
    ]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw tensors, the same ones in each call."""
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("table", [True, False])
def test_recurrence(kernel: Kernel, size: tuple[int, int, int], table: bool) -> None:
    """Forward and back, from a table or from a product, with a bias."""
    T, B, S = size
    shapes: list[tuple[int, ...]] = [(T, B, 4 * S), (S, 4 * S), (B, S), (B, S), (T, B, S), (B, S), (4 * S,), (11, 4 * S)]
    ids = torch.arange(T * B).view(T, B) % 11

    def run(place: Place) -> list[Tensor]:
        a, W, H_0, C_0, dH, dC, bias, U = map(place, drawn(*shapes))
        into = Activations(a, *(place(torch.zeros(T, B, S)) for _ in range(2)))
        gates, C, H = kernel.forward(Rows(place(ids), U) if table else a, W, H_0, C_0, bias=bias, into=into)
        forward = [x.clone() for x in (gates, C, H)]
        return [*forward, *kernel.backward(dH, dC, gates, C, C_0, W)]

    assert same_bits(run) == []


@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (3, 7, 9), (9, 36, 35), (35, 5, 9), (14, 65, 130)])
@pytest.mark.parametrize("turned_A", [True, False])
@pytest.mark.parametrize("turned_B", [True, False])
def test_product(kernel: Kernel, M: int, N: int, K: int, turned_A: bool, turned_B: bool) -> None:
    """A product, written or added, of factors as they are or turned."""

    def run(place: Place) -> list[Tensor]:
        A, B, out = drawn((M, K), (K, N), (M, N))
        A = place(A.t().contiguous()).t() if turned_A else place(A)
        B = place(B.t().contiguous()).t() if turned_B else place(B)
        return [kernel.product(A, B), *(kernel.product(A, B, place(out), add=add) for add in (True, False))]

    assert same_bits(run) == []


@pytest.mark.parametrize("size", SIZES)
def test_pointwise(kernel: Kernel, size: tuple[int, int, int]) -> None:
    """Norm, dropout and residual, the loss, the rows of a table, the norm of a gradient and AdamW."""
    T, B, S = size
    V = S + 11
    pointwise: Pointwise = kernel.pointwise
    ids = torch.arange(T * B) % 11
    drop = Dropout(0.4, seed=3, step=9, streams=B + 3, first=2)

    def run(place: Place) -> list[Tensor]:
        y, x, dx, out, dy = map(place, drawn(*[size] * 5))
        gamma, beta, dgamma, dbeta = map(place, drawn(*[(S,)] * 4))
        norm, stats = Norm(gamma, beta, dgamma, dbeta), place(torch.zeros(T, B, 2))
        pointwise.norm_dropout_residual(y, x, norm, drop, 1, out, stats)
        pointwise.norm_dropout_residual_backward(dx, y, norm, drop, 1, dy, stats)
        logits, da, dU, bias, dbias, db = map(place, drawn((T * B, V), (T * B, 4 * S), (11, 4 * S), (V,), (V,), (4 * S,)))
        nats = pointwise.loss(logits, bias, place(ids), 0.01, dbias)
        pointwise.scatter(place(ids), da, dU, db)
        weights, gradient, mean, square, average = map(place, drawn(*[(T * B * S,)] * 5))
        square.abs_()
        norms = pointwise.squared(gradient)
        pointwise.adam(weights, gradient, mean, square, average, Adam(0.1, 0.9, 0.99, 1e-8, 0.01, 3, 0.5, 0.2))
        numbers: list[Any] = [nats, norms]
        return [
            *(torch.as_tensor(number, dtype=torch.float64) for number in numbers),
            *(out, stats, dy, dgamma, dbeta, logits, dbias, dU, db, weights, gradient, mean, square, average),
        ]

    assert same_bits(run) == []
