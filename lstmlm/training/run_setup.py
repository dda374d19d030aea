"""What a run comes from: settings from all sides, the run or model that it goes on from, and the folder that it may use.

`resolve_start` is the entry point, for `train` here and in Python; nothing of a run is written before `launch.begin`.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lstmlm.config import run_config
from lstmlm.config.run_config import Layer, RunConfig
from lstmlm.config.setting import Value
from lstmlm.data.saved_model import check, parts
from lstmlm.errors import CheckpointError, UsageError, printable
from lstmlm.storage import aside, atomic, checkpoint, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import resuming, run_folder
from lstmlm.training.events import TrainState
from lstmlm.training.resuming import origin, shown
from lstmlm.training.run_folder import is_same, lasting

SHAPE = (
    "model.hidden", "model.layers", "model.bias", "model.readout", "model.layer_norm", "model.residual", "model.members",
    "model.multiplicative", "model.pairs", "model.document_separator", "data.tokenizer", "data.min_count",
)  # fmt: skip
"""Keys that a fine-tuned model cannot change, once they have a value: its weights and vocabulary have them."""


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    folder: Of the run.
    config: As far as it is decided.
    origins: Where each of its values came from.
    names: Of its text, as they were asked for.
    saved: The checkpoint that it goes on from.
    parent: The model that it is fine-tuned from.
    teacher: The model that it learns from too.
    resumes: It goes on, even where it was stopped before its first checkpoint.
    overwrites: It takes the place of the run in its folder.
    changed: What is otherwise from here on than in the run that goes on, by key: what it was and is.
    locked: Whether the folder is: it was there.
    """

    folder: Path
    config: RunConfig
    origins: dict[str, str]
    names: Sequence[str] = ()
    saved: Checkpoint | None = None
    parent: Checkpoint | None = None
    teacher: Checkpoint | None = None
    resumes: bool = False
    overwrites: bool = False
    changed: dict[str, list[Value]] = field(default_factory=dict)
    locked: bool = False

    @property
    def first(self) -> Checkpoint | None:
        """Whose weights and vocabulary it has."""
        return self.saved or self.parent

    @property
    def of_text(self) -> dict[str, Any]:
        """What `corpus.open_configured` is told of what the text is for: the vocabulary that is given, and what it lacks."""
        known = self.first or self.teacher
        symbols = known.meta["tokenizer"].get("symbols") if known else None
        return {"symbols": symbols, "advice": self._advice(), "begins": self.first is None}

    def _advice(self) -> str:
        """Say what can be done about characters that are not in that vocabulary."""
        if self.saved:
            return resuming.of_another_text(self.folder)
        if self.teacher:
            return (
                "Leave them out (--on-unknown skip), replace them by like ones (--on-unknown replace), or do without --distill."
            )
        return "Let it learn them (--on-unknown grow), leave them out (--on-unknown skip), or train a new model on the text."


def resolve_start(
    folder: Path,
    layers: list[Layer],
    held: contextlib.ExitStack | None,
    report: Callable[[str], None],
    *,
    names: Sequence[str] = (),
    parent: str | None = None,
    teacher: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Start:
    """Find out what a run starts from: nothing, a model, or where it was stopped.

    Args:
        folder: Of the run.
        layers: Of its configuration.
        held: Keeps the folder locked, where there is one; see `lock`. None: nothing will be written.
        report: Called with a sentence where the folder cannot be locked.
        names: Of its text.
        parent: What --from names.
        teacher: What --distill names.
        resume: The run in the folder is to go on.
        overwrite: It is to be replaced.
    """

    def as_asked() -> tuple[bool, Start]:
        again = run_folder.started_again(folder)
        known, taught_by = (
            model_of(flag, name, folder, overwrite) if name and not again else None
            for flag, name in (("--from", parent), ("--distill", teacher))
        )
        config, origins = resolved(layers, known, taught_by)
        taught_by = taught_by and _weights_alone(taught_by)
        return again, Start(folder, config, origins, names, None, known, taught_by, resume or again, overwrite and not again)

    again, start = as_asked()
    if held is not None and folder.exists():
        _lock(start, held, report)
        if again != run_folder.started_again(folder):  # what a killed command had set aside is back
            again, start = as_asked()
        refuse_existing(start)
        start = replace(start, locked=True)
    elif held is not None and not start.resumes:
        _refuse_place(folder)
    if not start.resumes:
        return start
    at = folder.joinpath if held is not None else partial(aside.once_put_back, folder)
    saved = resuming.saved_in(folder, at)
    if saved:
        ended = not again and TrainState.from_meta(saved.meta["training"]).ended
        config, origins, changed = resuming.resumed(parts(saved.meta)[0], layers, ended=ended)
    else:
        name, begun = run_config.load_preset(str(at("config.yaml")))
        config, origins, changed = resuming.resumed(run_config.resolve([(name, begun)]).config, layers)
    taught_by = resuming.teacher_in(saved, at) if saved else None
    return replace(start, config=config, origins=origins, saved=saved, teacher=taught_by, changed=changed)


def refuse_together(resume: bool, overwrite: bool, parent: object, teacher: object = None) -> None:
    """Refuse what cannot be asked for at once.

    Raises:
        UsageError: A run that goes on is to begin anew.
    """
    if resume and (overwrite or parent or teacher):
        raise UsageError("--resume goes on with a run as it is; leave out --overwrite, --from and --distill.")


def lock(start: Start, held: contextlib.ExitStack, report: Callable[[str], None]) -> None:
    """Make and lock the folder of a run, where that was not done when it was resolved, and refuse what has come into it since."""
    if not start.locked:
        _lock(start, held, report)
        refuse_existing(start)


def _lock(start: Start, held: contextlib.ExitStack, report: Callable[[str], None]) -> None:
    """Lock the run folder, made where it is missing, and put right what a killed command left there."""
    folder = start.folder
    refuse_existing(start)  # where others' files lie, not even a lock is left
    atomic.make_folder(folder)
    weakened = held.enter_context(run_dir.lock(folder))
    if weakened:
        report(weakened)
    atomic.clean(folder)
    aside.put_back(folder, run_folder.replaced(folder))


def resolved(
    layers: list[Layer], parent: Checkpoint | None, teacher: Checkpoint | None = None
) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of a new run and where each value came from.

    Raises:
        UsageError: A fine-tuned model was asked to have another shape than the one it starts from.
    """
    text = [("--distill", _text_settings(teacher))] if teacher else []
    resolved = run_config.resolve([*text, *([("--from", _inherited(parent))] if parent else []), *layers])
    values = run_config.flat(resolved.config)
    for key, value in (_inherited(parent) if parent else {}).items():
        if key in SHAPE and value is not None and values[key] != value:
            raise UsageError(
                f"{origin(resolved.sources, key)}: {key} is {shown(value)} in the model of --from, and {shown(values[key])} "
                "was asked for. A fine-tuned model keeps its shape and vocabulary: leave it out, or train without --from."
            )
    return resolved.config, resolved.sources


def _inherited(parent: Checkpoint) -> dict[str, Value]:
    """Return the settings that a fine-tuned model inherits: its sizes and options, and its tokenizer.

    How much is dropped is for the new text to say.
    """
    values = run_config.flat(parts(parent.meta, [])[0])
    sizes = {k: v for k, v in values.items() if k.startswith("model.") and k not in resuming.CHOSEN}
    return {**sizes, **_text_settings(parent)}


def _text_settings(model: Checkpoint) -> dict[str, Value]:
    """Return the settings by which a model's text became ids."""
    values = run_config.flat(run_config.from_dict(model.meta["config"], "model", ignored=[]))
    return {key: values[key] for key in ("data.tokenizer", "data.normalize", "data.min_count")}


def model_of(flag: str, name: str, folder: Path, overwrite: bool) -> Checkpoint:
    """Return the model that --from or --distill names.

    Raises:
        UsageError: It is in the folder that is to be deleted.
    """
    path, saved = run_dir.load(name, check=check)
    own = {(folder / place).resolve() for place in ("", aside.ASIDE, aside.MOVING)}  # set aside, it comes back and is replaced
    if overwrite and folder.is_dir() and path.parent.resolve() in own:
        raise UsageError(f"--overwrite: {printable(str(folder))} holds the model of {flag}. Choose another folder with --out.")
    return saved


def _weights_alone(saved: Checkpoint) -> Checkpoint:
    """Return a model without what going on with its training would need."""
    tensors = {name: blob for name, blob in saved.tensors.items() if name.startswith("model.")}
    return Checkpoint("best", {**saved.meta, "training": {}}, tensors)


def refuse_existing(start: Start) -> None:
    """Refuse to overwrite an existing run, unless that was asked for; nothing is deleted here.

    What a run of the same teacher has left that was stopped before its first checkpoint is none.
    """
    folder = start.folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {printable(str(folder))}: expected a folder or nothing, found a file. Choose another --out.")
    if start.resumes or start.overwrites or _is_unbegun(folder, start.teacher):
        return
    if theirs := [name for name in run_dir.contents(folder) if name != run_folder.JOB]:
        found = run_folder.run_of(folder) or printable(", ".join(theirs[:4]))
        ways = [*_ways_on(folder, start.names), f"--out {printable(str(run_folder.free_name(folder)))} for another folder"]
        raise UsageError(
            f"run {printable(str(folder))}: expected an empty or new folder, found {found}. "
            f"Use {', or '.join(filter(None, (', '.join(ways[:-1]), ways[-1])))}."
        )


def _refuse_place(folder: Path) -> None:
    """Refuse a name where no folder can be made: said before a text is read, which may take long.

    Raises:
        SystemProblem: The folder above may not be written to.
        UsageError: A file, or a link to nothing, is in its way.
    """
    name = f"--out {printable(str(folder))}"
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        kind = "a file" if above.exists() else "a link to nothing"
        raise UsageError(f"{name}: expected a folder or nothing, found {kind}, {printable(str(above))}. Choose another --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        why = errno.EROFS if os.statvfs(above).f_flag & os.ST_RDONLY else errno.EACCES
        raise atomic.problem(OSError(why, ""), f"cannot make the folder {folder}")


def _ways_on(folder: Path, names: Sequence[str]) -> list[str]:
    """Say how to go on in a folder that is taken, by what works: --resume of a run of this text, --overwrite of any run.

    Args:
        folder: In which something lies.
        names: Of the text that is to be learnt.
    """
    at = partial(aside.once_put_back, folder)
    if not any(at(name).exists() for name in run_folder.RUN):
        return []
    ways = ["--overwrite to begin again"]
    with contextlib.suppress(CheckpointError):
        saved = resuming.saved_in(folder, at)
        if saved is None:
            return ["--resume to go on with it", *ways]
        resuming.teacher_in(saved, at)
        was = saved.meta["corpus"].get("sources")
        if isinstance(was, list) and len(was) == len(names) and all(map(is_same, map(str, was), map(lasting, names))):
            ended = TrainState.from_meta(saved.meta["training"]).ended
            further = "with a larger --steps, or --minutes M more, " if ended else ""
            return [f"--resume {further}to go on with it", *ways]
    return ways


def _is_unbegun(folder: Path, teacher: Checkpoint | None) -> bool:
    """Say whether all that lies in a folder is what a run with this teacher writes before its configuration and checkpoints."""
    places = folder, folder / aside.ASIDE, folder / aside.MOVING
    found = [place / name for place in places if place.is_dir() for name in run_dir.contents(place)]
    return all(
        path in places
        or path.name == run_folder.JOB
        or atomic.is_draft(path.name)
        or (path.name in run_folder.JOURNALS and path.is_file() and not run_folder.size_of(path))
        or (path.name == run_folder.TEACHER and teacher is not None and _holds(path, teacher))
        for path in found
    )


def _holds(path: Path, model: Checkpoint) -> bool:
    """Say whether a file is that of a model."""
    with contextlib.suppress(CheckpointError):
        return checkpoint.digest(checkpoint.read(path, check)) == checkpoint.digest(model)
    return False
