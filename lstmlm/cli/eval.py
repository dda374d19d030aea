"""The command `lstmlm eval`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lstmlm.cli import eval_report, text_reader
from lstmlm.cli.eval_report import Scores
from lstmlm.cli.eval_scoring import Scoring
from lstmlm.cli.options import MACHINE, MODEL, OUTPUT, Device, Encoding, Json, Models, Quiet, TextPlace, Threads, most_bits, words
from lstmlm.cli.text_input import listed, open_model
from lstmlm.data.sources import refuse_twice
from lstmlm.display.console import Console
from lstmlm.errors import CheckFailed, TextError, UsageError, printable
from lstmlm.units import bits, counted

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel


SHOWN = 5  # characters that the model does not know, by name
WINDOW, BATCH = 256, 64  # of cold windows, where nothing else is asked for


GROUPS = {
    "Text": "held-out.txt --max-bpc 2.2",
    MODEL: "-m runs/austen -m runs/dickens",
    "By line, character or file": "--lines --sort surprise",
    "Ways of scoring": "--protocol cold --window 128",
    OUTPUT: "--json -q",
    MACHINE: "--threads 2",
}

RULES = """\
The first character is charged at its frequency in the training text (one added to each count). A character that the model
does not know is charged log2(1,114,112) = 20.09 bits, and is not fed to the network; a model of `train --min-count` has a
symbol for such characters, which is fed, and charged beside. With --protocol cold the text is cut into windows of N inputs,
each from an empty state, and the character after each input is scored. A model trained with --document-separator begins
behind each of them with an empty state, whatever the protocol. With --dynamic the text is also scored by a copy of the
network that learns from each 32 characters once it has been scored on them; with --mix by that network too, mixed with counts
of what followed the same contexts before, in the training text (its last 2,097,152 characters, where it is at hand) and in
what has been scored. --max-bpc is of the plain score. The perplexity of a word is that of all characters, divided among what
stands between white space.

--lines scores every line with its line end, from an empty state after a line end, or with --state carried from where the line
before it ended (then the lines sum to the score of the whole). Lines of a pipe are scored as they come. What the model does not
know of a line end costs nothing there, and a byte that is no text is an unknown character.

Of several models (-m A -m B) the likeliest is the one to which the text takes the fewest bits.
"""


def eval(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT...]", help="Files, folders, or - for stdin.", show_default="the run's validation part"),
    ] = None,
    max_bpc: Annotated[float | None, most_bits("Text", "the text")] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Read this first, unscored: the score of one given another.", rich_help_panel="Text"),
    ] = None,
    after_file: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="The same from a file, as it is.", rich_help_panel="Text"),
    ] = None,
    encoding: Encoding = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="warm|cold",
            callback=words("warm", "cold"),
            help="Carry the state through the text, or start each window empty.",
            rich_help_panel="Ways of scoring",
        ),
    ] = "warm",
    window: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Inputs of a cold window.", show_default="256", rich_help_panel="Ways of scoring"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="B",
            min=1,
            help="Cold windows side by side; changes only the speed.",
            show_default="64",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Also score a network that learns from the text, each piece once it is scored.",
            rich_help_panel="Ways of scoring",
        ),
    ] = False,
    mix: Annotated[
        bool,
        typer.Option(
            "--mix",
            help="--dynamic, and that network mixed with counts of contexts.",
            rich_help_panel="Ways of scoring",
        ),
    ] = False,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Bits/char by counts, bzip2 and xz too.",
            show_default="if no TEXT is named",
            rich_help_panel="Ways of scoring",
        ),
    ] = None,
    lines: Annotated[
        bool,
        typer.Option(
            "--lines", help="A score for every line, as TSV or --json lines.", rich_help_panel="By line, character or file"
        ),
    ] = False,
    no_line_ends: Annotated[
        bool,
        typer.Option(
            "--no-line-ends", help="With --lines: line ends are read, not scored.", rich_help_panel="By line, character or file"
        ),
    ] = False,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="reset|carried",
            callback=words("reset", "carried"),
            help="With --lines or --chars: between lines.",
            show_default="reset",
            rich_help_panel="By line, character or file",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="surprise",
            callback=words("surprise"),
            help="With --lines: the most surprising first, empty ones last.",
            rich_help_panel="By line, character or file",
        ),
    ] = None,
    chars: Annotated[
        bool,
        typer.Option(
            "--chars",
            help="The text, coloured by the surprise of every character.",
            rich_help_panel="By line, character or file",
        ),
    ] = False,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="LIST|-",
            help="A score for each file named in LIST, one a line, as it comes.",
            rich_help_panel="By line, character or file",
        ),
    ] = None,
    models: Models = None,
    corpus: TextPlace = None,
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a text: every character is scored exactly once.

    lstmlm eval held-out.txt --max-bpc 2.2

    lstmlm eval -m runs/austen -m runs/dickens letter.txt

    find texts -name '*.txt' | lstmlm eval --files-from - --json

    tail -f log | lstmlm eval --lines -
    """
    texts = text or []
    _refuse_contradictions(
        texts,
        models or [],
        files_from,
        after=after,
        after_file=after_file,
        max_bpc=max_bpc,
        protocol=protocol,
        window=window,
        batch=batch,
        beside=_given({"--mix": mix, "--dynamic": dynamic, "--baselines": baselines}),
        lines=lines,
        chars=chars,
        sort=sort,
        no_line_ends=no_line_ends,
        state=state,
        json=json,
    )
    dynamic = dynamic or mix

    from lstmlm.training import malloc

    malloc.tune_malloc()
    console = Console(quiet=quiet)
    asked: Sequence[str | None] = models or [None]
    each = [open_model(console, name, threads, device, corpus) for name in asked]
    opened = {name or str(one.path): one for name, one in zip(asked, each, strict=True)}
    if after_file is not None:
        after = "".join(text_reader.Text([after_file], list(opened.values()), encoding, by_line=True))
    before = None if after is None else [_known(console, model, after) for model in opened.values()]
    if lines or chars:
        from lstmlm.cli import eval_lines as by_line

        options = by_line.LineOptions(state == "carried", not no_line_ends, bool(sort), json, before)
        by_line.run(console, opened, texts, encoding, options, chars=chars)
        return
    if baselines is None:
        baselines = not (texts or files_from)
    window = window or WINDOW
    scoring = Scoring(opened, encoding, protocol, window, batch or BATCH, dynamic, mix, baselines, before, console.say)
    if files_from:
        _score_files(console, scoring, files_from, max_bpc, json)
        return
    missing: Counter[str] = Counter()
    found = scoring.score(texts, missing)
    first = next(iter(found.values()))
    if missing and len(opened) == 1:
        console.say(_not_known(missing))
    for note in first.notes:
        console.say(note)
    _say_trained_on(console, texts, found)
    if json:
        console.as_json(scoring.as_dict(found))
    elif len(opened) > 1:
        eval_report.show_models(console, found)
    else:
        eval_report.show(console, first, protocol, window)
    if max_bpc is not None and not first.score.bits_per_char <= max_bpc:
        raise CheckFailed(f"eval: expected at most {max_bpc:g} bits/char, found {first.score.bits_per_char:.4f}.")


def _refuse_contradictions(
    texts: list[str],
    models: list[str],
    files_from: str | None,
    *,
    after: str | None,
    after_file: str | None,
    max_bpc: float | None,
    protocol: str,
    window: int | None,
    batch: int | None,
    beside: str,
    lines: bool,
    chars: bool,
    sort: str | None,
    no_line_ends: bool,
    state: str | None,
    json: bool,
) -> None:
    """Refuse what contradicts itself, and what means nothing without something else.

    All is as `eval` has it; `beside`: the flags by which the text is to be scored by other means too, if any.

    Raises:
        UsageError: With what does not go together, or what is missing.
    """
    cold = protocol == "cold"
    if lines and chars:
        raise UsageError("eval: expected --lines or --chars, found both.")
    in_parts = "--lines" if lines else "--chars" if chars else ""
    several = len(models) > 1
    first = "--after" if after is not None else "--after-file" if after_file is not None else ""
    for flag, others in (
        (in_parts, {"--max-bpc": max_bpc is not None, "--protocol cold": cold, beside: beside}),
        ("--files-from" if files_from else "", {"TEXT": texts, in_parts: in_parts, beside: beside}),
        (first, {"--protocol cold": cold, beside: beside}),
        ("-m twice" if several else "", {"--chars": chars, "--max-bpc": max_bpc is not None, beside: beside}),
    ):
        if flag and (found := _given(others)):
            raise UsageError(f"{flag}: expected no {found} beside it, found both. Leave one out.")
    for flag, given, needed, there in (
        ("--sort", sort, "--lines", lines),
        ("--no-line-ends", no_line_ends, "--lines", lines),
        ("--state", state, "--lines or --chars", lines or chars),
        ("--window", window, "--protocol cold", cold),
        ("--batch", batch, "--protocol cold", cold),
    ):
        if given and not there:
            raise UsageError(f"{flag}: expected {needed} too, found it alone.")
    if json and chars:
        raise UsageError("--chars: expected no --json. `inspect --json` gives the surprise of every character.")
    if files_from == "":
        raise UsageError("--files-from: expected the name of a list, or - for stdin, found nothing.")
    for flag, given in (("--after", after), ("--after-file", after_file)):
        if given == "":
            raise UsageError(f"{flag}: expected what is to be read first, found nothing. Give it, or leave {flag} out.")
    if after is not None and after_file is not None:
        raise UsageError("--after and --after-file: expected one of them, found both. Leave one out.")
    refuse_twice([*texts, files_from, after_file])
    if (several or first) and not (texts or files_from):
        raise UsageError(f"{'-m twice' if several else first}: expected a text to score, found none. Name one, or - for stdin.")
    text_reader.refuse_models("eval", texts)


def _given(flags: Mapping[str, object]) -> str:
    """Return the flags that were given, in words."""
    return " and ".join(flag for flag, given in flags.items() if given)


def _known(console: Console, model: "LanguageModel", given: str) -> list[int]:
    """Return the ids of the text that is read first.

    Raises:
        TextError: The model knows nothing in it.
    """
    unknown = model.tokenizer.unknown(given)
    ids = model.tokenizer.encode_scored(given)
    if not ids:
        raise TextError("--after: expected a text that the model knows a character of, found none. Leave it out.")
    if unknown:
        rare = "left out" if model.tokenizer.rare is None else "read as its symbol for such, U+FFFD"
        console.say(f"--after: {counted(len(unknown), 'character')} that the model does not know {rare}")
    return ids


def _score_files(console: Console, scoring: "Scoring", names: str, max_bpc: float | None, json: bool) -> None:
    """Print a score for each file of a list as it comes, or why it has none.

    Raises:
        TextError: Of some files there is no score; all others are scored.
        CheckFailed: Some take more than they may.
    """
    several = len(scoring.models) > 1
    above, failed, total = [], 0, 0
    if several and not json:
        console.result("\t".join([*map(printable, scoring.models), "chars", "likeliest", "file"]))
    for name in listed(names):
        total += 1
        try:
            found = scoring.score([name], Counter(), alone=False)
        except TextError as error:
            failed += 1
            if json:
                console.as_json({"file": name, "schema": 1, "command": "eval", "error": str(error)}, flush=True)
            else:
                cells = ["error"] * len(scoring.models)
                console.result("\t".join([*cells, "0", *cells[: int(several)], printable(name)]), flush=True)
            console.error(error)
            continue
        _say_trained_on(console, [name], found)
        first = next(iter(found.values())).score
        if json:
            console.as_json({"file": name, **scoring.as_dict(found)}, flush=True)
        elif several:
            cells = [f"{bits(one.score.nats):.3f}" for one in found.values()]
            best = eval_report.likeliest(eval_report.costs(found))
            chars = list(found.values())[text_reader.reads_characters(list(scoring.models.values()))].score.chars
            console.result("\t".join([*cells, str(chars), printable(best or "-"), printable(name)]), flush=True)
        else:
            console.result(f"{first.bits_per_char:.4f}\t{first.chars}\t{printable(name)}", flush=True)
        if max_bpc is not None and not first.bits_per_char <= max_bpc:
            above.append(name)
    if failed:
        raise TextError(f"--files-from: expected a score for {counted(total, 'file')}, found {failed} that have none; see above.")
    if above:
        more = f" and {len(above) - 1} more" if len(above) > 1 else ""
        raise CheckFailed(f"eval: expected at most {max_bpc:g} bits/char, found more in {printable(above[0])}{more}.")


def _not_known(missing: Counter[str]) -> str:
    """Say which characters the model lacks, the commonest first: a CRLF for a line end looks like any other text."""
    from lstmlm.data.tokenizer import describe

    shown = [f"{describe(char)} {counted(count, 'time')}" for char, count in missing.most_common(SHOWN)]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    crlf = ". Its line ends are CRLF, the model's LF: tr -d '\\r' makes them alike" if "\r" in missing else ""
    return f"not known to the model, 20.09 bits each: {', '.join(shown)}{more}{crlf}"


def _say_trained_on(console: Console, texts: Sequence[str], found: "dict[str, Scores]") -> None:
    """Say which models were trained on the text that was scored."""
    for name, scores in found.items():
        if scores.trained_on:
            what = "the text" if texts[0] == "-" or len(texts) > 1 else printable(texts[0])
            console.warn(f"{what} is what {printable(name)} was trained on: its score tells little of other texts.")
