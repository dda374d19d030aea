"""The networks that a run trains: their weights, their optimizers, and their way through a window.

A run has one of them or several (`model.members`), each as a run of its own seed would have it. The trainer calls
`Members.learn` once a step.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lstmlm.config.run_config import RunConfig
from lstmlm.evaluation.sampling import twister_seed
from lstmlm.kernels import Kernel
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Number, Taught
from lstmlm.model import ensemble, weights
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import StackState
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer
from lstmlm.training.teacher import Teacher
from lstmlm.training.train_step import TrainStep


class Member:
    """One network of a run.

    Args:
        config: Of the run; no size may be None any more.
        vocabulary: V.
        kernel: What runs the recurrence.
        number: Counted from 0: it is added to the run's seed.
        device: Where it is trained; its weights are drawn on the CPU, the same for every device.
        separator: Ids of what parts documents.

    Attributes:
        prefix: Before the names of its tensors in a checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        vocabulary: int,
        kernel: Kernel,
        number: int,
        device: torch.device,
        separator: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._seed = (config.train.seed + number) % 2**63
        self.prefix = weights.prefix(config.model, number)
        torch.manual_seed(twister_seed(self._seed))
        self.model = CharLM(config.model, vocabulary, kernel, separator).to(device)
        self.optimizer = Optimizer(self.model, config.train, kernel.pointwise)

    def dropout(self, step: int, streams: int, first: int) -> Dropout:
        """Return the dropout of a step of the run, counted from 0, for the streams of the global batch from `first` on."""
        model = self._config.model
        return Dropout(model.dropout or 0.0, self._seed, step, streams, first, model.weight_dropout or 0.0)


class Members:
    """All networks of a run.

    Args:
        config: See `Member`.
        vocabulary: V.
        kernel: What runs the recurrence.
        device: Where they are trained.
        separator: See `Member`.
        teacher: From which they learn too; None: from the text alone.

    Attributes:
        each: One after another.
        network: All of them as one, which reads.
        teacher: See above.
    """

    def __init__(
        self,
        config: RunConfig,
        vocabulary: int,
        kernel: Kernel,
        device: torch.device,
        separator: Sequence[int] = (),
        teacher: Teacher | None = None,
    ) -> None:
        self._config = config
        self.teacher = teacher
        self.each = [Member(config, vocabulary, kernel, number, device, separator) for number in range(config.model.members)]
        self.network = ensemble.of([member.model for member in self.each])
        self._parts = len(self.network.initial_state(1))  # of a state, before those of the teacher
        self._steps: dict[int, TrainStep] = {}
        self._whole: TrainStep | None = None

    @property
    def gradients(self) -> list[Tensor]:
        """Return the flat gradients of all."""
        return [gradient for member in self.each for gradient in member.optimizer.gradients]

    def initial_state(self, batch: int) -> StackState:
        """Return the empty state of all networks, and of the teacher after them."""
        taught = self.teacher.network.initial_state(batch) if self.teacher else ()
        return (*self.network.initial_state(batch), *taught)

    def prepare(self, counts: Iterable[int], window: int, streams: int) -> None:
        """Take the memory for windows of so many streams each, of so many in the whole batch."""
        every = [member.optimizer for member in self.each]
        for count in counts:
            backprop = Backprop(self.network, count, window, self._config.train.segment)
            taken = every if count == streams else []
            self._steps[count] = TrainStep(self.network, backprop, taken, window, count, 1 / (streams * window))
        self._whole = self._steps.get(streams)

    def give_rows(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Let new networks have rows for pairs of characters; see `CharLM.give_rows`."""
        for member in self.each:
            member.model.give_rows(pairs)
            member.optimizer.begin_averages()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the networks have their averaged weights, if there are any, until the block is left."""
        with contextlib.ExitStack() as until:
            for member in self.each:
                until.enter_context(member.optimizer.averaged())
            yield

    @contextlib.contextmanager
    def strict(self) -> Iterator[list[CharLM]]:
        """Let the networks read with averaged weights in strict float32, as `lstmlm eval` does, until the block is left."""
        stack = self.network.stack()
        own = [layer.kernel for layer in stack]
        for layer in stack:
            layer.kernel = layer.kernel.strict
        try:
            with self.averaged():
                yield [member.model for member in self.each]
        finally:
            for layer, kernel in zip(stack, own, strict=True):
                layer.kernel = kernel

    def begin(self, rate: float) -> None:
        """Set the learning rate of the next step; `learn` and `finish` follow."""
        for member in self.each:
            member.optimizer.prepare(rate)

    def learn(
        self, ids: Tensor, targets: Tensor, state: StackState | None, step: int, streams: int, first: int
    ) -> tuple[Number, StackState]:
        """Read a window of some streams and add the gradient of their part of the mean nats.

        Args:
            ids: (T, B)
            targets: The id after each. (T, B)
            state: Of all networks, and of the teacher, before the window; None: the empty one.
            step: Of the run, counted from 0.
            streams: Of the global batch.
            first: The first of them that is here.

        Returns:
            Their part of the mean over the networks, and their state after the window.
        """
        count, share = ids.shape[1], self._config.train.state_dropout
        taught: Taught | None = None
        theirs: StackState = ()
        if self.teacher is not None:
            before = state or self.initial_state(count)
            state = before[: self._parts] if state else None
            taught, theirs = self.teacher(ids, before[self._parts :])
        drops = [member.dropout(step, streams, first) for member in self.each]
        emptied = torch.stack([drop.emptied(share, count) for drop in drops]) if state is not None and share else None
        nats, after = self._steps[count](ids, targets, state, drops, emptied, taught)
        return nats, (*after, *theirs)

    def finish(self, loss: Number) -> list[tuple[Number, Number]]:
        """Take the optimizers' step by the gradient that all streams have left, unless it or the loss is not finite.

        Args:
            loss: Mean nats over the whole batch.

        Returns:
            Of each network the norm of the gradient, and whether all weights are finite.
        """
        if self._whole is not None:  # that was part of it
            return list(self._whole.found)
        return [member.optimizer.step(loss) for member in self.each]
