"""Norm, dropout and residual in Triton, tied to torch's: on a CUDA device where there is one, else in Triton's interpreter."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lstmlm
from lstmlm.kernels import fused
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.fused import TritonPointwise
from lstmlm.kernels.pointwise import Norm, TorchPointwise
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.training.backprop import Backprop
from tests.helpers import small_model

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when it is imported, whoever does that first, and again when it is used
ROOT = Path(lstmlm.__file__).parents[1]
WITHIN = 1e-6

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: it is made for Linux on x86-64")

# Sizes, and how they are cut up: values of a tile, programs that share the rows, and parts added at a time. Rows that do and do
# not fill their columns; more rows than a tile has and fewer; programs with several tiles and with one.
CASES: list[tuple[tuple[int, int, int], tuple[int, int, int]]] = [
    ((1, 1, 1), (2048, 512, 128)),
    ((5, 3, 1), (4, 2, 2)),
    ((3, 2, 7), (2048, 512, 128)),
    ((7, 3, 7), (16, 3, 2)),
    ((4, 5, 37), (64, 3, 2)),
    ((2, 17, 37), (2048, 512, 128)),
    ((3, 3, 64), (256, 512, 128)),
    ((2, 5, 130), (128, 4, 1)),
]
DROP = Dropout(0.4, seed=3, step=9, streams=11, first=2, weights=0.3)
Cut = Callable[[tuple[int, int, int]], None]


@pytest.fixture(name="ours", scope="module")
def _ours() -> TritonPointwise:
    return TritonPointwise(DEVICE)


@pytest.fixture(name="cut")
def _cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Return what makes all launches be cut up as it is asked for."""

    def ask(requested: tuple[int, int, int]) -> None:
        monkeypatch.setattr(fused, "TILE", requested[0])
        monkeypatch.setattr(fused, "PARTS", requested[1])
        monkeypatch.setattr(fused, "GATHERED", (requested[2], 16))

    return ask


def normal(seed: int, *shape: int) -> Tensor:
    """Return float32 noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pointed(drop: Dropout, layers: int = 2) -> Dropout:
    """Return the same dropout with its words in a tensor on the device."""
    return drop.reading(torch.tensor(drop.words(layers)).to(DEVICE))


def of(kind: str) -> Dropout | None:
    """Return a dropout whose words are numbers or tensors, or none."""
    return {"no": None, "numbers": DROP, "tensors": pointed(DROP)}[kind]


def agree(found: list[Tensor], expected: list[Tensor]) -> None:
    """Compare with float64, to the largest value; where that is zero, as with one unit, torch itself leaves some 1e-14."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        difference = float((one.cpu().double() - other.cpu().double()).abs().max())
        assert difference <= WITHIN * max(1e-3, float(other.abs().max())), f"result {index} is off by {difference:.2g}"


def both_ways(
    pointwise: TorchPointwise,
    size: tuple[int, int, int],
    drop: Dropout | None,
    *,
    residual: bool = True,
    normed: bool = True,
    dtype: torch.dtype = torch.float32,
    bad: tuple[int, int, int, int] | None = None,
) -> list[Tensor]:
    """Return out, dy, and with a norm stats, dgamma and dbeta; `bad` tells where in y, x or dx a NaN is."""
    T, B, S = size
    inputs = [normal(i, *size) for i in range(3)]
    if bad is not None:
        inputs[bad[0]][bad[1:]] = float("nan")
    y, x, dx = (part.to(DEVICE, dtype) for part in inputs)
    norm = Norm(*(normal(3 + i, S).to(DEVICE, dtype) for i in range(4))) if normed else None
    out, dy, stats = torch.empty_like(y), torch.empty_like(y), y.new_zeros(T, B, 2)
    pointwise.norm_dropout_residual(y, x if residual else None, norm, drop, 1, out, stats)
    pointwise.norm_dropout_residual_backward(dx, y, norm, drop, 1, dy, stats)
    return [out, dy, *((stats, norm.dgamma, norm.dbeta) if norm else ())]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "requested"), CASES, ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", ["no", "numbers", "tensors"])
@pytest.mark.parametrize("normed", [True, False])
def test_norm_dropout_residual_and_back(
    ours: TritonPointwise,
    size: tuple[int, int, int],
    requested: tuple[int, int, int],
    residual: bool,
    kind: str,
    normed: bool,
    cut: Cut,
) -> None:
    """Norm, dropout and residual, and their gradients, are torch's in float64 to 1e-6 of the largest value."""
    cut(requested)
    how: dict[str, Any] = {"residual": residual, "normed": normed}

    found = both_ways(ours, size, of(kind), **how)

    agree(found, both_ways(TorchPointwise(), size, of(kind), dtype=torch.float64, **how))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
@pytest.mark.parametrize(
    ("size", "streams", "first", "layer"), [((4, 5, 7), 5, 0, 0), ((3, 2, 131), 2**31 - 9, 2**31, 1), ((35, 1, 13), 2**27, 5, 0)]
)
def test_the_mask_has_the_same_bits(
    ours: TritonPointwise,
    size: tuple[int, int, int],
    streams: int,
    first: int,
    layer: int,
    rate: float,
    kind: str,
    cut: Cut,
) -> None:
    """What is dropped is what `Dropout.mask` says, to the last bit, forward and back, also where positions pass 2^32."""
    cut((64, 3, 2))
    drop = Dropout(rate, seed=2**62 + 4, step=5, streams=streams, first=first)  # layer 1 has a key beyond 2^31
    ones = torch.ones(size, device=DEVICE)
    expected = drop.mask(layer, ones)
    drop = pointed(drop) if kind == "tensors" else drop
    out, dx, S = torch.empty_like(ones), torch.empty_like(ones), size[-1]

    ours.norm_dropout_residual(ones, None, None, drop, layer, out, ones)
    ours.norm_dropout_residual_backward(ones, ones, None, drop, layer, dx, ones)

    assert torch.equal(out, expected)
    assert torch.equal(dx, expected)
    for t, b in ((0, 0), (size[0] - 1, size[1] - 1)):  # one row alone, so that dbeta is what has come through
        norm = Norm(*(torch.zeros(S, device=DEVICE) for _ in Norm._fields))
        row, there = ones[:1, :1].contiguous(), replace(drop, first=drop.first + t * streams + b)
        ours.norm_dropout_residual_backward(
            row, row, norm, there, layer, torch.empty_like(row), torch.zeros(1, 1, 2, device=DEVICE)
        )
        assert torch.equal(norm.dbeta, expected[t, b])


def test_what_is_dropped_ends_below_the_threshold(ours: TritonPointwise) -> None:
    """A value whose hash is the threshold stays, and one whose hash is the next lower number is dropped."""
    one = torch.ones(1, 1, 1, device=DEVICE)
    for seed in range(4):
        drop = Dropout(0.5, seed, step=0, streams=1)
        low, high = 0, 2**32  # the hash is at least the one, and below the other
        while high - low > 1:
            middle = (low + high) // 2
            stays = bool((replace(drop, rate=middle / 2**32).mask(0, one) > 0).all())
            low, high = (middle, high) if stays else (low, middle)
        for threshold in (low, low + 1):
            out, exact = torch.empty_like(one), replace(drop, rate=threshold / 2**32)
            ours.norm_dropout_residual(one, None, None, exact, 0, out, one)
            assert torch.equal(out, exact.mask(0, one))
            assert bool((out > 0).all()) == (threshold == low)


@pytest.mark.parametrize("kind", ["numbers", "tensors"])
@pytest.mark.parametrize("S", [1, 5, 12])
def test_the_dropout_of_weights(ours: TritonPointwise, S: int, kind: str, cut: Cut) -> None:
    """A matrix seen as rows of one stream is dropped in torch's bits, with what is no memory of statistics in that place."""
    cut((32, 3, 2))
    drop = of(kind)
    assert drop is not None
    weights, d = (normal(i, S, 1, 4 * S).to(DEVICE) for i in range(2))
    results = []
    for pointwise in (ours, TorchPointwise()):
        dropped, dW = weights.new_full((2, S, 1, 4 * S), 7.0)
        pointwise.norm_dropout_residual(weights, None, None, drop.of_weights(), 1, dropped, dropped[0])
        pointwise.norm_dropout_residual_backward(d, d, None, drop.of_weights(), 1, dW, dW[0])
        results.append((dropped, dW))

    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert S == 1 or bool((results[0][0] == 0).any())


@pytest.mark.slow
def test_the_same_bits_each_time(ours: TritonPointwise, cut: Cut) -> None:
    """Equal calls give equal bits, sums over rows among them, whatever was in the memory that is taken for parts."""
    cut((64, 5, 4))
    size = (9, 5, 37)
    first = both_ways(ours, size, DROP)
    torch.use_deterministic_algorithms(True)  # then new memory is full of NaN
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        for _ in range(100 if CUDA else 1):
            again = both_ways(ours, size, pointed(DROP))
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("tile", [2048, 16])
def test_writes_only_where_it_may(ours: TritonPointwise, normed: bool, tile: int, cut: Cut) -> None:
    """What lies around the results in memory, and everything that is only read, comes out as it went in."""
    cut((tile, 3, 2))
    T, B, S = 5, 3, 13
    y, x, dx = (normal(i, T, B, S).to(DEVICE) for i in range(3))
    out, dy = (torch.full((T + 2, B, S), 7.0, device=DEVICE) for _ in range(2))
    stats = torch.full((T + 2, B, 2), 7.0, device=DEVICE)
    sums = torch.full((2, S + 2), 7.0, device=DEVICE)
    gamma, beta = normal(3, 2, S).to(DEVICE)
    words = torch.tensor(DROP.words(2)).to(DEVICE)
    kept = y, x, dx, gamma, beta, words
    copies = [part.clone() for part in kept]
    norm = Norm(gamma, beta, sums[0, 1:-1], sums[1, 1:-1]) if normed else None

    ours.norm_dropout_residual(y, x, norm, DROP.reading(words), 1, out[1:-1], stats[1:-1])
    ours.norm_dropout_residual_backward(dx, y, norm, DROP.reading(words), 1, dy[1:-1], stats[1:-1])

    assert all(bool((buffer[[0, -1]] == 7).all()) for buffer in (out, dy, stats, sums.t()))
    assert all(bool((buffer == 7).all()) == (not normed) for buffer in (stats, sums))
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


@pytest.mark.parametrize("place", [(1, 2, 5), (3, 0, 12)])
@pytest.mark.parametrize("normed", [True, False])
def test_nan_is_not_hidden(ours: TritonPointwise, place: tuple[int, int, int], normed: bool, cut: Cut) -> None:
    """A NaN is seen where torch shows it and nowhere else, also where dropout drops it."""
    cut((64, 3, 2))
    for drop in (None, DROP, replace(DROP, rate=0.999)):
        for which in range(3):
            found = both_ways(ours, (4, 3, 13), drop, normed=normed, bad=(which, *place))
            expected = both_ways(TorchPointwise(), (4, 3, 13), drop, normed=normed, bad=(which, *place))

            assert any(bool(part.isnan().any()) for part in found)
            assert all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("reason", ["type", "width", "device", "empty"])
def test_the_rest_is_left_to_torch(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another type, a norm of rows too long, another device and no rows at all are done by torch, in its bits."""
    pointwise: Any = TritonPointwise("xpu" if reason == "device" else DEVICE)
    pointwise._rows = None
    monkeypatch.setattr(fused, "WIDEST", 12 if reason == "width" else 13)
    size = (0 if reason == "empty" else 2, 3, 13)
    dtype = torch.float64 if reason == "type" else torch.float32

    found, expected = (both_ways(way, size, DROP, dtype=dtype) for way in (pointwise, TorchPointwise()))

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_refuses_other_memory(ours: TritonPointwise) -> None:
    """Tensors that the device code would misread are refused before it runs."""
    T, B, S = 2, 3, 5
    y, stats = normal(0, T, B, S).to(DEVICE), torch.zeros(T, B, 2, device=DEVICE)
    norm = Norm(*normal(1, 4, S).to(DEVICE))

    def both(norm: Norm) -> None:
        ours.norm_dropout_residual(y, None, norm, None, 0, torch.empty_like(y), stats)
        ours.norm_dropout_residual_backward(y, y, norm, None, 0, torch.empty_like(y), stats)

    for name, wrong in (("gamma", norm.gamma[:4]), ("beta", norm.beta.double()), ("dgamma", norm.dgamma[:, None])):
        with pytest.raises(ValueError, match=rf"^{name}: expected contiguous \(5,\) of float32"):
            both(norm._replace(**{name: wrong}))
    with pytest.raises(ValueError, match=r"^out: expected contiguous \(2, 3, 5\) of float32"):
        ours.norm_dropout_residual(y, None, norm, None, 0, y.new_empty(B, T, S).transpose(0, 1), stats)
    with pytest.raises(ValueError, match=r"^x: "):
        ours.norm_dropout_residual(y, y[:1], norm, None, 0, torch.empty_like(y), stats)
    with pytest.raises(ValueError, match=r"^stats: "):
        ours.norm_dropout_residual(y, None, norm, None, 0, torch.empty_like(y), stats[:, :2])
    with pytest.raises(ValueError, match=r"^dx: "):
        ours.norm_dropout_residual_backward(y.double(), y, norm, None, 0, torch.empty_like(y), stats)


def test_nothing_is_waited_for() -> None:
    """Each way is one launch, and one more for a norm's sums; the host reads no number in a tensor: here they have none."""
    launched = []

    class Rows:
        """Notes what is launched."""

        def __getattr__(self, name: str) -> Any:
            def launch(*given: Any, **options: Any) -> None:
                launched.append((name, sum(isinstance(one, Tensor) and one.dim() == 0 for one in given)))

            return type("Grid", (), {"__getitem__": lambda _, grid: launch})()

    pointwise: Any = TritonPointwise("meta")
    pointwise._rows = Rows()
    y, dy, stats = (torch.empty(6, 4, width, device="meta") for width in (48, 48, 2))
    norm = Norm(*torch.empty(4, 48, device="meta"))
    drop = DROP.reading(torch.empty(5, dtype=torch.int64, device="meta")).since(3)
    for case in (norm, None):
        pointwise.norm_dropout_residual(y, y, case, drop, 1, dy, stats)
        pointwise.norm_dropout_residual_backward(dy, y, case, drop, 1, dy, stats)

    assert launched == [
        ("norm_dropout_residual", 2),
        ("norm_dropout_residual_backward", 2),
        ("gather", 0),
        ("norm_dropout_residual", 2),
        ("norm_dropout_residual", 2),
    ]


def test_a_whole_step(ours: TritonPointwise) -> None:
    """The loss and the gradients of a window with everything on are those with torch's functions."""
    model = small_model(hidden=20, dropout=0.3, weight_dropout=0.4, dtype=torch.float32)
    drop = pointed(replace(DROP, weights=0.4))
    ids = torch.randint(11, (6, 3)).to(DEVICE)
    found = []
    for pointwise in (TorchPointwise(), ours):
        kernel = EagerKernel()
        vars(kernel)["pointwise"] = pointwise
        net = CharLM(model.config, 11, kernel).to(DEVICE)
        net.load_state_dict(model.state_dict())
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        empty = tuple(LSTMState(*layer) for layer in net.initial_state(3))
        nats, _ = Backprop(net, 3, 5, segment=2)(ids[:-1], ids[1:], empty, 0.5, drop)
        found.append([torch.tensor(float(nats)), *(p.grad for p in net.parameters() if p.grad is not None)])

    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.slow
def test_the_self_check_sees_what_is_wrong(ours: TritonPointwise, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes what is right, and sees a wrong number, a NaN, and another mask."""
    assert fused.disagreement(ours, DEVICE) < WITHIN
    for name in ("norm_dropout_residual", "norm_dropout_residual_backward"):
        for wrong in (1.0, float("nan")):

            def spoiled(*given: Any, name: str = name, wrong: float = wrong) -> None:
                getattr(TritonPointwise, name)(ours, *given)
                given[5].view(-1)[3] += wrong

            with monkeypatch.context() as patch:
                patch.setattr(ours, name, spoiled)
                assert not fused.disagreement(ours, DEVICE) < 0.1
    real = fused._drop
    monkeypatch.setattr(fused, "_drop", lambda drop, layer, B: real(drop, 1 - layer, B))
    assert not fused.disagreement(ours, DEVICE) < 0.1


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(1e-7, TritonPointwise), (1e-3, TorchPointwise), (float("nan"), TorchPointwise), (RuntimeError("sick"), TorchPointwise)],
    ids=str,
)
def test_wrong_results_are_not_used(outcome: Any, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which it is wrong, or that refuses it, has torch's functions, and the reason is told."""

    def fate(*ignored: Any) -> float:
        if isinstance(outcome, Exception):
            raise outcome
        return float(outcome)

    monkeypatch.setattr(fused, "disagreement", fate)
    fused.load.cache_clear()
    pointwise, reason = fused.load(False)
    assert type(pointwise) is kind
    assert bool(reason) is (kind is TorchPointwise)
    assert str(outcome) in reason or not isinstance(outcome, Exception)
    assert type(fused.load(True)[0]) is TritonPointwise
    fused.load.cache_clear()


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_without_a_device() -> None:
    """Where there is no CUDA device it is torch's functions that are loaded."""
    fused.load.cache_clear()
    assert type(fused.load(False)[0]) is TorchPointwise
    fused.load.cache_clear()
