"""The loop: a batch, a step, now and then a validation, a sample and a checkpoint; and how it stops.

`Trainer.run` is the entry point, for `train`. It never prints: it reports events. With several processes each runs the same
loop over its own streams; only rank 0 validates and writes, and what it decides by the clock is broadcast.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstmlm.config import auto_tune
from lstmlm.config.run_config import RunConfig, to_dict
from lstmlm.data.batches import Streams
from lstmlm.data.corpus import Corpus
from lstmlm.errors import CheckpointError, Diverged, Stopped
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import side_by_side
from lstmlm.kernels import Kernel
from lstmlm.kernels.cuda_graph import read_back
from lstmlm.kernels.pointwise import Number
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import load_weights
from lstmlm.model.lstm import StackState
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint, Journal
from lstmlm.training.clock_log import Times
from lstmlm.training.distributed import ProcessGroup, Shards, shards_for
from lstmlm.training.events import Clock, Decided, Event, Sampled, Saved, StepDone, SteppedBack, TrainState, Validated
from lstmlm.training.members import Members
from lstmlm.training.optim import learning_rate

RETRIES = 3  # times that a diverged run is stepped back, each with half the rate
SAMPLE_LENGTH = 240  # characters
LOG_EVERY = 10  # steps whose mean is one record of metrics.jsonl
SAVE_SECONDS = 30.0  # between two checkpoints, where save_every leaves it open: saving changes no result


class _Interrupted(Exception):  # no error: a signal came while a text was read
    """Validating was left before its end; nothing of it counts."""


class Trainer:
    """One run: its members, streams and folder.

    Args:
        config: Every value decided; only steps may be open where minutes are given.
        corpus: What to learn.
        kernel: What runs the recurrence.
        folder: Where config.yaml, metrics.jsonl, samples.txt, clock.jsonl and the checkpoints are.
        identity: What every checkpoint says about the run beside what the trainer knows: versions, command.
        report: Called with every record.
        clock: For a budget in minutes.
        stop: Asked after every step; a signal number ends the run with a committed checkpoint.
        group: The processes that share the run; None: this one alone.
        device: Where to compute; None: on the CPU.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        kernel: Kernel,
        folder: Path,
        identity: dict[str, Any],
        report: Callable[[Event], None],
        clock: Clock,
        stop: Callable[[], int | None] = lambda: None,
        group: ProcessGroup | None = None,
        device: torch.device | None = None,
    ) -> None:
        train = config.train
        assert train.batch is not None
        assert train.window is not None
        self.corpus = corpus
        self.folder = folder
        self.identity = identity
        self.report = report
        self.clock = clock
        self.stop = stop
        self.group = group or ProcessGroup()
        device = device or torch.device("cpu")
        self.members = Members(config, len(corpus.tokenizer), kernel, device)
        self.model = self.members.network
        self.streams = Streams(corpus.train, train.batch, train.window)
        B, T = self.streams.batch_size, self.streams.window
        shards = shards_for(train.accumulate, self.group.size, B)
        # The run keeps them: with fewer processes it goes on to the same bits.
        self.config = replace(config, train=replace(train, accumulate=shards))
        self.shards = Shards(self.group, self.members.gradients, B, shards)
        self.members.prepare({count for _, count in self.shards.own}, T, B)
        self.states: list[StackState | None] = [None] * len(self.shards.own)
        self.progress = TrainState(steps=auto_tune.steps_of(config, self.streams.steps_per_epoch))
        if self.progress.steps is not None:
            self.progress.eval_every = train.eval_every or auto_tune.eval_every(self.progress.steps)
        self.validation = corpus.val.tensor(0, min(len(corpus.val), auto_tune.eval_chars(config)))
        self.train_seconds = 0.0
        self._step_seconds: list[float] = []  # of this process, until the budget in minutes is turned into steps
        self._decided: tuple[int, float] | None = None  # the step at which this process did so, and its seconds of training
        self._eval_seconds = 0.0  # of the last validation, or what one is expected to take
        self._saved_at = 0.0
        self._signal: int | None = None  # that came to any process, as of the last step
        self._wanted = False  # a checkpoint, by rank 0's clock, as of the last step
        self._metrics: Journal | None = None
        self._samples: Journal | None = None
        self._times = Times(folder)

    @property
    def batch_chars(self) -> int:
        """Characters of one step, B x T."""
        return self.streams.batch_size * self.streams.window

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where a `last` checkpoint stands: weights, optimizer, carried state, position, best so far.

        Raises:
            CheckpointError: Something is missing or has another shape; nothing is half restored silently.
        """
        tensors = checkpoint.to_tensors(saved.tensors)
        self.load_model({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        self.progress = TrainState.from_meta(saved.meta["training"])
        try:
            for member in self.members.each:
                own = f"optimizer.{member.prefix}"
                moments = {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}
                member.optimizer.restore(moments, self.progress.step)
            whole = self._carried(tensors) if self.progress.step else None
        except torch.OutOfMemoryError:  # of the device, and no fault of the checkpoint
            raise
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint: its training state is not whole: {error}.") from None
        self.states = [
            whole and tuple(LSTMState(*(part[first : first + count].clone() for part in layer)) for layer in whole)
            for first, count in self.shards.own
        ]

    def _carried(self, tensors: dict[str, Tensor]) -> StackState:
        """Return the state that a checkpoint carries from its last window to the next.

        Raises:
            KeyError: A part is missing or has another shape.
        """
        expected = self.model.initial_state(self.streams.batch_size)
        for index, layer in enumerate(expected):
            for part in LSTMState._fields:
                found, wanted = tensors[f"state.{index}.{part}"], getattr(layer, part)
                if found.shape != wanted.shape:
                    raise KeyError(f"state.{index}.{part}: expected {tuple(wanted.shape)}, found {tuple(found.shape)}")
        return tuple(
            LSTMState(tensors[f"state.{index}.hidden"], tensors[f"state.{index}.cell"]) for index in range(len(expected))
        )

    def load_model(self, weights: dict[str, Tensor]) -> None:
        """Copy weights into the members; their optimizers' views stay where they are."""
        load_weights(self.model, weights)

    def begin(self) -> None:
        """Open the journals where the run stands, and commit the first checkpoint of a new run.

        From here on there is a state to step back to, and one to resume from.
        """
        p = self.progress
        if self.group.is_rank_zero:
            self._open_journals()
            self._times.begin(p.step)
        if not p.step:
            self.save()

    def _open_journals(self) -> None:
        self._metrics = Journal.open(self.folder / "metrics.jsonl", self.progress.metrics_bytes)
        self._samples = Journal.open(self.folder / "samples.txt", self.progress.samples_bytes)

    def run(self) -> None:
        """Train until the budget is used up, patience ends, or a signal comes; `begin` came first.

        Raises:
            Stopped: A signal came; its checkpoint is committed.
            Diverged: Stepping back did not help.
        """
        while not self._ended():
            if not self._owes_validation() and not self._advance():
                continue
            if self._owes_validation() and self._stopping() is None:
                began = time.perf_counter()
                self._validate()
                self._eval_seconds = time.perf_counter() - began
            signal = self._stopping()
            if not (self._save_due() or self._ended() or signal is not None):
                continue
            try:
                self.save()
            except Diverged:  # a moment or a score that is not finite: the writer refuses it
                self._step_back("state of the optimizer or score")
                continue
            if signal is not None:
                self.group.barrier()  # torchrun ends all when the first one leaves
                raise Stopped(f"stopped at step {self.progress.step}: the checkpoint is saved. `--resume` goes on.", signal)

    def _stopping(self) -> int | None:
        """Return the signal to stop for: alone at once, with others the one that all have heard of."""
        return self.stop() if self.group.size == 1 else self._signal

    def _save_due(self) -> bool:
        every = self.config.train.save_every
        if every:
            return self.progress.step % every == 0
        return self._late() if self.group.size == 1 else self._wanted

    def _late(self) -> bool:
        return time.perf_counter() - self._saved_at > SAVE_SECONDS

    def _ended(self) -> bool:
        p, patience = self.progress, self.config.train.patience
        done = p.step == p.steps and not self._owes_validation()
        return done or auto_tune.should_stop_early(patience, p.worse, p.final_nats, p.best_nats)

    def _owes_validation(self) -> bool:
        p = self.progress
        return p.step > p.validated and (p.step == p.steps or bool(p.eval_every and p.step % p.eval_every == 0))

    def _advance(self) -> bool:
        """Take one step and report it; say whether it counts."""
        began = time.perf_counter()
        done = self._step()
        seconds = time.perf_counter() - began
        self.train_seconds += seconds
        if done is None:
            return False
        self.report(done)
        if self.progress.steps is None:
            self._step_seconds.append(seconds)
            self._decide()
        elif auto_tune.time_to_adjust(self.progress.step, self.progress.steps, self.config.train):
            self._adjust()
        return True

    def _step(self) -> StepDone | None:
        """Take one step; None where it was not finite and the run was stepped back."""
        p, config = self.progress, self.config.train
        rate = learning_rate(config, p.step, p.steps or 2**62) * p.rate_scale
        self.members.begin(rate)
        found = self.shards.gradient(self._shard, self.states, save=self._late(), signal=self.stop())
        self._wanted, self._signal = found.save, found.signal
        value, *rest = read_back(found.loss, *chain.from_iterable(self.members.finish(found.loss)))
        norms, finite = rest[::2], rest[1::2]
        if not all(map(math.isfinite, (value, *norms))):
            self._step_back("loss" if not math.isfinite(value) else "gradient")
            return None
        if not all(finite):
            self._step_back("weight")
            return None
        self.states = list(found.states)
        p.step += 1
        p.recent_nats += value
        p.recent_steps += 1
        if p.recent_steps == LOG_EVERY or p.step == p.steps:
            mean = p.recent_nats / p.recent_steps
            self._log({"step": p.step, "nats_per_char": mean, "rate": rate, "chars": p.step * self.batch_chars})
            p.recent_nats, p.recent_steps = 0.0, 0
        return StepDone(p.step, p.steps, value, rate, p.step * self.batch_chars)

    def _shard(self, first: int, count: int, state: StackState | None) -> tuple[Number, StackState]:
        """Let the members learn from some streams; return their part of the mean nats, and their state after the window."""
        inputs, targets, fresh = self.streams.batch(self.progress.step, first, count)
        return self.members.learn(inputs, targets, None if fresh else state, self.progress.step, self.streams.batch_size, first)

    def _step_back(self, what: str) -> None:
        """Go back to the last checkpoint, or to the start, with half the rate."""
        step, retries, scale = self.progress.step, self.progress.retries + 1, self.progress.rate_scale / 2
        if retries > RETRIES:
            raise Diverged(
                f"training at step {step + 1}: expected a finite {what}, found one that is not, {RETRIES} steps back and with "
                f"1/{2**RETRIES} of the rate too. Try a smaller --lr; the last good checkpoint is kept."
            )
        self.restore(
            self.group.broadcast_checkpoint(
                checkpoint.read(self.folder / "last.safetensors") if self.group.is_rank_zero else None
            )
        )
        self.progress.retries, self.progress.rate_scale = retries, scale
        if self.group.is_rank_zero:
            self._open_journals()
            self._times.step_back(self.progress.step)
        self.report(SteppedBack(step + 1, self.progress.step, what, scale))
        self.save()

    def _decide(self) -> None:
        """Turn the minutes into a number of steps, from the speed of the first steps."""
        p, minutes = self.progress, self.config.train.minutes
        assert minutes is not None
        found = 0.0, 0.0, 0.0
        if self.group.is_rank_zero:
            with contextlib.suppress(_Interrupted):
                found = self._plan_steps(minutes)
        steps, eval_every, speed = self.group.broadcast_floats(*found)
        if steps:
            p.steps, p.eval_every = int(steps), int(eval_every)
            self._decided = p.step, self.train_seconds
            self.report(Decided(p.steps, speed))
            self.save()

    def _adjust(self) -> None:
        """Near the end, fit the number of steps to the time that is left, where nothing done so far depends on it.

        A run that was resumed keeps the number that it was given: its clock is another one.
        """
        p, minutes = self.progress, self.config.train.minutes
        if minutes is None or self._decided is None or p.step == self._decided[0]:
            return
        since, seconds = self._decided
        per_step = (self.train_seconds - seconds) / (p.step - since)
        steps = auto_tune.steps_in(minutes * 60 - self.clock.seconds(), per_step, self._eval_seconds)
        p.steps = p.step + int(self.group.broadcast_floats(steps)[0])
        p.eval_every = self.config.train.eval_every or p.steps
        self.save()

    def _plan_steps(self, minutes: float) -> tuple[float, float, float]:
        """Return steps, steps between validations and characters a second; 0 steps as long as that is not known."""
        timed = self._step_seconds
        if not auto_tune.speed_is_known(len(timed), sum(timed), minutes, self.config.train):
            return 0, 0, 0
        later = timed[len(timed) // 4 :]  # the first steps find memory and caches cold
        per_step = sum(later) / len(later)
        began = time.perf_counter()
        self._score(self.validation[: max(2, min(len(self.validation), self.batch_chars * 8))])
        per_eval = self._eval_seconds = (time.perf_counter() - began) * len(self.validation) / (self.batch_chars * 8)
        left = minutes * 60 - self.clock.seconds()
        return *auto_tune.plan_steps(self.progress.step, left, per_step, per_eval, self.config.train), self.batch_chars / per_step

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Let the model read without learning, its averaged weights if any; a signal raises _Interrupted before its next call."""

        def leave(*_: object) -> None:
            if self.stop() is not None:
                raise _Interrupted

        with contextlib.ExitStack() as until:
            for member in self.members.each:
                until.callback(member.model.register_forward_pre_hook(leave).remove)
                until.enter_context(member.optimizer.averaged())
            yield

    def _score(self, ids: Tensor) -> tuple[float, tuple[float, ...]]:
        """Score a text as `lstmlm eval` does, in strict float32: nats per character together, and of each member alone."""
        stack = self.model.stack()
        own = [layer.kernel for layer in stack]
        for layer in stack:
            layer.kernel = layer.kernel.strict
        try:
            with self._reading():
                return side_by_side([member.model for member in self.members.each], ids, self.corpus.counts)
        finally:
            for layer, kernel in zip(stack, own, strict=True):
                layer.kernel = kernel

    def _validate(self) -> None:
        """Score the validation text, keep the best model, write a sample; all of it or, on a signal, nothing."""
        p = self.progress
        value, text, signal = math.inf, "", 0.0
        alone: tuple[float, ...] = ()
        if self.group.is_rank_zero:
            try:
                if len(self.validation):
                    value, alone = self._score(self.validation)
                text = self._sample()
            except _Interrupted:
                signal = self.stop() or 0
        value, signal = self.group.broadcast_floats(value, signal)
        if signal:
            self._signal = int(signal)
            return
        p.validated = p.step
        best = value < p.best_nats or not len(self.validation)  # nothing to choose by: the newest is the best
        if len(self.validation):
            p.final_nats = value
            p.worse = 0 if best else p.worse + 1
        if best:
            p.best_nats, p.best_step = value, p.step
        if self.group.is_rank_zero:
            self._keep(value, alone if len(alone) > 1 else (), text, best=best)

    def _keep(self, value: float, alone: tuple[float, ...], text: str, *, best: bool) -> None:
        """Write and report what a validation has found."""
        p = self.progress
        if best:
            checkpoint.write(self.folder / "best.safetensors", self._checkpoint("best", None))
        if math.isfinite(value):
            each = {"members_nats_per_char": list(alone)} if alone else {}
            self._log({"step": p.step, "validation_nats_per_char": value, **each})
            self.report(Validated(p.step, value, best, alone))
        assert self._samples is not None
        self._samples.append_text(f"--- step {p.step}\n{text}\n")
        p.samples_bytes = self._samples.size
        self.report(Sampled(p.step, text))

    def _sample(self) -> str:
        tokenizer = self.corpus.tokenizer
        prompt = self.corpus.train.tensor(0, 1).tolist()
        with self._reading():
            stream = generate(self.model, prompt, [self.progress.step], Sampling(temperature=0.8))
            return tokenizer.decode([next(stream)[0][0] for _ in range(SAMPLE_LENGTH)])

    def _log(self, record: dict[str, Any]) -> None:
        if not self.group.is_rank_zero:
            return
        assert self._metrics is not None
        self._metrics.append(record)
        self.progress.metrics_bytes = self._metrics.size
        self._times.reached(record["step"])

    def save(self) -> None:
        """Commit `last`: all that going on needs.

        Raises:
            Diverged: Something in it is not finite; nothing was written.
        """
        whole = self._whole_state()
        refused = None
        if self.group.is_rank_zero:
            try:
                self._write_last(whole)
            except Diverged as error:
                refused = error
        if self.group.broadcast_floats(float(refused is not None))[0]:
            raise refused or Diverged("rank 0's checkpoint has a value that is not finite")
        self._saved_at = time.perf_counter()

    def _write_last(self, whole: StackState | None) -> None:
        assert self._metrics is not None
        assert self._samples is not None
        self._metrics.sync()  # the checkpoint says how long they are: they come first
        self._samples.sync()
        path = self.folder / "last.safetensors"
        checkpoint.write(path, self._checkpoint("last", whole))
        self._times.reached(self.progress.step)
        self.report(Saved(self.progress.step, path))

    def _whole_state(self) -> StackState | None:
        """Return the carried state of all streams to rank 0; None to the others, and before the first step."""
        own = [state for state in self.states if state is not None]
        if not own:
            return None
        whole = [
            [self.group.gather_rows(torch.cat([state[index][part] for state in own]), self.shards.rows) for part in range(2)]
            for index in range(len(own[0]))
        ]
        return tuple(LSTMState(H, C) for H, C in whole if H is not None and C is not None) or None

    def _checkpoint(self, kind: str, whole: StackState | None) -> Checkpoint:
        p = self.progress
        with contextlib.ExitStack() as until:
            for member in self.members.each:
                until.enter_context(member.optimizer.averaged())
            blobs = checkpoint.to_blobs({f"model.{k}": v for k, v in self.model.state_dict().items()})
        meta = {
            **self.identity,
            "config": to_dict(self.config),
            "tokenizer": self.corpus.tokenizer.to_dict(),
            "counts": list(self.corpus.counts),
            "step": p.step,
            "parameters": self.model.parameter_count(),
            "scores": {} if p.best_nats == math.inf else {"validation_nats_per_char": p.best_nats, "step": p.best_step},
            "training": {},
        }
        if kind == "last":
            moments = {member.prefix: member.optimizer.state() for member in self.members.each}
            tensors = {f"optimizer.{prefix}{name}": tensor for prefix, own in moments.items() for name, tensor in own.items()}
            for index, state in enumerate(whole or ()):
                tensors |= {f"state.{index}.hidden": state.hidden, f"state.{index}.cell": state.cell}
            meta["training"] = p.to_meta()
            blobs |= checkpoint.to_blobs(tensors)
        return Checkpoint(kind, meta, blobs)
