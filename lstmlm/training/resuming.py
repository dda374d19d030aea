"""What a run goes on from: its last checkpoint, its teacher, and what may be otherwise from there on.

`saved_in` and `resumed` are the entry points, for `run_setup`; `refuse_other_text` is for `train` here and in Python.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lstmlm.config import run_config
from lstmlm.config.run_config import Layer, RunConfig
from lstmlm.config.schema import BUDGETS
from lstmlm.config.setting import Value
from lstmlm.data.saved_model import check, parts
from lstmlm.errors import CheckpointError, TextError, UsageError, in_shell, printable
from lstmlm.storage import checkpoint, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import run_folder
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
    "train.eval_every", "train.state_dropout", "train.rename",
)  # fmt: skip
"""Keys that a run may have otherwise from where it is resumed: the end is another one, and the change is written down."""


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
        trained = run_folder.size_of(at("metrics.jsonl"))
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


def teacher_in(saved: Checkpoint, at: Callable[[str], Path]) -> Checkpoint | None:
    """Return the teacher that a run goes on with; None: it learns from its text alone. See `saved_in`.

    Raises:
        CheckpointError: It is missing, damaged, or another model.
    """
    if "teacher" not in saved.meta["corpus"]:
        return None
    path = at(run_folder.TEACHER)
    found = checkpoint.read(path, check) if path.exists() else None
    if found is None or checkpoint.digest(found) != saved.meta["corpus"]["teacher"]:
        raise CheckpointError(
            f"checkpoint {printable(str(path))}: expected the model that this run has learnt from so far, found "
            f"{'another one' if found else 'none'}. Put it back from a copy, or train on from the run's weights in a new run: "
            "--from RUN --out DIR."
        )
    return found


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
        most, found_then = values[key], was[key]
        if key == "model.pairs" and isinstance(most, int) and isinstance(found_then, int) and most >= found_then:
            continue  # the text has no more that are frequent
        if values[key] == was[key]:
            if key == "train.minutes" and ended:
                changed[key] = values[key]
            continue
        if key not in (*MAY_CHANGE, *RECORDED) or (values[key] is None and key in CHOSEN):
            raise UsageError(
                f"--resume: {key} is {shown(was[key])} in this run, and {shown(values[key])} was asked for "
                f"({origin(requested.sources, key)}). Leave it out to go on as it was, or train on with other settings in a new "
                "run: --from RUN --out DIR."
            )
        changed[key] = values[key]
    resolved = run_config.resolve([("checkpoint", was), ("command line", changed)])
    found = run_config.flat(resolved.config)
    recorded = {key: [was[key], found[key]] for key in RECORDED if found[key] != was[key] or (key in changed and key in BUDGETS)}
    return resolved.config, resolved.sources, recorded


def refuse_other_text(corpus: "Corpus", saved: Checkpoint, folder: Path, names: list[str]) -> None:
    """Refuse to go on with another text, or another validation part, than the run was saved with."""
    was = saved.meta["corpus"]
    if was.get("fingerprint") != corpus.fingerprint:
        run = printable(str(folder))
        raise TextError(
            f"text {printable(' '.join(names))}: expected the text that the run in {run} was "
            f"trained on ({printable(str(was.get('chars')))} characters, {printable(str(was.get('fingerprint'))[:12])}), found "
            f"another one ({corpus.chars} characters, {corpus.fingerprint[:12]}). {of_another_text(folder)}"
        )


def of_another_text(folder: Path) -> str:
    """Say what to do where a text is not that of the run in a folder."""
    run, free = (printable(str(path)) for path in (folder, run_folder.free_name(folder)))
    return f"Say where the text is now, or learn this one from where that run has come to: --from {run} --out {free}."


def _others() -> str:
    names = ", ".join(printable(str(run.folder)) for run in run_dir.found()[:5])
    return f"Runs here: {names}." if names else "There are no runs below runs/. Start one without --resume."


def origin(sources: dict[str, str], key: str) -> str:
    """Say where a key was set; in Python no place has a name."""
    return sources[key] or "settings"


def shown(value: Value) -> str:
    """Return a value as a message has it."""
    return str(value).lower() if isinstance(value, bool) else printable(str(value))
