"""A training step in memory that stays where it is, so that it can be recorded as one graph: forward, backward, clip, AdamW.

`Members.learn` calls it. What changes from step to step is written into tensors first: ids, the carried state, which
streams begin empty, dropout's words, and the optimizers' numbers. What is found stays in a tensor that one read-back brings to
the host.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lstmlm.kernels.cuda_graph import Graph, Recorder
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Taught
from lstmlm.model import ensemble
from lstmlm.model.cell import LSTMState
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import StackState
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer


class TrainStep:
    """The step of some streams.

    A loss that is not finite leaves all weights, moments and averages as they were, a gradient those of its network.

    Args:
        network: What learns.
        backprop: Its way through a window of T steps and B rows.
        optimizers: What takes the step, one for each of several networks, at the numbers that `Optimizer.prepare` set last; none
            where other streams belong to the same step: then the gradient is left where it is.
        window: T.
        batch: B.
        scale: One over the number of predictions of the whole batch.
        record: See `Graph`.
    """

    def __init__(
        self,
        network: Network,
        backprop: Backprop,
        optimizers: Sequence[Optimizer],
        window: int,
        batch: int,
        scale: float,
        record: Recorder | None = None,
    ) -> None:
        models = ensemble.members(network)
        like = models[0].stack()[0].W.data
        self._backprop, self._optimizers, self._scale = backprop, optimizers, scale
        self._layers = len(models[0].layers)
        self._deferred = models[0].stack()[0].kernel.pointwise.deferred
        self._ids, self._targets = torch.zeros(2, window, batch, dtype=torch.int64, device=like.device)
        self._kept = like.new_ones(len(models), batch, 1)
        self._state = network.initial_state(batch)
        self._drops = [Dropout(0.0, 0, 0, batch) for _ in models]
        self._taught: Taught | None = None
        self._words = torch.zeros(len(models), 1 + 2 * self._layers, dtype=torch.int64, device=like.device)
        self._found = torch.zeros(1 + 2 * len(models), dtype=torch.float64, device=like.device)
        self._graph = Graph(self._run, like.device, record)

    def __call__(
        self,
        ids: Tensor,
        targets: Tensor,
        state: StackState | None,
        drops: Sequence[Dropout],
        emptied: Tensor | None = None,
        taught: Taught | None = None,
    ) -> tuple[Tensor, StackState]:
        """Take the step.

        Args:
            ids: (T, B), on any device.
            targets: The id after each. (T, B), likewise.
            state: Before the window, likewise; None: the empty one. Of several networks, those of all of them.
            drops: The step's dropout of each network; its shares and the number of streams are the same in each call.
            emptied: Which of the rows of each network begin with an empty state all the same. (M, B), bool
            taught: What a teacher expects, of the same weight in each call; None in all of them: there is none. (T, B, V)

        Returns:
            Their part of the mean nats, and the state after the window. With an optimizer both are memory that the next call
            writes to.
        """
        self._ids.copy_(ids)
        self._targets.copy_(targets)
        self._drops = list(drops)
        if self._deferred:
            self._words.copy_(torch.tensor([drop.words(self._layers) for drop in drops]))
            self._drops = [drop.reading(words) for drop, words in zip(drops, self._words, strict=True)]
        if emptied is None:
            self._kept.fill_(1.0)
        else:
            self._kept.copy_(~emptied[..., None])
        if taught is not None:
            self._taught = self._taught or Taught(torch.empty_like(taught.probabilities), taught.weight)
            self._taught.probabilities.copy_(taught.probabilities)
        for index, layer in enumerate(self._state):
            for own, given in zip(layer, state[index] if state is not None else (None, None), strict=True):
                if given is None:
                    own.zero_()
                elif given is not own:
                    own.copy_(given)
        self._graph()
        if self._optimizers:
            return self._found[0], self._state
        return self._found[0].clone(), tuple(LSTMState(layer.hidden.clone(), layer.cell.clone()) for layer in self._state)

    @property
    def found(self) -> list[tuple[Tensor, Tensor]]:
        """Return each gradient's norm and whether all weights are finite, of the last call of a step with optimizers."""
        return [(norm, finite) for norm, finite in self._found[1:].view(-1, 2)]

    @torch.no_grad()
    def _run(self) -> None:
        states = ensemble.parted(self._state, len(self._kept))
        before = ensemble.joined(
            tuple(LSTMState(layer.hidden * kept, layer.cell * kept) for layer in own)
            for own, kept in zip(states, self._kept, strict=True)
        )
        nats, after = self._backprop(self._ids, self._targets, before, self._scale, *self._drops, taught=self._taught)
        loss = nats * (self._scale / len(states))
        self._found[0] = loss
        for optimizer, found in zip(self._optimizers, self._found[1:].view(-1, 2), strict=False):  # none, or one for each
            found[0], found[1] = optimizer.step(loss)
        for own, new in zip(self._state, after, strict=True):
            own.hidden.copy_(new.hidden)
            own.cell.copy_(new.cell)
