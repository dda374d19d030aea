"""What a run comes from: settings from all sides, the run or model that it goes on from, and the folder that it may use.

`train` calls these before anything is written.
"""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lstmlm.config import run_config
from lstmlm.config.run_config import Layer, RunConfig
from lstmlm.config.setting import Located, Value
from lstmlm.display import tensorboard
from lstmlm.errors import CheckpointError, TextError, UsageError, printable
from lstmlm.storage import atomic, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import distributed

if TYPE_CHECKING:
    from lstmlm.data.corpus import Corpus
    from lstmlm.storage.header import Header

MAY_CHANGE = ("train.threads", "train.save_every", "train.kernel", "train.device", "train.accumulate")
"""Keys that may differ when a run is resumed: none of them changes what the run is, only how it is computed."""

SHAPE = (
    "model.hidden", "model.layers", "model.bias", "model.readout", "model.layer_norm", "model.residual", "model.members",
    "data.tokenizer",
)  # fmt: skip
"""Keys that a fine-tuned model cannot change: its weights and vocabulary have them."""

JOB = ".job"
"""Which torchrun job a run is of: started again by its agent, the same command goes on with it."""

OURS = (JOB, "config.yaml", "metrics.jsonl", "samples.txt", "best.safetensors", "last.safetensors", "clock.jsonl")
"""Files of a run, which a new one takes the place of with --overwrite; see `replaced`."""


def started_again(folder: Path) -> bool:
    """Say whether torchrun has started the command again, and the run in the folder is of the same job: it is to be resumed."""
    begun = any((folder / name).exists() for name in ("last.safetensors", "config.yaml"))
    with contextlib.suppress(OSError, ValueError):
        job = distributed.job()
        return begun and job is not None and atomic.read_regular(folder / JOB, 1000).decode() == job
    return False


def replaced(folder: Path) -> list[str]:
    """Return the names of the files in a run folder that --overwrite replaces: the run's, and TensorBoard's events of it."""
    return [*OURS, *(str(path.relative_to(folder)) for path in tensorboard.events(folder))]


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


def resolved(layers: list[Layer], parent: Checkpoint | None) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of a new run and where each value came from.

    Raises:
        UsageError: A fine-tuned model was asked to have another shape than the one it starts from.
    """
    resolved = run_config.resolve([*([("--from", _inherited(parent))] if parent else []), *layers])
    values = run_config.flat(resolved.config)
    for key, value in (_inherited(parent) if parent else {}).items():
        if key in SHAPE and values[key] != value:
            raise UsageError(
                f"{resolved.sources[key]}: {key} is {_shown(value)} in the model of --from, and {_shown(values[key])} was "
                "asked for. A fine-tuned model keeps its shape and vocabulary: leave it out, or train without --from."
            )
    return resolved.config, resolved.sources


def _inherited(parent: Checkpoint) -> dict[str, Value]:
    """Return the settings that a fine-tuned model inherits: its sizes and options, and its tokenizer."""
    values = run_config.flat(run_config.from_dict(parent.meta["config"], "--from", ignored=[]))
    return {
        key: value for key, value in values.items() if key.startswith("model.") or key in ("data.tokenizer", "data.normalize")
    }


def parent_of(start: str, folder: Path, overwrite: bool) -> Checkpoint:
    """Return the model that --from names.

    Raises:
        UsageError: It is in the folder that is to be deleted.
    """
    from lstmlm.api import check

    path, saved = run_dir.load(start, check=check)
    own = {(folder / place).resolve() for place in ("", atomic.ASIDE, atomic.MOVING)}  # set aside, it comes back and is replaced
    if overwrite and folder.is_dir() and path.parent.resolve() in own:
        raise UsageError(
            f"--overwrite: {printable(str(folder))} holds the model that --from starts from. Choose another folder with --out."
        )
    return saved


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


def saved_in(folder: Path) -> Checkpoint | None:
    """Return the checkpoint to resume from; None where the run was stopped before its first checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"run {printable(str(folder))}: expected a folder to resume from, found none. {_others()}")
    if not (folder / "last.safetensors").exists():
        if (folder / "best.safetensors").exists():
            raise CheckpointError(
                f"run {printable(str(folder))}: expected last.safetensors to resume from, found best.safetensors alone, which "
                "does not say how training goes on. Put last.safetensors back from a copy, or train on from these weights in a "
                f"new run: --from {printable(str(folder))} --out DIR."
            )
        trained = _size(folder / "metrics.jsonl")
        if trained:
            raise CheckpointError(
                f"run {printable(str(folder))}: expected last.safetensors to resume from, found none, though {trained} bytes of "
                "metrics.jsonl say that it has trained. Put last.safetensors back from a copy, or begin again with --overwrite."
            )
        if (folder / "config.yaml").exists():
            return None
        raise CheckpointError(
            f"run {printable(str(folder))}: expected last.safetensors to resume from, found none. If it was stopped before its "
            f"first checkpoint, begin it again without --resume. {_others()}"
        )
    from lstmlm.api import check
    from lstmlm.storage import checkpoint
    from lstmlm.training.events import TrainState

    def known(header: "Header") -> None:
        """Refuse what training could not go on from, before a text is read, and with the file's name."""
        check(header, resumes=True)
        TrainState.from_meta(header.meta["training"])

    return checkpoint.read(folder / "last.safetensors", known)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _others() -> str:
    names = ", ".join(printable(str(run.folder)) for run in run_dir.found()[:5])
    return f"Runs here: {names}." if names else "There are no runs below runs/. Start one without --resume."


def resumed(begun: RunConfig, layers: list[Layer]) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of the saved run, and refuse to change what the run is.

    Raises:
        UsageError: A key was given another value, and the end of the run would not be the same.
    """
    was = run_config.flat(begun)
    requested = run_config.resolve(layers)  # the last word of each key, and one budget of three
    values = run_config.flat(requested.config)
    asked = [key for key, source in requested.sources.items() if source != "default" and ", replaced by " not in source]
    for key in asked:
        if values[key] != was[key] and key not in MAY_CHANGE:
            raise UsageError(
                f"--resume: {key} is {_shown(was[key])} in this run, and {_shown(values[key])} was asked for "
                f"({requested.sources[key]}). Leave it out to go on as it was, or train on with other settings in a new run: "
                "--from RUN --out DIR."
            )
    changed = {key: values[key] for key in asked if key in MAY_CHANGE}
    resolved = run_config.resolve([("checkpoint", was), ("command line", changed)])
    return resolved.config, resolved.sources


def refuse_existing(folder: Path, asked_for: bool) -> None:
    """Refuse to overwrite an existing run, unless that was asked for; nothing is deleted here."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {printable(str(folder))}: expected a folder or nothing, found a file. Choose another --out.")
    if asked_for:
        return
    try:
        theirs = sorted(p.name for p in folder.iterdir() if p.name not in (run_dir.LOCK, run_dir.HOLDER, JOB))
    except OSError as error:
        raise atomic.problem(error, f"cannot look into {folder}") from None
    if theirs:
        found = _text_of(folder) or printable(", ".join(theirs[:4]))
        raise UsageError(
            f"run {printable(str(folder))}: expected an empty or new folder, found {found}. "
            "Use --resume to go on with it, --overwrite to begin again, or --out DIR for another folder."
        )


def _text_of(folder: Path) -> str:
    """Say which text the run in a folder is of; nothing where there is no run."""
    from lstmlm.storage import checkpoint

    for name in ("best.safetensors", "last.safetensors"):
        with contextlib.suppress(CheckpointError, OSError, ValueError):
            corpus = checkpoint.read_header(folder / name).meta["corpus"]
            sources = corpus.get("sources")
            text = sources[0] if isinstance(sources, list) and sources else corpus.get("name")
            return f"the run of {printable(str(text)[:200])}"
    return ""


def refuse_other_text(corpus: "Corpus", saved: Checkpoint, folder: Path, names: list[str]) -> None:
    """Refuse to go on with another text, or another validation part, than the run was saved with."""
    was = saved.meta["corpus"]
    if was.get("fingerprint") != corpus.fingerprint:
        raise TextError(
            f"corpus {printable(' '.join(names))}: expected the text that the run in {printable(str(folder))} was "
            f"trained on ({printable(str(was.get('chars')))} characters, {printable(str(was.get('fingerprint'))[:12])}), found "
            f"another one ({corpus.chars} characters, {corpus.fingerprint[:12]}). Put the text back, or start a new run with "
            "--from."
        )
