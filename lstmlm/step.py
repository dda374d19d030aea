"""A training step in memory that stays where it is, so that it can be recorded as one graph: forward, backward, clip, AdamW.

It knows a network's window and its optimizer. It does not know texts, other members, processes or when to stop. What changes
from step to step is written into tensors first: ids, the carried state, which streams begin empty, dropout's words, and
the optimizer's numbers. What is found stays in a tensor that one read-back brings to the host.
"""

import torch
from torch import Tensor

from lstmlm.backprop import Backprop
from lstmlm.cell import LSTMState
from lstmlm.dropout import Dropout
from lstmlm.graph import Graph, Record
from lstmlm.lstm import StackState
from lstmlm.model import CharLM
from lstmlm.optim import Optimizer


class Step:
    """The step of some streams.

    A loss or a gradient that is not finite leaves weights, moments and averages as they were.

    Args:
        model: What learns.
        backprop: Its way through a window of T steps and B rows.
        optimizer: What takes the step, at the numbers that `Optimizer.prepare` set last; None where other streams belong to the
            same step: then the gradient is left where it is.
        window: T.
        batch: B.
        scale: One over the number of predictions of the whole batch.
        record: See `Graph`.
    """

    def __init__(
        self,
        model: CharLM,
        backprop: Backprop,
        optimizer: Optimizer | None,
        window: int,
        batch: int,
        scale: float,
        record: Record | None = None,
    ) -> None:
        like = model.stack()[0].W.data
        self._backprop, self._optimizer, self._scale = backprop, optimizer, scale
        self._layers = len(model.layers)
        self._ids, self._targets = torch.zeros(2, window, batch, dtype=torch.int64, device=like.device)
        self._kept = like.new_ones(batch, 1)
        self._state = model.initial_state(batch)
        self._drop = Dropout(0.0, 0, 0, batch)
        self._words = torch.zeros(1 + 2 * self._layers, dtype=torch.int64, device=like.device)
        self._found = torch.zeros(3, dtype=torch.float64, device=like.device)
        self._graph = Graph(self._run, like.device, record)

    def __call__(
        self, ids: Tensor, targets: Tensor, state: StackState | None, drop: Dropout, emptied: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """Take the step.

        Args:
            ids: (T, B), on any device.
            targets: The id after each. (T, B), likewise.
            state: Before the window, likewise; None: the empty one.
            drop: The step's dropout; its shares and the number of streams are the same in each call.
            emptied: Which of the rows begin with an empty state all the same. (B), bool

        Returns:
            Their part of the mean nats, and the state after the window. With an optimizer both are memory that the next call
            writes to.
        """
        self._ids.copy_(ids)
        self._targets.copy_(targets)
        self._words.copy_(torch.tensor(drop.words(self._layers)))
        self._drop = drop.reading(self._words)
        if emptied is None:
            self._kept.fill_(1.0)
        else:
            self._kept.copy_(~emptied[:, None])
        for index, layer in enumerate(self._state):
            for own, given in zip(layer, state[index] if state is not None else (None, None), strict=True):
                if given is None:
                    own.zero_()
                elif given is not own:
                    own.copy_(given)
        self._graph()
        if self._optimizer is not None:
            return self._found[0], self._state
        return self._found[0].clone(), tuple(LSTMState(layer.hidden.clone(), layer.cell.clone()) for layer in self._state)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        """Return the gradient's norm and whether all weights are finite, of the last call of a step with an optimizer."""
        return self._found[1], self._found[2]

    @torch.no_grad()
    def _run(self) -> None:
        before = tuple(LSTMState(layer.hidden * self._kept, layer.cell * self._kept) for layer in self._state)
        nats, after = self._backprop(self._ids, self._targets, before, self._scale, self._drop)
        self._found[0] = nats * self._scale
        if self._optimizer is not None:
            norm = self._optimizer.gradient_norm()
            finite = self._optimizer.step(norm, self._found[0])
            self._found[1], self._found[2] = norm, finite
        for own, new in zip(self._state, after, strict=True):
            own.hidden.copy_(new.hidden)
            own.cell.copy_(new.cell)
