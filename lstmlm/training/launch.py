"""Settings and a text -> what a run needs before its trainer: device, kernel, no size open, and what its checkpoints say of it.

`prepare` is the entry point, for the command `train` and for `api.train`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lstmlm import kernels, machine
from lstmlm.config import auto_tune, run_config
from lstmlm.config.run_config import RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.data import pairs
from lstmlm.data.corpus import Corpus
from lstmlm.data.tokenizer import separator_ids
from lstmlm.errors import SystemProblem, UsageError
from lstmlm.kernels import Kernel
from lstmlm.model import devices, weights
from lstmlm.storage import aside, atomic, checkpoint
from lstmlm.training import distributed, run_folder, step_timing, tuning
from lstmlm.training import teacher as teachers
from lstmlm.training.distributed import ProcessGroup
from lstmlm.training.events import Clock
from lstmlm.training.memory import memory_bytes
from lstmlm.training.run_setup import Start
from lstmlm.training.teacher import Teacher
from lstmlm.training.trainer import Trainer
from lstmlm.units import counted, size


@dataclass(frozen=True)
class Plan:
    """A run whose trainer can be made.

    config: No size or rate open.
    device: Where to compute.
    kernel: What runs the recurrence there.
    steps: An estimate where the budget is in minutes.
    clock: Of the budget.
    notes: What was chosen and what is not as expected, each in a line.
    left: Says how many seconds of a budget in minutes are left.
    choose: Chooses once more what was left open, by what steps take now on all threads; see `auto_tune.choose`.
    teacher: From which the run learns too.
    step_seconds: What a step took when steps were timed last; 0: none was.
    """

    config: RunConfig
    device: torch.device
    kernel: Kernel
    steps: int
    clock: Clock
    notes: list[str]
    left: Callable[[], float]
    choose: Callable[[], tuple[RunConfig, str, int]]
    teacher: Teacher | None = None
    step_seconds: float = 0.0


def prepare(start: Start, text: Corpus, clock: Clock, group: ProcessGroup, report: Callable[[str], None] | None = None) -> Plan:
    """Choose device and kernel, time them, and choose what is open; torch's number of threads becomes that of the run.

    Args:
        start: What the run starts from: sizes may be open, and a run that goes on keeps its kernel.
        text: What is to be learnt.
        clock: Of the budget.
        group: The processes that share the run.
        report: See `devices.choose`.

    Raises:
        UsageError: Fewer steps are asked for than the run that goes on has taken; and see `devices.with_kernel` and `teacher.of`.
        SystemProblem: On a CPU, for a budget in minutes: the sizes that are given do not fit into memory with those that are
            timed first beside them.
    """
    config = replace(start.config, data=replace(start.config.data, split=text.split))
    torch.set_num_threads(threads(config, group))
    keep = str(start.saved.meta["versions"].get("kernel", "")) if start.saved else ""
    requested = config.train.device
    if requested == "auto" and kernels.requested_kernel(config.train.kernel) == "native":
        requested = "cpu"
    device, kernel, why = devices.with_kernel(
        requested, config.train.kernel, config.train.precision, report, group.local_rank, group.local_size, keep
    )
    vocabulary = len(text.tokenizer)
    frequent, asked = 0, config.model.pairs
    begins = start.saved is None and start.parent is None  # else the weights say which
    if begins and (asked is not None or config.model.readout == "linear"):
        frequent = len(pairs.frequent(text.train, vocabulary, pairs.MOST if asked is None else asked))
        config = replace(config, model=replace(config.model, pairs=None if asked is None else frequent))

    def taught(by: Kernel) -> Teacher | None:
        return teachers.of(start.teacher, text.tokenizer, by, device, config.train.distill_weight) if start.teacher else None

    teacher = taught(kernel)
    by_time = config.train.steps is None and config.train.epochs is None
    if by_time and device.type == "cpu":  # a step that is timed would fill memory
        known = config.train.batch or auto_tune.BATCHES[-1], config.train.window or auto_tune.WINDOW
        batch, window = auto_tune.clamped(*known, len(text.train))
        hidden, layers = config.model.hidden or auto_tune.WIDTHS[0], config.model.layers or 1
        least = replace(config, model=replace(config.model, hidden=hidden, layers=layers))
        least = replace(least, train=replace(config.train, batch=batch, window=window))
        _refuse_too_large(least, vocabulary, teacher, group.local_size)
    separator = separator_ids(config.model.document_separator, text.tokenizer)
    timer = step_timing.timer(vocabulary, kernel, device, config.model.members, group.size, teacher, separator)

    timed = [0.0]

    def measure(config: RunConfig) -> float:
        timed.append(timer(config))
        return timed[-1]

    def left() -> float:
        return max(0.0, 60 * (config.train.minutes or 0.0) - clock.seconds())

    def choose() -> tuple[RunConfig, str, int]:
        torch.set_num_threads(threads(config, group))  # a trainer on a busy machine may have left fewer
        tuned, taught = start.parent is not None, start.teacher is not None
        return auto_tune.choose(config, len(text.train), vocabulary, left, measure, pairs=frequent, tuned=tuned, taught=taught)

    whole, chosen, steps = choose()
    taken = start.saved.meta["step"] if start.saved else 0
    if whole.train.minutes is None and steps < taken and start.changed.keys() & set(BUDGETS):
        raise UsageError(
            f"--resume: expected a budget of at least the {counted(taken, 'step')} that the run has taken, found {steps:,}. Ask "
            "for more, or leave it out to go on as it was."
        )
    runs, wrong = kernels.at_sizes(kernel, device, *sizes(whole, text))
    if runs is not kernel:
        teacher = taught(runs)
    return Plan(whole, device, runs, steps, clock, [*filter(None, (chosen, why, wrong))], left, choose, teacher, timed[-1])


def threads(config: RunConfig, group: ProcessGroup) -> int:
    """Return how many threads a process takes: its share of the machine's cores, where nothing else is said."""
    return config.train.threads or max(1, machine.cpus() // group.local_size)


def sizes(config: RunConfig, corpus: Corpus) -> tuple[int, int, int, int]:
    """Return a run's time steps, rows, units and vocabulary, none of them open any more."""
    train, hidden = config.train, config.model.hidden
    assert train.window is not None
    assert train.batch is not None
    assert hidden is not None
    return train.window, train.batch, hidden, len(corpus.tokenizer)


def refuse_too_large(plan: Plan, corpus: Corpus, processes: int = 1) -> None:
    """Refuse what would use up the machine's memory: the system would end the run, or another program, without a word."""
    if plan.device.type == "cpu":
        _refuse_too_large(plan.config, len(corpus.tokenizer), plan.teacher, processes)


def _refuse_too_large(config: RunConfig, vocabulary: int, teacher: Teacher | None, processes: int) -> None:
    parameters = weights.parameter_count(config.model, vocabulary)
    taught_by = teacher.config if teacher else None
    needs = memory_bytes(config, vocabulary, parameters, machine.memory_used(), taught_by) * processes
    fewer = "fewer --members, " if config.model.members > 1 else ""
    if (has := machine.memory()) is not None and needs > has:
        raise SystemProblem(
            f"memory: expected a run that fits into the {size(has)} of this machine, found one that needs some {size(needs)} for "
            f"{parameters:,} parameters. Take {fewer}a smaller --hidden or --batch."
        )


def identity(text: Corpus, names: list[str], val: str | None, plan: Plan, version: str, command: list[str]) -> dict[str, Any]:
    """Return what every checkpoint says about where it came from."""
    import platform

    return {
        "corpus": {
            "name": text.name,
            "sources": list(map(run_folder.lasting, names)),
            "val": run_folder.lasting(val) if val else None,
            "fingerprint": text.fingerprint,
            "chars": text.chars,
            **({"teacher": plan.teacher.digest} if plan.teacher else {}),
        },
        "versions": {
            "lstmlm": version,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "kernel": plan.kernel.name,
            "threads": str(torch.get_num_threads()),
            "device": devices.name(plan.device),
        },
        "command": command,
    }


def begin(trainer: Trainer, start: Start, steps: int) -> None:
    """Write what a run starts with: its job, its configuration and its first checkpoint.

    Args:
        trainer: Where it goes on, restored.
        start: What it starts from.
        steps: An estimate where the budget is in minutes.
    """
    folder, job = trainer.folder, distributed.job()
    text = run_config.to_yaml(trainer.config)
    if start.saved:
        if job:
            atomic.write_text(folder / run_folder.JOB, job)
        trainer.begin()
        # Killed between its first checkpoint and this, it has none; and what was changed is in the checkpoint first.
        if start.changed or not (folder / "config.yaml").exists():
            atomic.write_text(folder / "config.yaml", text)
        return
    with aside.set_aside(folder, run_folder.replaced(folder)):  # what --overwrite deletes is there until the new run is
        if job:
            atomic.write_text(folder / run_folder.JOB, job)
        if start.teacher:
            checkpoint.write(folder / run_folder.TEACHER, start.teacher)
        if start.parent is None and start.teacher is None:
            # First the configuration: a run killed between the two is resumed from it.
            atomic.write_text(folder / "config.yaml", text)
            trainer.begin()
            return
        if start.parent:
            trainer.start_from(tuning.weights_of(start.parent, trainer.corpus.tokenizer), steps)
        # First the checkpoint: a configuration alone would be resumed from random weights, or without its teacher.
        trainer.begin()
        atomic.write_text(folder / "config.yaml", text)
