"""Reading known ids by torch: for a network whose kernel is not the native one, any device, floating type and way to run it.

`TorchReader` is the entry point, for `reader`, `cloze` and `analysis`; `pick` takes rows out of a state.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lstmlm.evaluation.reading import Read
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import nats, steps_at_once
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import StackState

Forward = Callable[[Tensor, StackState], tuple[Tensor, StackState]]
"""Reads ids (T, B) from a state: logits (T, B, V) and the state after them. A model is one."""


def pick(state: StackState, rows: Tensor) -> StackState:
    """Return the states of some rows of the batch, in their order; a row may be asked for more than once."""
    return tuple(LSTMState(s.hidden[rows], s.cell[rows]) for s in state)


class TorchReader:
    """See `reading.Reader`. A state is a `StackState`; nothing is computed for padding.

    Args:
        model: In evaluation mode.
        ask: See `reader.reading`.
        run: How the model is run; None: as it is.
    """

    streams = 64
    stream_chars = 1 << 10  # a step costs about as much for many rows as for one

    def __init__(self, model: Network, ask: Callable[[], object] | None = None, run: Forward | None = None) -> None:
        self._model = model
        self._ask = ask
        self._run: Forward = run or model
        self._V = model.vocabulary

    def empty(self, rows: int) -> StackState:
        """See `Reader`."""
        return self._model.initial_state(rows)

    @torch.inference_mode()
    def read(self, rows: Sequence[Sequence[int]], state: StackState) -> Read:
        """See `Reader`. The longest row comes first, and each leaves when it has come to its end.

        With many ids few rows are read side by side.
        """
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        costs: list[list[float]] = [[] for _ in rows]
        hits: list[list[bool]] = [[] for _ in rows]
        final = state
        most = steps_at_once(1, self._V)
        for low in range(0, len(order), most):
            group = order[low : low + most]
            after = self._side_by_side([rows[row] for row in group], self.pick(state, group), group, costs, hits)
            final = self.put(final, group, after)
        return Read([*costs], [*hits], final)

    def _side_by_side(
        self,
        rows: list[Sequence[int]],
        state: StackState,
        places: list[int],
        costs: list[list[float]],
        hits: list[list[bool]],
    ) -> StackState:
        """Read rows, the longest first; add what they cost to those at their places, and return the states after them."""
        lengths = [max(0, len(row) - 1) for row in rows]
        current, final = state, tuple(LSTMState(s.hidden.clone(), s.cell.clone()) for s in state)
        done = 0
        for stop in sorted(set(lengths) - {0}):
            alive = sum(length >= stop for length in lengths)
            current = tuple(LSTMState(s.hidden[:alive], s.cell[:alive]) for s in current)
            ids = torch.tensor([list(row[done : stop + 1]) for row in rows[:alive]], device=state[0].hidden.device).t()
            # Where the costs go is allocated first: small ones between large ones that go would keep malloc from using the gaps.
            each, right = state[0].hidden.new_empty(stop - done, alive), ids.new_empty(stop - done, alive, dtype=torch.bool)
            step = steps_at_once(alive, self._V)
            for start in range(0, stop - done, step):
                if self._ask is not None:
                    self._ask()
                here, goals = slice(start, start + step), ids[1:][start : start + step]
                logits, current = self._run(ids[:-1][here].contiguous(), current)
                each[here], right[here] = nats(logits, goals), logits.argmax(-1) == goals
            for place, own, own_hits in zip(places, each.t().tolist(), right.t().tolist(), strict=False):
                costs[place] += own
                hits[place] += own_hits
            for kept, new in zip(final, current, strict=True):
                kept.hidden[:alive], kept.cell[:alive] = new.hidden, new.cell
            done = stop
        return final

    def pick(self, state: StackState, rows: Sequence[int]) -> StackState:
        """See `Reader`."""
        return pick(state, torch.tensor(rows, dtype=torch.int64, device=state[0].hidden.device))

    @torch.inference_mode()
    def put(self, state: StackState, rows: Sequence[int], new: StackState) -> StackState:
        """See `Reader`."""
        place = torch.tensor(rows, dtype=torch.int64, device=state[0].hidden.device)
        return tuple(
            LSTMState(old.hidden.index_copy(0, place, own.hidden), old.cell.index_copy(0, place, own.cell))
            for old, own in zip(state, new, strict=True)
        )

    def joined(self, one: StackState, other: StackState) -> StackState:
        """See `Reader`."""
        return tuple(
            LSTMState(torch.cat([a.hidden, b.hidden]), torch.cat([a.cell, b.cell])) for a, b in zip(one, other, strict=True)
        )

    def roundings(self, one: StackState, other: StackState) -> list[float]:
        """See `Reader`."""
        far = [
            ((a - b).abs() / (torch.finfo(a.dtype).eps * (1 + b.abs()))).amax(dim=1)
            for a, b in zip(_flat(one), _flat(other), strict=True)
        ]
        found: list[float] = torch.stack(far).amax(dim=0).tolist()
        return found


def _flat(state: StackState) -> Iterator[Tensor]:
    for layer in state:
        yield from layer
