"""The command `lstmlm train`, for rank 0; `train_worker` is the same for every other process."""

import contextlib
import gc
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lstmlm import __version__
from lstmlm.cli import STARTED
from lstmlm.cli.options import MACHINE, OUTPUT, Json, Quiet, most_bits
from lstmlm.cli.text_input import listed
from lstmlm.config import schema
from lstmlm.config.setting import Setting, write
from lstmlm.display.console import Console
from lstmlm.errors import Stopped, UsageError

if TYPE_CHECKING:
    from lstmlm.config.run_config import RunConfig
    from lstmlm.display.progress_view import RunView
    from lstmlm.display.tensorboard import Board
    from lstmlm.training.events import Event
    from lstmlm.training.trainer import Trainer

GROUPS = {
    "Budget": "--minutes 20",
    "Run": "--out runs/book --resume",
    "Corpus": "--val held-out.txt",
    "Network": "--layers 3 --hidden 512",
    "Learning": "--lr 0.002 --seed 1",
    "Any setting": "--config article --set train.clip=0.5",
    OUTPUT: "--json -q",
    MACHINE: "--threads 2",
}


def _with_settings(command: "Callable[..., None]") -> "Callable[..., None]":
    """Give a command a flag for each setting that is declared with a group, in place of its `**flags`."""
    own = inspect.signature(command)
    written = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, _flag(one)])
        for one in schema.KEYS.values()
        if one.group
    ]
    vars(command)["__signature__"] = own.replace(parameters=[*written, *flags])
    return command


def _flag(one: Setting) -> Any:
    """Return the option of a setting; its text is read where all settings are, so that every way to give one is read alike."""
    default = write(one.default) if one.default is not None else "" if one.none_word == "null" else one.none_word
    return typer.Option(
        one.flag,
        metavar="|".join(one.choices) or one.metavar,
        help=f"{one.help[0].upper()}{one.help[1:]}.",
        show_default=default or False,
        rich_help_panel=one.group,
    )


@_with_settings
def train(
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS...",
            help="Text files, folders, .tar .zip .gz .xz .bz2 files, - for stdin, or `stories`; with --resume a run, or nothing.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Run folder.", show_default="runs/<corpus name>", rich_help_panel="Run"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a run, to the same bits; with a larger budget further.", rich_help_panel="Run"),
    ] = False,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Start from a trained model, with its vocabulary.", rich_help_panel="Run"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in DIR once the new one is saved.", rich_help_panel="Run")
    ] = False,
    max_bpc: Annotated[float | None, most_bits("Run", "the validation text")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show sizes, memory and steps; train nothing.", rich_help_panel="Run")
    ] = False,
    with_tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write DIR/tensorboard too; needs pip install 'lstmlm[tensorboard]'.", rich_help_panel="Run"
        ),
    ] = False,
    val: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Validation text.", show_default="10 % of CORPUS", rich_help_panel="Corpus"),
    ] = None,
    files_from: Annotated[
        str | None,
        typer.Option(metavar="LIST|-", help="Learn the files named in LIST, one a line.", rich_help_panel="Corpus"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting by its key; repeatable.", rich_help_panel="Any setting"),
    ] = None,
    presets: Annotated[
        list[str] | None,
        typer.Option(
            "--config", metavar="NAME|FILE", help="Preset or YAML file; repeatable, later wins.", rich_help_panel="Any setting"
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Show every setting and where it came from.", rich_help_panel="Any setting"),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show samples in pipes and logs too.", rich_help_panel=OUTPUT)
    ] = False,
    **flags: str | None,
) -> None:
    """Learn a text: CORPUS -> a run folder with a model to sample from.

    lstmlm train corpus.txt --minutes 5

    lstmlm train stories --config minute --set train.seed=7

    lstmlm train more.txt --from runs/corpus --out runs/more

    lstmlm train --resume runs/corpus --minutes 5
    """
    from lstmlm.cli import signals, train_report, train_run, train_worker
    from lstmlm.cli.corpora import known_texts, may_have_moved, open_named, seen_in_training
    from lstmlm.cli.text_reader import refuse_models
    from lstmlm.config import run_config
    from lstmlm.data.sources import require
    from lstmlm.display import tensorboard
    from lstmlm.display.progress_view import RunView
    from lstmlm.model import devices
    from lstmlm.training import distributed, malloc, run_setup

    typed = list(corpus or [])
    corpus = [*typed, *(listed(files_from) if files_from is not None else [])]
    with distributed.joined() as group, contextlib.ExitStack() as held:
        if not group.is_rank_zero:
            train_worker.run(group)
            return
        console = Console(quiet=quiet, verbose=verbose)
        _refuse_flags({"--out": out, "--val": val, "--from": start}, resume, overwrite)
        if with_tensorboard:
            tensorboard.require()
        layers = train_run.layers_of(presets or [], assignments or [], flags)
        run_config.resolve(layers)  # what is wrong with the settings is said before the folder is looked at
        named, folder = train_run.named(corpus, out, resume)
        refuse_models("train", named, "--from")
        if not resume:  # else what the run says of itself comes first
            require([*named, *([val] if val else [])], run_config.resource_dir("data"))
        makes = not (dry_run or print_config)
        begins = run_setup.resolve_start(
            folder, layers, held if makes else None, console.say, parent=start, resume=resume, overwrite=overwrite
        )
        config, saved, requested = begins.config, begins.saved, begins.config.train.device
        if not makes:
            group.broadcast_bytes(b"null")
            group = distributed.ProcessGroup()
        if print_config:
            train_report.print_config(console, as_json, config, begins.origins)
            return
        names, val = known_texts(saved.meta["corpus"] if saved else {}, named, val, folder)
        if group.size > 1 and "-" in [*names, val, files_from]:
            raise UsageError(
                "corpus -: expected files, as each process reads the text, found standard input. Put it into a file."
            )
        if makes and requested == "cuda":  # what cannot be is said before a text is read
            devices.choose(requested, None, group.local_rank, group.local_size)
        told = {"config": run_config.to_dict(config), "symbols": begins.symbols, "names": names, "val": val}
        group.broadcast_bytes(json.dumps(told).encode())
        malloc.import_torch_meanwhile()
        with group.local_rank_zero_first(), contextlib.nullcontext() if named else may_have_moved(folder):
            text = open_named(names, config, val=val, symbols=begins.symbols, progress=train_report.Reading(console))
        config = replace(config, data=replace(config.data, split=text.split))
        listing = ["--files-from", files_from] if files_from else []
        texts = [*(typed if listing else names), *listing, *(["--val", val] if val else [])]
        if saved:
            run_setup.refuse_other_text(text, saved, folder, texts)
        for note in text.notes:
            console.say(note)
        if not begins.first:
            train_report.say_unlike(console, text, config.data.field)
        if val and "-" not in [*names, val] and (seen := seen_in_training(names, val)):
            console.warn(f"--val: {seen} is trained on too: its score tells nothing of other texts.")

        from lstmlm.training import launch
        from lstmlm.training.events import Clock
        from lstmlm.training.trainer import Trainer

        malloc.tune_malloc()
        clock = Clock(STARTED)
        keep = str(saved.meta["versions"].get("kernel", "")) if saved else ""
        ready = launch.prepare(config, text, clock, group, console.say, keep, tuned=begins.parent is not None)
        asked, config, device, kernel, steps = config, ready.config, ready.device, ready.kernel, ready.steps
        for line in ready.notes:
            console.say(line)
        if not saved:
            train_report.warn_of_few(console, config, steps, ready.left(), clock)
        if dry_run:
            train_report.show_plan(console, as_json, config, text, kernel.name, steps)
            return
        if device.type == "cpu":
            launch.refuse_too_large(config, text, group.local_size)
        run_setup.lock(begins, held, console.say)
        caught = held.enter_context(signals.caught(console))
        identity = launch.identity(text, names, val, ready, __version__, ["lstmlm", *sys.argv[1:]])
        group.broadcast_bytes(
            json.dumps(
                {
                    "config": run_config.to_dict(config),
                    "corpus": text.fingerprint,
                    "resumes": bool(saved),
                    "starts": bool(begins.first),
                    "changed": begins.changed,
                    "steps": steps,
                    "device": device.type,
                    "kernel": kernel.name,
                }
            ).encode()
        )
        began = time.monotonic() - clock.seconds()
        planned = saved and saved.meta["training"].get("steps") and not begins.changed.keys() & set(schema.BUDGETS)
        timed = config.train.minutes is not None and not planned
        board = tensorboard.Board(folder, saved.meta["step"] if saved else 0, console.warn) if with_tensorboard else None

        def made(config: "RunConfig") -> "tuple[RunView, Trainer]":
            view = RunView(console, span=(began, began + 60 * (config.train.minutes or 0.0)) if timed else None)
            return view, Trainer(config, text, kernel, folder, identity, _reports(view, board), clock, caught, group, device)

        view, trainer = made(config)
        if timed and not begins.first and not board and device.type == "cpu" and asked.model.hidden is None:
            trainer.expected = steps
        if begins.first:
            group.broadcast_checkpoint(begins.first)
        if saved:
            trainer.restore(saved, begins.changed)
            train_report.say_differences(console, saved.meta["versions"], identity["versions"])
            train_report.say_changes(console, trainer, begins.changed, saved)
        launch.begin(trainer, begins, steps)
        where = kernel.name if device.type == "cpu" else f"{kernel.name} on {devices.name(device)}"
        train_report.announce(console, text, trainer, where, folder, saved)
        try:
            if not trainer.run():
                smaller, chosen, _ = ready.choose()
                if (smaller.model.hidden or 0) < (config.model.hidden or 0):
                    console.say(f"the machine has become slower, and the run begins again with a smaller network\n{chosen}")
                    view.close()
                    trainer.close()
                    del trainer  # its memory
                    gc.collect()
                    view, trainer = made(smaller)
                    launch.begin(trainer, begins, steps)
                trainer.run()
        except Stopped as stopped:
            command = train_report.going_on(texts, folder)
            raise Stopped(f"{stopped} Go on with:\n  {command}", stopped.exit_code - 128) from None
        finally:
            view.close()
            if board:
                board.close()
        train_report.finish(console, as_json, trainer, folder, max_bpc)


def _refuse_flags(given: dict[str, str | None], resume: bool, overwrite: bool) -> None:
    """Refuse flags that say nothing, or that cannot hold together."""
    for flag, value in given.items():
        if value == "":  # of a variable that is not set: what stands for no flag at all may be another run
            raise UsageError(f"{flag}: expected a name, found nothing. Give one, or do without {flag}.")
    if resume and (overwrite or given["--from"]):
        raise UsageError("--resume goes on with a run as it is; leave out --overwrite and --from.")


def _reports(view: "RunView", shown: "Board | None") -> "Callable[[Event], None]":
    """Return what takes the trainer's records: the terminal alone, or TensorBoard too."""
    if shown is None:
        return view

    def both(record: "Event") -> None:
        view(record)
        shown(record)

    return both
