"""One of the networks that a run trains: its weights, its optimizer, and its way through a window.

A run has one of them or several (`model.members`), each as a run of its own seed would have it. It knows a network and the ids
of a step. It does not know the other members, processes, texts or files.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lstmlm import ensemble
from lstmlm.backprop import Backprop
from lstmlm.cell import LSTMState
from lstmlm.config import RunConfig
from lstmlm.dropout import Dropout
from lstmlm.kernels import Kernel
from lstmlm.kernels.pointwise import Number
from lstmlm.lstm import StackState
from lstmlm.model import CharLM
from lstmlm.optim import Optimizer
from lstmlm.step import Step


class Member:
    """One network of a run.

    Args:
        config: Of the run; no size may be None any more.
        vocabulary: V.
        kernel: What runs the recurrence.
        number: Counted from 0: it is added to the run's seed.
        device: Where it is trained; its weights are drawn on the CPU, the same for every device.

    Attributes:
        prefix: Before the names of its tensors in a checkpoint.
    """

    def __init__(self, config: RunConfig, vocabulary: int, kernel: Kernel, number: int, device: torch.device) -> None:
        self._config = config
        self._seed = (config.train.seed + number) % 2**63
        self.prefix = ensemble.prefix(config.model, number)
        torch.manual_seed(self._seed)
        self.model = CharLM(config.model, vocabulary, kernel).to(device)
        self.optimizer = Optimizer(self.model, config.train, kernel.pointwise)
        self._deferred = kernel.pointwise.deferred
        self.backprop: dict[int, Backprop] = {}
        self._steps: dict[int, Step] = {}
        self._whole: Step | None = None

    def prepare(self, counts: Iterable[int], window: int, streams: int) -> None:
        """Take the memory for windows of so many streams each, of so many in the whole batch."""
        for count in counts:
            self.backprop[count] = backprop = Backprop(self.model, count, window, self._config.train.segment)
            if self._deferred:
                taken = self.optimizer if count == streams else None
                self._steps[count] = Step(self.model, backprop, taken, window, count, 1 / (streams * window))
        self._whole = self._steps.get(streams)

    def learn(
        self, ids: Tensor, targets: Tensor, state: StackState | None, step: int, streams: int, first: int
    ) -> tuple[Number, StackState]:
        """Read a window of some streams and add the gradient of their part of the mean nats; `Optimizer.prepare` came first.

        Args:
            ids: (T, B)
            targets: The id after each. (T, B)
            state: Before the window; None: the empty one.
            step: Of the run, counted from 0.
            streams: Of the global batch.
            first: The first of them that is here.

        Returns:
            Their part of the mean, and their state after the window.
        """
        T, count = ids.shape
        model, train = self._config.model, self._config.train
        drop = Dropout(model.dropout or 0.0, self._seed, step, streams, first, model.weight_dropout or 0.0)
        emptied = drop.emptied(train.state_dropout, count) if state is not None and train.state_dropout else None
        if self._deferred:
            return self._steps[count](ids, targets, state, drop, emptied)
        if state is None:
            state = self.model.initial_state(count)
        elif emptied is not None:
            kept = ~emptied[:, None]
            state = tuple(LSTMState(layer.hidden * kept, layer.cell * kept) for layer in state)
        scale = 1 / (streams * T)
        summed, after = self.backprop[count](ids, targets, state, scale, drop)
        return summed * scale, after

    def finish(self, loss: Number) -> tuple[Number, Number]:
        """Take the optimizer's step by the gradient that all streams have left, unless it or the loss is not finite.

        Args:
            loss: Mean nats over the whole batch.

        Returns:
            The norm of the gradient, and whether all weights are finite.
        """
        if self._whole is not None:  # that was part of it
            return self._whole.found
        norm = self.optimizer.gradient_norm()
        if not (self._deferred or math.isfinite(norm + loss)):
            return norm, True
        return norm, self.optimizer.step(norm, loss)
