"""What `lstmlm train` says before, between and after: the plan, how far the reading has come, what was reached."""

import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm import machine
from lstmlm.cli import STARTED, run_plots
from lstmlm.config import auto_tune, run_config
from lstmlm.config.run_config import RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.display.console import Console
from lstmlm.display.progress_view import PLAIN_SECONDS
from lstmlm.errors import CheckFailed, in_shell, printable
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.units import bits, counted, duration, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lstmlm.config.setting import Value
    from lstmlm.data.corpus import Corpus
    from lstmlm.training.events import Clock
    from lstmlm.training.launch import Plan
    from lstmlm.training.trainer import Trainer

SPARE = 1.25  # of the minutes that are called enough: with more of them more is timed first
LEAST_COMPARED, UNLIKE = 1000, 1.4  # characters of either part, and how many times as much the one takes that is unlike
ORDER_FROM, FEWEST_LINES, SORTED = 20_000, 50, 0.97  # characters whose lines are looked at, how many, and how many rise
PROMPT_FROM, PROMPT_WORDS, PROMPT_CHARS = 2000, 2, 24  # characters that are looked at, and how much of them is offered


class Reading:
    """Say now and then how far the reading of a large text has come, how fast, and how long this pass will last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = time.monotonic() + PLAIN_SECONDS
        self._pass, self._began = "", 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Take note of a pass: what it does, and how many bytes of how many are done."""
        now = time.monotonic()
        if doing != self._pass:
            self._pass, self._began = doing, now
        if now >= self._due:
            self._due = now + PLAIN_SECONDS
            self._console.say(f"{doing}: {size(done)}{self._outlook(now - self._began, done, total)}")

    def _outlook(self, seconds: float, done: int, total: int) -> str:
        speed = done / seconds if seconds else 0.0
        if not (total and speed):
            return ""
        return f" of {size(total)}, {size(int(speed))}/s, {duration((total - done) / speed)} left"


def say_differences(console: Console, was: dict[str, Any], now: dict[str, str]) -> None:
    """Say what is not as it was when the run was saved and may change the last bits of the result."""
    different = [
        f"{name} {printable(str(was[name]))} then, {now[name]} now" for name in now if name in was and was[name] != now[name]
    ]
    if different:
        console.warn(f"resuming under other conditions: {'; '.join(different)}. The run goes on; its last bits may differ.")


def print_config(console: Console, json: bool, config: RunConfig, sources: dict[str, str]) -> None:
    """Show every setting and where it came from."""
    if json:
        console.as_json({"schema": 1, "command": "train", "config": run_config.to_dict(config), "sources": sources})
    else:
        console.result(run_config.to_yaml(config, sources), end="")


def announce(console: Console, corpus: "Corpus", trainer: "Trainer", kernel: str, folder: Path, saved: Checkpoint | None) -> None:
    """Say what is about to happen."""
    where = f"resuming {folder} at step {saved.meta['step']}" if saved else f"training {folder}"
    steps = trainer.progress.steps
    budget = counted(steps, "step") if steps is not None else counted(trainer.config.train.minutes or 0, "minute")
    console.say(
        f"{printable(where)}: {_parameters(trainer)}, {len(corpus.train):,} characters, vocabulary {len(corpus.tokenizer)}, "
        f"{budget}, kernel {kernel}{_taught(trainer)}" + (f", {trainer.group.size} processes" if trainer.group.size > 1 else "")
    )
    _say_at_its_end(console, saved, steps)


def _say_at_its_end(console: Console, saved: Checkpoint | None, steps: int | None) -> None:
    """Say of a run that goes on, but has taken all of its steps, how it goes further."""
    if saved and steps is not None and steps <= saved.meta["step"]:
        console.say("it has taken all of its steps; to go further: a larger --steps, or --minutes M more")


def _taught(trainer: "Trainer") -> str:
    """Return what the run learns from beside its text, in words."""
    teacher = trainer.members.teacher
    return f", taught by a model of {teacher.network.parameter_count():,} parameters" if teacher else ""


def _parameters(trainer: "Trainer") -> str:
    """Return how many numbers are trained, in words."""
    one, count = trainer.members.each[0].model.parameter_count(), len(trainer.members.each)
    return f"{one:,} parameters" if count == 1 else f"{count} members of {one:,} parameters"


def warn_of_few(console: Console, config: RunConfig, steps: int, step_seconds: float, clock: "Clock") -> None:
    """Say where the minutes are too few to learn much, and how many are enough.

    Args:
        console: Where.
        config: Of the run.
        steps: That fit into the time.
        step_seconds: What one took when it was timed. What is left is no measure: timing may have used it up.
        clock: Of the command.
    """
    if config.train.minutes is None or steps >= auto_tune.FEWEST_STEPS:
        return
    seconds = clock.seconds() + auto_tune.FEWEST_STEPS * step_seconds / auto_tune.TRAINING
    enough = math.ceil(SPARE * max(seconds, 60 * config.train.minutes) / 6) / 10
    console.warn(
        f"some {counted(steps, 'step')} in {counted(config.train.minutes, 'minute')}: too few to learn much. Give it "
        f"--minutes {enough:g}."
    )


def say_changes(console: Console, trainer: "Trainer", changed: "Mapping[str, Sequence[Value]]", saved: Checkpoint) -> None:
    """Say what is otherwise from here on than in the run until now, and where that makes another run of it."""
    if not changed:
        return
    step, train = trainer.progress.step, trainer.config.train
    named = [key for key, (_, value) in changed.items() if not (key in BUDGETS and value is None)]
    parts = []
    for key in named:
        was, value = changed[key]
        if key == "train.minutes":
            parts.append(f"{counted(float(str(value)), 'minute')} more")
        else:
            parts.append(f"{key} {_shown(value)}" + ("" if was is None else f" (was {_shown(was)})"))
    console.say(f"from step {step:,} on: {', '.join(parts)}")
    from lstmlm.training.optim import learning_rate

    before = saved.meta["training"].get("steps")
    if changed.keys() & set(BUDGETS) and train.final_lr != 1 and isinstance(before, int):
        was_at, now_at = (learning_rate(train, step, steps) for steps in (before, trainer.progress.steps or 2**62))
        console.say(
            f"the rate falls to the end of a run: of {before:,} steps it had come to {was_at:.2g} here, now it is {now_at:.2g}. "
            "The end is not that of a run that had asked for so much at once."
        )


def _shown(value: "Value") -> str:
    return "auto" if value is None else f"{value:g}" if isinstance(value, float) else printable(str(value))


def finish(console: Console, json: bool, trainer: "Trainer", folder: Path, max_bpc: float | None) -> None:
    """Say what was reached and what to type next.

    Raises:
        CheckFailed: The best model takes more bits/char than --max-bpc allows.
    """
    p, (nats, exact) = trainer.progress, trainer.best
    out = in_shell(str(folder))
    run_plots.say_curve(console, folder)
    scored = nats < math.inf
    counting = trainer.validation.counting_nats
    if scored:
        if early := p.steps is not None and p.step < p.steps:
            by = f"by {p.final_nats / p.best_nats - 1:.1%}"
            above = (
                f"the last validation was worse than the best {by}"
                if p.worse == 1
                else f"{p.worse} validations in a row were worse than the best, the last one {by}"
            )
            console.say(
                f"stopped at step {p.step:,} of {p.steps:,}: {above}. The best model is kept; with "
                "`--set train.patience=0` a run goes to its end."
            )
        how = "" if exact else f", an estimate from {min(p.look_chars, len(trainer.validation)):,} characters of it"
        where = f"at step {p.best_step}" if p.best_step else "by the model of --from: it is kept, as no step made it better"
        if not p.best_step and p.unsure_nats < math.inf:
            where += " for sure"
        console.say(f"best {bits(nats):.4f} bits/char ({nats:.4f} nats) on the validation text, {where}{how}")
        if not p.best_step and p.unsure_nats < math.inf:
            console.say(
                f"one step took {bits(p.unsure_nats):.4f} bits/char, which may be chance on "
                f"{counted(len(trainer.validation), 'character')} of the text. Give more of it, or --val FILE; "
                "--set data.val_fraction=0 keeps the last step unchecked."
            )
        if nats > counting:
            console.warn(
                f"the model has learnt nothing: counting single characters takes {bits(counting):.4f} bits/char. Give it more "
                f"{'text' if early else 'time (--minutes)'}, or a smaller rate (--lr)."
            )
    words = prompt(trainer.corpus)
    offered = f" --prompt {in_shell(words)}" if words else ""
    console.say(f"saved {out}/best.safetensors. Next:\n  lstmlm sample -m {out}{offered}")
    if json:
        console.as_json(
            {
                "schema": 1,
                "command": "train",
                "run": str(folder),
                "model": str(folder / "best.safetensors"),
                "steps": p.step,
                "stopped_early": p.steps is not None and p.step < p.steps,
                "chars_seen": p.step * trainer.batch_chars,
                "seconds": round(time.perf_counter() - STARTED, 3),
                "train_seconds": round(trainer.train_seconds, 3),
                "parameters": trainer.model.parameter_count(),
                "best": _score(p.best_step, nats, exact),
                "final": _score(p.step, p.final_nats, exact=not trainer.estimates),
                "worse_than_counting": scored and nats > counting,
            }
        )
    if max_bpc is not None and not bits(nats) <= max_bpc:
        found = f"{bits(nats):.4f}" if scored else "no score"
        raise CheckFailed(f"train: expected at most {max_bpc:g} bits/char on the validation text, found {found}.")


def _score(step: int, nats: float, exact: bool) -> dict[str, Any] | None:
    if nats == math.inf:
        return None
    return {"step": step, "bits_per_char": bits(nats), "nats_per_char": nats, "exact": exact}


def say_unlike(console: Console, corpus: "Corpus", field: str | None) -> None:
    """Warn where the validation part is another kind of text than the training part, or the lines are sorted.

    Args:
        console: Where to.
        corpus: What is to be learnt.
        field: Of the records that it was read from; None: its lines are those of the files.
    """
    from lstmlm.evaluation.baselines import unlike

    if min(len(corpus.train), len(corpus.val)) >= LEAST_COMPARED:
        held, own = unlike(corpus.train, corpus.val, corpus.counts)
        if held > UNLIKE * own:
            way = "" if corpus.split != "tail" else " `--split lines` (or paragraphs, or files) draws it from everywhere."
            console.warn(
                f"the validation part is unlike the training part: by counts of characters it takes {bits(held):.2f} bits/char, "
                f"where parts of the training text take {bits(own):.2f}.{way}"
            )
    *lines, _ = corpus.tokenizer.decode(corpus.train.tensor(0, ORDER_FROM).tolist()).split("\n")
    rising = sum(a <= b for a, b in itertools.pairwise(lines))
    words = sum(line[:1].isalpha() for line in lines) > len(lines) // 2  # and not numbers or times
    if words and len(lines) > FEWEST_LINES and rising >= SORTED * (len(lines) - 1) and len(set(lines)) > len(lines) // 2:
        way = "" if field else " To mix them: shuf FILE | lstmlm train -"
        console.warn(
            f"the lines are in alphabetical order, which is learnt too: scores are those of the next lines in this order.{way}"
        )


def prompt(corpus: "Corpus") -> str:
    """Return a few words of the training text to go on from: the beginning of one of its first lines; empty if there is none."""
    text = corpus.tokenizer.decode(corpus.train.tensor(0, min(len(corpus.train), PROMPT_FROM)).tolist())
    lines = [line.strip() for line in text.splitlines()[:-1] or [text]]
    line = max(lines, key=lambda line: min(len(line.split()), PROMPT_WORDS), default="")  # the first that has enough words
    words = " ".join(line.split()[:PROMPT_WORDS])[:PROMPT_CHARS].strip()
    return words if words.isprintable() and not corpus.tokenizer.unknown(words) else ""


def show_plan(console: Console, json: bool, planned: "Plan", corpus: "Corpus", saved: Checkpoint | None) -> None:
    """Show sizes, parameters, memory and steps of a run that is not made, and where one that goes on stands."""
    from lstmlm.model import weights
    from lstmlm.training.memory import memory_bytes

    config, teacher = planned.config, planned.teacher
    parameters = weights.parameter_count(config.model, len(corpus.tokenizer))
    vocabulary = len(corpus.tokenizer)
    memory = memory_bytes(config, vocabulary, parameters, machine.memory_used(), teacher.config if teacher else None)
    plan = auto_tune.plan(config, len(corpus.train), vocabulary, parameters, planned.steps, memory)
    if saved:
        plan["resumes_at_step"] = saved.meta["step"]
        _say_at_its_end(console, saved, planned.steps if config.train.minutes is None else None)
    if json:
        console.as_json({"schema": 1, "command": "train", "dry_run": True, "kernel": planned.kernel.name, **plan})
    else:
        console.table(
            [(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)) for key, value in plan.items()]
        )
