"""The command `lstmlm train`, for rank 0; `train_worker` is the same for every other process."""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm.cli import STARTED, run_setup, signals, train_report
from lstmlm.cli.corpora import open_named, seen_in_training
from lstmlm.cli.run_setup import Request
from lstmlm.config import auto_tune, run_config
from lstmlm.config.run_config import RunConfig
from lstmlm.data.saved_model import parts
from lstmlm.display import tensorboard
from lstmlm.display.console import Console
from lstmlm.display.progress_view import RunView
from lstmlm.errors import Stopped, SystemProblem, UsageError
from lstmlm.model import devices
from lstmlm.storage import atomic, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import distributed
from lstmlm.training.distributed import ProcessGroup
from lstmlm.units import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lstmlm.data.corpus import Corpus
    from lstmlm.training.events import Event
    from lstmlm.training.trainer import Trainer

__all__ = ["Request", "run", "threads", "weights_of"]


def run(request: Request) -> None:
    """Train, or show what training would do.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    with distributed.joined() as group:
        if group.is_rank_zero:
            _lead(request, group)
        else:
            from lstmlm.cli import train_worker

            train_worker.run(request.corpus, request.val, group)


def _lead(request: Request, group: ProcessGroup) -> None:
    """Train as the one process, or as the one that speaks and writes."""
    console = Console(quiet=request.quiet, verbose=request.verbose)
    for flag, given in (("--out", request.out), ("--val", request.val), ("--from", request.start)):
        if given == "":  # of a variable that is not set: what stands for no flag at all may be another run
            raise UsageError(f"{flag}: expected a name, found nothing. Give one, or do without {flag}.")
    if request.resume and (request.overwrite or request.start):
        raise UsageError("--resume goes on with a run as it is; leave out --overwrite and --from.")
    if request.max_bpc is not None and not math.isfinite(request.max_bpc):
        raise UsageError(f"--max-bpc: expected a number of bits, found {request.max_bpc}.")  # NaN would pass every model
    if request.tensorboard:
        tensorboard.require()
    if group.size > 1 and "-" in [*request.corpus, request.val]:
        raise UsageError("corpus -: expected files, as each process reads the text, found standard input. Put it into a file.")
    folder = Path(request.out or f"runs/{run_setup.name_of(request.corpus)}")
    with contextlib.ExitStack() as held:
        makes = not (request.dry_run or request.print_config)
        began_here = makes and folder.exists()
        if began_here:
            _hold(held, folder, run_setup.started_again(request, folder), console)
        # What a killed command has set aside is back now: only now it shows what the folder holds.
        request = run_setup.started_again(request, folder)
        if began_here:
            run_setup.refuse_existing(folder, request)
        parent = run_setup.parent_of(request, folder)
        config, sources = run_setup.resolved(request, parent)
        saved = run_setup.saved_in(folder, request)
        if saved:
            config, sources = run_setup.resumed(parts(saved.meta)[0], request)
        elif request.resume:
            name, begun = run_config.load_preset(str(folder / "config.yaml"))
            config, sources = run_setup.resumed(run_config.resolve([(name, begun)]).config, request)
        known = saved or parent
        requested = config.train.device
        if makes and requested == "cuda":  # what cannot be is said before a text is read
            devices.choose(requested, None, group.local_rank, group.local_size)
        symbols = known.meta["tokenizer"].get("symbols") if known else None
        group.broadcast_bytes(json.dumps({"config": run_config.to_dict(config), "symbols": symbols} if makes else None).encode())
        if not makes:
            group = ProcessGroup()
        if request.print_config:
            train_report.print_config(console, request, config, sources)
            return
        with group.local_rank_zero_first():
            corpus = open_named(request.corpus, config, val=request.val, symbols=symbols, progress=train_report.Reading(console))
        if saved:
            run_setup.refuse_other_text(corpus, saved, folder, request)
        for note in corpus.notes:
            console.say(note)
        if request.val and "-" not in [*request.corpus, request.val] and (seen := seen_in_training(request.corpus, request.val)):
            console.warn(f"--val: {seen} is trained on too: its score tells nothing of other texts.")

        import torch

        from lstmlm import kernels
        from lstmlm.kernels.cuda_graph import speed_of
        from lstmlm.training import malloc
        from lstmlm.training.events import Clock
        from lstmlm.training.trainer import Trainer

        malloc.tune_malloc()
        torch.set_num_threads(threads(config, group))
        if requested == "auto" and kernels.requested_kernel(config.train.kernel) == "native":
            requested = "cpu"
        say = console.say if request.verbose else None
        device, kernel, why = devices.with_kernel(
            requested, config.train.kernel, config.train.precision, say, group.local_rank, group.local_size
        )
        speed = kernels.speed() if device.type == "cpu" else speed_of(kernel, device)
        config, chosen = auto_tune.choose(config, len(corpus.train), speed * group.size)
        kernel, wrong = kernels.at_sizes(kernel, device, *sizes(config, corpus))
        for line in filter(None, (chosen, why, wrong)):
            console.say(line)
        if request.dry_run:
            train_report.show_plan(console, request, config, corpus, kernel.name)
            return
        if device.type == "cpu":
            _refuse_too_large(config, corpus, group.local_size)
        if not began_here:
            _hold(held, folder, request, console)
            run_setup.refuse_existing(folder, request)  # somebody may have trained here while the text was read
        caught = held.enter_context(signals.caught(console))
        identity = _identity(corpus, request, kernel.name, devices.name(device))
        first = saved or parent
        group.broadcast_bytes(
            json.dumps(
                {
                    "config": run_config.to_dict(config),
                    "corpus": corpus.fingerprint,
                    "resumes": bool(saved),
                    "starts": bool(first),
                    "device": device.type,
                }
            ).encode()
        )
        view = RunView(console)
        shown = tensorboard.Board(folder, saved.meta["step"] if saved else 0, console.warn) if request.tensorboard else None
        trainer = Trainer(config, corpus, kernel, folder, identity, _reports(view, shown), Clock(STARTED), caught, group, device)
        if first:
            group.broadcast_checkpoint(first)
        if saved:
            trainer.restore(saved)
            train_report.say_differences(console, saved.meta["versions"], identity["versions"])
        _begin(trainer, folder, parent, saved, request)
        where = kernel.name if device.type == "cpu" else f"{kernel.name} on {devices.name(device)}"
        train_report.announce(console, corpus, trainer, where, folder, saved)
        try:
            trainer.run()
        except Stopped as stopped:
            command = train_report.going_on(request, folder)
            raise Stopped(f"{stopped} Go on with:  {command}", stopped.exit_code - 128) from None
        finally:
            view.close()
            if shown:
                shown.close()
        train_report.finish(console, request, trainer, folder)


def _reports(view: RunView, shown: tensorboard.Board | None) -> "Callable[[Event], None]":
    """Return what takes the trainer's records: the terminal alone, or TensorBoard too."""
    if shown is None:
        return view

    def both(record: "Event") -> None:
        view(record)
        shown(record)

    return both


def _hold(held: contextlib.ExitStack, folder: Path, request: Request, console: Console) -> None:
    """Lock the run folder until the command ends, made where it is missing, and put right what a killed command left there."""
    run_setup.refuse_existing(folder, request)  # where others' files lie, not even a lock is left
    atomic.make_folder(folder)
    weakened = held.enter_context(run_dir.lock(folder))
    if weakened:
        console.say(weakened)
    atomic.clean(folder)
    atomic.put_back(folder, run_setup.replaced(folder))


def _begin(trainer: "Trainer", folder: Path, parent: Checkpoint | None, saved: Checkpoint | None, request: Request) -> None:
    """Write what a run starts with: its job, its configuration and its first checkpoint."""
    job = distributed.job()
    text = run_config.to_yaml(trainer.config)
    if saved:
        if job:
            atomic.write_text(folder / run_setup.JOB, job)
        if not (folder / "config.yaml").exists():  # killed between its first checkpoint and this
            atomic.write_text(folder / "config.yaml", text)
        trainer.begin()
        return
    with atomic.set_aside(folder, run_setup.replaced(folder)):  # what --overwrite deletes is there until the new run is
        if job:
            atomic.write_text(folder / run_setup.JOB, job)
        if parent is None:
            # First the configuration: a run killed between the two is resumed from it.
            atomic.write_text(folder / "config.yaml", text)
            trainer.begin()
            return
        trainer.load_model(weights_of(parent))
        # First the checkpoint: a configuration alone would be resumed from random weights.
        trainer.begin()
        atomic.write_text(folder / "config.yaml", text)


def weights_of(parent: Checkpoint) -> "dict[str, Tensor]":
    """Return the weights that a fine-tuned model starts from."""
    from lstmlm.storage import checkpoint

    return checkpoint.to_tensors({k.removeprefix("model."): v for k, v in parent.tensors.items() if k.startswith("model.")})


def threads(config: RunConfig, group: ProcessGroup) -> int:
    """Return how many threads a process takes: its share of the machine's cores, where nothing else is said."""
    return config.train.threads or max(1, (os.cpu_count() or 1) // group.local_size)


def sizes(config: RunConfig, corpus: "Corpus") -> tuple[int, int, int, int]:
    """Return a run's time steps, rows, units and vocabulary, none of them open any more."""
    train, hidden = config.train, config.model.hidden
    assert train.window is not None
    assert train.batch is not None
    assert hidden is not None
    return train.window, train.batch, hidden, len(corpus.tokenizer)


def _refuse_too_large(config: RunConfig, corpus: "Corpus", processes: int) -> None:
    """Refuse what would use up the machine's memory: the system would end the run, or another program, without a word."""
    from lstmlm.model import ensemble
    from lstmlm.training import malloc

    parameters = ensemble.parameter_count(config.model, len(corpus.tokenizer))
    needs = auto_tune.memory_bytes(config, len(corpus.tokenizer), parameters) * processes
    fewer = "fewer --members, " if config.model.members > 1 else ""
    if (has := malloc.physical()) is not None and needs > has:
        raise SystemProblem(
            f"memory: expected a run that fits into the {size(has)} of this machine, found one that needs some {size(needs)} for "
            f"{parameters:,} parameters. Take {fewer}a smaller --hidden or --batch."
        )


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
