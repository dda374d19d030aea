"""The command `lstmlm train`, for rank 0; `train_worker` is the same for every other process."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lstmlm.cli.options import MACHINE, OUTPUT, Json, most_bits, require_extra
from lstmlm.cli.text_input import listed
from lstmlm.config import schema
from lstmlm.config.setting import Setting, write
from lstmlm.display.console import Console
from lstmlm.errors import UsageError

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
    parent: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Start from a trained model, with its vocabulary.", rich_help_panel="Run"),
    ] = None,
    distill: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Learn what a trained model expects too, beside the text.", rich_help_panel="Run"),
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
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Say nothing but errors on stderr, and how to go on after a stop.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
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
    from lstmlm.cli.text_reader import refuse_models
    from lstmlm.config import run_config
    from lstmlm.data.sources import require
    from lstmlm.training import distributed, run_setup

    with distributed.joined() as group, contextlib.ExitStack() as held:
        if not group.is_rank_zero:
            train_worker.run(group)
            return
        console = Console(quiet=quiet, verbose=verbose)
        _refuse_empty({"--out": out, "--val": val, "--from": parent, "--distill": distill})
        run_setup.refuse_together(resume, overwrite, parent, distill)
        if with_tensorboard:
            require_extra("--tensorboard", "torch.utils.tensorboard", "leave the flag out")
        layers = train_run.layers_of(presets or [], assignments or [], flags)
        run_config.resolve(layers)  # what is wrong with the settings is said before the folder is looked at
        listed_names = listed(files_from) if files_from is not None else []
        named, folder = train_run.named([*(corpus or []), *listed_names], out, resume)
        refuse_models("train", named, "--resume --out" if resume else "--from")
        if not resume:  # else what the run says of itself comes first
            require([*named, *([val] if val else [])], run_config.resource_dir("data"))
        only_shows = dry_run or print_config
        start = run_setup.resolve_start(
            folder,
            layers,
            None if only_shows else held,
            console.say,
            names=named,
            parent=parent,
            teacher=distill,
            resume=resume,
            overwrite=overwrite,
        )
        if only_shows:
            train_worker.send(group, None)
            group = distributed.ProcessGroup()
        if print_config:
            train_report.print_config(console, as_json, start.config, start.origins)
            return
        texts = train_run.texts_of(start, named, val, corpus or [], files_from)
        text = train_run.open_text(console, group, start, texts)
        plan = train_run.prepare(console, group, start, text)
        if dry_run:
            train_report.show_plan(console, as_json, plan, text, start.saved)
            try:
                run_setup.refuse_existing(start)
            except UsageError as refusal:
                console.warn(f"without --dry-run this is refused: {refusal}")
            return
        from lstmlm.training import launch  # with torch

        launch.refuse_too_large(plan, text, group.local_size)
        run_setup.lock(start, held, console.say)
        caught = held.enter_context(signals.caught(console))
        run = train_run.Run(console, group, start, texts, text, plan)
        trainer = run.train(caught, with_tensorboard=with_tensorboard)
        train_report.finish(console, as_json, trainer, folder, max_bpc)


def _refuse_empty(given: dict[str, str | None]) -> None:
    """Refuse flags that say nothing."""
    for flag, value in given.items():
        if value == "":  # of a variable that is not set: what stands for no flag at all may be another run
            raise UsageError(f"{flag}: expected a name, found nothing. Give one, or do without {flag}.")
