"""What is shown is what was computed: by the kernel in training, and by the equations."""

from typing import Any

import pytest
import torch

from lstmlm.analysis.activations import Activity, Forgetting, trace, windows
from lstmlm.kernels import choose
from lstmlm.model import cell
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import LSTMLayer, input_product, multiplying
from tests.helpers import assert_close, small_model, some_ids

OPTIONS: list[dict[str, Any]] = [
    {},
    {"layers": 3},
    {"layers": 1, "bias": False, "readout": "direct"},
    {"readout": "direct"},
    {"layer_norm": False, "residual": False},
]


def ids(steps: int = 13, batch: int = 3) -> torch.Tensor:
    """Draw (T, B) ids."""
    return some_ids(steps * batch).view(steps, batch)


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_and_state_are_the_models(options: dict[str, Any]) -> None:
    """For every option, tracing predicts and ends in exactly what the model itself predicts and ends in."""
    model, x = small_model(**options), ids()
    with torch.inference_mode():
        _, before = model(ids(5))
        logits, state = model(x, before)
    found = trace(model, x, before)

    assert torch.equal(found.logits, logits)
    for one, other in zip(found.state, state, strict=True):
        assert torch.equal(one.hidden, other.hidden)
        assert torch.equal(one.cell, other.cell)


@pytest.mark.parametrize("options", OPTIONS)
def test_gates_match_the_equations(options: dict[str, Any]) -> None:
    """In float64, every gate and state of every layer follows the equations of the cell to 1e-10."""
    model, x = small_model(**options).requires_grad_(False), ids()
    with torch.inference_mode():
        compare_with_equations(model, x)


def compare_with_equations(model: CharLM, x: torch.Tensor) -> None:
    """Compute every layer again, step by step, from what the layer below gave."""
    found = trace(model, x)
    layer_input: torch.Tensor | None = None
    for index, (layer, activity) in enumerate(zip(model.layers, found.layers, strict=True)):
        assert isinstance(layer, LSTMLayer)
        state = layer.initial_state(x.shape[1])
        for t in range(len(x)):
            m = state.hidden if layer.M is None else (1 + layer.M[x[t]]) * state.hidden
            a = (layer.U[x[t]] if layer_input is None else layer_input[t] @ layer.U) + m @ layer.W
            gate = cell.gates(a if layer.b is None else a + layer.b)
            state = cell.update(gate, state)
            for name, expected in zip(Activity._fields, (*gate, state.cell, state.hidden), strict=True):
                assert_close(getattr(activity, name)[t], expected, f"layer {index} {name} at {t}")
        if index == len(model.layers) - 1:
            return
        y = activity.hidden if model.norms is None else model.norms[index](activity.hidden)
        layer_input = y if layer_input is None or not model.config.residual else layer_input + y


@pytest.mark.parametrize("name", ["eager", "auto"])
def test_gates_equal_the_kernels(name: str) -> None:
    """In float32, what is shown of the first layer equals what the training kernel keeps for its backward pass."""
    kernel, _ = choose(name, precision="float32")
    model = small_model(dtype=torch.float32)
    mine = CharLM(model.config, 11, kernel).eval()
    mine.load_state_dict(model.state_dict())
    x = ids()
    layer = mine.layers[0]
    assert isinstance(layer, LSTMLayer)
    zero = torch.zeros(3, layer.width)
    with torch.inference_mode():
        a, multiplied = input_product(kernel, x, layer.U, layer.b), multiplying(layer.scale(x))
        kept = kernel.forward(a, layer.W, zero, zero, multiplied=multiplied)
    shown = trace(mine, x).layers[0]

    assert_close(torch.cat(shown[:4], dim=-1), kept.gates, "gates", 1e-6)
    assert_close(shown.cell, kept.C, "C", 1e-6)
    assert_close(shown.hidden, kept.H, "H", 1e-6)


@pytest.mark.parametrize("window", [1, 7, 29, 500])
def test_windows_join_without_a_seam(window: int) -> None:
    """A text in pieces of any length gives what one piece gives."""
    model, text = small_model(), some_ids(29)
    whole = trace(model, text[:, None])
    pieces = list(windows(model, text, None, window))

    assert [start for start, _ in pieces] == list(range(0, 29, window))
    assert_close(torch.cat([p.logits for _, p in pieces]), whole.logits, "logits")
    for index, activity in enumerate(whole.layers):
        for name in Activity._fields:
            joined = torch.cat([getattr(p.layers[index], name) for _, p in pieces])
            assert_close(joined, getattr(activity, name), f"layer {index} {name}")


def test_the_fields_begin_with_the_gates_in_their_order() -> None:
    """What users choose from are the fields of an activity: the gates as every kernel has them, and the state."""
    assert Activity._fields == (*cell.GATES, "cell", "hidden")


@pytest.mark.parametrize("cut", [3, 5, 6, 12])
def test_forgetting_zeroes_the_cell_state_after_each_mark(cut: int) -> None:
    """It equals reading up to each mark, setting C to zero by hand, and going on; also where a mark ends a piece."""
    model = small_model()
    x = torch.tensor([1, 2, 5, 3, 5, 5, 0, 1, 2, 5, 4, 4, 3])[:, None].repeat(1, 2)
    x[3, 1] = 5
    state = model.initial_state(2)
    slow = []
    with torch.inference_mode():
        for row in x:
            logits, after = model(row[None], state)
            kept = (row != 5)[:, None]
            state = tuple(LSTMState(s.hidden, s.cell * kept) for s in after)
            slow.append(logits)
    forgetting = Forgetting(model, 5)
    first, middle = forgetting(x[:cut], model.initial_state(2))
    second, last = forgetting(x[cut:], middle)

    assert_close(torch.cat([first, second]), torch.cat(slow), "logits")
    assert_close(last[1].cell, state[1].cell, "last C")
