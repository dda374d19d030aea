"""Rows of ids of different lengths, read side by side: the longest first, and each leaves when it has come to its end.

Nothing is computed for padding. `read` is the entry point, for `cloze` and `analysis`; `pick` takes rows out of a state.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lstmlm.errors import not_finite
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import nats, steps_at_once
from lstmlm.model.lstm import StackState

TOGETHER = 64
"""Rows that are read side by side where there are many: questions, lines, places of a mark."""

Forward = Callable[[Tensor, StackState], tuple[Tensor, StackState]]
"""Reads ids (T, B) from a state: logits (T, B, V) and the state after them. A model is one."""


def pick(state: StackState, rows: Tensor) -> StackState:
    """Return the states of some rows of the batch, in their order; a row may be asked for more than once."""
    return tuple(LSTMState(s.hidden[rows], s.cell[rows]) for s in state)


@torch.inference_mode()
def read(run: Forward, rows: Sequence[Sequence[int]], state: StackState, vocabulary: int) -> tuple[list[float], StackState]:
    """Score each row's ids after its first one, and leave its last one unread.

    Args:
        run: Reads ids.
        rows: One list of ids for each row of the state; an empty one is left as it is.
        state: Before the first id of each.
        vocabulary: V: with many ids few rows are read side by side.

    Returns:
        The nats of each row, and the states before its last id.

    Raises:
        CheckpointError: The model gives something that is no probability.
    """
    device = state[0].hidden.device
    order = torch.tensor(sorted(range(len(rows)), key=lambda row: -len(rows[row])), dtype=torch.int64, device=device)
    costs = torch.zeros(len(rows), dtype=torch.float64, device=device)
    final = pick(state, torch.arange(len(rows), device=device))
    for group in order.split(steps_at_once(1, vocabulary)):
        costs[group], after = _side_by_side(run, [rows[row] for row in group.tolist()], pick(state, group), vocabulary)
        for kept, new in zip(final, after, strict=True):
            kept.hidden[group], kept.cell[group] = new.hidden, new.cell
    found = costs.tolist()
    if not all(map(math.isfinite, found)):
        raise not_finite()
    return found, final


def _side_by_side(run: Forward, rows: Sequence[Sequence[int]], state: StackState, vocabulary: int) -> tuple[Tensor, StackState]:
    """Do so for rows that are ordered, the longest first."""
    device = state[0].hidden.device
    lengths = [max(0, len(row) - 1) for row in rows]
    costs = torch.zeros(len(rows), dtype=torch.float64, device=device)
    current = final = state
    done = 0
    for stop in sorted(set(lengths) - {0}):
        alive = sum(length >= stop for length in lengths)
        current = tuple(LSTMState(s.hidden[:alive], s.cell[:alive]) for s in current)
        ids = torch.tensor([row[done : stop + 1] for row in rows[:alive]], device=device).t()
        step = steps_at_once(alive, vocabulary)
        for x, y in zip(ids[:-1].split(step), ids[1:].split(step), strict=True):
            logits, current = run(x.contiguous(), current)
            costs[:alive] += nats(logits, y).double().sum(0)
        for kept, new in zip(final, current, strict=True):
            kept.hidden[:alive], kept.cell[:alive] = new.hidden, new.cell
        done = stop
    return costs, final
