"""The door of `lstmlm train`."""

import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm import config as settings
from lstmlm import disk, recipe, runs
from lstmlm.checkpoint import Checkpoint
from lstmlm.cli import STARTED, signals
from lstmlm.config import Layer, RunConfig
from lstmlm.console import Console
from lstmlm.errors import CheckpointError, TextError, UsageError, printable
from lstmlm.live import RunView
from lstmlm.settings import Located, Value
from lstmlm.units import bits

if TYPE_CHECKING:
    from lstmlm.corpus import Corpus
    from lstmlm.trainer import Trainer

MAY_CHANGE = ("train.threads", "train.save_every", "train.kernel", "train.device")
"""Keys that may differ when a run is resumed: none of them changes what the run is, only how it is computed."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    corpus: list[str]
    out: str | None
    val: str | None
    presets: list[str]
    assignments: list[str]
    flags: dict[str, str]
    resume: bool
    start: str | None
    overwrite: bool
    dry_run: bool
    print_config: bool
    json: bool
    quiet: bool


def run(request: Request) -> None:
    """Train, or show what training would do.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    console = Console(quiet=request.quiet)
    if request.resume and (request.overwrite or request.start):
        raise UsageError("--resume goes on with a run as it is; leave out --overwrite and --from.")
    base = _parent(request)
    resolved = settings.resolve([*([("--from", base)] if base else []), *_layers(request)])
    if request.print_config:
        console.result(settings.to_yaml(resolved.config, resolved.sources), end="")
        return
    folder = Path(request.out or f"runs/{_name(request.corpus)}")
    saved = _saved(folder, request)
    config = _resumed(saved, request) if saved else resolved.config
    if saved is None and not request.dry_run:
        _make_room(folder, request)
    corpus = _open(request, config, folder, saved, console)
    for note in corpus.notes:
        console.say(note)
    config, chosen = recipe.choose(config, len(corpus.train), len(corpus.tokenizer))
    if chosen:
        console.say(chosen)

    import torch

    from lstmlm import kernels, memory
    from lstmlm.trainer import Clock, Trainer

    memory.keep()
    torch.set_num_threads(config.train.threads or os.cpu_count() or 1)
    device = _device(config)
    kernel, why = kernels.choose(config.train.kernel, config.train.precision, device)
    if why:
        console.say(why)
    if request.dry_run:
        _show_plan(console, request, config, corpus, kernel.name)
        return
    disk.make_folder(folder)
    with runs.lock(folder) as weakened, signals.caught(console) as caught:
        if weakened:
            console.say(weakened)
        disk.clean(folder)
        view = RunView(console)
        trainer = Trainer(config, corpus, kernel, folder, _identity(corpus, request), view, Clock(STARTED), caught)
        if saved:
            trainer.restore(saved)
        else:
            if request.start:
                _begin_from(trainer, request.start)
            disk.write_text(folder / "config.yaml", settings.to_yaml(config))
        _announce(console, config, corpus, trainer, kernel.name, folder, saved)
        try:
            trainer.run()
        finally:
            view.close()
        _finish(console, request, trainer, folder)


def _layers(request: Request) -> list[Layer]:
    """Return the layers of the configuration, the later over the earlier: files, environment, --set and flags."""
    known = settings.keys()
    flags = {key: Located(known[key].parse(text, known[key].flag), None, known[key].flag) for key, text in request.flags.items()}
    set_, assigned = settings.parse_assignments(request.assignments)
    return [
        *(settings.load_preset(name) for name in request.presets),
        settings.parse_environment(os.environ),
        (set_, {**assigned, **flags}),
    ]


def _parent(request: Request) -> dict[str, Value]:
    """Return the settings that a fine-tuned model inherits: its sizes and options, and its tokenizer."""
    if not request.start:
        return {}
    from lstmlm.api import check

    _, saved = runs.load(request.start, check=check)
    values = settings.flat(settings.from_dict(saved.meta["config"], "--from"))
    return {key: value for key, value in values.items() if key.startswith("model.") or key == "data.tokenizer"}


def _name(corpus: list[str]) -> str:
    """Return the name of a run on this corpus: its first file's name without endings."""
    first = corpus[0]
    if first == "-":
        return "stdin"
    name = Path(first).name or Path(first).resolve().name
    return name.split(".")[0] or name.strip(".") or "corpus"


def _saved(folder: Path, request: Request) -> Checkpoint | None:
    """Return the checkpoint to resume from; None for a new run, or one that was stopped before its first checkpoint."""
    if not request.resume:
        return None
    if not folder.is_dir():
        raise CheckpointError(f"run {printable(str(folder))}: expected a folder to resume from, found none. {_others()}")
    if not (folder / "last.safetensors").exists():
        if (folder / "config.yaml").exists():
            return None
        raise CheckpointError(f"run {printable(str(folder))}: expected last.safetensors to resume from, found none. {_others()}")
    from lstmlm import checkpoint
    from lstmlm.api import check

    return checkpoint.read(folder / "last.safetensors", check)


def _others() -> str:
    names = ", ".join(printable(str(run.folder)) for run in runs.found()[:5])
    return f"Runs here: {names}." if names else "There are no runs below runs/. Start one without --resume."


def _resumed(saved: Checkpoint, request: Request) -> RunConfig:
    """Return the configuration of the saved run, and refuse a wish to change what the run is.

    Raises:
        UsageError: A key was given another value, and the end of the run would not be the same.
    """
    from lstmlm.api import parts

    config, _ = parts(saved.meta)
    values = settings.flat(config)
    asked = {key: item for _, layer in _layers(request) for key, item in layer.items()}
    for key, (value, _, _) in asked.items():
        if value != values[key] and key not in MAY_CHANGE:
            raise UsageError(
                f"--resume: {key} is {values[key]} in this run, and {value} was asked for. Leave it out to go on as it "
                "was, or train on with other settings in a new run: --from RUN --out DIR."
            )
    changed = {key: value for key, value in asked.items() if key in MAY_CHANGE}
    return settings.resolve([("checkpoint", values), ("command line", changed)]).config


def _make_room(folder: Path, request: Request) -> None:
    """Refuse to tread on an existing run, or delete it where that was asked for."""
    if request.resume or not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {printable(str(folder))}: expected a folder or nothing, found a file. Choose another --out.")
    theirs = sorted(p.name for p in folder.iterdir() if p.name != runs.LOCK)
    ours = ("config.yaml", "metrics.jsonl", "samples.txt", "best.safetensors", "last.safetensors", "clock.jsonl")
    if not theirs:
        return
    if not request.overwrite:
        raise UsageError(
            f"run {printable(str(folder))}: expected an empty or new folder, found {printable(', '.join(theirs[:4]))}. "
            "Use --resume to go on with it, --overwrite to begin again, or --out DIR for another folder."
        )
    with runs.lock(folder):
        for name in ours:
            (folder / name).unlink(missing_ok=True)


def _open(
    request: Request, config: RunConfig, folder: Path, saved: Checkpoint | None, console: Console
) -> "Corpus":
    """Open the corpus with the vocabulary of the run it belongs to, and make sure that it is the same text."""
    from lstmlm.cli.corpora import open_named

    symbols = None
    if saved:
        symbols = saved.meta["tokenizer"].get("symbols")
    elif request.start:
        _, parent = runs.load(request.start)
        symbols = parent.meta["tokenizer"].get("symbols")
    corpus = open_named(request.corpus, config, val=request.val, symbols=symbols, progress=None)
    if saved and saved.meta["corpus"].get("fingerprint") != corpus.fingerprint:
        was = saved.meta["corpus"]
        raise TextError(
            f"corpus {printable(' '.join(request.corpus))}: expected the text that the run in {printable(str(folder))} was "
            f"trained on ({was.get('chars')} characters, {str(was.get('fingerprint'))[:12]}), found another one "
            f"({corpus.chars} characters, {corpus.fingerprint[:12]}). Put the text back, or start a new run with --from."
        )
    return corpus


def _device(config: RunConfig) -> str:
    """Return where to compute: cpu, or cuda where it works or is asked for."""
    import torch

    wish = config.train.device
    if wish == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: expected a GPU that torch can use, found none. Use --device auto or cpu.")
    return "cuda" if wish == "cuda" else "cpu"


def _identity(corpus: "Corpus", request: Request) -> dict[str, Any]:
    """Return what every checkpoint says about where it came from."""
    import platform

    import torch

    from lstmlm import __version__

    return {
        "corpus": {
            "name": corpus.name,
            "sources": [s if s == "-" else os.path.abspath(s) if os.path.exists(s) else s for s in request.corpus],
            "val": os.path.abspath(request.val) if request.val else None,
            "fingerprint": corpus.fingerprint,
            "chars": corpus.chars,
        },
        "versions": {"lstmlm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": ["lstmlm", *sys.argv[1:]],
    }


def _begin_from(trainer: "Trainer", start: str) -> None:
    """Copy the weights of a trained model into a new run."""
    from lstmlm import checkpoint

    _, parent = runs.load(start)
    weights = {k.removeprefix("model."): v for k, v in parent.tensors.items() if k.startswith("model.")}
    trainer.load_model(checkpoint.to_tensors(weights))


def _announce(
    console: Console, config: RunConfig, corpus: "Corpus", trainer: "Trainer", kernel: str, folder: Path, saved: Checkpoint | None
) -> None:
    """Say what is about to happen."""
    where = f"resuming {folder} at step {saved.meta['step']}" if saved else f"training {folder}"
    steps = trainer.progress.steps
    budget = f"{steps} steps" if steps is not None else f"{config.train.minutes:g} minutes"
    parameters = trainer.model.parameter_count()
    console.say(
        f"{printable(where)}: {parameters:,} parameters, {len(corpus.train):,} characters, vocabulary {len(corpus.tokenizer)}, "
        f"{budget}, kernel {kernel}"
    )


def _finish(console: Console, request: Request, trainer: "Trainer", folder: Path) -> None:
    """Say what was reached and what to type next."""
    p = trainer.progress
    out = shlex.quote(str(folder))
    if p.best_step and p.best_nats < float("inf"):
        console.say(f"best {bits(p.best_nats):.4f} bits/char ({p.best_nats:.4f} nats) on the validation text, at step {p.best_step}")
    console.say(f"saved {printable(out)}/best.safetensors. Next:  lstmlm sample -m {printable(out)} --prompt 'Bob is'")
    if request.json:
        console.as_json(
            {
                "schema": 1,
                "command": "train",
                "run": str(folder),
                "model": str(folder / "best.safetensors"),
                "steps": p.step,
                "chars_seen": p.step * trainer.batch_chars,
                "seconds": round(time.perf_counter() - STARTED, 3),
                "train_seconds": round(trainer.train_seconds, 3),
                "parameters": trainer.model.parameter_count(),
                "best": _score(p.best_step, p.best_nats),
                "final": _score(p.step, p.final_nats),
            }
        )


def _score(step: int, nats: float) -> dict[str, Any] | None:
    return {"step": step, "bits_per_char": bits(nats), "nats_per_char": nats} if nats < float("inf") else None


def _show_plan(console: Console, request: Request, config: RunConfig, corpus: "Corpus", kernel: str) -> None:
    """Show sizes, parameters, memory and steps of a run that is not made."""
    from lstmlm import kernels
    from lstmlm.model import CharLM

    model = CharLM(config.model, len(corpus.tokenizer), kernels.choose("eager")[0])
    plan = recipe.plan(config, len(corpus.train), len(corpus.tokenizer), model.parameter_count())
    if request.json:
        console.as_json({"schema": 1, "command": "train", "dry_run": True, "kernel": kernel, **plan})
    else:
        for key, value in plan.items():
            console.result(f"{key.replace('_', ' '):20} {value:,}" if isinstance(value, int) else f"{key:20} {value}")
