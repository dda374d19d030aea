"""The door of `lstmlm train`."""

import contextlib
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm import board, devices, disk, distributed, recipe, runs
from lstmlm import config as settings
from lstmlm.checkpoint import Checkpoint
from lstmlm.cli import STARTED, run_pictures, signals
from lstmlm.cli.corpora import open_named, seen_in_training
from lstmlm.config import Layer, RunConfig
from lstmlm.console import Console
from lstmlm.distributed import Team
from lstmlm.errors import CheckpointError, SystemProblem, TextError, UsageError, printable
from lstmlm.live import PLAIN_SECONDS, RunView
from lstmlm.settings import Located, Value
from lstmlm.units import bits, counted, duration, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lstmlm.corpus import Corpus
    from lstmlm.progress import Record
    from lstmlm.trainer import Trainer

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
"""Files of a run: what --overwrite deletes."""


PROMPT = "Bob is"
"""What is offered to go on from, where the model knows its characters."""


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
    tensorboard: bool
    json: bool
    quiet: bool
    verbose: bool


def run(request: Request) -> None:
    """Train, or show what training would do.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    with distributed.joined() as team:
        if team.leads:
            _lead(request, team)
        else:
            from lstmlm.cli import follow

            follow.run(request.corpus, request.val, team)


def _lead(request: Request, team: Team) -> None:
    """Train as the one process, or as the one that speaks and writes."""
    console = Console(quiet=request.quiet, verbose=request.verbose)
    for flag, given in (("--out", request.out), ("--val", request.val), ("--from", request.start)):
        if given == "":  # of a variable that is not set: what stands for no flag at all may be another run
            raise UsageError(f"{flag}: expected a name, found nothing. Give one, or do without {flag}.")
    if request.resume and (request.overwrite or request.start):
        raise UsageError("--resume goes on with a run as it is; leave out --overwrite and --from.")
    if request.tensorboard:
        board.require()
    if team.size > 1 and "-" in [*request.corpus, request.val]:
        raise UsageError("corpus -: expected files, as each process reads the text, found standard input. Put it into a file.")
    folder = Path(request.out or f"runs/{_name(request.corpus)}")
    request = _started_again(request, folder)
    parent = _parent(request, folder)
    config, sources = _resolved(request, parent)
    with contextlib.ExitStack() as held:
        makes = not (request.dry_run or request.print_config)
        if makes:
            _refuse_existing(folder, request)
            if folder.is_dir():
                _hold(held, folder, console)
        saved = _saved(folder, request)
        if saved:
            from lstmlm.api import parts

            config, sources = _resumed(parts(saved.meta)[0], request)
        elif request.resume:
            name, begun = settings.load_preset(str(folder / "config.yaml"))
            config, sources = _resumed(settings.resolve([(name, begun)]).config, request)
        known = saved or parent
        wish = config.train.device
        if makes and wish == "cuda":  # what cannot be is said before a text is read
            devices.choose(wish, None, team.local_rank, team.local_size)
        symbols = known.meta["tokenizer"].get("symbols") if known else None
        team.tell(json.dumps({"config": settings.to_dict(config), "symbols": symbols} if makes else None).encode())
        if not makes:
            team = Team()
        if request.print_config:
            _print_config(console, request, config, sources)
            return
        with team.one_first():
            corpus = open_named(request.corpus, config, val=request.val, symbols=symbols, progress=_Reading(console))
        if saved:
            _refuse_other_text(corpus, saved, folder, request)
        for note in corpus.notes:
            console.say(note)
        if request.val and "-" not in [*request.corpus, request.val] and (seen := seen_in_training(request.corpus, request.val)):
            console.warn(f"--val: {seen} is trained on too: its score tells nothing of other texts.")

        import torch

        from lstmlm import kernels, memory
        from lstmlm.progress import Clock
        from lstmlm.trainer import Trainer

        memory.keep()
        torch.set_num_threads(threads(config, team))
        if wish == "auto" and kernels.wished(config.train.kernel) == "native":
            wish = "cpu"
        device = devices.choose(wish, console.say if request.verbose else None, team.local_rank, team.local_size)
        kernel, why = kernels.choose(config.train.kernel, config.train.precision, device.type)
        speed = kernels.speed() if device.type == "cpu" else kernels.speed_of(kernel, device, config.model.members)
        config, chosen = recipe.choose(config, len(corpus.train), speed * team.size)
        if chosen:
            console.say(chosen)
        if why:
            console.say(why)
        if request.dry_run:
            _show_plan(console, request, config, corpus, kernel.name)
            return
        if device.type == "cpu":
            _refuse_too_large(config, corpus, team.local_size)
        if not folder.is_dir():
            disk.make_folder(folder)
            _hold(held, folder, console)
            _refuse_existing(folder, request)  # somebody may have trained here while the text was read
        caught = held.enter_context(signals.caught(console))
        identity = _identity(corpus, request, kernel.name, devices.name(device))
        first = saved or parent
        team.tell(
            json.dumps(
                {
                    "config": settings.to_dict(config),
                    "corpus": corpus.fingerprint,
                    "resumes": bool(saved),
                    "starts": bool(first),
                    "device": device.type,
                }
            ).encode()
        )
        view = RunView(console)
        shown = board.Board(folder, saved.meta["step"] if saved else 0, console.warn) if request.tensorboard else None
        trainer = Trainer(config, corpus, kernel, folder, identity, _reports(view, shown), Clock(STARTED), caught, team, device)
        if first:
            team.share(first)
        if saved:
            trainer.restore(saved)
            _say_differences(console, saved.meta["versions"], identity["versions"])
        _begin(trainer, folder, parent, saved, request)
        _announce(console, corpus, trainer, kernel.name, folder, saved)
        try:
            trainer.run()
        finally:
            view.close()
            if shown:
                shown.close()
        _finish(console, request, trainer, folder)


def _reports(view: RunView, shown: board.Board | None) -> "Callable[[Record], None]":
    """Return what takes the trainer's records: the terminal alone, or TensorBoard too."""
    if shown is None:
        return view

    def both(record: "Record") -> None:
        view(record)
        shown(record)

    return both


def _hold(held: contextlib.ExitStack, folder: Path, console: Console) -> None:
    """Lock a run folder until the command ends, and remove what a killed one left there."""
    weakened = held.enter_context(runs.lock(folder))
    if weakened:
        console.say(weakened)
    disk.clean(folder)


def _begin(trainer: "Trainer", folder: Path, parent: Checkpoint | None, saved: Checkpoint | None, request: Request) -> None:
    """Write what a run starts with: its job, its configuration and its first checkpoint."""
    job = distributed.job()
    if saved:
        if job:
            disk.write_text(folder / JOB, job)
        trainer.begin()
        return
    text = settings.to_yaml(trainer.config)
    with disk.set_aside(folder, OURS):  # what --overwrite deletes is deleted when there is something in its place
        if request.overwrite:
            board.remove(folder)
        if job:
            disk.write_text(folder / JOB, job)
        if parent is None:
            # First the configuration: a run killed between the two is resumed from it.
            disk.write_text(folder / "config.yaml", text)
            trainer.begin()
            return
        trainer.load_model(weights_of(parent))
        # First the checkpoint: a configuration alone would be resumed from random weights.
        trainer.begin()
        disk.write_text(folder / "config.yaml", text)


def weights_of(parent: Checkpoint) -> "dict[str, Tensor]":
    """Return the weights that a fine-tuned model starts from."""
    from lstmlm import checkpoint

    return checkpoint.to_tensors({k.removeprefix("model."): v for k, v in parent.tensors.items() if k.startswith("model.")})


def threads(config: RunConfig, team: Team) -> int:
    """Return how many threads a process takes: its share of the machine's cores, where nothing else is said."""
    return config.train.threads or max(1, (os.cpu_count() or 1) // team.local_size)


def _started_again(request: Request, folder: Path) -> Request:
    """Return a request to resume, where torchrun has started the command again and the run in the folder is of the same job."""
    begun = any((folder / name).exists() for name in ("last.safetensors", "config.yaml"))
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if begun and distributed.job() and (folder / JOB).read_text(encoding="utf-8") == distributed.job():
            return replace(request, resume=True, overwrite=False, start=None)
    return request


def _say_differences(console: Console, was: dict[str, Any], now: dict[str, str]) -> None:
    """Say what is not as it was when the run was saved and may change the last bits of the result."""
    different = [
        f"{name} {printable(str(was[name]))} then, {now[name]} now" for name in now if name in was and was[name] != now[name]
    ]
    if different:
        console.warn(f"resuming under other conditions: {'; '.join(different)}. The run goes on; its last bits may differ.")


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


def _resolved(request: Request, parent: Checkpoint | None) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of a new run and where each value came from.

    Raises:
        UsageError: A fine-tuned model was asked to have another shape than the one it starts from.
    """
    resolved = settings.resolve([*([("--from", _inherited(parent))] if parent else []), *_layers(request)])
    values = settings.flat(resolved.config)
    for key, value in (_inherited(parent) if parent else {}).items():
        if key in SHAPE and values[key] != value:
            raise UsageError(
                f"{resolved.sources[key]}: {key} is {_shown(value)} in the model of --from, and {_shown(values[key])} was "
                "asked for. A fine-tuned model keeps its shape and vocabulary: leave it out, or train without --from."
            )
    return resolved.config, resolved.sources


def _inherited(parent: Checkpoint) -> dict[str, Value]:
    """Return the settings that a fine-tuned model inherits: its sizes and options, and its tokenizer."""
    values = settings.flat(settings.from_dict(parent.meta["config"], "--from"))
    return {key: value for key, value in values.items() if key.startswith("model.") or key == "data.tokenizer"}


def _parent(request: Request, folder: Path) -> Checkpoint | None:
    """Return the model to start from.

    Raises:
        UsageError: It is in the folder that is to be deleted.
    """
    if not request.start:
        return None
    from lstmlm.api import check

    path, saved = runs.load(request.start, check=check)
    if request.overwrite and folder.is_dir() and path.parent.resolve() == folder.resolve():
        raise UsageError(
            f"--overwrite: {printable(str(folder))} holds the model that --from starts from. Choose another folder with --out."
        )
    return saved


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


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
        raise CheckpointError(
            f"run {printable(str(folder))}: expected last.safetensors to resume from, found none. If it was stopped before its "
            f"first checkpoint, begin it again without --resume. {_others()}"
        )
    from lstmlm import checkpoint
    from lstmlm.api import check

    return checkpoint.read(folder / "last.safetensors", check)


def _others() -> str:
    names = ", ".join(printable(str(run.folder)) for run in runs.found()[:5])
    return f"Runs here: {names}." if names else "There are no runs below runs/. Start one without --resume."


def _resumed(begun: RunConfig, request: Request) -> tuple[RunConfig, dict[str, str]]:
    """Return the configuration of the saved run, and refuse a wish to change what the run is.

    Raises:
        UsageError: A key was given another value, and the end of the run would not be the same.
    """
    was = settings.flat(begun)
    wish = settings.resolve(_layers(request))  # the last word of each key, and one budget of three
    wished = settings.flat(wish.config)
    asked = [key for key, source in wish.sources.items() if source != "default" and ", replaced by " not in source]
    for key in asked:
        if wished[key] != was[key] and key not in MAY_CHANGE:
            raise UsageError(
                f"--resume: {key} is {_shown(was[key])} in this run, and {_shown(wished[key])} was asked for "
                f"({wish.sources[key]}). Leave it out to go on as it was, or train on with other settings in a new run: "
                "--from RUN --out DIR."
            )
    changed = {key: wished[key] for key in asked if key in MAY_CHANGE}
    resolved = settings.resolve([("checkpoint", was), ("command line", changed)])
    return resolved.config, resolved.sources


def _refuse_existing(folder: Path, request: Request) -> None:
    """Refuse to tread on an existing run, unless that was asked for; nothing is deleted here."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--out {printable(str(folder))}: expected a folder or nothing, found a file. Choose another --out.")
    if request.resume or request.overwrite:
        return
    try:
        theirs = sorted(p.name for p in folder.iterdir() if p.name not in (runs.LOCK, JOB))
    except OSError as error:
        raise disk.problem(error, f"cannot look into {folder}") from None
    if theirs:
        raise UsageError(
            f"run {printable(str(folder))}: expected an empty or new folder, found {printable(', '.join(theirs[:4]))}. "
            "Use --resume to go on with it, --overwrite to begin again, or --out DIR for another folder."
        )


def _print_config(console: Console, request: Request, config: RunConfig, sources: dict[str, str]) -> None:
    if request.json:
        console.as_json({"schema": 1, "command": "train", "config": settings.to_dict(config), "sources": sources})
    else:
        console.result(settings.to_yaml(config, sources), end="")


def _refuse_other_text(corpus: "Corpus", saved: Checkpoint, folder: Path, request: Request) -> None:
    """Refuse to go on with another text, or another validation part, than the run was saved with."""
    was = saved.meta["corpus"]
    if was.get("fingerprint") != corpus.fingerprint:
        names = " ".join([*request.corpus, *(["--val", request.val] if request.val else [])])
        raise TextError(
            f"corpus {printable(names)}: expected the text that the run in {printable(str(folder))} was "
            f"trained on ({printable(str(was.get('chars')))} characters, {printable(str(was.get('fingerprint'))[:12])}), found "
            f"another one ({corpus.chars} characters, {corpus.fingerprint[:12]}). Put the text back, or start a new run with "
            "--from."
        )


def _refuse_too_large(config: RunConfig, corpus: "Corpus", processes: int) -> None:
    """Refuse what would use up the machine's memory: the system would end the run, or another program, without a word."""
    from lstmlm import ensemble, memory

    parameters = ensemble.parameter_count(config.model, len(corpus.tokenizer))
    needs = recipe.memory_bytes(config, len(corpus.tokenizer), parameters) * processes
    fewer = "fewer --members, " if config.model.members > 1 else ""
    if (has := memory.physical()) is not None and needs > has:
        raise SystemProblem(
            f"memory: expected a run that fits into the {size(has)} of this machine, found one that needs some {size(needs)} for "
            f"{parameters:,} parameters. Take {fewer}a smaller --hidden or --batch."
        )


class _Reading:
    """Say now and then how far the reading of a large text has come, how fast, and how long this pass will last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = time.monotonic() + PLAIN_SECONDS
        self._pass, self._began = "", 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
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


def _identity(corpus: "Corpus", request: Request, kernel: str, device: str) -> dict[str, Any]:
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
        "versions": {
            "lstmlm": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "kernel": kernel,
            "threads": str(torch.get_num_threads()),
            "device": device,
        },
        "command": ["lstmlm", *sys.argv[1:]],
    }


def _announce(
    console: Console, corpus: "Corpus", trainer: "Trainer", kernel: str, folder: Path, saved: Checkpoint | None
) -> None:
    """Say what is about to happen."""
    where = f"resuming {folder} at step {saved.meta['step']}" if saved else f"training {folder}"
    steps = trainer.progress.steps
    budget = counted(steps, "step") if steps is not None else counted(trainer.config.train.minutes or 0, "minute")
    console.say(
        f"{printable(where)}: {_parameters(trainer)}, {len(corpus.train):,} characters, vocabulary {len(corpus.tokenizer)}, "
        f"{budget}, kernel {kernel}" + (f", {trainer.team.size} processes" if trainer.team.size > 1 else "")
    )


def _parameters(trainer: "Trainer") -> str:
    """Return how many numbers are trained, in words."""
    one, count = trainer.members.each[0].model.parameter_count(), len(trainer.members.each)
    return f"{one:,} parameters" if count == 1 else f"{count} members of {one:,} parameters"


def _finish(console: Console, request: Request, trainer: "Trainer", folder: Path) -> None:
    """Say what was reached and what to type next."""
    p = trainer.progress
    out = shlex.quote(str(folder))
    run_pictures.say_curve(console, folder)
    if p.best_step and p.best_nats < float("inf"):
        if p.steps is not None and p.step < p.steps:
            above = (
                f"{p.worse} validations in a row were worse than the best, the last one by {p.final_nats / p.best_nats - 1:.0%}"
            )
            console.say(
                f"stopped at step {p.step:,} of {p.steps:,}: {above}. The model of step {p.best_step:,} is kept; with "
                "`--set train.patience=0` a run goes to its end."
            )
        reached = f"{bits(p.best_nats):.4f} bits/char ({p.best_nats:.4f} nats)"
        console.say(f"best {reached} on the validation text, at step {p.best_step}")
    prompt = "" if trainer.corpus.tokenizer.unknown(PROMPT) else f" --prompt {shlex.quote(PROMPT)}"
    console.say(f"saved {printable(out)}/best.safetensors. Next:  lstmlm sample -m {printable(out)}{prompt}")
    if request.json:
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
                "best": _score(p.best_step, p.best_nats),
                "final": _score(p.step, p.final_nats),
            }
        )


def _score(step: int, nats: float) -> dict[str, Any] | None:
    return {"step": step, "bits_per_char": bits(nats), "nats_per_char": nats} if nats < float("inf") else None


def _show_plan(console: Console, request: Request, config: RunConfig, corpus: "Corpus", kernel: str) -> None:
    """Show sizes, parameters, memory and steps of a run that is not made."""
    from lstmlm import ensemble

    parameters = ensemble.parameter_count(config.model, len(corpus.tokenizer))
    plan = recipe.plan(config, len(corpus.train), len(corpus.tokenizer), parameters)
    if request.json:
        console.as_json({"schema": 1, "command": "train", "dry_run": True, "kernel": kernel, **plan})
    else:
        for key, value in plan.items():
            console.result(f"{key.replace('_', ' '):20} {value:,}" if isinstance(value, int) else f"{key:20} {value}")
