"""How far back a prediction depends on the past: the gradients are right, and they fade as the forget gate says."""

from typing import Any

import pytest
import torch

from lstmlm.analysis.activations import Trace, trace
from lstmlm.analysis.gradient_reach import fades, reach
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.model.lstm import LSTMLayer
from tests.helpers import small_model, some_ids


def nudged(model: CharLM, ids: torch.Tensor, before: Trace, part: str, unit: int, by: float) -> float:
    """Return the nats of the last character after one number of the top layer's state has been moved."""
    state = before.state[-1]
    hidden, cell = state.hidden.clone(), state.cell.clone()
    if part == "cell":
        cell[0, unit] += by
        hidden = before.layers[-1].output[-1] * torch.tanh(cell)  # C reaches the future through its own H too
    else:
        hidden[0, unit] += by
    with torch.inference_mode():
        logits, _ = model(ids[:-1, None], (*before.state[:-1], LSTMState(hidden, cell)))
    return float(nats(logits[-1:], ids[-1:, None]))


@pytest.mark.parametrize(
    "options", [{}, {"readout": "direct"}, {"layer_norm": False, "residual": False}, {"layers": 1, "bias": False}]
)
def test_gradients_of_states_are_those_of_nudging_them(options: dict[str, Any]) -> None:
    """For one prediction, the norm k steps back equals that of central differences of every unit's state there.

    A state of the first layer acts on the second one twice, now and through its own next step: only the top layer's
    can be nudged alone between two calls of the model.
    """
    model, ids, length = small_model(**options).requires_grad_(False), some_ids(9), 7
    found = reach(model, ids, length, most=1)
    top = len(model.layers) - 1
    layer = model.layers[top]
    assert isinstance(layer, LSTMLayer)
    for k in (1, 3, 6):
        last = length - k  # the state after so many characters is the one k steps before the last
        before = trace(model, ids[:last, None])
        for part, norms in (("cell", found.cell), ("hidden", found.hidden)):
            slopes = []
            for unit in range(layer.width):
                up, down = (nudged(model, ids[last : length + 1], before, part, unit, by) for by in (1e-5, -1e-5))
                slopes.append((up - down) / 2e-5)
            assert norms[top][k] == pytest.approx(float(torch.tensor(slopes, dtype=torch.float64).norm()), rel=1e-5)


def test_shapes_and_counts() -> None:
    """A norm for every layer and distance, and for the input; as many predictions as asked for, or as there are."""
    model = small_model(layers=3)
    found = reach(model, some_ids(60), 20, most=18)

    assert [len(norms) for norms in (*found.cell, *found.hidden, found.input)] == [20] * 7
    assert len(found.cell) == len(found.hidden) == 3
    assert found.count <= 18
    assert reach(model, some_ids(22), 20).count == 1


def test_what_the_forget_gate_holds_reaches_far() -> None:
    """With forget gates near 1 the gradient of C lasts, with gates near 0 it is gone at once."""
    norms = {}
    for bias in (-6.0, 6.0):
        model = small_model(layers=1, forget_bias=bias)
        layer = model.layers[0]
        assert isinstance(layer, LSTMLayer)
        with torch.no_grad():
            layer.U.mul_(0.1)
            layer.W.mul_(0.02)
        norms[bias] = reach(model, some_ids(80), 40).cell[0]

    assert norms[6.0][39] > 0.3 * norms[6.0][1]
    assert norms[-6.0][5] < 1e-6 * norms[-6.0][0]


def test_a_text_too_short_is_refused() -> None:
    """One character less than is needed is an error, not an average of nothing."""
    with pytest.raises(ValueError, match="expected more than"):
        reach(small_model(), some_ids(21), 20)


def test_a_hundredth_is_the_distance_from_which_on_it_stays() -> None:
    """The first distance with nothing of a hundredth or more behind it; none where the last one still has it."""
    assert fades([1.0, 0.5, 0.001, 0.02, 0.001, 0.0]) == 4
    assert fades([1.0, 0.5]) is None
    assert fades([1.0, 0.001]) == 1
