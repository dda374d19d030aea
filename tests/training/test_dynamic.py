"""Learning from a text while it is scored: score first, learn then, and leave the model as it was."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import Scorer
from lstmlm.kernels import native
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.training import dynamic
from lstmlm.training.dynamic import LEARN_EVERY, DynamicEvaluator, Rates
from tests.helpers import Scores, assert_close, scores, small_model, some_ids, warm

V = 11
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]
RATES = Rates(rate=0.03)
STILL = Rates(rate=0.0, decay=0.0)
OWN = 2 * LEARN_EVERY + 9


def evaluator(model: CharLM, rates: Rates = RATES) -> DynamicEvaluator:
    """Return a evaluator whose own text is short."""
    return DynamicEvaluator(model, 3, rates, OWN)


def read(model: CharLM, ids: Tensor, rates: Rates = RATES) -> Scores:
    """Score a text with a new evaluator."""
    return scores(evaluator(model, rates).read(ids.tolist()))


@pytest.mark.parametrize("length", [2, LEARN_EVERY, LEARN_EVERY + 1, LEARN_EVERY + 2, 3 * LEARN_EVERY + 7])
def test_without_learning_it_is_warm(length: int) -> None:
    """At rate 0 every character but the first gets its warm score, whatever the length, and the state is the same."""
    model, ids = small_model(), some_ids(length)
    expected, found = warm(model, ids, batch=1), read(model, ids, STILL)

    assert_close(found.nats, expected.nats, "nats")
    assert torch.equal(found.correct, expected.correct)
    for one, other in zip(found.state, expected.state, strict=True):
        assert_close(one.cell, other.cell, "cell")


def test_score_first() -> None:
    """What comes later in a text changes no score before it; within a segment nothing has been learnt from it yet."""
    model, ids = small_model(), some_ids(4 * LEARN_EVERY)
    changed = ids.clone()
    place = 2 * LEARN_EVERY + 5
    changed[place:] = (changed[place:] + 1) % V
    one, other, plain = read(model, ids), read(model, changed), warm(model, ids, batch=1)

    assert torch.equal(one.nats[: place - 1], other.nats[: place - 1])
    assert_close(one.nats[:LEARN_EVERY], plain.nats[:LEARN_EVERY], "the first segment")
    assert (one.nats[LEARN_EVERY:] - plain.nats[LEARN_EVERY:]).abs().max() > 1e-3


def side_by_side(tensors: Iterable[Tensor]) -> Tensor:
    """Return the numbers of some tensors in one row."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def parts(model: CharLM, flat: Tensor) -> list[Tensor]:
    """Return what belongs to each parameter, of numbers that begin at a multiple of 64 bytes for each."""
    found, start, unit = [], 0, 64 // flat.element_size()
    for p in model.parameters():
        found.append(flat[start : start + p.numel()])
        start += -(-p.numel() // unit) * unit
    assert start == len(flat)
    return found


@pytest.mark.parametrize("most", [1e9, 0.1])
def test_the_step(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    """After a segment the weights are those of the formula, with the gradient that autograd finds on the model itself."""
    monkeypatch.setattr(dynamic, "LARGEST", most)
    model, ids = small_model(), some_ids(LEARN_EVERY + 1)
    rates = Rates(rate=0.01, decay=0.25, floor=0.5)
    one = evaluator(model, rates)
    [network] = one._networks
    usual = network._usual(3, OWN)
    network.restart()
    network.weights.add_(0.125)  # so that there is a way back
    before = network.weights.clone()
    one.read(ids.tolist())

    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.125)
    logits, _ = model(ids[:-1, None])
    gradient = torch.autograd.grad(nats(logits, ids[1:, None]).mean(), list(model.parameters()))
    flat = side_by_side(gradient)
    usual, before, after = (side_by_side(parts(model, whole)) for whole in (usual, before, network.weights))
    n = flat / (usual + 0.5 * usual.square().mean().sqrt())
    size = float(n.square().mean().sqrt())
    assert_close(after, before - 0.25 * 0.125 - 0.01 * n * min(1.0, most / size), "weights")
    assert size > 0.1


def test_usual_size() -> None:
    """The usual size of a gradient is its root mean square over the segments of a text that the model writes."""
    model = small_model()
    [network] = evaluator(model)._networks
    found = network._usual(3, OWN)
    squares = []
    stream = generate(model, [3], [0], Sampling())
    ids = torch.tensor([3, *(next(stream)[0][0] for _ in range(OWN))])
    state = model.initial_state(1)
    for first in range(0, OWN, LEARN_EVERY):
        piece = ids[first : first + LEARN_EVERY + 1]
        logits, after = model(piece[:-1, None], state)
        state = tuple(LSTMState(*(part.detach() for part in layer)) for layer in after)
        gradient = torch.autograd.grad(nats(logits, piece[1:, None]).mean(), list(model.parameters()))
        squares.append(side_by_side(gradient).square())

    assert len(squares) == 3
    assert_close(side_by_side(parts(model, found)), torch.stack(squares).mean(0).sqrt(), "usual size")


def test_it_learns() -> None:
    """A text that repeats itself in a way that the model does not expect takes fewer nats than warm."""
    model, ids = small_model(), torch.tensor([1, 7, 7, 2, 9] * 300)

    assert read(model, ids).nats.mean() < 0.7 * warm(model, ids).nats.mean()


def test_decay_holds_it_back() -> None:
    """With a decay of 1 each segment is scored by the trained weights and the last step alone."""
    model = small_model()
    ids = torch.tensor([1, 7, 7, 2, 9] * 300)
    free, held = (float(read(model, ids, Rates(0.03, decay)).nats.mean()) for decay in (0.0, 1.0))

    assert free < held < float(warm(model, ids).nats.mean())


def test_the_model_stays() -> None:
    """The model keeps its weights, its gradients and its mode, and shares no memory with the evaluator."""
    model, ids = small_model(), some_ids(3 * LEARN_EVERY)
    before = [p.detach().clone() for p in model.parameters()]
    one = evaluator(model)
    one.read(ids.tolist())
    one._networks[0].weights.fill_(math.nan)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("options", [{}, {"readout": "direct"}, {"bias": False, "layer_norm": False}, {"layers": 1}])
def test_same_bits(options: dict[str, Any]) -> None:
    """A second run, other numbers of threads and another piece size give the same bits, for every kind of model."""
    model, ids = small_model(dtype=torch.float32, **options), some_ids(5 * LEARN_EVERY + 9)
    expected = read(model, ids)
    torch.set_num_threads(2)
    again = evaluator(model)
    pieces = [again.read(ids[: 2 * LEARN_EVERY + 1].tolist()), again.read(ids[2 * LEARN_EVERY :].tolist())]

    assert torch.get_num_threads() == 2
    assert torch.equal(torch.cat([scores(piece).nats for piece in pieces]), expected.nats)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_same_bits_by_the_native_kernel(layer_norm: bool) -> None:
    """On the native kernel several threads compute, and any number of them gives the same bits."""
    try:
        kernel = native.load("float32")
    except native.Unavailable as error:
        pytest.skip(str(error))
    plain = small_model(dtype=torch.float32, hidden=64, layer_norm=layer_norm)
    model = CharLM(plain.config, V, kernel, start=False).eval()
    model.load_state_dict(plain.state_dict())
    ids = some_ids(3 * LEARN_EVERY + 9)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(read(model, ids).nats)

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert_close(found[0][:LEARN_EVERY], read(plain, ids).nats[:LEARN_EVERY], "nats", 1e-2)


@pytest.mark.slow
def test_under_a_scorer() -> None:
    """A scorer hands over every character once, however the text comes, and charges the first and unknown ones as always."""
    model, ids = small_model(), some_ids(3 * LEARN_EVERY + 50)
    whole, still = (float(read(model, ids, rates).nats.sum()) for rates in (Rates(rate=0.03), STILL))

    def score(pieces: list[Tensor], rates: Rates) -> float:
        scorer = Scorer(model, COUNTS, window=LEARN_EVERY, read=evaluator(model, rates).read)
        for piece in pieces:
            scorer.add(piece.tolist(), len(piece) + 1, len(piece))
        return scorer.finish().nats

    unknown = math.log(1_114_112)
    apart = [ids[:1], ids[1:5], ids[5:300], ids[300:]]
    plain = Scorer(model, COUNTS)
    plain.add(ids.tolist(), len(ids), len(ids))

    assert score(apart, STILL) - 4 * unknown == pytest.approx(plain.finish().nats)
    assert score(apart, Rates(rate=0.03)) - 4 * unknown == pytest.approx(plain.finish().nats - still + whole)
    assert score([ids], Rates(rate=0.03)) - unknown == pytest.approx(score(apart, Rates(rate=0.03)) - 4 * unknown, abs=1e-9)


@pytest.mark.slow
def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate chosen is the one that scores a text best, and the evaluator then reads as a new one at that rate does."""
    monkeypatch.setattr(dynamic, "CHOICES", (0.3, 0.0, 0.01))
    model, ids = small_model(), torch.tensor([1, 7, 7, 2, 9] * 300)
    one = evaluator(model)
    chosen = one.choose(ids.tolist())
    found = {rate: float(read(model, ids, Rates(rate=rate)).nats.sum()) for rate in dynamic.CHOICES}

    assert chosen.rate == min(found, key=lambda rate: found[rate])
    assert chosen.rate != 0.0
    assert float(scores(one.read(ids.tolist())).nats.sum()) == found[chosen.rate]
