"""One of the networks that a run trains: its weights, its optimizer, and its way through a window.

A run has one of them or several (`model.members`), each as a run of its own seed would have it. It knows a network and the ids
of a step. It does not know the other members, processes, texts or files.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lstmlm import ensemble
from lstmlm.backprop import Backprop
from lstmlm.cell import LSTMState
from lstmlm.config import RunConfig
from lstmlm.dropout import Dropout
from lstmlm.kernels import Kernel
from lstmlm.lstm import StackState
from lstmlm.model import CharLM
from lstmlm.optim import Optimizer


class Member:
    """One network of a run.

    Args:
        config: Of the run; no size may be None any more.
        vocabulary: V.
        kernel: What runs the recurrence.
        number: Counted from 0: it is added to the run's seed.

    Attributes:
        prefix: Before the names of its tensors in a checkpoint.
    """

    def __init__(self, config: RunConfig, vocabulary: int, kernel: Kernel, number: int) -> None:
        self._config = config
        self._seed = (config.train.seed + number) % 2**63
        self.prefix = ensemble.prefix(config.model, number)
        torch.manual_seed(self._seed)
        self.model = CharLM(config.model, vocabulary, kernel)
        self.optimizer = Optimizer(self.model, config.train, kernel.pointwise)
        self.backprop: dict[int, Backprop] = {}

    def prepare(self, counts: Iterable[int], window: int) -> None:
        """Take the memory for windows of so many streams each."""
        self.backprop = {count: Backprop(self.model, count, window, self._config.train.segment) for count in counts}

    def learn(
        self, ids: Tensor, targets: Tensor, state: StackState | None, step: int, streams: int, first: int
    ) -> tuple[float, StackState]:
        """Read a window of some streams and add the gradient of their part of the mean nats.

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
        if state is None:
            state = self.model.initial_state(count)
        elif share := train.state_dropout:
            kept = ~drop.emptied(share, count)[:, None]
            state = tuple(LSTMState(layer.hidden * kept, layer.cell * kept) for layer in state)
        scale = 1 / (streams * T)
        summed, after = self.backprop[count](ids, targets, state, scale, drop)
        return summed * scale, after
