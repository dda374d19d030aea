"""What `lstmlm train` does with what was typed, in rank 0: the text, the plan, and the run with what is said on the way.

The command calls `open_text`, `prepare` and `Run.train`, one after another.
"""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lstmlm import __version__
from lstmlm.cli import STARTED, corpora, train_report
from lstmlm.cli.train_worker import RunMessage, TextMessage, send
from lstmlm.config import run_config
from lstmlm.config.run_config import Layer, RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.config.setting import Located
from lstmlm.data.corpus import Corpus, name_of
from lstmlm.display import progress_view
from lstmlm.display.console import Console
from lstmlm.display.tensorboard import Board
from lstmlm.errors import Stopped, UsageError
from lstmlm.model import devices
from lstmlm.storage import run_dir
from lstmlm.training import malloc, resuming
from lstmlm.training.distributed import ProcessGroup
from lstmlm.training.events import Clock, Event
from lstmlm.training.run_setup import Start

if TYPE_CHECKING:
    from lstmlm.training.launch import Plan
    from lstmlm.training.trainer import Trainer


@dataclass(frozen=True)
class Texts:
    """The texts of a run, by name.

    names: Of what is learnt.
    val: Of the validation text; None: it is a part of what is learnt.
    typed: What names them on a command line that goes on with the run.
    known: Whether the run has named them, and not the command line.
    """

    names: list[str]
    val: str | None
    typed: list[str]
    known: bool


def named(corpus: list[str], out: str | None, resume: bool) -> tuple[list[str], Path]:
    """Return the texts that the command line names, and the folder of the run that it means.

    A run that goes on may be named in the place of its text, or not at all: then it is the newest one.

    Raises:
        UsageError: Nothing is named.
        CheckpointError: There is no run.
    """
    if resume and out is None:
        if not corpus:
            return [], run_dir.folder_of(run_dir.find(None))
        folder = Path(corpus[0])
        if len(corpus) == 1 and folder.is_dir() and (run_dir.is_model(corpus[0]) or (folder / "config.yaml").is_file()):
            return [], folder
    if not corpus and not resume:
        raise UsageError(
            "train: expected a CORPUS to learn, found none. Name a file or a folder, - for standard input, or `stories`. "
            "`lstmlm train --resume` goes on with the newest run."
        )
    return corpus, Path(out or f"runs/{name_of(corpus[0])}")


def layers_of(presets: list[str], assignments: list[str], flags: dict[str, str | None]) -> list[Layer]:
    """Return the layers of the configuration, the later over the earlier: files, environment, --set and flags.

    Args:
        presets: What --config names.
        assignments: What --set says.
        flags: The settings' own flags, by the setting's name; None where the flag was not given.
    """
    given = [(one, text) for one in run_config.keys().values() if one.group and (text := flags.get(one.name)) is not None]
    set_, assigned = run_config.parse_assignments(assignments)
    return [
        *(run_config.load_preset(name) for name in presets),
        run_config.parse_environment(os.environ),
        (set_, {**assigned, **{one.key: Located(one.parse(text, one.flag), None, one.flag) for one, text in given}}),
    ]


def texts_of(start: Start, named: list[str], val: str | None, typed: list[str], files_from: str | None) -> Texts:
    """Return the names of the texts: those on the command line, or of a run that goes on its own.

    Args:
        start: What the run starts from.
        named: The texts on the command line, with those that a list names.
        val: The validation text there.
        typed: The texts there, without those of the list.
        files_from: The list.
    """
    names, val = corpora.known_texts(start.saved.meta["corpus"] if start.saved else {}, named, val, start.folder)
    words = [*typed, "--files-from", files_from] if files_from else names
    return Texts(names, val, [*words, *(["--val", val] if val else [])], known=not named)


def open_text(console: Console, group: ProcessGroup, start: Start, texts: Texts) -> Corpus:
    """Open the text of a run, here and in the other processes, and say what is odd about it.

    Raises:
        UsageError: It is on standard input, and there are other processes; or there is no such device.
        TextError: It cannot be read, or is not that of the run that goes on.
    """
    config, names, val = start.config, texts.names, texts.val
    if group.size > 1 and "-" in [*names, *texts.typed]:
        raise UsageError("text -: expected files, as each process reads the text, found standard input. Put it into a file.")
    if config.train.device == "cuda":  # what cannot be is said before a text is read
        devices.choose("cuda", None, group.local_rank, group.local_size)
    how = {"val": val, **start.of_text}
    send(group, TextMessage(run_config.to_dict(config), names, how))
    malloc.import_torch_meanwhile()
    with group.local_rank_zero_first(), corpora.may_have_moved(start.folder) if texts.known else contextlib.nullcontext():
        text = corpora.open_named(names, config, **how, progress=train_report.Reading(console))
    if start.saved:
        resuming.refuse_other_text(text, start.saved, start.folder, texts.typed)
    for note in text.notes:
        console.say(note)
    if not start.first:
        train_report.say_unlike(console, text, config.data.field)
    if val and "-" not in [*names, val] and (seen := corpora.seen_in_training(names, val)):
        console.warn(f"--val: {seen} is trained on too: its score tells nothing of other texts.")
    return text


def prepare(console: Console, group: ProcessGroup, start: Start, text: Corpus) -> "Plan":
    """Choose what is open, and say what was chosen; see `launch.prepare`."""
    from lstmlm.training import launch

    malloc.tune_malloc()
    clock = Clock(STARTED)
    plan = launch.prepare(start, text, clock, group, console.say)
    for line in plan.notes:
        console.say(line)
    if not start.saved:
        train_report.warn_of_few(console, plan.config, plan.steps, plan.step_seconds, clock)
    return plan


@dataclass(frozen=True)
class Run:
    """A run that can begin, with all that it comes from.

    console: Where it is watched.
    group: The processes that share it.
    start: What it starts from.
    texts: By name.
    text: What is learnt.
    plan: No size open.
    """

    console: Console
    group: ProcessGroup
    start: Start
    texts: Texts
    text: Corpus
    plan: "Plan"

    def train(self, stop: Callable[[], int | None], *, with_tensorboard: bool) -> "Trainer":
        """Train to the end; where the machine has become slower, begin once more with a smaller network.

        Args:
            stop: See `Trainer`.
            with_tensorboard: Whether the records go there too.

        Raises:
            Stopped: A signal came; says how to go on.
        """
        from lstmlm.training import launch
        from lstmlm.training.trainer import Trainer

        console, start, plan, saved = self.console, self.start, self.plan, self.start.saved
        command = ["lstmlm", *sys.argv[1:]]
        identity = launch.identity(self.text, self.texts.names, self.texts.val, plan, __version__, command)
        board = Board(start.folder, saved.meta["step"] if saved else 0, console.warn) if with_tensorboard else None
        began = time.monotonic() - plan.clock.seconds()

        def made(config: RunConfig) -> tuple[progress_view.RunView, Trainer]:
            view = progress_view.RunView(
                console, span=(began, began + 60 * (config.train.minutes or 0.0)) if self._timed else None
            )
            reports, known = _reports(view, board), (self.text, plan.kernel, start.folder, identity)
            return view, Trainer(config, *known, reports, plan.clock, stop, self.group, plan.device, plan.teacher)

        self._send()
        if start.teacher:
            self.group.broadcast_checkpoint(start.teacher)
        view, trainer = made(plan.config)
        if self._timed and not start.first and not board and plan.device.type == "cpu" and start.config.model.hidden is None:
            trainer.expected = plan.steps
        if start.first:
            self.group.broadcast_checkpoint(start.first)
        if saved:
            trainer.restore(saved, start.changed)
            train_report.say_differences(console, saved.meta["versions"], identity["versions"])
            train_report.say_changes(console, trainer, start.changed, saved)
        launch.begin(trainer, start, plan.steps)
        where = plan.kernel.name if plan.device.type == "cpu" else f"{plan.kernel.name} on {devices.name(plan.device)}"
        train_report.announce(console, self.text, trainer, where, start.folder, saved)
        try:
            if not trainer.run():
                smaller, chosen, _ = plan.choose()
                if (smaller.model.hidden or 0) < (plan.config.model.hidden or 0):
                    console.say(f"the machine has become slower, and the run begins again with a smaller network\n{chosen}")
                    view.close()
                    trainer.close()
                    del trainer  # its memory
                    gc.collect()
                    view, trainer = made(smaller)
                    launch.begin(trainer, start, plan.steps)
                trainer.run()
        except Stopped as stopped:
            again = corpora.going_on(self.texts.typed, start.folder)
            raise Stopped(f"{stopped} Go on with:\n  {again}", stopped.exit_code - 128) from None
        finally:
            view.close()
            if board:
                board.close()
        return trainer

    @property
    def _timed(self) -> bool:
        """Whether the clock ends it: it is in minutes, and no earlier process has turned them into steps."""
        saved, changed = self.start.saved, self.start.changed.keys()
        planned = saved and saved.meta["training"].get("steps") and not changed & set(BUDGETS)
        return self.plan.config.train.minutes is not None and not planned

    def _send(self) -> None:
        start, plan = self.start, self.plan
        message = RunMessage(
            config=run_config.to_dict(plan.config),
            fingerprint=self.text.fingerprint,
            resumes=bool(start.saved),
            tunes=bool(start.parent),
            teaches=bool(start.teacher),
            changed=start.changed,
            steps=plan.steps,
            device=plan.device.type,
            kernel=plan.kernel.name,
        )
        send(self.group, message)


def _reports(view: progress_view.RunView, board: Board | None) -> Callable[[Event], None]:
    """Return what takes the trainer's records: the terminal alone, or TensorBoard too."""
    if board is None:
        return view

    def both(record: Event) -> None:
        view(record)
        board(record)

    return both
