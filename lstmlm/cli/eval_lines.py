"""The command `lstmlm eval --lines` and `--chars`: a score for every line, or for every character."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmlm.cli.eval_report import likeliest
from lstmlm.cli.text_input import statistics_text
from lstmlm.cli.text_reader import Text, reads_characters
from lstmlm.data.lines import whole_lines
from lstmlm.data.tokenizer import readable
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.errors import TextError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.evaluation.per_line import Line

AT_ONCE = 512  # lines scored together, at most
FULL = 8.0  # bits that have the last colour
BAD_BYTE = re.compile("[\udc80-\udcff]")  # what stands for a byte that is no text


@dataclass(frozen=True)
class LineOptions:
    """How lines are scored and shown.

    carried: The state goes on from line to line.
    line_ends: Line ends are scored.
    sort: The most surprising line comes first.
    json: As JSON lines.
    after: For each model the ids of a text that is read first.
    """

    carried: bool
    line_ends: bool
    sort: bool
    json: bool
    after: list[list[int]] | None


def run(
    console: Console,
    models: "dict[str, LanguageModel]",
    texts: list[str],
    encoding: str | None,
    options: LineOptions,
    *,
    chars: bool,
) -> None:
    """Print a score for every line as soon as it is there, or all of them sorted, or the text in colours.

    Raises:
        LstmlmError: The text cannot be read, or is empty.
    """
    from lstmlm.evaluation.per_line import LineScorer

    scorers = [
        LineScorer(model.readable, model.tokenizer, model.counts, options.carried, options.line_ends, after)
        for model, after in zip(models.values(), options.after or [[]] * len(models), strict=True)
    ]
    # A pipe may bring its next line tomorrow: what has come is shown.
    live = texts == ["-"] and not options.sort and not chars
    (model, *_) = models.values()
    counts = reads_characters(list(models.values()))
    text = Text(texts, list(models.values()), encoding, by_line=True) if texts else None
    pieces = text or [statistics_text(model, None, advice="Name a text to score.")]
    scored: Iterator[tuple[Line, ...]] = (
        found for group in _groups(pieces) for found in zip(*(one.score(group) for one in scorers), strict=True)
    )
    if text and text.encoding:
        scored = _watched(console, scored, text.encoding)
    before = "the text before" if options.after else "an empty state, after a line end"
    console.say("the state carried from line to line" if options.carried else f"every line from {before}")
    first = next(scored, None)
    if first is None:
        raise TextError("text to score: expected at least one character, found none. Name a file that has some.")
    every: Iterator[tuple[Line, ...]] = itertools.chain([first], scored)
    if chars:
        _coloured(console, model, (line for (line,) in every))
        return
    if options.sort:
        # An empty line is one character: were it ranked by that, those of a text with paragraphs would hide all others.
        every = iter(sorted(every, key=lambda found: (not found[0].text.strip(), -_rate(found, counts), found[0].number)))
    names = list(map(printable, models))
    if not options.json:
        head = (
            ["line", "chars", "unknown", "bits", "bits_per_char"] if len(names) == 1 else ["line", "chars", *names, "likeliest"]
        )
        console.result("\t".join([*head, "text"]), flush=live)
    for found in every:
        if options.json:
            console.as_json(_as_dict(list(models), found, options), flush=live)
        else:
            shown = found[0].body.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            console.result("\t".join([*_cells(names, found, counts), printable(shown)]), flush=live)


def _rate(found: "Sequence[Line]", counts: int) -> float:
    """Return the bits per character of a line by the likeliest model, of characters as one of them counts them for all lines."""
    return min(line.bits for line in found) / max(1, found[counts].chars)


def _likeliest(names: Sequence[str], found: "Sequence[Line]") -> str | None:
    return likeliest(dict(zip(names, (line.bits for line in found), strict=True)))


def _cells(names: Sequence[str], found: "Sequence[Line]", counts: int) -> list[str]:
    """Return what stands before the text in a line's row; of several models one counts its characters."""
    line = found[0]
    if len(found) == 1:
        return [str(line.number), str(line.chars), str(line.unknown), f"{line.bits:.3f}", f"{line.bits_per_char:.4f}"]
    return [str(line.number), str(found[counts].chars), *(f"{one.bits:.3f}" for one in found), _likeliest(names, found) or "-"]


def _as_dict(names: Sequence[str], found: "Sequence[Line]", options: LineOptions) -> dict[str, object]:
    """Return a line's JSON object."""
    line = found[0]
    text = readable(line.body)
    each = [{"chars": one.chars, "unknown": one.unknown, "bits": one.bits, "bits_per_char": one.bits_per_char} for one in found]
    scores: dict[str, object] = dict(each[0])
    if len(each) > 1:
        models = [{"model": name, **facts} for name, facts in zip(names, each, strict=True)]
        scores = {"likeliest": _likeliest(names, found), "models": models}
    state = "carried" if options.carried else "reset"
    words = len(line.text.split())
    return {"schema": 1, "command": "eval", "line": line.number, "state": state, **scores, "words": words, "text": text}


def _watched(console: Console, scored: "Iterator[tuple[Line, ...]]", encoding: str) -> "Iterator[tuple[Line, ...]]":
    """Give the lines on, and say once where there is a byte in one that is no text."""
    for found in scored:
        if hit := BAD_BYTE.search(found[0].text):
            byte = ord(hit[0]) - 0xDC00
            console.warn(
                f"line {found[0].number}: byte {byte:#04x} is not {encoding.upper()}: it counts as an unknown character, "
                "as do all others like it. --encoding says what the text is written in."
            )
            yield found
            break
        yield found
    yield from scored


def _coloured(console: Console, model: "LanguageModel", lines: "Iterable[Line]") -> None:
    """Write the text, each character on a ground that says how surprising it was; shades below it without colour."""
    from lstmlm.display.gate_plots import Row, Scale, painted, view

    out = console.stdout
    colour = colour_allowed(out, console.env)
    scale = Scale("surprise, bits", 0.0, FULL)
    for line in lines:
        text, costs = line.body, line.costs
        if model.tokenizer.kind == "byte":  # a character costs what its bytes cost
            each = iter(costs)
            costs = [sum(itertools.islice(each, len(char.encode("utf-8", "surrogateescape")))) for char in text]
        if colour:
            console.result(painted(text, costs[: len(text)], scale))
        elif text.strip():
            row = Row("", costs[: len(text)], scale)
            shown = view(text, [row], columns(out, console.env), False, unicode_allowed(out), legend=False)
            console.result(shown)
    console.result(view("", [Row("", [], scale)], 80, colour, unicode_allowed(out)).split("\n")[-1])


def _groups(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Give the lines of a text some at a time, each as soon as its end is there; CR ends them where nothing else does."""
    for lines in whole_lines(pieces, cr=True):
        for low in range(0, len(lines), AT_ONCE):
            yield lines[low : low + AT_ONCE]
