"""What happens at a mark: counted over the whole text, sure or not, and nothing where there is nothing."""

import math

import pytest
import torch

from lstmlm.analysis import boundaries
from lstmlm.analysis.activations import trace
from lstmlm.analysis.boundaries import (
    ForgetGateShift,
    ablate_memory,
    entropy,
    forget_gates_at,
    interval,
    spread,
    states_after,
    swap,
)
from lstmlm.model.cell import GATES, LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import LSTMLayer
from tests.helpers import assert_close, small_model, some_ids

MARK = 3


def text(length: int = 1500) -> torch.Tensor:
    """Draw a text in which the mark is one character of many."""
    return some_ids(length)


def dropping(model: CharLM, by: float) -> CharLM:
    """Push the forget gates of the first layer down at the mark."""
    layer = model.layers[0]
    assert isinstance(layer, LSTMLayer)
    block = GATES.index("forget")
    with torch.no_grad():
        layer.U[MARK, block * layer.width : (block + 1) * layer.width] -= by
    return model


def test_means_are_those_of_a_plain_loop() -> None:
    """At the mark, one step later, elsewhere: the means over exactly these steps, also across windows."""
    model, ids = small_model(), text()
    ids[700:703] = MARK  # marks in a row: the one after a mark is at the mark itself
    found = forget_gates_at(model, ids, MARK)
    whole = trace(model, ids[:, None])
    at = ids == MARK
    after = torch.tensor([t > 0 and bool(at[t - 1]) and not bool(at[t]) for t in range(len(ids))])

    for layer, activity in zip(found, whole.layers, strict=True):
        forget = activity.forget[:, 0]
        assert_close(layer.at, forget[at].mean(0), "at")
        assert_close(layer.after, forget[after].mean(0), "after")
        assert_close(layer.elsewhere, forget[~at & ~after].mean(0), "elsewhere")
        assert layer.marks == int(at.sum())
        assert layer.interval[0] <= layer.difference <= layer.interval[1]


def test_a_significant_drop_is_told_from_none() -> None:
    """A gate pushed down at the mark is found; a mark that the network has no reason to care about is called no effect."""
    down = forget_gates_at(dropping(small_model(), 6.0), text(), MARK)[0]
    still = small_model()
    layer = still.layers[0]
    assert isinstance(layer, LSTMLayer)
    with torch.no_grad():
        layer.U.zero_()

    assert down.is_significant_drop
    assert down.difference < -0.3
    assert not forget_gates_at(still, text(), MARK)[0].is_significant_drop


def test_units_are_named_by_how_much_they_drop() -> None:
    """Units count from 1, the largest drop first; those that pass 0.1 on the way down are counted."""
    layer = ForgetGateShift(torch.tensor([0.5, 0.05, 0.0]), torch.zeros(3), torch.tensor([0.6, 0.9, 0.05]), 9, (-1.0, 0.0))

    assert [unit for unit, _, _ in layer.drops(2)] == [2, 1]
    assert layer.drops(1)[0][1:] == pytest.approx((0.05, 0.9))
    assert layer.closed_units == 1


def test_the_interval_is_that_of_a_mean() -> None:
    """About 95 % of a normal sample's: mean plus or minus 1.96 deviations of it; the same again for the same values."""
    values = torch.randn(4000, dtype=torch.float64) + 3
    low, high = interval(values)

    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(4000), rel=0.15)
    assert low < float(values.mean()) < high
    assert interval(values) == (low, high)
    assert interval(torch.full((7,), 2.0)) == (2.0, 2.0)
    assert all(math.isnan(end) for end in interval(torch.empty(0)))


def test_states_are_those_right_after_the_positions() -> None:
    """Positions in any window, the first and the last step among them."""
    model, ids = small_model(), text()
    positions = [0, 17, 511, 512, 1499]
    states = states_after(model, ids, positions)
    whole = trace(model, ids[:, None])

    for state, activity in zip(states, whole.layers, strict=True):
        assert_close(state.hidden, activity.hidden[positions, 0], "H")
        assert_close(state.cell, activity.cell[positions, 0], "C")


def test_positions_are_spread_evenly() -> None:
    """No more than asked for, from the first on, equally far apart; all of them where there are few."""
    assert spread(torch.arange(10), 4) == [0, 3, 6, 9]
    assert spread(torch.arange(3), 4) == [0, 1, 2]


def test_the_worth_of_memory_is_what_a_plain_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each way to treat the state: the bits of the text after each mark, read one by one from a state treated so."""
    monkeypatch.setattr(boundaries, "TOGETHER", 5)
    model, ids, length = small_model(), text(400), 12
    count, found = ablate_memory(model, ids, MARK, length, 1000)
    positions = [t for t in range(len(ids) - length - 1) if ids[t] == MARK]
    whole = trace(model, ids[:, None])

    assert count == len(positions)
    for name, (hidden, cell) in boundaries.LEFT.items():
        costs = torch.zeros(length, dtype=torch.float64)
        for position in positions:
            state = tuple(LSTMState(a.hidden[position] * hidden, a.cell[position] * cell) for a in whole.layers)
            with torch.inference_mode():
                logits, _ = model(ids[position + 1 : position + 1 + length, None], state)
            logs = torch.log_softmax(logits[:, 0], -1)
            costs -= logs.gather(1, ids[position + 2 : position + 2 + length, None])[:, 0] / math.log(2)
        assert found[name].bits == pytest.approx((costs / count).tolist(), abs=1e-9)
        assert found[name].total == pytest.approx(float(costs.sum()) / count, abs=1e-8)
    assert found["carried"].interval == (0.0, 0.0)


def test_no_text_after_any_mark_is_no_answer() -> None:
    """A text too short to score anything after a mark gives nothing, rather than numbers."""
    assert ablate_memory(small_model(), torch.tensor([1, MARK, 2]), MARK, 10) == (0, {})


def test_swapping_compares_the_predictions_of_two_versions() -> None:
    """By distance: divergence and first guess of each pair read alone, counted only as far as its continuation goes."""
    model, length = small_model(), 6
    pairs = [([1, 2, 5, MARK], [1, 2, 7, 8, MARK], [4, 4, 1]), ([2, MARK], [5, MARK], [9, 1, 1, 0, 2, 3, 7, 7])]
    found = swap(model, pairs, length)
    expected = torch.zeros(length, dtype=torch.float64)
    changed = torch.zeros(length, dtype=torch.float64)
    for one, other, after in pairs:
        with torch.inference_mode():
            p, q = (
                torch.softmax(model(torch.tensor(version + after[: length - 1])[:, None])[0][len(version) - 1 :, 0], -1)
                for version in (one, other)
            )
        steps = min(length, len(after))
        m = (p + q) / 2
        kl = ((p * (p / m).log2()).sum(-1) + (q * (q / m).log2()).sum(-1)) / 2
        expected[:steps] += kl[:steps]
        changed[:steps] += (p.argmax(-1) != q.argmax(-1)).double()[:steps]
    counts = torch.tensor([2, 2, 2, 1, 1, 1])

    assert found.count == counts.tolist()
    assert found.divergence == pytest.approx((expected / counts).tolist(), abs=1e-9)
    assert found.changed == pytest.approx((changed / counts).tolist())


def test_equal_versions_do_not_diverge() -> None:
    """The same text twice: zero at every distance."""
    found = swap(small_model(), [([1, MARK], [1, MARK], [2, 2, 2])], 3)

    assert found.divergence == pytest.approx([0.0] * 3, abs=1e-12)
    assert found.changed == [0.0] * 3


def test_entropy_is_in_bits() -> None:
    """Four equal chances are two bits; a certainty is none."""
    assert entropy(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])).tolist() == pytest.approx([2.0, 0.0])
