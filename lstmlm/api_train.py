"""`lstmlm.train`: a text, or the names of texts, and settings -> a run folder and its best model."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm import machine
from lstmlm.api import LanguageModel, load
from lstmlm.arguments import file_name, in_python, switches
from lstmlm.config import run_config
from lstmlm.config.run_config import Layer
from lstmlm.errors import UsageError, printable
from lstmlm.storage import run_dir
from lstmlm.training import resuming, run_setup
from lstmlm.training.run_setup import Start

if TYPE_CHECKING:
    from lstmlm.training.events import Event

LONGEST_NAME = 4096  # characters of a file's: Linux knows no longer one


def train(
    text: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None,
    val: str | os.PathLike[str] | None,
    resume: bool,
    overwrite: bool,
    start_from: str | os.PathLike[str] | None,
    distill: str | os.PathLike[str] | None,
    progress: "Callable[[Event], object] | None",
    settings: dict[str, Any],
    version: str,
) -> LanguageModel:
    """Learn a text; see `lstmlm.train`. The version is that of the package."""
    from lstmlm.data.corpus import name_of

    started = time.perf_counter()
    with in_python(), tempfile.TemporaryDirectory(prefix="lstmlm-") as scratch, contextlib.ExitStack() as held:
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: expected a function, found {type(progress).__name__}.")
        names, lasting = _names(text), True
        if isinstance(text, str) and "\n" in text:
            written, lasting = Path(scratch, "text.txt"), False
            written.write_bytes(text.encode("utf-8", "surrogatepass"))
            names = [str(written)]
        validation = None if val is None else file_name("val", val)
        for argument, name in [*(("text", name) for name in names), *([("val", validation)] if validation else [])]:
            _refuse_no_name(argument, name)
        resume, overwrite = switches(resume=resume, overwrite=overwrite)
        run_setup.refuse_together(resume, overwrite, start_from, distill)
        keys = {one.name: one.key for one in run_config.keys().values()}
        layers: list[Layer] = [("", {keys.get(name, name): value for name, value in settings.items() if value is not None})]
        run_config.resolve(layers)  # what is wrong with the settings is said before the folder is looked at
        folder = Path(f"runs/{name_of(names[0])}" if out is None else file_name("out", out))
        parent = None if start_from is None else file_name("start_from", start_from)
        teacher = None if distill is None else file_name("distill", distill)
        start = run_setup.resolve_start(
            folder,
            layers,
            held,
            lambda sentence: None,
            names=names if lasting else ["-"],
            parent=parent,
            teacher=teacher,
            resume=resume,
            overwrite=overwrite,
        )
        _run(start, names, validation, progress or (lambda event: None), held, started, lasting=lasting, version=version)
    return load(folder, device=start.config.train.device)


def _names(text: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the names of texts, one or several.

    Raises:
        TypeError: It is something else.
        UsageError: There is none.
    """
    if isinstance(text, str | os.PathLike) or not isinstance(text, Sequence) or isinstance(text, bytes | bytearray):
        return [file_name("text", text)]
    if not text:
        raise UsageError("text: expected a text, or the name of a file, found nothing.")
    return [file_name("text", name) for name in text]


def _refuse_no_name(argument: str, name: str) -> None:
    """Refuse a text where the name of one is expected, as a message would hold all of it; and a model in its place.

    Raises:
        UsageError: It is one.
    """
    if run_dir.is_model(name):
        raise UsageError(f"{argument}: expected a text, found the model {printable(name)}. `lstmlm.load` opens it.")
    if ("\n" in name or len(name) > LONGEST_NAME) and not os.path.exists(name):
        raise UsageError(
            f"{argument}: expected the name of a file or folder, found a text of {len(name):,} characters. Write it into a file; "
            "only `text` alone, with a line end in it, may be the text itself."
        )


def _run(
    start: Start,
    names: list[str],
    val: str | None,
    report: "Callable[[Event], object]",
    held: contextlib.ExitStack,
    started: float,
    *,
    lasting: bool,
    version: str,
) -> None:
    """Train, and leave torch's number of threads as it was.

    Args:
        start: What the run starts from.
        names: Of the text.
        val: Of the validation text.
        report: Takes the records.
        held: Keeps the folder locked.
        started: When the budget in minutes began, by `time.perf_counter`.
        lasting: Whether the files are there later.
        version: Of the package.
    """
    import torch

    from lstmlm.data.corpus import open_configured
    from lstmlm.training import launch
    from lstmlm.training.distributed import ProcessGroup
    from lstmlm.training.events import Clock
    from lstmlm.training.trainer import Trainer

    corpus = open_configured(names, start.config, cache_dir=machine.ids_folder(), val=val, **start.of_text)
    if start.saved:
        resuming.refuse_other_text(corpus, start.saved, start.folder, names)
    held.callback(torch.set_num_threads, torch.get_num_threads())
    plan = launch.prepare(start, corpus, Clock(started), ProcessGroup())
    launch.refuse_too_large(plan, corpus)
    run_setup.lock(start, held, lambda sentence: None)
    about = launch.identity(corpus, names if lasting else ["-"], val, plan, version, ["lstmlm.train"])
    known = plan.config, corpus, plan.kernel, start.folder, about, report, plan.clock
    with contextlib.closing(Trainer(*known, device=plan.device, teacher=plan.teacher)) as trainer:
        if start.saved:
            trainer.restore(start.saved, start.changed)
        launch.begin(trainer, start, plan.steps)
        trainer.run()
