"""The loop: a batch, a step, now and then a validation, a sample and a checkpoint; and how it stops.

`Trainer.run` is the entry point, for `train`. It never prints: it reports events. With several processes each runs the same
loop over its own streams; only rank 0 validates and writes, and what it decides by the clock is broadcast.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstmlm.config import auto_tune
from lstmlm.config.run_config import RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.data import pairs
from lstmlm.data.batches import Streams
from lstmlm.data.corpus import Corpus
from lstmlm.data.names import Renaming
from lstmlm.data.tokenizer import separator_ids
from lstmlm.errors import Diverged, Stopped
from lstmlm.evaluation.scoring import which_char
from lstmlm.kernels import Kernel
from lstmlm.kernels.cuda_graph import read_back
from lstmlm.kernels.pace import Pace
from lstmlm.kernels.pointwise import Number
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import load_weights
from lstmlm.model.lstm import StackState
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import budget, run_files
from lstmlm.training.budget import Budget, Looks
from lstmlm.training.distributed import ProcessGroup, Shards, shards_for
from lstmlm.training.events import (
    Busy,
    Clock,
    Event,
    Planned,
    Sampled,
    Saved,
    Scored,
    StepDone,
    SteppedBack,
    TrainState,
    Validated,
)
from lstmlm.training.members import Members
from lstmlm.training.optim import learning_rate
from lstmlm.training.run_files import RunFiles
from lstmlm.training.teacher import Teacher
from lstmlm.training.validation import Interrupted, Validation, surely_less

RETRIES = 3  # times in a row that a diverged run is stepped back, each with half the rate
CALM = 1000  # steps without that after which one of them is forgotten: a long run may meet many, far from each other
LOG_EVERY = 10  # steps whose mean is one record of metrics.jsonl
PACE_SECONDS = 4.0  # after which it is tried again with how many threads a step is quickest
SAVE_SECONDS = 30.0
"""Between two checkpoints, where `train.save_every` leaves it open: then there is one with the next record.

A run that never diverges is the same bit for bit however often it is saved. One that does goes back to its last checkpoint: which
one that is follows from `save_every`, or else from the clock.
"""


class Trainer:
    """One run: its members, streams and folder.

    Attributes:
        expected: Steps that the sizes were chosen for, where others may be chosen once; None: where not.

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
        teacher: A trained model that is learnt from too; None: the text alone.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        kernel: Kernel,
        folder: Path,
        identity: dict[str, Any],
        report: Callable[[Event], object],
        clock: Clock,
        stop: Callable[[], int | None] = lambda: None,
        group: ProcessGroup | None = None,
        device: torch.device | None = None,
        teacher: Teacher | None = None,
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
        separator = separator_ids(config.model.document_separator, corpus.tokenizer)
        self.members = Members(config, len(corpus.tokenizer), kernel, device, separator, teacher)
        self.model = self.members.network
        rare = corpus.tokenizer.rare
        # Nats per character to say which rare one each is: nothing that is learnt, but part of every score.
        self._which = 0.0 if rare is None else which_char(corpus.counts[rare]) / len(corpus.train)
        renaming = Renaming(corpus.train, corpus.tokenizer, train.rename, separator) if train.rename else None
        self.streams = Streams(corpus.train, train.batch, train.window, renaming)
        B, T = self.streams.batch_size, self.streams.window
        shards = shards_for(train.accumulate, self.group.size, B)
        # The run keeps them: with fewer processes it goes on to the same bits.
        self.config = replace(config, train=replace(train, accumulate=shards))
        self.shards = Shards(self.group, self.members.gradients, B, shards)
        self.members.prepare({count for _, count in self.shards.own}, T, B)
        self.states: list[StackState | None] = [None] * len(self.shards.own)
        self.progress = TrainState(steps=auto_tune.steps_of(config, self.streams.steps_per_epoch))
        self.validation = Validation(corpus, self.members, stop)
        reading = budget.READING / self.batch_chars
        self._plan_looks()
        self.train_seconds = 0.0
        self._budget: Budget | None = None  # in minutes, as long as it decides on the number of steps
        if train.minutes is not None:
            self._budget = Budget(train.minutes, clock.seconds, reading)
        # Another thread may be one too many on a busy machine. Where that changes bits, only the clock's run may do so.
        may_change = kernel.any_threads or self._budget is not None
        paced = may_change and self.group.size == 1 and device.type == "cpu" and not train.threads
        self._pace = Pace(torch.get_num_threads(), 1, PACE_SECONDS) if paced else None
        self.expected: int | None = None
        self._replan = 0  # the step after which it does so next
        self._taken = 0  # steps of this process
        self._loaded = False  # weights that have been trained
        self._saved_at = 0.0
        self._saved_step = -1
        self._changed: dict[str, Any] = {}
        self._owes_save = False  # whenever the next one is due
        self._signal: int | None = None  # that came to any process, as of the last step
        self._wanted = False  # a checkpoint, by rank 0's clock, as of the last step
        self._files: RunFiles | None = None  # rank 0's, from `begin` on

    @property
    def batch_chars(self) -> int:
        """Characters of one step, B x T."""
        return self.streams.batch_size * self.streams.window

    def restore(self, saved: Checkpoint, changed: Mapping[str, Any] | None = None) -> None:
        """Go on from where a `last` checkpoint stands: weights, optimizer, carried state, position, best so far.

        A run whose minutes have become steps keeps their number: this process has another clock.

        Args:
            saved: The checkpoint.
            changed: The settings that the run's configuration has otherwise from here on, by key: what each was and is. With a
                budget among them, the run goes on to that one; with minutes, for so many from now.

        Raises:
            CheckpointError: Something is missing or has another shape; nothing is half restored silently.
        """
        self._restore(saved)
        if changed:
            self._change(dict(changed))
        if self.progress.steps is not None:
            self._budget = None
            if not self.members.each[0].model.stack()[0].kernel.any_threads:
                self._pace = None

    def _change(self, changed: dict[str, Any]) -> None:
        """Go on with other settings than the run had until now; `begin` writes them down."""
        p, self._changed = self.progress, changed
        if "train.lr" in changed:
            p.rate_scale, p.retries = 1.0, 0
        if not changed.keys() & set(BUDGETS):
            return
        steps = auto_tune.steps_of(self.config, self.streams.steps_per_epoch)
        if self._stops_early():  # it was asked to go on all the same
            p.worse = 0
        p.steps, p.exact_step = steps, -1
        self._plan_looks()

    def _restore(self, saved: Checkpoint) -> None:
        self._loaded = True
        self.progress, whole = run_files.restore(saved, self.members, self.streams.batch_size)
        if not self.progress.look_gap:  # a version that looked otherwise saved it: from here on as in a new run
            self._plan_looks()
        self._saved_step = self.progress.step
        self.states = [
            whole and tuple(LSTMState(*(part[first : first + count].clone() for part in layer)) for layer in whole)
            for first, count in self.shards.own
        ]

    def start_from(self, weights: dict[str, Tensor], steps: int) -> None:
        """Start a new run from the weights of a trained model, which is scored before the first step: it may stay the best.

        Args:
            weights: By the names that the network has.
            steps: Of the run; an estimate where it is in minutes.
        """
        load_weights(self.model, weights)
        self._loaded = True
        for member in self.members.each:
            member.optimizer.begin_averages()
        if len(self.validation):
            self.progress.validated = -1
            self._plan_looks(steps)  # what is scored first is what all later scores are of

    def begin(self) -> None:
        """Open the journals where the run stands, and commit the first checkpoint of a new run.

        From here on there is a state to step back to, and one to resume from.
        """
        p = self.progress
        if not self._loaded:
            self.members.give_rows(pairs.frequent(self.corpus.train, len(self.corpus.tokenizer), self.config.model.pairs or 0))
        if self.group.is_rank_zero:
            self._files = RunFiles(self.folder, self.identity, self.config, self.corpus, self.members, p)
        if self._changed:
            self._log({"step": p.step, "changed": self._changed})
        if not p.step or self._changed:
            self.save()

    def close(self) -> None:
        """Close the journals: another trainer takes over the folder."""
        if self._files is not None:
            self._files.close()

    def run(self) -> bool:
        """Train until the budget is used up, patience ends, or a signal comes; `begin` came first.

        Returns:
            Whether that is so; else the machine has become so slow that a smaller network would learn more (`expected`), and
            another call goes on with this one.

        Raises:
            Stopped: A signal came; its checkpoint is committed.
            Diverged: Stepping back did not help.
        """
        if self._budget is not None:
            self._budget.begin()
        while not self._ended():
            if self._slower():
                self.expected = None
                return False
            if self._trained():
                self._score_best()
            elif not self._owes_validation() and not self._advance():
                continue
            if self._owes_validation() and self._stopping() is None:
                # It may take long, and a better model takes the place of the best one: killed there, a run goes on from here.
                if self._saved_step != self.progress.step and self._begun() and not self._committed():
                    continue
                if self._validate():
                    if self._budget is not None:
                        self._budget.looked(self.progress.look_chars)
                    if self.progress.step != self.progress.steps:  # the end stays the end, even if a moment is left over
                        self._plan()
            signal = self._stopping()
            if not (self._save_due() or self._ended() or signal is not None):
                continue
            if self._committed() and signal is not None:
                self.group.barrier()  # torchrun ends all when the first one leaves
                raise Stopped(f"stopped at step {self.progress.step}: the checkpoint is saved.", signal)
        return True

    def _slower(self) -> bool:
        """Say whether what fits in is too little for the sizes that were chosen."""
        p, now = self.progress, self._budget
        if now is None or self.expected is None or p.steps is None or self.group.size > 1:
            return False
        return now.slower(now.steps(p.step, self._looks(), len(self.validation)), self.expected)

    def _committed(self) -> bool:
        """Save; False where what is to be saved is not finite, which the writer refuses, and the run was stepped back."""
        try:
            self.save()
        except Diverged:
            self._step_back("state of the optimizer or score")
            return False
        return True

    def _stopping(self) -> int | None:
        """Return the signal to stop for: alone at once, with others the one that all have heard of."""
        return self.stop() if self.group.size == 1 else self._signal

    def _save_due(self) -> bool:
        if self._owes_save or self._keeps():
            return True
        every = self.config.train.save_every
        if every:
            return self.progress.step % every == 0
        late = self._late() if self.group.size == 1 else self._wanted
        return late and not self.progress.recent_steps  # the clock decides on a checkpoint, never on what is looked at

    def _begun(self) -> bool:
        """Say whether a score tells that a run has diverged: before that a rate may mend itself, and is not gone back to."""
        return self.progress.step >= LOG_EVERY and self.progress.step > (self.config.train.warmup or 0)

    def _keeps(self) -> bool:
        """Say whether the model of this step is kept in a file of its own."""
        every = self.config.train.keep
        return bool(every) and self.progress.step > 0 and self.progress.step % every == 0

    def _late(self) -> bool:
        return time.perf_counter() - self._saved_at > SAVE_SECONDS

    def _ended(self) -> bool:
        """Say whether nothing is left to do."""
        return self._trained() and self.progress.ended

    def _trained(self) -> bool:
        """Say whether the last step is taken, and validated."""
        done = self.progress.step == self.progress.steps and not self._owes_validation()
        return done or self._stops_early()

    def _stops_early(self) -> bool:
        p, patience = self.progress, self.config.train.patience
        return budget.should_stop_early(patience, p.worse, p.final_nats, p.best_nats, p.validated, p.best_step)

    def _owes_validation(self) -> bool:
        p, every = self.progress, self.config.train.eval_every
        if p.validated < 0:
            return True
        if p.steps is None or p.step <= p.validated:
            return False
        if every is not None:
            return p.step == p.steps or p.step % every == 0
        return p.step >= min(p.steps, budget.next_look(p.validated, p.steps, self.streams.steps_per_epoch, p.look_gap))

    def _advance(self) -> bool:
        """Take one step and report it; say whether it counts."""
        began = time.perf_counter()
        threads = torch.get_num_threads()
        if self._pace is not None:
            threads, _ = self._pace.plan(began)
            if threads != torch.get_num_threads():
                torch.set_num_threads(threads)
        done = self._step()
        seconds = time.perf_counter() - began
        self.train_seconds += seconds
        if self._pace is not None:
            self._pace.note(threads, seconds)
        if done is None:
            return False
        self.report(done)
        self._taken += 1
        if self._budget is not None:
            self._budget.stepped()
        if self.progress.step >= self._replan:
            self._plan()
        return self._log_steps(done.rate)

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
        if p.retries and p.step >= p.diverged_at + CALM:
            p.retries, p.rate_scale, p.diverged_at = p.retries - 1, p.rate_scale * 2, p.step
        p.recent_nats += value
        p.recent_steps += 1
        return StepDone(p.step, p.steps, value + self._which, rate, p.step * self.batch_chars)

    def _log_steps(self, rate: float) -> bool:
        """Write down the mean of the last steps when they are enough; False where it is one of a run that has diverged.

        What is saved is looked at in any case: the run would go back to it.
        """
        p = self.progress
        enough = p.recent_steps == LOG_EVERY or p.step == p.steps
        if not (enough or self._save_due() or self._owes_validation()):
            return True
        mean = p.recent_nats / p.recent_steps
        if self._begun() and mean > budget.limit_nats(len(self.corpus.tokenizer)):
            self._step_back("score", "is worse than even guessing", p.step)
            return False
        if not enough:
            return True
        self._log({"step": p.step, "nats_per_char": mean + self._which, "rate": rate, "chars": p.step * self.batch_chars})
        p.recent_nats, p.recent_steps = 0.0, 0
        return True

    def _shard(self, first: int, count: int, state: StackState | None) -> tuple[Number, StackState]:
        """Let the members learn from some streams; return their part of the mean nats, and their state after the window."""
        inputs, targets, fresh = self.streams.batch(self.progress.step, first, count)
        return self.members.learn(inputs, targets, None if fresh else state, self.progress.step, self.streams.batch_size, first)

    def _step_back(self, what: str, why: str = "is not finite", step: int | None = None) -> None:
        """Go back to the last checkpoint, or to the start, with half the rate.

        Args:
            what: Is wrong.
            why: It is.
            step: In which it was seen; None: the one that is being taken.
        """
        p = self.progress
        step, retries, scale = step or p.step + 1, p.retries + 1, p.rate_scale / 2
        if retries > RETRIES:
            raise Diverged(
                f"training at step {step}: expected a finite {what}, better than guessing, found one that {why}, {RETRIES} steps "
                f"back and with 1/{2**RETRIES} of the rate too. Try a smaller --lr; the last good checkpoint is kept."
            )
        self._restore(self.group.broadcast_checkpoint(checkpoint.read(self._files.last) if self._files else None))
        self.progress.retries, self.progress.rate_scale, self.progress.diverged_at = retries, scale, step
        if self._files is not None:
            self._files.step_back(self.progress)
        self.report(SteppedBack(step, self.progress.step, what, scale, why))
        self._replan = 0
        self.save()

    def _plan(self) -> None:
        """Turn the minutes that are left into a number of steps, where nothing that was done so far depends on it."""
        p, train, text = self.progress, self.config.train, len(self.validation)
        if self._budget is None or (p.steps is not None and train.final_lr != 1):
            return
        first, found = p.steps is None, (0.0, 0.0, 0.0, 0.0)
        if self.group.is_rank_zero and (not first or self._budget.known(self._taken, train)):
            looks = None if first else self._looks()
            steps = self._budget.steps(p.step, looks, text)
            looks = self._budget.looks(steps, text, train.eval_every, p.look_chars)
            found = steps, looks.chars, looks.gap, looks.exact
        planned, chars, gap, exact = self.group.broadcast_floats(*found)
        if not planned:
            return
        p.steps = int(planned)
        self._set_looks(Looks(int(chars), int(gap), bool(exact)))
        self._replan = p.step + max(1, (p.steps - p.step) // 16)
        self.report(Planned(p.step, p.steps))
        self._owes_save |= first  # whoever resumes finds the number; what is saved is looked at first

    def _looks(self) -> Looks:
        p = self.progress
        return Looks(p.look_chars, p.look_gap, p.look_exact)

    def _plan_looks(self, expected: int | None = None) -> None:
        """Decide how a run validates, where its steps are known, or by how many are expected; scores stay comparable."""
        p = self.progress
        steps = expected if p.steps is None else p.steps
        if steps is not None:
            cost, every = budget.READING / self.batch_chars, self.config.train.eval_every
            self._set_looks(budget.plan_looks(steps, len(self.validation), cost, every, p.look_chars))

    def _set_looks(self, looks: Looks) -> None:
        p = self.progress
        p.look_chars, p.look_gap, p.look_exact = looks.chars, looks.gap, looks.exact and self.validation.whole

    def _validate(self) -> bool:
        """Score the validation text, keep the best model, write a sample; all of it or, on a signal, nothing. Say whether."""
        p = self.progress
        value, text, signal = math.inf, "", 0.0
        alone: tuple[float, ...] = ()
        now: list[float] = []
        self.report(Busy("validating"))
        if self.group.is_rank_zero:
            try:
                if len(self.validation):
                    value, alone, now = self.validation.score(p.look_chars)
                text = self.validation.sample(p.step)
            except Interrupted:
                signal = self.stop() or 0
        value, signal, sure = self.group.broadcast_floats(value, signal, float(self._surely_better(now)))
        if signal:
            self._signal = int(signal)
            return False
        if p.validated < 0:
            p.parent = now
        p.validated = p.step
        better = value < p.best_nats or not len(self.validation)  # nothing to choose by: the newest is the best
        best = better and bool(sure)
        if better and not best:
            p.unsure_nats = min(p.unsure_nats, value)
        if len(self.validation):
            p.final_nats = value
            p.worse = 0 if better else p.worse + 1
        if best:
            p.best_nats, p.best_step, p.exact_nats = value, p.step, math.inf
        if self._files is not None:
            self._keep(self._files, value, alone if len(alone) > 1 else (), text, best=best)
        return True

    def _surely_better(self, now: list[float]) -> bool:
        """Say whether a model that scores better may take the place of the one that the run started from.

        It has to be better by more than chance, by stretches of the validation text (`now`), unless that one knows less of the
        text than the frequencies of its characters do.
        """
        p = self.progress
        if p.best_step or p.best_nats == math.inf:
            return True
        return p.best_nats > self.validation.counting_nats or surely_less(now, p.parent)

    def _keep(self, files: RunFiles, value: float, alone: tuple[float, ...], text: str, *, best: bool) -> None:
        """Write and report what a validation has found."""
        p = self.progress
        if best:
            files.write_best(p.step, self._scores())
        if math.isfinite(value):
            each = {"members_nats_per_char": list(alone)} if alone else {}
            exact = {} if self.estimates else {"exact": True}
            self._log({"step": p.step, "validation_nats_per_char": value, **exact, **each})
            self.report(Validated(p.step, value, best, alone, exact=not self.estimates))
        files.add_sample(p, text)
        self.report(Sampled(p.step, text))

    @property
    def estimates(self) -> bool:
        """Whether validations are estimates."""
        return self.validation.estimates(self.progress.look_chars)

    @property
    def best(self) -> tuple[float, bool]:
        """The nats per character of the best model, and whether they are those that `lstmlm eval` gives or an estimate."""
        p = self.progress
        if p.exact_nats < math.inf:
            return p.exact_nats, True
        return p.best_nats, not self.estimates

    def _score_best(self) -> None:
        """Score the validation text exactly by the model that is kept, at the end, where there is time for it."""
        p, files, kept = self.progress, self._files, None
        value, signal = math.inf, 0.0
        if files is not None and self.estimates and p.look_exact and p.best_nats < math.inf:
            self.report(Busy("scoring the best model"))
            kept = files.read_best()
            try:
                value = self.validation.score_exactly(checkpoint.to_tensors(kept.part("model.")))
            except Interrupted:
                signal = self.stop() or 0
        value, signal = self.group.broadcast_floats(value, signal)
        if signal:
            self._signal = int(signal)
            return
        p.exact_step, p.exact_nats = p.best_step, value
        if files is not None and kept is not None and value < math.inf:
            files.rescore_best(kept, self._scores())
            self._log({"step": p.best_step, "validation_nats_per_char": value, "exact": True})
            self.report(Scored(p.best_step, value))

    def _scores(self) -> dict[str, Any]:
        """Return what a checkpoint says of how good the best model is."""
        nats, exact = self.best
        return {} if nats == math.inf else {"validation_nats_per_char": nats, "step": self.progress.best_step, "exact": exact}

    def _log(self, record: dict[str, Any]) -> None:
        if self._files is not None:
            self._files.log(self.progress, record)

    def save(self) -> None:
        """Commit `last`: all that going on needs.

        Raises:
            Diverged: Something in it is not finite; nothing was written.
        """
        whole = self._whole_state()
        refused = None
        if self._files is not None:
            try:
                self._write(self._files, whole)
            except Diverged as error:
                refused = error
        if self.group.broadcast_floats(float(refused is not None))[0]:
            raise refused or Diverged("rank 0's checkpoint has a value that is not finite")
        self._saved_at, self._saved_step, self._owes_save = time.perf_counter(), self.progress.step, False
        if self._budget is not None:
            self._budget.saved()

    def _write(self, files: RunFiles, whole: StackState | None) -> None:
        p = self.progress
        self.report(Busy("saving"))
        if self._keeps():
            scored = p.validated == p.step and p.final_nats < math.inf
            scores = {"validation_nats_per_char": p.final_nats, "step": p.step, "exact": not self.estimates}
            files.write_snapshot(p.step, scores if scored else {})
        files.write_last(p, self._scores(), whole)
        self.report(Saved(p.step, files.last))

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
