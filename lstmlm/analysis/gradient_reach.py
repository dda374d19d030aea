"""How far back a network looks: the gradient of a prediction with respect to what was k characters before.

`reach` measures it, for `inspect --reach` and `scripts/experiments/reach_rnn.py`; `fades` says where it has become small.

The recurrence is written out step by step with the equations of `model.cell`, so that autograd gives the gradient with
respect to every state in between; the kernels keep only those of the ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.analysis.boundaries import spread, states_after
from lstmlm.errors import not_finite
from lstmlm.evaluation.torch_reader import pick
from lstmlm.model.cell import LSTMState, gates, update
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.model.lstm import LSTMLayer, closed

BACKWARD_ROWS = 16  # predictions whose gradients are computed at once: bounds memory
HUNDREDTH = 0.01


@dataclass(frozen=True)
class Reach:
    """Mean norms of the gradient of the nats of a character, by distance.

    cell: With respect to C_{t-k} of each layer, k from 0, through H_{t-k} = o tanh(C_{t-k}) too: list of L lists.
    hidden: The same of H_{t-k}.
    input: With respect to x_{t-k}, as its row of U in the first layer; by what it multiplies H_{t-k-1} is left out.
    count: Predictions in the mean.
    """

    cell: list[list[float]]
    hidden: list[list[float]]
    input: list[float]
    count: int


def fades(norms: list[float]) -> int | None:
    """Return the first distance from which on the norm stays below a hundredth of its largest value; None: not here."""
    least = HUNDREDTH * max(norms)
    far = max((k for k, norm in enumerate(norms) if norm >= least), default=0)
    return far + 1 if far + 1 < len(norms) else None


def reach(model: CharLM, ids: Tensor, length: int = 200, most: int = 64) -> Reach:
    """Measure how much the prediction of a character depends on each state and input before it.

    Args:
        model: In evaluation mode.
        ids: (n)
        length: Steps back.
        most: Predictions, spread evenly over the text.

    Raises:
        ValueError: The text is not longer than `length` + 1.
    """
    if len(ids) < length + 2:
        raise ValueError(f"reach: expected more than {length + 1} characters, found {len(ids)}.")
    starts = spread(torch.arange(len(ids) - length - 1), most)
    entry = states_after(model, ids, [max(0, start - 1) for start in starts])
    if starts[0] == 0:  # before the first character there is no state yet
        for state in entry:
            state.hidden[0], state.cell[0] = 0, 0
    sums = torch.zeros(2 * len(model.layers) + 1, length, dtype=torch.float64)
    for rows in torch.arange(len(starts)).split(BACKWARD_ROWS):
        text = torch.stack([ids[starts[row] : starts[row] + length + 1] for row in rows.tolist()]).t()
        sums += _gradients(model, text, pick(entry, rows))
    means = (sums / len(starts)).flip(1).tolist()  # the last step is distance 0
    layers = len(model.layers)
    return Reach(means[:layers], means[layers : 2 * layers], means[-1], len(starts))


def _gradients(model: CharLM, text: Tensor, entry: tuple[LSTMState, ...]) -> Tensor:
    """Return the norms, summed over rows, of the gradients of the last character's nats: (C of L, H of L, x) by T."""
    inputs, goal = text[:-1], text[-1:]
    cells: list[Tensor] = []
    hiddens: list[Tensor] = []
    leaves: list[Tensor] = []

    def written_out(layer: LSTMLayer, x: Tensor, state: LSTMState, ends: Tensor | None) -> tuple[Tensor, LSTMState]:
        U, W, own = layer.U.detach(), layer.W.detach(), []
        state = LSTMState(state.hidden.clone(), state.cell.clone())  # autograd takes none that inference mode made
        if not leaves:  # the first layer
            leaves.extend(row.clone().requires_grad_() for row in U[x].unbind(0))
            products: Sequence[Tensor] = leaves
        else:
            products = (x @ U).unbind(0)
        scale = layer.scale(x)
        for step, product in enumerate(products):
            m = state.hidden if scale is None else scale[step].detach() * state.hidden
            a = product + m @ W
            if layer.b is not None:
                a = a + layer.b.detach()
            if ends is not None:
                a = closed(a, ends[step])
            state = update(gates(a), state)
            cells.append(state.cell)
            hiddens.append(state.hidden)
            own.append(state.hidden)
        return torch.stack(own), state

    with torch.enable_grad():
        logits, _ = model(inputs, entry, recurrence=written_out)
        total = nats(logits[-1:], goal).sum()  # a row's nats depend on that row alone
        found = torch.autograd.grad(total, [*cells, *hiddens, *leaves], allow_unused=True)
    norms = [0.0 if gradient is None else float(gradient.norm(dim=-1).double().sum()) for gradient in found]
    if not all(map(math.isfinite, norms)):
        raise not_finite()
    return torch.tensor(norms, dtype=torch.float64).view(-1, len(inputs))
