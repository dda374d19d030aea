"""The command `lstmlm` and its commands' flags."""

from typing import Annotated

import typer

from lstmlm import __version__

app = typer.Typer(
    name="lstmlm",
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
Threads = Annotated[int, typer.Option(min=0, help="CPU threads. [0: all cores]", show_default=False)]


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
    config: Annotated[list[str] | None, typer.Option(metavar="NAME|FILE", help="Preset or YAML file; repeatable, later wins.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its key; repeatable.")] = None,
    minutes: Annotated[str | None, typer.Option(metavar="M", help="Wall time of the whole command. [default: 3]")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps, instead of minutes.")] = None,
    epochs: Annotated[str | None, typer.Option(metavar="E", help="Passes over the text, instead of minutes.")] = None,
    hidden: Annotated[str | None, typer.Option(metavar="S", help="Units of a layer.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="L", help="Layers.")] = None,
    dropout: Annotated[str | None, typer.Option(metavar="P", help="Dropout after each layer.")] = None,
    lr: Annotated[str | None, typer.Option(metavar="RATE", help="Learning rate at its highest.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="B", help="Streams side by side.")] = None,
    window: Annotated[str | None, typer.Option(metavar="T", help="Time steps of a window.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of everything random. [default: 0]")] = None,
    threads: Annotated[str | None, typer.Option(metavar="N", help="CPU threads. [default: all cores]")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="auto|float32|bfloat16", help="Of the recurrence's products.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="char|byte", help="What a symbol is.")] = None,
    encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Of the text files. [default: utf-8]")] = None,
    val_fraction: Annotated[str | None, typer.Option(metavar="F", help="Last part of CORPUS to validate on. [default: 0.1]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR, to the same bits.")] = False,
    from_: Annotated[str | None, typer.Option("--from", metavar="MODEL", help="Start from a trained model, with its vocabulary.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in DIR first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show sizes, memory and steps; train nothing.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show every setting and where it came from.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn a text: CORPUS -> a run folder with a model to sample from.

    lstmlm train corpus.txt --minutes 5

    lstmlm train stories --config minute --set train.seed=7
    """
    from lstmlm.cli import train as door

    flags = {
        "train.minutes": minutes, "train.steps": steps, "train.epochs": epochs, "model.hidden": hidden,
        "model.layers": layers, "model.dropout": dropout, "train.lr": lr, "train.batch": batch, "train.window": window,
        "train.seed": seed, "train.threads": threads, "train.device": device, "train.precision": precision,
        "data.tokenizer": tokenizer, "data.encoding": encoding, "data.val_fraction": val_fraction,
    }  # fmt: skip
    door.run(
        door.Request(
            corpus=corpus, out=out, val=val, presets=config or [], assignments=set_ or [],
            flags={key: value for key, value in flags.items() if value is not None},
            resume=resume, start=from_, overwrite=overwrite, dry_run=dry_run, print_config=print_config,
            json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command(short_help="Write text with a model.")
def sample(
    model: Model = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to go on from.")] = None,
    prompt_file: Annotated[str | None, typer.Option(metavar="FILE|-", help="Read the prompt from a file or stdin.")] = None,
    length: Annotated[int, typer.Option(metavar="N", min=0, help="Characters to write; 0: until stopped.")] = 500,
    temperature: Annotated[float, typer.Option(min=0.0, help="Below 1 safer, above 1 wilder.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Choose among the fewest with this probability.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The largest score is the prediction, always.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the same text again. [default: drawn, and said]")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", metavar="COUNT", min=1, help="Samples, drawn as one batch.")] = 1,
    on_unknown: Annotated[str, typer.Option(metavar="error|skip|replace", help="For prompt characters the model lacks.")] = "error",
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Do not write the prompt.")] = False,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write text with a model, character by character.

    lstmlm sample --prompt "Bob is"

    lstmlm sample -m runs/stories --length 200 --temperature 0.8 --seed 1
    """
    from lstmlm.cli import sample as door

    door.run(
        door.Request(
            model=model, prompt=prompt, prompt_file=prompt_file, length=length, temperature=temperature, top_k=top_k,
            top_p=top_p, greedy=greedy, seed=seed, stop=stop or [], count=count, on_unknown=on_unknown,
            echo=not no_echo, threads=threads, json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command("eval", short_help="Measure a model on a text.")
def eval_(
    text: Annotated[list[str] | None, typer.Argument(metavar="[TEXT...]", help="Files, or - for stdin. [default: the run's validation part]")] = None,
    model: Model = None,
    protocol: Annotated[str, typer.Option(metavar="warm|cold", help="Carry the state through the text, or start each window empty.")] = "warm",
    window: Annotated[int, typer.Option(metavar="N", min=1, help="Inputs of a cold window.")] = 256,
    batch: Annotated[int, typer.Option(metavar="B", min=1, help="Windows side by side; changes the speed, not the score.")] = 64,
    max_bpc: Annotated[float | None, typer.Option(metavar="X", min=0.0, help="Exit 1 if the text takes more bits/char.")] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of the text files.")] = "utf-8",
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a text: every character is scored exactly once.

    The first character is charged at its frequency in the training text (one added to each count). A character that the model
    does not know is charged log2(1,114,112) = 20.09 bits, and is not fed to the network. With --protocol cold the text is cut
    into windows of N inputs, each from an empty state, and the character after each input is scored.

    lstmlm eval held-out.txt --max-bpc 2.2
    """
    from lstmlm.cli import evaluate as door

    door.run(
        door.Request(
            texts=text or [], model=model, protocol=protocol, window=window, batch=batch, max_bpc=max_bpc,
            encoding=encoding, threads=threads, json=json, quiet=quiet,
        )
    )  # fmt: skip


@app.command(short_help="Show what a model is.")
def info(
    target: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Run folder or .safetensors file. [default: newest run]")] = None,
    model: Model = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every checkpoint of the run, byte by byte.")] = False,
    json: Json = False,
) -> None:
    """Show what a model is: configuration, vocabulary, scores, where it came from."""
    from lstmlm.cli import info as door

    door.run(target or model, verify=verify, json=json)


