"""The command `lstmlm eval --lines` and `--chars`: a score for every line, or for every character."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lstmlm.cli.text_input import standard_input, statistics_text
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.errors import TextError, UsageError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.evaluation.per_line import Line

AT_ONCE = 512  # lines scored together, where all of the text is there
HEADER = "line\tchars\tunknown\tbits\tbits_per_char\ttext"
FULL = 8.0  # bits that have the last colour


def run(
    console: Console,
    model: "LanguageModel",
    texts: list[str],
    encoding: str,
    *,
    carried: bool,
    chars: bool,
    sort: str | None,
    json: bool,
) -> None:
    """Print a score for every line as soon as it is there, or all of them sorted, or the text in colours.

    Raises:
        LstmlmError: The text cannot be read, or is empty.
    """
    from lstmlm.evaluation.per_line import LineScorer

    if sort not in (None, "surprise"):
        raise UsageError(f"--sort: expected surprise, found {printable(str(sort)[:40])}.")
    scorer = LineScorer(model.network, model.tokenizer, model.counts, carried)
    # A pipe may bring its next line tomorrow: what has come is shown.
    live = texts == ["-"] and not sort and not chars
    groups = ([line] for line in _standard_input()) if live else _groups(_lines(model, texts, encoding))
    scored = (line for group in groups for line in scorer.score(group))
    state = "the state carried from line to line" if carried else "every line from an empty state, after a line end"
    console.say(state)
    first = next(scored, None)
    if first is None:
        raise TextError("text to score: expected at least one character, found none. Name a file that has some.")
    every: Iterator[Line] = itertools.chain([first], scored)
    if chars:
        _coloured(console, model, every)
        return
    if sort:
        # An empty line is one character: were it ranked by that, those of a text with paragraphs would hide all others.
        every = iter(sorted(every, key=lambda line: (not line.text.strip(), -line.bits_per_char, line.number)))
    if not json:
        console.result(HEADER, flush=live)
    for line in every:
        text = line.text.rstrip("\n")
        if json:
            console.as_json(
                {
                    "schema": 1,
                    "command": "eval",
                    "line": line.number,
                    "state": "carried" if carried else "reset",
                    "chars": line.chars,
                    "unknown": line.unknown,
                    "bits": line.bits,
                    "bits_per_char": line.bits_per_char,
                    "text": text,
                }
            )
        else:
            numbers = f"{line.number}\t{line.chars}\t{line.unknown}\t{line.bits:.3f}\t{line.bits_per_char:.4f}"
            console.result(f"{numbers}\t{printable(text)}", flush=live)
        if json and live:
            console.result("", end="", flush=True)


def _coloured(console: Console, model: "LanguageModel", lines: "Iterable[Line]") -> None:
    """Write the text, each character on a ground that says how surprising it was; shades below it without colour."""
    from lstmlm.display.gate_plots import Row, Scale, painted, view

    out = console.stdout
    colour = colour_allowed(out, console.env)
    scale = Scale("surprise, bits", 0.0, FULL)
    for line in lines:
        text = line.text if model.tokenizer.kind == "char" else line.text.encode("utf-8", "surrogateescape").decode("latin-1")
        if colour:
            console.result(painted(text, line.costs, scale), end="")
        elif text.strip():
            row = Row("", line.costs[: len(text.rstrip("\n"))], scale)
            shown = view(text.rstrip("\n"), [row], columns(out, console.env), False, unicode_allowed(out), legend=False)
            console.result(shown)
    console.result(view("", [Row("", [], scale)], 80, colour, unicode_allowed(out)).split("\n")[-1])


def _groups(lines: Iterable[str]) -> Iterator[list[str]]:
    lines = iter(lines)
    while group := list(itertools.islice(lines, AT_ONCE)):
        yield group


def _standard_input() -> Iterator[str]:
    """Give each line of standard input as soon as it is there."""
    for number, raw in enumerate(iter(standard_input("text -").readline, b""), start=1):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise TextError(f"standard input line {number}: expected UTF-8, found byte {byte:#04x}.") from None


def _lines(model: "LanguageModel", texts: list[str], encoding: str) -> Iterator[str]:
    """Give the lines of files, or of the run's validation part, each with its line end."""
    from lstmlm.config import run_config
    from lstmlm.data.decoding import decode, find_encoding
    from lstmlm.data.sources import find_sources

    if not texts:
        *whole, rest = statistics_text(model, None, advice="Name a text to score.").split("\n")
        yield from [line + "\n" for line in whole] + ([rest] if rest else [])
        return
    raw = ((source, piece) for source in find_sources(texts, run_config.resource_dir("data")) for piece in source.read())
    waiting = ""
    for piece in decode(raw, find_encoding(encoding)):
        *whole, waiting = (waiting + piece).split("\n")
        yield from (line + "\n" for line in whole)
    if waiting:
        yield waiting
