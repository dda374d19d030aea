"""The command `lstmlm eval --lines` and `--chars`: a score for every line, or for every character."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from lstmlm.cli.text_input import standard_input, statistics_text
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.errors import TextError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.evaluation.per_line import Line

AT_ONCE = 512  # lines scored together, at most
CHUNK = 1 << 16  # bytes of a line of standard input taken at a time, at most
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
    sort: bool,
    json: bool,
) -> None:
    """Print a score for every line as soon as it is there, or all of them sorted, or the text in colours.

    Raises:
        LstmlmError: The text cannot be read, or is empty.
    """
    from lstmlm.evaluation.per_line import LineScorer

    scorer = LineScorer(model.network, model.tokenizer, model.counts, carried)
    # A pipe may bring its next line tomorrow: what has come is shown.
    live = texts == ["-"] and not sort and not chars
    scored = (line for group in _lines(_pieces(model, texts, encoding)) for line in scorer.score(group))
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


def _lines(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Give the lines of a text, each with its line end, some at a time: a line is given as soon as its end is there."""
    begun: list[str] = []  # of a line without an end so far: joined once, however many pieces it has
    for piece in pieces:
        *whole, rest = piece.split("\n")
        if whole:
            whole[0] = "".join([*begun, whole[0]])
            begun = []
            for low in range(0, len(whole), AT_ONCE):
                yield [line + "\n" for line in whole[low : low + AT_ONCE]]
        begun += [rest] if rest else []
    if begun:
        yield ["".join(begun)]


def _pieces(model: "LanguageModel", texts: list[str], encoding: str) -> Iterator[str]:
    """Give the text of files, or of the run's validation part, piece by piece; that of a pipe as soon as it is there."""
    from lstmlm.config import run_config
    from lstmlm.data.decoding import decode, find_encoding
    from lstmlm.data.sources import find_sources

    if not texts:
        yield statistics_text(model, None, advice="Name a text to score.")
        return
    sources = find_sources(texts, run_config.resource_dir("data"))
    raw = ((source, piece) for source in sources for piece in (_arriving() if texts == ["-"] else source.read()))
    yield from decode(raw, find_encoding(encoding))


def _arriving() -> Iterator[bytes]:
    """Give what comes through standard input line by line, as it comes; a very long line in several pieces."""
    yield from iter(partial(standard_input("text -").readline, CHUNK), b"")
