"""The C functions around the recurrence equal torch's, in the same bits for any number of threads."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lstmlm.kernels import arguments, native
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.native_pointwise import NativePointwise
from lstmlm.kernels.pointwise import Adam, Norm, Pointwise, Taught, TorchPointwise
from tests.helpers import assert_close

SIZES = [(1, 1, 1), (3, 2, 5), (4, 5, 16), (7, 3, 37), (6, 8, 70)]
WITHIN = 1e-5


@pytest.fixture(name="ours", scope="module")
def _ours() -> NativePointwise:
    try:
        return native.load("float32").pointwise
    except native.Unavailable as error:
        pytest.skip(str(error))


def normal(seed: int, *shape: int) -> Tensor:
    """Return float32 noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(ours: Pointwise, run: Callable[[Pointwise, torch.dtype], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what C and torch give, the latter in float64."""
    return run(ours, torch.float32), run(TorchPointwise(), torch.float64)


def agree(found: list[Tensor], expected: list[Tensor], within: float = WITHIN) -> None:
    """Compare lists of tensors."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one.double(), other.double(), f"result {index}", within)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("drop", [Dropout(0.4, seed=3, step=9, streams=11, first=2), None])
@pytest.mark.parametrize("normed", [True, False])
def test_norm_dropout_residual_and_back(
    ours: NativePointwise, size: tuple[int, int, int], residual: bool, drop: Dropout | None, normed: bool
) -> None:
    """Norm, dropout and residual, and their gradients."""
    T, B, S = size

    def run(pointwise: Pointwise, dtype: torch.dtype) -> list[Tensor]:
        y, x, dx, gamma, beta = (normal(i, *s).to(dtype) for i, s in enumerate([size, size, size, (S,), (S,)]))
        norm = Norm(gamma, beta, torch.ones(S, dtype=dtype), torch.ones(S, dtype=dtype)) if normed else None
        out, dy, stats = torch.empty_like(y), torch.empty_like(y), y.new_zeros(T, B, 2)
        pointwise.norm_dropout_residual(y, x if residual else None, norm, drop, 1, out, stats)
        pointwise.norm_dropout_residual_backward(dx, y, norm, drop, 1, dy, stats)
        # With one unit the deviation is zero: its reciprocal is 316, and rounding is all that is left of the rest.
        return [out] if S == 1 and normed else [out, dy, stats, *((norm.dgamma, norm.dbeta) if norm else ())]

    agree(*both(ours, run))


@pytest.mark.parametrize(("N", "V"), [(1, 1), (1, 2), (5, 3), (40, 16), (33, 65), (17, 300)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("weight", [None, 0.3, 1.0])
def test_loss(ours: NativePointwise, N: int, V: int, bias: bool, size: float, weight: float | None) -> None:
    """Nats, gradient of the logits and of the bias, with a teacher and without."""
    targets = torch.randint(V, (N,), generator=torch.Generator().manual_seed(0))

    def run(pointwise: Pointwise, dtype: torch.dtype) -> list[Tensor]:
        logits, b = (size * normal(1, N, V)).to(dtype), normal(2, V).to(dtype) if bias else None
        db = torch.ones(V, dtype=dtype) if bias else None
        taught = None if weight is None else Taught(normal(3, N, V).softmax(-1).to(dtype), weight)
        nats = pointwise.loss(logits, b, targets, 0.01, db, taught)
        return [torch.tensor([float(nats)]), logits, *([db] if db is not None else [])]

    agree(*both(ours, run))


@pytest.mark.parametrize(("N", "V", "width"), [(1, 1, 4), (50, 3, 20), (9, 40, 148), (200, 65, 4096)])
def test_scatter(ours: NativePointwise, N: int, V: int, width: int) -> None:
    """Rows are added by id, and to the bias; without ids only to the bias."""
    ids = torch.randint(V, (N,), generator=torch.Generator().manual_seed(0))

    def run(pointwise: Pointwise, dtype: torch.dtype) -> list[Tensor]:
        da = normal(1, N, width).to(dtype)
        dU, db, alone = (torch.ones(*shape, dtype=dtype) for shape in ((V, width), (width,), (width,)))
        pointwise.scatter(ids, da, dU, db)
        pointwise.scatter(ids, da, dU, None)
        pointwise.scatter(None, da, None, alone)
        return [dU, db, alone]

    agree(*both(ours, run), within=1e-4)


@pytest.mark.parametrize("n", [1, 15, 1000, 40_000])
def test_adam(ours: NativePointwise, n: int) -> None:
    """Three steps of AdamW with clipping: weights, moments, and a gradient of zero."""

    def run(pointwise: Pointwise, dtype: torch.dtype) -> list[Tensor]:
        weights, m, v = normal(0, n).to(dtype), torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
        gradient, average, squares = weights, torch.ones(n, dtype=dtype), []
        for step in (1, 2, 3):
            gradient = normal(step, n).to(dtype)
            squares.append(float(pointwise.squared(gradient)))
            assert pointwise.adam(weights, gradient, m, v, average, Adam(0.1, 0.9, 0.99, 1e-8, 0.3, step, 0.5, 0.25))
        return [weights, m, v, average, gradient, torch.tensor(squares)]

    agree(*both(ours, run), within=1e-4)


@pytest.mark.parametrize("pointwise", [None, TorchPointwise()], ids=["native", "torch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(ours: NativePointwise, pointwise: Pointwise | None, bad: float) -> None:
    """A loss, a gradient or a weight that is not finite shows at once, wherever it stands."""
    run = pointwise or ours
    for at in (0, 17, 99):
        logits, gradient, weights = normal(0, 10, 10), normal(1, 100), normal(2, 100)
        logits.view(-1)[at] = gradient[at] = weights[at] = bad
        targets = torch.zeros(10, dtype=torch.int64)

        assert not math.isfinite(run.loss(logits, None, targets, 1.0, None))
        assert not math.isfinite(run.squared(gradient))
        step = Adam(0.1, 0.9, 0.9, 1e-8, 0.0, 1, 1.0, 1.0)
        assert not run.adam(weights, normal(3, 100), torch.zeros(100), torch.zeros(100), None, step)


def test_threads_do_not_change_bits(ours: NativePointwise, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sum runs in the same order for one thread and for three."""
    T, B, S, V = 40, 5, 70, 65
    results = []
    for count in (1, 3):
        monkeypatch.setattr(arguments, "threads", lambda n=count: n)
        y, dx, dy, out = normal(0, T, B, S), normal(1, T, B, S), torch.empty(T, B, S), torch.empty(T, B, S)
        norm, stats = Norm(normal(2, S), normal(3, S), torch.zeros(S), torch.zeros(S)), torch.empty(T, B, 2)
        drop = Dropout(0.2, 0, 0, B)
        ours.norm_dropout_residual(y, None, norm, drop, 0, out, stats)
        ours.norm_dropout_residual_backward(dx, y, norm, drop, 0, dy, stats)
        logits, bias, db = normal(4, T * B, V), normal(5, V), torch.zeros(V)
        ids = torch.randint(V, (T * B,), generator=torch.Generator().manual_seed(6))
        nats = ours.loss(logits, bias, ids, 0.1, db)
        dU, dbias = torch.zeros(V, 4 * S), torch.zeros(4 * S)
        ours.scatter(ids, normal(7, T * B, 4 * S), dU, dbias)
        n = 50_000
        gradient, weights, m, v = normal(8, n), normal(9, n), torch.zeros(n), torch.zeros(n)
        square = ours.squared(gradient)
        ours.adam(weights, gradient, m, v, None, Adam(0.1, 0.9, 0.99, 1e-8, 0.1, 1, 0.5, 1.0))
        results.append(
            [out, dy, stats, norm.dgamma, norm.dbeta, logits, db, dU, dbias, weights, m, v, torch.tensor([nats, square])]
        )

    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_ids_out_of_the_table_are_refused(ours: NativePointwise) -> None:
    """The C code would follow them out of its memory."""
    for bad in (-1, 3):
        ids = torch.tensor([0, bad])
        with pytest.raises(ValueError, match="ids below 3"):
            ours.scatter(ids, torch.zeros(2, 4), torch.zeros(3, 4), None)
        with pytest.raises(ValueError, match="ids below 3"):
            ours.loss(torch.zeros(2, 3), None, ids, 1.0, None)
    with pytest.raises(TypeError, match="int64"):
        ours.scatter(torch.zeros(2, dtype=torch.int32), torch.zeros(2, 4), torch.zeros(3, 4), None)
