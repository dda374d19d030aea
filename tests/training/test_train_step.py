"""A step in one graph has the bits of a step in separate calls, whatever changes from step to step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.config.run_config import TrainConfig
from lstmlm.kernels.cuda_graph import Recorder, read_back
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Taught, TorchPointwise
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, StackState
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer, learning_rate
from lstmlm.training.train_step import TrainStep
from tests.helpers import small_model
from tests.tape import record

T, B, V, STEPS = 6, 5, 11, 20
SHAPES: list[dict[str, Any]] = [
    {"dropout": 0.3, "weight_dropout": 0.2},
    {"layers": 1, "layer_norm": False, "dropout": 0.3},
    {"readout": "direct", "residual": False, "bias": False},
    {"layers": 3, "segment": 4, "dropout": 0.2, "weight_dropout": 0.3, "taught": 0.4},
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
Take = Callable[[int], tuple[float, float, float]]


class Run:
    """A network and its optimizer, the same for all runs of a test."""

    def __init__(self, shape: dict[str, Any], average: float = 0.3) -> None:
        self.shape = {k: v for k, v in shape.items() if k not in ("segment", "taught")}
        self.weight: float | None = shape.get("taught")
        torch.manual_seed(1)
        self.model: CharLM = small_model(dtype=torch.float32, **self.shape)
        self.config = TrainConfig(lr=0.05, warmup=5, weight_decay=0.1, clip=0.1, average=average, final_lr=0.1)
        self.optimizer = Optimizer(self.model, self.config, TorchPointwise())
        self.backprop = Backprop(self.model, B, T, shape.get("segment", 0))
        self.state: StackState | None = None

    def given(self, step: int) -> tuple[Tensor, Tensor, Dropout, Tensor]:
        """Return what a step reads, its dropout, and which rows begin empty."""
        block = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(step))
        drop = Dropout(self.shape.get("dropout", 0.0), 3, step, B, 0, self.shape.get("weight_dropout", 0.0))
        return block[:-1], block[1:], drop, drop.emptied(0.3, B)

    def taught(self, step: int) -> Taught | None:
        """Return what a teacher expects in a step."""
        drawn = torch.randn(T, B, V, generator=torch.Generator().manual_seed(step))
        return None if self.weight is None else Taught(drawn.softmax(-1), self.weight)

    def apart(self) -> Take:
        """Return a function that takes a step in separate calls, as a trainer without graphs does."""

        def take(step: int) -> tuple[float, float, float]:
            ids, targets, drop, emptied = self.given(step)
            kept = ~emptied[:, None]
            state = self.state or self.model.initial_state(B)
            before = tuple(LSTMState(layer.hidden * kept, layer.cell * kept) for layer in state)
            nats, self.state = self.backprop(ids, targets, before, 1 / (T * B), drop, taught=self.taught(step))
            self.optimizer.prepare(learning_rate(self.config, step, STEPS))
            norm, finite = self.optimizer.step()
            loss, norm, finite = read_back(nats / (T * B), norm, finite)
            return loss, norm, finite

        return take

    def together(self, how: Recorder | None) -> Take:
        """Return a function that takes a step as a whole."""
        whole = TrainStep(self.model, self.backprop, [self.optimizer], T, B, 1 / (T * B), how)

        def take(step: int) -> tuple[float, float, float]:
            ids, targets, drop, emptied = self.given(step)
            self.optimizer.prepare(learning_rate(self.config, step, STEPS))
            loss, self.state = whole(ids, targets, self.state, [drop], emptied[None], self.taught(step))
            loss_, norm, finite = read_back(loss, *whole.found[0])
            return loss_, norm, finite

        return take

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all that a step changes."""
        moments = {name: tensor.clone() for name, tensor in self.optimizer.state().items()}
        with self.optimizer.averaged():
            averages = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        states = {f"{index} {part}": getattr(s, part).clone() for index, s in enumerate(self.state or ()) for part in s._fields}
        return {**moments, **averages, **states}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare bit for bit."""
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.slow
@each_shape
@pytest.mark.parametrize("how", [None, record], ids=["called", "recorded"])
def test_the_bits_of_separate_calls(shape: dict[str, Any], how: Recorder | None) -> None:
    """Twenty steps with dropout of all kinds, averaging and clipping: losses, norms, weights, moments, averages and states."""
    one, other = Run(shape), Run(shape)
    apart, together = one.apart(), other.together(how)

    expected = [apart(step) for step in range(STEPS)]
    found = [together(step) for step in range(STEPS)]

    assert [norm for _, norm, _ in found] == [norm for _, norm, _ in expected]
    assert [loss for loss, _, _ in found] == pytest.approx([loss for loss, _, _ in expected], rel=1e-15)
    assert min(norm for _, norm, _ in found) > one.config.clip
    assert len({loss for loss, _, _ in found}) == STEPS
    assert_same(other.tensors(), one.tensors())


@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_recorded_run_goes_on_after_a_restore(at: int) -> None:
    """Saved after some steps and put back into other memory, before or after the recording: the same end, bit for bit."""
    whole, first, last = (Run(SHAPES[0]) for _ in range(3))
    go, begin = whole.together(record), first.together(record)
    for step in range(STEPS):
        go(step)
    for step in range(at):
        begin(step)
    saved = {name: tensor.clone() for name, tensor in first.optimizer.state().items()}
    with first.optimizer.averaged():
        weights = {name: p.detach().clone() for name, p in first.model.named_parameters()}
    assert first.state is not None
    carried = tuple(LSTMState(layer.hidden.clone(), layer.cell.clone()) for layer in first.state)

    go_on = last.together(record)
    for step in range(3):  # of another history, and over them
        go_on(step + 7)
    last.model.load_state_dict(weights)
    last.optimizer.restore(saved, at)
    last.state = carried
    for step in range(at, STEPS):
        go_on(step)

    assert_same(last.tensors(), whole.tensors())


@pytest.mark.parametrize("how", [None, record], ids=["called", "recorded"])
@pytest.mark.parametrize("at", [0, 9])
@pytest.mark.parametrize("what", ["gradient", "state"])
def test_what_is_not_finite_changes_nothing(how: Recorder | None, at: int, what: str) -> None:
    """A gradient or a loss that is not finite is told, and leaves weights, moments and averages as they were."""
    run = Run(SHAPES[0])
    take = run.together(how)
    for step in range(at):
        take(step)
    if what == "gradient":
        run.optimizer.gradients[0][3] = math.nan
    else:
        state = run.state or run.model.initial_state(B)
        state[0].hidden.fill_(math.inf)
        run.state = state
    before = {name: tensor for name, tensor in run.tensors().items() if name[0].isalpha()}

    loss, norm, finite = take(at)

    assert not math.isfinite(loss + norm)
    assert math.isfinite(loss) == (what == "gradient")
    assert finite
    assert_same({name: tensor for name, tensor in run.tensors().items() if name[0].isalpha()}, before)
    assert all(float(gradient.abs().max()) == 0 for gradient in run.optimizer.gradients)


def test_a_weight_that_is_not_finite_is_told() -> None:
    """Where it stands in the update and not in the gradient."""
    run = Run({"layers": 1})
    take = run.together(record)
    for step in range(5):
        take(step)
    with torch.no_grad():
        list(run.model.parameters())[-1][0] = math.nan

    assert take(5)[2] == 0


def test_a_part_of_the_batch_leaves_its_gradient() -> None:
    """Without an optimizer two parts add up what the whole batch gives, each with a state of its own."""
    one, other = Run(SHAPES[0]), Run(SHAPES[0])
    parts = TrainStep(other.model, Backprop(other.model, 1, T), [], T, 1, 1 / (T * B), record)
    states: list[StackState | None] = [None] * B
    state: StackState | None = None
    for step in range(6):
        for run in (one, other):
            run.optimizer.zero()
        ids, targets, drop, emptied = one.given(step)
        kept = ~emptied[:, None]
        before = tuple(LSTMState(s.hidden * kept, s.cell * kept) for s in state or one.model.initial_state(B))
        nats, state = one.backprop(ids, targets, before, 1 / (T * B), drop)
        losses = []
        for row in range(B):
            here = slice(row, row + 1)
            own = Dropout(drop.rate, drop.seed, step, B, row, drop.weights)
            loss, states[row] = parts(ids[:, here], targets[:, here], states[row], [own], emptied[None, here])
            losses.append(float(loss))

        assert sum(losses) == pytest.approx(float(nats) / (T * B), rel=1e-5)
        for found, expected in zip(other.optimizer.gradients, one.optimizer.gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for row, own_state in enumerate(states):
        assert own_state is not None
        for mine, all_ in zip(own_state, state or (), strict=True):
            torch.testing.assert_close(mine.cell[0], all_.cell[row], rtol=1e-4, atol=1e-5)
