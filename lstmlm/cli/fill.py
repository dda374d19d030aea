"""The command `lstmlm fill`."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lstmlm.cli.options import MACHINE, MODEL, OUTPUT, Device, Json, Model, OnUnknown, Quiet, TextPlace, Threads
from lstmlm.cli.text_input import one_symbol, one_text, open_model, read_text
from lstmlm.config import run_config
from lstmlm.data.sources import refuse_twice
from lstmlm.display.console import Console
from lstmlm.errors import TextError, UsageError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.data.tokenizer import OnUnknown as Rule
    from lstmlm.evaluation.cloze import Asked, Filler
    from lstmlm.evaluation.reading import Reader
    from lstmlm.evaluation.scoring import Model as Read

SHOWN = 20  # answers to one text on a terminal; --json gives all
WORD = re.compile(r"[^\W\d_]+")
COUNTED_TOGETHER = 1 << 20  # characters of the training text in which words are counted at once


GROUPS = {
    "Candidates": "--choice Bob --choice Dan",
    "Questions": "--file blanks",
    MODEL: "-m runs/stories",
    OUTPUT: "--json -q",
    MACHINE: "--threads 2",
}

RULES = """\
The state starts empty and a line end is read first, if the model knows one: in training a story follows a line end. A model
trained with --document-separator reads that first.
With several blanks every combination of the candidates is compared. A set (--file) has the columns text, candidates (a|b),
answer and, if wanted, kind and distance (characters back to what has to be remembered); one accuracy for each.
"""


def fill(
    typed: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]", help="With ____ for what is missing; - for stdin.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="A candidate; repeatable.", rich_help_panel="Candidates")
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Candidates, separated by spaces or line ends.", rich_help_panel="Candidates"),
    ] = None,
    words: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="The N commonest words of the training text.", rich_help_panel="Candidates"),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Answer a set: TSV with text, candidates, answer; or blanks.", rich_help_panel="Questions"
        ),
    ] = None,
    forget_at: Annotated[
        str | None,
        typer.Option(metavar="CHAR", help="Set the memory C to zero after each such character.", rich_help_panel="Questions"),
    ] = None,
    model: Model = None,
    corpus: TextPlace = None,
    on_unknown: OnUnknown = "error",
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fill the blanks of a text: candidates ranked by the bits of the whole text, so that what comes after counts too.

    lstmlm fill "For his deeds, brave ____ was honoured." --choice Bob --choice Dan

    lstmlm fill --file blanks
    """
    text = one_text("fill", typed or [])
    given = [flag for flag, value in (("--choice", choice), ("--choices", choices), ("--words", words)) if value]
    if (text is None) == (file is None):
        raise UsageError("fill: expected a TEXT with ____ in it, or --file with a set of questions; one of them.")
    if file is not None and given:
        raise UsageError(f"--file: the set names its own candidates, found {given[0]} too. Leave it out.")
    if text is not None and not given:
        raise UsageError(
            "fill: expected candidates for the blank, found none. Give --choice twice or more, or --choices, or --words."
        )

    refuse_twice([text, choices])
    if text == "-":
        text = read_text("fill", "-").removesuffix("\n").removesuffix("\r")  # of `echo`: nobody means it

    from lstmlm.evaluation.cloze import BLANK, Filler, Question, parse_set

    if text is not None and BLANK not in text:
        Question(text, ("", ""))  # raises before a model is opened
    asked = [] if file is None else parse_set(read_text("--file", _found(file)), f"--file {printable(file)}")
    candidates = [*(choice or []), *(read_text("--choices", choices).split() if choices else [])]
    console = Console(quiet=quiet)
    opened = open_model(console, model, threads, device, corpus)
    reader: Read | Reader = opened.readable
    if forget_at is not None:
        from lstmlm.analysis.activations import Forgetting
        from lstmlm.evaluation.torch_reader import TorchReader

        mark = one_symbol("--forget-at", forget_at, opened)
        reader = TorchReader(opened.network, run=Forgetting(opened.network, mark))
    encode = partial(opened.tokenizer.encode, on_unknown=cast("Rule", on_unknown))
    for one in asked:  # before the first answer, with the line of the set
        try:
            for filling in one.question.fillings():
                encode(one.question.filled(filling))
        except TextError as error:
            raise TextError(f"{one.place}: {error}") from None
    filler = Filler(reader, encode, opened.counts, opened.opening, opened.tokenizer.rare)
    if text is None:
        _answer_set(console, filler, asked, forget_at, json)
        return
    if words:
        candidates += common_words(opened, words)
    question = Question(text, tuple(dict.fromkeys(candidates)))
    (answers,) = filler.rank([question])
    if json:
        console.as_json(
            {
                "schema": 1,
                "command": "fill",
                "text": text,
                "forget_at": forget_at,
                "count": len(answers),
                "answers": [
                    {"words": list(a.words), "text": question.filled(a.words), "bits": a.bits, "probability": a.probability}
                    for a in answers
                ],
            }
        )
        return
    best = answers[0].bits
    rows = [(", ".join(a.words), f"{a.probability:.2%}", a.bits, f"+{a.bits - best:.2f}") for a in answers[:SHOWN]]
    console.table(rows, ("candidate", "share", "bits of the text", "worse by"), best=0)
    if len(answers) > SHOWN:
        console.result(f"... and {len(answers) - SHOWN} more")


def _found(name: str) -> str:
    """Return the file that a name means: itself, or where there is none the set of this name that comes along."""
    own = run_config.resource_dir("data") / f"{name}.tsv"
    return str(own) if os.sep not in name and not Path(name).exists() and own.is_file() else name


def common_words(model: "LanguageModel", count: int) -> list[str]:
    """Return the commonest words (letters in a row) of the text that a model was trained on.

    Raises:
        LstmlmError: The text is gone or has changed.
    """
    from lstmlm.cli.corpora import open_for

    advice = "Give the candidates with --choice instead of --words."
    corpus = open_for(model, advice)
    found: Counter[str] = Counter()
    decoder, rest = model.tokenizer.stream_decoder(), ""
    for low in range(0, len(corpus.train), COUNTED_TOGETHER):
        ids = corpus.train.tensor(low, min(low + COUNTED_TOGETHER, len(corpus.train)))
        text = rest + decoder.push(ids.tolist())
        words = list(WORD.finditer(text))
        rest = words.pop()[0] if words and words[-1].end() == len(text) else ""  # it may go on
        found.update(word[0] for word in words)
    found.update([rest] if rest else [])
    return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]]


def _answer_set(console: Console, filler: "Filler", asked: "Sequence[Asked]", forget_at: str | None, json: bool) -> None:
    """Answer a set of questions, and print how many answers are right: of all, by kind and by distance."""
    from lstmlm.evaluation.cloze import by_distance, chance, tally

    correct = []
    for one, answers in zip(asked, filler.rank([one.question for one in asked]), strict=True):
        correct.append(answers[0].words == one.answer)
        if console.live:
            console.overwrite((f"{len(correct)} of {len(asked)} answered", ""))
    kinds = list(dict.fromkeys(one.kind for one in asked))
    groups = {kind: [i for i, one in enumerate(asked) if one.kind == kind] for kind in kinds}
    parts = {kind: ([asked[i] for i in rows], [correct[i] for i in rows]) for kind, rows in groups.items()}
    whole = tally(asked, correct)
    if json:
        console.as_json(
            {
                "schema": 1,
                "command": "fill",
                "count": whole.count,
                "correct": whole.correct,
                "forget_at": forget_at,
                "accuracy": whole.accuracy,
                "chance": chance(asked),
                "by_distance": _rows(by_distance(asked, correct)),
                "by_kind": [
                    {
                        "kind": kind,
                        "count": tally(*part).count,
                        "accuracy": tally(*part).accuracy,
                        "by_distance": _rows(by_distance(*part)),
                    }
                    for kind, part in parts.items()
                ],
            }
        )
        return
    if forget_at is not None:
        console.say(f"the cell state C is set to zero after each '{printable(forget_at)}'")
    console.result(f"{whole.correct:,} of {whole.count:,} right, {whole.accuracy:.1%} (guessing: {chance(asked):.1%})")
    lows = {(b.low, b.high) for b in by_distance(asked, correct)}
    columns = {kind or "all": part for kind, part in parts.items()} | ({"all": (asked, correct)} if len(parts) > 1 else {})
    # One width for every column: that of the whole set.
    cells: list[list[str | int | float]] = []
    for low, high in sorted((low, high) for low, high in lows if low is not None and high is not None):
        line: list[str | int | float] = [f"{low}-{high - 1}"]
        for part in columns.values():
            hits = [r for one, r in zip(*part, strict=True) if one.distance is not None and low <= one.distance < high]
            line.append(f"{sum(hits) / len(hits):7.1%} of {len(hits)}" if hits else "")
        cells.append(line)
    totals = [f"{tally(*part).accuracy:7.1%} of {tally(*part).count}" for part in columns.values()]
    cells.append(["all", *totals])
    console.table(cells, ("characters back", *columns))


def _rows(buckets: "Sequence[Any]") -> list[dict[str, object]]:
    return [{"from": b.low, "to": b.high, "count": b.count, "correct": b.correct, "accuracy": b.accuracy} for b in buckets]
