"""What a run comes from: settings from all sides, the run or model that it goes on from, and the folder that it may use.

`resolve_start` is the entry point, for `train` here and in Python; nothing of a run is written before `launch.begin`.
"""

import contextlib
import errno
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm.config import run_config
from lstmlm.config.run_config import Layer, RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.config.setting import Value
from lstmlm.data.saved_model import check, parts
from lstmlm.errors import CheckpointError, TextError, UsageError, in_shell, printable
from lstmlm.storage import aside, atomic, checkpoint, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import distributed
from lstmlm.training.events import TrainState
from lstmlm.units import counted

if TYPE_CHECKING:
    from lstmlm.data.corpus import Corpus
    from lstmlm.storage.header import Header

MAY_CHANGE = (
    "train.threads", "train.save_every", "train.keep", "train.kernel", "train.device", "train.accumulate", "train.segment",
    "data.paths",
)  # fmt: skip
"""Keys that may differ when a run is resumed: none of them changes what the run is, only how it is computed and what is kept."""

CHOSEN = ("train.lr", "train.warmup", "train.weight_decay", "model.dropout", "model.weight_dropout")
"""Keys that are decided when a run begins; that they may change does not open them again."""

RECORDED = (
    *BUDGETS, *CHOSEN, "train.final_lr", "train.beta1", "train.beta2", "train.eps", "train.clip", "train.patience",
    "train.eval_every", "train.state_dropout",
)  # fmt: skip
"""Keys that a run may have otherwise from where it is resumed: the end is another one, and the change is written down."""

SHAPE = (
    "model.hidden", "model.layers", "model.bias", "model.readout", "model.layer_norm", "model.residual", "model.members",
    "model.document_separator", "data.tokenizer", "data.min_count",
)  # fmt: skip
"""Keys that a fine-tuned model cannot change, once they have a value: its weights and vocabulary have them."""

JOB = ".job"
"""Which torchrun job a run is of: started again by its agent, the same command goes on with it."""

TEACHER = "teacher.safetensors"
"""The model that --distill names, as it was when the run began: the run goes on with it, whatever becomes of the other one."""

JOURNALS = ("metrics.jsonl", "samples.txt", "clock.jsonl")
RUN = ("config.yaml", "best.safetensors", "last.safetensors")
"""Of which one at least lies in the folder of a run that has begun."""

OURS = (JOB, TEACHER, *RUN, *JOURNALS)
TENSORBOARD = "tensorboard"
SEVERAL = ("step-*.safetensors", f"{TENSORBOARD}/events.out.tfevents.*")
"""Files of a run, which a new one takes the place of with --overwrite; see `replaced`."""


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
            return _of_another_text(self.folder)
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
        again = started_again(folder)
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
        if again != started_again(folder):  # what a killed command had set aside is back
            again, start = as_asked()
        refuse_existing(start)
        start = replace(start, locked=True)
    elif held is not None and not start.resumes:
        _refuse_place(folder)
    if not start.resumes:
        return start
    at = folder.joinpath if held is not None else partial(aside.once_put_back, folder)
    saved = saved_in(folder, at)
    if saved:
        ended = not again and TrainState.from_meta(saved.meta["training"]).ended
        config, origins, changed = resumed(parts(saved.meta)[0], layers, ended=ended)
    else:
        name, begun = run_config.load_preset(str(at("config.yaml")))
        config, origins, changed = resumed(run_config.resolve([(name, begun)]).config, layers)
    taught_by = teacher_in(saved, at) if saved else None
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
    aside.put_back(folder, replaced(folder))


def started_again(folder: Path) -> bool:
    """Say whether torchrun has started the command again, and the run in the folder is of the same job: it is to be resumed."""
    begun = any((folder / name).exists() for name in ("last.safetensors", "config.yaml"))
    with contextlib.suppress(OSError, ValueError):
        job = distributed.job()
        return begun and job is not None and atomic.read_regular(folder / JOB, 1000).decode() == job
    return False


def replaced(folder: Path) -> list[str]:
    """Return the names of the files in a run folder that --overwrite replaces: the run's, and TensorBoard's events of it."""
    return [*OURS, *(str(path.relative_to(folder)) for names in SEVERAL for path in sorted(folder.glob(names)))]


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
                f"{_origin(resolved.sources, key)}: {key} is {_shown(value)} in the model of --from, and {_shown(values[key])} "
                "was asked for. A fine-tuned model keeps its shape and vocabulary: leave it out, or train without --from."
            )
    return resolved.config, resolved.sources


def _inherited(parent: Checkpoint) -> dict[str, Value]:
    """Return the settings that a fine-tuned model inherits: its sizes and options, and its tokenizer.

    How much is dropped is for the new text to say.
    """
    values = run_config.flat(run_config.from_dict(parent.meta["config"], "--from", ignored=[]))
    sizes = {k: v for k, v in values.items() if k.startswith("model.") and k not in CHOSEN}
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


def _origin(sources: dict[str, str], key: str) -> str:
    """Say where a key was set; in Python no place has a name."""
    return sources[key] or "settings"


def _weights_alone(saved: Checkpoint) -> Checkpoint:
    """Return a model without what going on with its training would need."""
    tensors = {name: blob for name, blob in saved.tensors.items() if name.startswith("model.")}
    return Checkpoint("best", {**saved.meta, "training": {}}, tensors)


def teacher_in(saved: Checkpoint, at: Callable[[str], Path]) -> Checkpoint | None:
    """Return the teacher that a run goes on with; None: it learns from its text alone. See `saved_in`.

    Raises:
        CheckpointError: It is missing, damaged, or another model.
    """
    if "teacher" not in saved.meta["corpus"]:
        return None
    path = at(TEACHER)
    found = checkpoint.read(path, check) if path.exists() else None
    if found is None or checkpoint.digest(found) != saved.meta["corpus"]["teacher"]:
        raise CheckpointError(
            f"checkpoint {printable(str(path))}: expected the model that this run has learnt from so far, found "
            f"{'another one' if found else 'none'}. Put it back from a copy, or train on from the run's weights in a new run: "
            "--from RUN --out DIR."
        )
    return found


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


def saved_in(folder: Path, at: Callable[[str], Path]) -> Checkpoint | None:
    """Return the checkpoint to resume from; None where the run was stopped before its first checkpoint.

    Args:
        folder: Of the run.
        at: Says where a file of it lies: in the folder, once it is locked; before that perhaps where a killed --overwrite has
            set it aside.
    """
    if not folder.is_dir():
        raise CheckpointError(f"run {printable(str(folder))}: expected a folder to resume from, found none. {_others()}")
    if not at("last.safetensors").exists():
        if at("best.safetensors").exists():
            raise CheckpointError(
                f"run {printable(str(folder))}: expected last.safetensors to resume from, found best.safetensors alone, which "
                "does not say how training goes on. Put last.safetensors back from a copy, or train on from these weights in a "
                f"new run: --from {printable(str(folder))} --out DIR."
            )
        trained = _size(at("metrics.jsonl"))
        if trained:
            raise CheckpointError(
                f"run {printable(str(folder))}: expected last.safetensors to resume from, found none, though "
                f"{counted(trained, 'byte')} of metrics.jsonl say that it has trained. Put last.safetensors back from a copy, or "
                "begin again with --overwrite."
            )
        if at("config.yaml").exists():
            return None
        raise CheckpointError(
            f"run {printable(str(folder))}: expected last.safetensors to resume from, found none. If it was stopped before its "
            f"first checkpoint, begin it again: --overwrite, not --resume. {_others()}"
        )

    def known(header: "Header") -> None:
        """Refuse what training could not go on from, before a text is read, and with the file's name."""
        check(header, resumes=True)
        TrainState.from_meta(header.meta["training"])

    saved = checkpoint.read(at("last.safetensors"), known)
    _refuse_other_best(folder, at("best.safetensors"), saved)
    return saved


def _refuse_other_best(folder: Path, path: Path, saved: Checkpoint) -> None:
    """Refuse to go on where the best model is missing or another run's: at its end a run scores that file as its own."""
    progress = TrainState.from_meta(saved.meta["training"])
    if not progress.best_step and progress.best_nats == math.inf:
        return
    found = "none"
    if path.exists():
        best = checkpoint.read_header(path, check).meta
        (config, tokenizer), (own, known) = parts(best, []), parts(saved.meta, [])
        same = (config.model, tokenizer.to_dict(), best["counts"]) == (own.model, known.to_dict(), saved.meta["counts"])
        # One that is newer than the checkpoint was written before a kill, and will be written again.
        if same and (best["step"] == progress.best_step or best["step"] >= progress.step):
            return
        found = "one of another run"
    raise CheckpointError(
        f"run {printable(str(folder))}: expected best.safetensors, its best model so far (of step {progress.best_step:,}), found "
        f"{found}. Put it back from a copy, or train on from the last weights in a new run: "
        f"--from {in_shell(str(folder / 'last.safetensors'))} --out DIR."
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _others() -> str:
    names = ", ".join(printable(str(run.folder)) for run in run_dir.found()[:5])
    return f"Runs here: {names}." if names else "There are no runs below runs/. Start one without --resume."


def resumed(
    begun: RunConfig, layers: list[Layer], *, ended: bool = False
) -> tuple[RunConfig, dict[str, str], dict[str, list[Value]]]:
    """Return the configuration of the saved run as it goes on, where each value came from, and what was changed in it.

    Minutes that the run had already are nothing new, as long as it has not come to its end: then they are more of them.

    Raises:
        UsageError: A key was given another value, and the run would not be the same any more.
    """
    was = run_config.flat(begun)
    requested = run_config.resolve(layers)  # the last word of each key, and one budget of three
    values = run_config.flat(requested.config)
    asked = [key for key, source in requested.sources.items() if source != "default" and ", replaced by " not in source]
    changed: dict[str, Value] = {}
    for key in asked:
        if values[key] == was[key]:
            if key == "train.minutes" and ended:
                changed[key] = values[key]
            continue
        if key not in (*MAY_CHANGE, *RECORDED) or (values[key] is None and key in CHOSEN):
            raise UsageError(
                f"--resume: {key} is {_shown(was[key])} in this run, and {_shown(values[key])} was asked for "
                f"({_origin(requested.sources, key)}). Leave it out to go on as it was, or train on with other settings in a new "
                "run: --from RUN --out DIR."
            )
        changed[key] = values[key]
    resolved = run_config.resolve([("checkpoint", was), ("command line", changed)])
    found = run_config.flat(resolved.config)
    recorded = {key: [was[key], found[key]] for key in RECORDED if found[key] != was[key] or (key in changed and key in BUDGETS)}
    return resolved.config, resolved.sources, recorded


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
    if theirs := [name for name in run_dir.contents(folder) if name != JOB]:
        found = _run_of(folder) or printable(", ".join(theirs[:4]))
        ways = [*_ways_on(folder, start.names), f"--out {printable(str(_free(folder)))} for another folder"]
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
    if not any(at(name).exists() for name in RUN):
        return []
    ways = ["--overwrite to begin again"]
    with contextlib.suppress(CheckpointError):
        saved = saved_in(folder, at)
        if saved is None:
            return ["--resume to go on with it", *ways]
        teacher_in(saved, at)
        was = saved.meta["corpus"].get("sources")
        if isinstance(was, list) and len(was) == len(names) and all(map(_is_same, map(str, was), map(lasting, names))):
            ended = TrainState.from_meta(saved.meta["training"]).ended
            further = "with a larger --steps, or --minutes M more, " if ended else ""
            return [f"--resume {further}to go on with it", *ways]
    return ways


def _is_same(was: str, name: str) -> bool:
    """Say whether a file is that of a run: where it lay, or moved or copied from there, by its name and size."""
    with contextlib.suppress(OSError, ValueError):  # a checkpoint may be a stranger's, and name what cannot be a name
        if os.path.realpath(was) == os.path.realpath(name):
            return True
        if os.path.basename(was) == os.path.basename(name):
            return not os.path.exists(was) or os.path.getsize(was) == os.path.getsize(name)
    return False


def lasting(name: str) -> str:
    """Return what a later command, started elsewhere, finds a text by: its path, or its name if it comes along or is stdin."""
    return os.path.abspath(name) if name != "-" and os.path.exists(name) else name


def _is_unbegun(folder: Path, teacher: Checkpoint | None) -> bool:
    """Say whether all that lies in a folder is what a run with this teacher writes before its configuration and checkpoints."""
    places = folder, folder / aside.ASIDE, folder / aside.MOVING
    found = [place / name for place in places if place.is_dir() for name in run_dir.contents(place)]
    return all(
        path in places
        or path.name == JOB
        or atomic.is_draft(path.name)
        or (path.name in JOURNALS and path.is_file() and not _size(path))
        or (path.name == TEACHER and teacher is not None and _holds(path, teacher))
        for path in found
    )


def _holds(path: Path, model: Checkpoint) -> bool:
    """Say whether a file is that of a model."""
    with contextlib.suppress(CheckpointError):
        return checkpoint.digest(checkpoint.read(path, check)) == checkpoint.digest(model)
    return False


def _run_of(folder: Path) -> str:
    """Say of which text the run in a folder is, where that can be told."""
    for kind in ("last", "best"):
        with contextlib.suppress(CheckpointError):
            corpus = checkpoint.read_header(aside.once_put_back(folder, f"{kind}.safetensors")).meta["corpus"]
            sources = corpus.get("sources")
            text = sources[0] if isinstance(sources, list) and sources else corpus.get("name")
            return f"the run of {printable(str(text)[:200])}"
    return ""


def _free(folder: Path) -> Path:
    """Return a name beside a folder's that is not taken: with the next number."""
    name = re.sub(r"-\d{1,6}$", "", folder.resolve().name) or "run"
    return next(path for number in count(2) if not (path := folder.parent / f"{name}-{number}").exists())


def refuse_other_text(corpus: "Corpus", saved: Checkpoint, folder: Path, names: list[str]) -> None:
    """Refuse to go on with another text, or another validation part, than the run was saved with."""
    was = saved.meta["corpus"]
    if was.get("fingerprint") != corpus.fingerprint:
        run = printable(str(folder))
        raise TextError(
            f"text {printable(' '.join(names))}: expected the text that the run in {run} was "
            f"trained on ({printable(str(was.get('chars')))} characters, {printable(str(was.get('fingerprint'))[:12])}), found "
            f"another one ({corpus.chars} characters, {corpus.fingerprint[:12]}). {_of_another_text(folder)}"
        )


def _of_another_text(folder: Path) -> str:
    """Say what to do where a text is not that of the run in a folder."""
    run, free = (printable(str(path)) for path in (folder, _free(folder)))
    return f"Say where the text is now, or learn this one from where that run has come to: --from {run} --out {free}."
