"""The command `lstmlm` and its commands' flags; each command calls the module of its name."""

from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperGroup

from lstmlm import __version__
from lstmlm.errors import UsageError, printable
from lstmlm.model import devices

OTHER_WORDS = {
    "learn": "train", "generate": "sample", "write": "sample", "score": "eval", "test": "eval", "measure": "eval",
    "show": "info", "help": "--help", "version": "--version",
}  # fmt: skip
"""What other programs call it, and people type."""


class _Group(TyperGroup):
    """The commands, with arguments shown in help by their metavar alone, and a reader that leaves early taken as content."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for command in self.commands.values():
            for param in command.params:
                # An instance's own attributes stand before its class's methods. `[0<=x<=4096]` behind each number tells
                # little; who leaves the range is told it.
                own = vars(param)
                own["_get_number_range_help_str"] = lambda: None
                if isinstance(param, TyperArgument):
                    shown = str(param.name).upper() if param.metavar is None else param.metavar
                    # typer would write `{CORPUS...}...` and `<list[str]>`.
                    own["get_usage_pieces"] = lambda ctx, shown=shown: [shown] if shown else []
                    own["make_metavar"] = lambda ctx=None, shown=shown: shown
                    own["_rich_display_name"] = lambda shown=shown: shown
                    own["display_type_rich"] = lambda ctx=None: ""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed, or say which one was meant, also where the words are not alike."""
        if args[0] in OTHER_WORDS:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{OTHER_WORDS[args[0]]}'?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; `lstmlm sample | head -1` is no error, though typer takes it for one."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(0) from None


app = typer.Typer(
    name="lstmlm",
    cls=_Group,
    help="Train, sample and measure character language models: an LSTM written from scratch.",
    epilog="First steps:  lstmlm train stories --minutes 1   then   lstmlm sample --prompt 'Bob is'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="Run folder or .safetensors file. [default: newest run below runs/]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors on stderr.")]
Threads = Annotated[int, typer.Option(metavar="N", min=0, max=4096, help="CPU threads; 0: all cores.")]


def _device(given: str) -> str:
    """Refuse what is no device, before torch is imported, with the word that was probably meant."""
    if given not in devices.DEVICES:
        from lstmlm.config import run_config

        run_config.keys()["train.device"].parse(given, "--device")
    return given


Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", callback=_device, help="Where to compute; auto: on a GPU that works.")
]


def _version(asked: bool) -> None:
    if asked:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "missing"
        typer.echo(f"lstmlm {__version__} (torch {torch}, python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train, sample and measure character language models: an LSTM written from scratch."""


@app.command(short_help="Learn a text.")
def train(
    ctx: typer.Context,
    corpus: Annotated[
        list[str],
        typer.Argument(metavar="CORPUS...", help="Text files, folders, .gz .xz .bz2 files, - for stdin, or `stories`."),
    ],
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder. [default: runs/<corpus name>]")] = None,
    val: Annotated[str | None, typer.Option(metavar="FILE", help="Validation text. [default: the last 10 % of CORPUS]")] = None,
    config: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FILE", help="Preset or YAML file; repeatable, later wins.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its key; repeatable.")
    ] = None,
    minutes: Annotated[str | None, typer.Option(metavar="M", help="Wall time of the whole command. [default: 3]")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps, instead of minutes.")] = None,
    epochs: Annotated[str | None, typer.Option(metavar="E", help="Passes over the text, instead of minutes.")] = None,
    hidden: Annotated[str | None, typer.Option(metavar="S", help="Units of a layer. [default: auto]")] = None,
    layers: Annotated[str | None, typer.Option(metavar="L", help="Layers. [default: auto]")] = None,
    members: Annotated[
        str | None,
        typer.Option(metavar="N", help="Networks of seeds s, s+1, ... side by side, read as one. [default: 1]"),
    ] = None,
    dropout: Annotated[str | None, typer.Option(metavar="P", help="Dropout after each layer. [default: auto]")] = None,
    lr: Annotated[str | None, typer.Option(metavar="RATE", help="Learning rate at its highest. [default: auto]")] = None,
    batch: Annotated[str | None, typer.Option(metavar="B", help="Streams side by side. [default: auto]")] = None,
    accumulate: Annotated[
        str | None, typer.Option(metavar="N", help="Compute the batch in N shards, one after another. [default: 1]")
    ] = None,
    window: Annotated[str | None, typer.Option(metavar="T", help="Time steps of a window. [default: auto]")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of everything random. [default: 0]")] = None,
    threads: Annotated[str | None, typer.Option(metavar="N", help="CPU threads. [default: all cores]")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute. [default: auto]")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|float32|bfloat16", help="Of the recurrence's products. [default: auto]")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="char|byte", help="What a symbol is. [default: char]")] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Of the text files. [default: utf-8]")] = None,
    val_fraction: Annotated[
        str | None, typer.Option(metavar="F", help="Last part of CORPUS to validate on. [default: 0.1]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, to the same bits.")] = False,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Start from a trained model, with its vocabulary.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in DIR once the new one is saved.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show sizes, memory and steps; train nothing.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show every setting and where it came from.")] = False,
    max_bpc: Annotated[
        float | None, typer.Option(metavar="X", min=0.0, help="Exit 1 if the validation text takes more bits/char.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write DIR/tensorboard too; needs pip install 'lstmlm[tensorboard]'.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show samples in pipes and logs too.")] = False,
) -> None:
    """Learn a text: CORPUS -> a run folder with a model to sample from.

    lstmlm train corpus.txt --minutes 5

    lstmlm train stories --config minute --set train.seed=7
    """
    from lstmlm.cli import train as command

    flags = {
        "train.minutes": minutes, "train.steps": steps, "train.epochs": epochs, "model.hidden": hidden,
        "model.layers": layers, "model.members": members, "model.dropout": dropout, "train.lr": lr, "train.batch": batch,
        "train.accumulate": accumulate, "train.window": window, "train.seed": seed, "train.threads": threads,
        "train.device": device, "train.precision": precision, "data.tokenizer": tokenizer, "data.encoding": encoding,
        "data.val_fraction": val_fraction,
    }  # fmt: skip
    command.run(
        command.Request(
            corpus=corpus, out=out, val=val, presets=config or [], assignments=set_ or [],
            flags={key: value for key, value in flags.items() if value is not None},
            resume=resume, start=from_, overwrite=overwrite, dry_run=dry_run, print_config=print_config,
            tensorboard=tensorboard, max_bpc=max_bpc, json=json, quiet=quiet, verbose=verbose,
        )
    )  # fmt: skip


@app.command(short_help="Write text with a model.")
def sample(
    words: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    model: Model = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to go on from.")] = None,
    prompt_file: Annotated[str | None, typer.Option(metavar="FILE|-", help="Read the prompt from a file or stdin.")] = None,
    length: Annotated[int, typer.Option(metavar="N", min=0, help="Characters to write; 0: until stopped.")] = 500,
    temperature: Annotated[float, typer.Option(metavar="X", min=0.0, help="Below 1 safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="K", min=0, help="Choose among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", min=0.0, max=1.0, help="Choose among the fewest with this probability.")
    ] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The largest score is the prediction, always.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Round no weights: slower; rounding costs some 0.0003 nats a character.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**62, help="Draws the same text again. [default: random]")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")] = None,
    count: Annotated[
        int, typer.Option("-n", "--count", metavar="COUNT", min=1, help="Samples, drawn in batches of 64, on a GPU of 4,096.")
    ] = 1,
    on_unknown: Annotated[
        str, typer.Option(metavar="error|skip|replace", help="For prompt characters the model lacks.")
    ] = "error",
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Do not write the prompt.")] = False,
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write text with a model, character by character.

    lstmlm sample --prompt "Bob is"

    lstmlm sample -m runs/stories --length 200 --temperature 0.8 --seed 1
    """
    from lstmlm.cli import sample as command

    command.refuse_words(words or [], prompt)
    command.run(
        command.Request(
            model=model, prompt=prompt, prompt_file=prompt_file, length=length, temperature=temperature, top_k=top_k,
            top_p=top_p, greedy=greedy, exact=exact, seed=seed, stop=stop or [], count=count, on_unknown=on_unknown,
            echo=not no_echo, threads=threads, device=device, json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command("eval", short_help="Measure a model on a text.")
def eval_(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT...]", help="Files, folders, or - for stdin. [default: the run's validation part]"),
    ] = None,
    model: Model = None,
    protocol: Annotated[
        str, typer.Option(metavar="warm|cold", help="Carry the state through the text, or start each window empty.")
    ] = "warm",
    window: Annotated[int, typer.Option(metavar="N", min=1, help="Inputs of a cold window.")] = 256,
    batch: Annotated[int, typer.Option(metavar="B", min=1, help="Windows side by side; changes the speed, not the score.")] = 64,
    max_bpc: Annotated[float | None, typer.Option(metavar="X", min=0.0, help="Exit 1 if the text takes more bits/char.")] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Also score a network that learns from the text, each piece once it is scored.")
    ] = False,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Bits/char by counts, bzip2 and xz too. [default: if no TEXT is named]",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of the text files.")] = "utf-8",
    files_from: Annotated[
        str | None, typer.Option(metavar="LIST|-", help="A score for each file named in LIST, one a line, as it comes.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="A score for every line, as TSV or --json lines.")] = False,
    chars: Annotated[bool, typer.Option("--chars", help="The text, coloured by the surprise of every character.")] = False,
    state: Annotated[str, typer.Option(metavar="reset|carried", help="With --lines or --chars: between lines.")] = "reset",
    sort: Annotated[
        str | None, typer.Option(metavar="surprise", help="With --lines: the most surprising first, empty ones last.")
    ] = None,
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a text: every character is scored exactly once.

    The first character is charged at its frequency in the training text (one added to each count). A character that the model
    does not know is charged log2(1,114,112) = 20.09 bits, and is not fed to the network. With --protocol cold the text is cut
    into windows of N inputs, each from an empty state, and the character after each input is scored. With --dynamic it is also
    scored by a copy of the network that learns from each 128 characters once it has been scored on them.

    --lines scores every line with its line end, from an empty state after a line end, or with --state carried from where the line
    before it ended (then the lines sum to the score of the whole). Lines of a pipe are scored as they come.

    lstmlm eval held-out.txt --max-bpc 2.2

    find texts -name '*.txt' | lstmlm eval --files-from - --json

    tail -f log | lstmlm eval --lines -
    """
    from lstmlm.cli import eval as command

    command.run(
        command.Request(
            texts=text or [], model=model, protocol=protocol, window=window, batch=batch, max_bpc=max_bpc,
            encoding=encoding, threads=threads, device=device, json=json, quiet=quiet, lines=lines, chars=chars,
            state=state, sort=sort, files_from=files_from, dynamic=dynamic, baselines=baselines,
        )
    )  # fmt: skip


@app.command(short_help="Fill the blanks of a text.")
def fill(
    typed: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]", help="With ____ where something is missing.")] = None,
    model: Model = None,
    choice: Annotated[list[str] | None, typer.Option(metavar="WORD", help="A candidate; repeatable.")] = None,
    choices: Annotated[str | None, typer.Option(metavar="FILE|-", help="Candidates, separated by spaces or line ends.")] = None,
    words: Annotated[int | None, typer.Option(metavar="N", min=2, help="The N commonest words of the training text.")] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE|-", help="Answer a set: TSV with text, candidates, answer.")] = None,
    forget_at: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Set the memory C to zero after each such character.")
    ] = None,
    on_unknown: Annotated[str, typer.Option(metavar="error|skip|replace", help="For characters the model lacks.")] = "error",
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fill the blanks of a text: candidates ranked by the bits of the whole text, so that what comes after counts too.

    The state starts empty and a line end is read first, if the model knows one: in training a story follows a line end.
    With several blanks every combination of the candidates is compared. A set (--file) has the columns text, candidates (a|b),
    answer and, if wanted, kind and distance (characters back to what has to be remembered); one accuracy for each.

    lstmlm fill "For his deeds, brave ____ was honoured." --choice Bob --choice Dan

    lstmlm fill --file data/blanks.tsv
    """
    from lstmlm.cli import fill as command
    from lstmlm.cli.text_input import one_text

    command.run(
        command.Request(
            text=one_text("fill", typed or []), choices=choice or [], choices_file=choices, words=words, file=file,
            forget_at=forget_at, model=model, on_unknown=on_unknown, threads=threads, device=device, json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command(short_help="Show what the gates do along a text.")
def inspect(
    typed: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]", help="The text itself.")] = None,
    model: Model = None,
    file: Annotated[str | None, typer.Option(metavar="FILE|-", help="Read the text from a file or stdin.")] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT,...", help="forget, input, output, new, cell, hidden, surprise. [default: forget,surprise]"),
    ] = None,
    units: Annotated[
        str | None, typer.Option(metavar="LAYER:UNIT,...", help="Follow single units; both are counted from 1.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, max=1000, help="Follow the N units that vary most.")] = 0,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write the picture as SVG.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write a page to explore all units in a browser.")] = None,
    member: Annotated[int, typer.Option(metavar="M", min=1, help="Which network of several, counted from 1.")] = 1,
    at: Annotated[str | None, typer.Option(metavar="CHAR", help="Is anything forgotten at this mark? Over a whole text.")] = None,
    swap: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="With --at: is it still known who, after the mark?")
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURE", help="Which unit carries line, quotes, brackets, depth, capital, word, stop, re:EXPRESSION?"
        ),
    ] = None,
    reach: Annotated[bool, typer.Option("--reach", help="How far back does it look? Gradients by distance.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="No limit on what is written or drawn, nor on the text of --at.")] = False,
    on_unknown: Annotated[str, typer.Option(metavar="error|skip|replace", help="For characters the model lacks.")] = "error",
    threads: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=4096, help="CPU threads; 0: all cores, or one for counting with up to 384 units."),
    ] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what the gates do along a text: characters as columns, one row for each layer or unit.

    The state starts empty and a line end is read first, if the model knows one. A row belongs to the character that is read in
    its column: what its gates did then, and how many bits the character cost. --json gives every value with its shape.

    lstmlm inspect "Bob is a baker. Dan ran home."

    --at counts over a whole text (TEXT, --file, or the run's validation part; its first 2,000,000 characters, or --all): the mean
    forget gate at the mark, one step later and elsewhere, the units that drop most (--top), how sure that is (95 % interval,
    marks drawn again in blocks), and what the memory is worth: the bits of 100 characters after the mark with the state carried,
    C zeroed, H zeroed, both zeroed.

    --find ranks units (by C, or --show) by the area under the curve with which their value tells a feature of the text, on 20,000
    characters: chosen by the first half, measured on the second, beside the best of as many units for a shifted feature.

    --reach gives the mean norm of the gradient of a prediction with respect to C, H and x, up to 200 characters back,
    over the first 200,000 characters.

    lstmlm inspect "Bob is a baker. Dan ran home." --show cell --top 8

    lstmlm inspect --at . --swap Bob,Dan
    """
    from lstmlm.cli import inspect as command
    from lstmlm.cli.text_input import one_text

    command.run(
        command.Request(
            text=one_text("inspect", typed or []), file=file, model=model, show=show or [], units=units, top=top, svg=svg,
            html=html, member=member, at=at, swap=swap, find=find, reach=reach, everything=all_, on_unknown=on_unknown,
            threads=threads, json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command(short_help="Show what a model is.")
def info(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Run folder or .safetensors file. [default: newest run]")
    ] = None,
    model: Model = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every checkpoint of the run, byte by byte.")] = False,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the run's curves and three of its samples.")] = None,
    json: Json = False,
) -> None:
    """Show what a model is: configuration, vocabulary, scores, where it came from."""
    from lstmlm.cli import info as command

    if target and model and target != model:
        raise UsageError(f"info: expected one model, found two: {printable(target)} and {printable(model)}. Leave one out.")
    command.run(target or model, verify=verify, json=json, svg=svg)
