"""Run a text and keep what the network usually throws away: f_t, i_t, o_t, N_t, C_t and H_t of every layer.

`trace` is the entry point, `windows` and `steps` those for long texts; `inspect` draws what they give,
`boundaries` averages it.
`Forgetting` is a network that zeroes C at a mark, for `fill --forget-at`.

Everything comes out of the model's own kernel: the same call that training makes keeps gates, C and H for its backward
pass. The bits of a next character are the model's own too.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.errors import not_finite
from lstmlm.evaluation.scoring import first_char
from lstmlm.model.cell import GATES, LSTMState
from lstmlm.model.char_lm import CharLM, nats, steps_at_once
from lstmlm.model.ensemble import Network, members, read
from lstmlm.model.lstm import ZERO_GATE, LSTMLayer, StackState, input_product, multiplying
from lstmlm.units import bits

SIGNED = ("new", "cell", "hidden")
"""Quantities that may be negative; the others lie between 0 and 1."""

WINDOW = 512  # steps of a long text kept at once


class Activity(NamedTuple):
    """What one layer did: the four gates in the order of `cell.GATES`, and the two halves of the state. Each (T, B, S)."""

    forget: Tensor
    input: Tensor
    output: Tensor
    new: Tensor
    cell: Tensor
    hidden: Tensor


class Trace(NamedTuple):
    """What the whole network did.

    layers: The first layer first.
    logits: Of the character after each. (T, B, V)
    state: After the last step.
    """

    layers: tuple[Activity, ...]
    logits: Tensor
    state: StackState


@torch.inference_mode()
def trace(model: CharLM, ids: Tensor, state: StackState | None = None, forgotten: Tensor | None = None) -> Trace:
    """Run T steps and keep everything: 6 TBS values for each layer.

    Args:
        model: In evaluation mode.
        ids: (T, B)
        state: Before the first step; None is the empty one.
        forgotten: Steps at which every forget gate is held at 0, so that the cell state before them is lost. (T, B)

    Raises:
        CheckpointError: The model gives something that is no probability.
    """
    layers: list[Activity] = []

    def kept(layer: LSTMLayer, x: Tensor, before: LSTMState, ends: Tensor | None) -> tuple[Tensor, LSTMState]:
        S = layer.width
        a = input_product(layer.kernel, x, layer.U, layer.b, ends)
        if forgotten is not None:
            block = GATES.index("forget")
            a[..., block * S : (block + 1) * S].masked_fill_(forgotten[..., None], ZERO_GATE)
        before = LSTMState(*(part.contiguous() for part in before))
        gates, C, H = layer.kernel.forward(a, layer.W, *before, multiplied=multiplying(layer.scale(x)))
        forget, input_, output, new = gates.split(S, dim=-1)
        layers.append(Activity(forget, input_, output, new, C, H))
        return H, LSTMState(H[-1], C[-1].clone())

    logits, last = model(ids, state, recurrence=kept)
    if not bool(torch.isfinite(logits).all()):
        raise not_finite()
    return Trace(tuple(layers), logits, last)


def windows(model: CharLM, ids: Tensor, state: StackState | None = None, window: int = WINDOW) -> Iterator[tuple[int, Trace]]:
    """Run a long text piece by piece, the state carried over.

    Args:
        model: In evaluation mode.
        ids: (n)
        state: Before the first of them.
        window: Steps of a piece, at most.

    Yields:
        The position of each piece, and what happened in it, with B = 1.
    """
    window = min(window, steps_at_once(1, model.vocabulary))
    for start in range(0, len(ids), window):
        found = trace(model, ids[start : start + window, None], state)
        state = found.state
        yield start, found


def steps(model: CharLM, ids: Sequence[int], before: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[Trace, Tensor]]:
    """Run a text of any length after a line end, and drop what belongs to that line end.

    Args:
        model: In evaluation mode.
        ids: Of the text, at least one.
        before: What is read first: a line end; where there is none the first character is charged at its frequency.
        counts: Occurrences of each symbol in the training text. (V)

    Yields:
        What happened at the characters of each piece (B = 1), and the bits that each of them cost.
    """
    state, guess = None, None
    if before:
        opening = trace(model, torch.tensor(before)[:, None])
        state, guess = opening.state, opening.logits[-1:]
    text = torch.tensor(ids)
    for start, found in windows(model, text, state):
        goals = text[start : start + len(found.logits), None]
        if guess is None:
            costs = torch.cat([torch.tensor([[first_char(counts, ids[0])]]), nats(found.logits[:-1], goals[1:])])
        else:
            costs = nats(torch.cat([guess, found.logits[:-1]]), goals)
        guess = found.logits[-1:]
        yield found, costs[:, 0] * bits(1.0)


class Gates(NamedTuple):
    """What every unit did along a text.

    characters: The text, a piece for each id.
    layers: Of each layer, the first one first, its quantities by name: forget, input, output, new, cell and hidden. (T, S) each
    surprise: The bits that each character cost. (T)
    """

    characters: list[str]
    layers: tuple[dict[str, Tensor], ...]
    surprise: list[float]


def gates(model: CharLM, ids: Sequence[int], before: Sequence[int], counts: Sequence[int], characters: list[str]) -> Gates:
    """Run a text and keep everything.

    Args:
        model: In evaluation mode.
        ids: As for `steps`.
        before: As for `steps`.
        counts: As for `steps`.
        characters: What each id stands for.
    """
    layers: list[dict[str, list[Tensor]]] = [{name: [] for name in Activity._fields} for _ in model.layers]
    surprise: list[float] = []
    for found, costs in steps(model, ids, before, counts):
        for kept, activity in zip(layers, found.layers, strict=True):
            for name, values in activity._asdict().items():
                kept[name].append(values[:, 0].clone())
        surprise += costs.tolist()
    return Gates(characters, tuple({name: torch.cat(parts) for name, parts in kept.items()} for kept in layers), surprise)


class Forgetting:
    """A model whose forget gates are held at 0 after each occurrence of a character: its cell state ends there.

    Called like the model itself.

    Args:
        model: In evaluation mode.
        mark: The id after which the cell state is lost.
    """

    def __init__(self, model: Network, mark: int) -> None:
        self._runs = [partial(self._run, one) for one in members(model)]
        self._mark = mark

    def __call__(self, ids: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Read ids (T, B); the cell state is zero after every mark."""
        return read(self._runs, ids, state)

    def _run(self, model: CharLM, ids: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        after = torch.zeros_like(ids, dtype=torch.bool)
        after[1:] = ids[:-1] == self._mark
        found = trace(model, ids, state, after)
        kept = (ids[-1] != self._mark)[:, None]
        return found.logits, tuple(LSTMState(s.hidden, s.cell * kept) for s in found.state)
