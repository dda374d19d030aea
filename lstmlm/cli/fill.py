"""The command `lstmlm fill`."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lstmlm.cli.text_input import one_symbol, read_text, unknown_rule
from lstmlm.display.console import Console
from lstmlm.display.text_plots import table
from lstmlm.errors import UsageError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.evaluation.cloze import Answer, Asked, Filler

SHOWN = 20  # answers to one text on a terminal; --json gives all
WORD = re.compile(r"[^\W\d_]+")
PIECE = 1 << 20  # characters of the training text in which words are counted at once


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    text: str | None
    choices: list[str]
    choices_file: str | None
    words: int | None
    file: str | None
    forget_at: str | None
    on_unknown: str
    model: str | None
    threads: int
    device: str
    json: bool
    quiet: bool


def run(request: Request) -> None:
    """Fill the blanks of a text, or answer a whole set of questions, and print the result.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    console = Console(quiet=request.quiet)
    on_unknown = unknown_rule(request.on_unknown)
    given = [name for name, value in _choice_flags(request) if value]
    if (request.text is None) == (request.file is None):
        raise UsageError("fill: expected a TEXT with ____ in it, or --file with a set of questions; one of them.")
    if request.file is not None and given:
        raise UsageError(f"--file: the set names its own candidates, found {given[0]} too. Leave it out.")
    if request.text is not None and not given:
        raise UsageError(
            "fill: expected candidates for the blank, found none. Give --choice twice or more, or --choices, or --words."
        )

    from lstmlm.analysis.activations import Forgetting
    from lstmlm.api import LanguageModel
    from lstmlm.evaluation.cloze import BLANK, Filler, Question, parse_set

    if request.text is not None and BLANK not in request.text:
        Question(request.text, ("", ""))  # raises before a model is opened
    asked = [] if request.file is None else parse_set(read_text("--file", request.file), f"--file {printable(request.file)}")
    choices = [*request.choices, *(read_text("--choices", request.choices_file).split() if request.choices_file else [])]
    model = LanguageModel.open(request.model, threads=request.threads, device=request.device, report=console.warn)
    if request.model is None:
        console.say(f"model {printable(str(model.path))}")
    newline = model.tokenizer.encode("\n", on_unknown="skip")
    without = (
        None if request.forget_at is None else Forgetting(model.network, one_symbol("--forget-at", request.forget_at, model))
    )
    filler = Filler(
        model.network,
        partial(model.tokenizer.encode, on_unknown=on_unknown),
        model.counts,
        newline[0] if newline else None,
        without,
    )
    if request.file is not None:
        _answer_set(request, console, filler, asked)
        return
    assert request.text is not None
    if request.words:
        choices += common_words(model, request.words)
    question = Question(request.text, tuple(dict.fromkeys(choices)))
    (answers,) = filler.rank([question])
    if request.json:
        console.as_json(
            {
                "schema": 1,
                "command": "fill",
                "text": request.text,
                "forget_at": request.forget_at,
                "count": len(answers),
                "answers": [
                    {"words": list(a.words), "text": question.filled(a.words), "bits": a.bits, "probability": a.probability}
                    for a in answers
                ],
            }
        )
    else:
        console.result(_as_table(answers), end="")


def common_words(model: "LanguageModel", count: int) -> list[str]:
    """Return the commonest words (letters in a row) of the text that a model was trained on.

    Raises:
        LstmlmError: The text is gone or has changed.
    """
    from lstmlm.cli.corpora import open_for

    advice = "Give the candidates with --choice instead of --words."
    corpus = open_for(model.meta["corpus"], model.config, model.meta["tokenizer"].get("symbols"), advice)
    found: Counter[str] = Counter()
    decoder, rest = model.tokenizer.stream_decoder(), ""
    for low in range(0, len(corpus.train), PIECE):
        ids = corpus.train.tensor(low, min(low + PIECE, len(corpus.train)))
        text = rest + decoder.push(ids.tolist())
        words = list(WORD.finditer(text))
        rest = words.pop()[0] if words and words[-1].end() == len(text) else ""  # it may go on
        found.update(word[0] for word in words)
    found.update([rest] if rest else [])
    return [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:count]]


def _choice_flags(request: Request) -> list[tuple[str, object]]:
    return [("--choice", request.choices), ("--choices", request.choices_file), ("--words", request.words)]


def _as_table(answers: "Sequence[Answer]") -> str:
    best = answers[0].bits
    rows = [(", ".join(a.words), f"{a.probability:.2%}", a.bits, f"+{a.bits - best:.2f}") for a in answers[:SHOWN]]
    more = f"... and {len(answers) - SHOWN} more\n" if len(answers) > SHOWN else ""
    return table(rows, ("candidate", "share", "bits of the text", "worse by")) + "\n" + more


def _answer_set(request: Request, console: Console, filler: "Filler", asked: "Sequence[Asked]") -> None:
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
    if request.json:
        console.as_json(
            {
                "schema": 1,
                "command": "fill",
                "count": whole.count,
                "correct": whole.correct,
                "forget_at": request.forget_at,
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
    if request.forget_at is not None:
        console.say(f"the cell state C is set to zero after each '{printable(request.forget_at)}'")
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
    console.result(table(cells, ("characters back", *columns)))


def _rows(buckets: "Sequence[Any]") -> list[dict[str, object]]:
    return [{"from": b.low, "to": b.high, "count": b.count, "correct": b.correct, "accuracy": b.accuracy} for b in buckets]
