"""Blanks in a text: which candidate makes the whole text likeliest, so that what comes after the blank counts too.

`Filler` ranks the candidates of a `Question`, and `parse_set` reads a file of questions, for `fill`.

Rules, also in the help of `fill`:
- The state starts empty and a line end is read first, as there is one between two stories or paragraphs of the training
  text; by a model that knows a text that parts documents, that one. A model whose vocabulary has no line end reads nothing
  first, and a first character is charged at its frequency.
- Candidates are ranked by the bits of the whole string. Nothing is divided by its length.
- The probability of a candidate is its share among the candidates given, not among all texts.
"""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lstmlm.errors import TextError, UsageError, not_finite, printable
from lstmlm.evaluation.reader import reading
from lstmlm.evaluation.reading import TOGETHER, Reader
from lstmlm.evaluation.scoring import Model, first_char, which_char
from lstmlm.units import bits, counted

BLANK = "____"
COMBINATIONS = 10_000  # texts compared for one question: eight names in four blanks are 4096
WIDTH = 50  # characters of a row in the table of distances
ROWS = 20  # a table with more of them is made of wider ones

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """A text with one blank or more.

    text: With BLANK where something is missing.
    candidates: What may stand there; with several blanks, in each of them.
    """

    text: str
    candidates: tuple[str, ...]

    def __post_init__(self) -> None:
        blanks = self.text.count(BLANK)
        if odd := next((run for run in re.findall("_{5,}", self.text) if len(run) % len(BLANK)), ""):
            raise TextError(
                f"text '{printable(self.text[-60:])}': expected {BLANK} where something is missing, "
                f"found {len(odd)} underscores. Put four of them there."
            )
        if not blanks:
            raise TextError(
                f"text '{printable(self.text[-60:])}': expected {BLANK} where something is missing, found none. "
                "Put four underscores there."
            )
        if len(set(self.candidates)) < 2:
            raise UsageError(
                f"candidates: expected two or more that differ, found {len(set(self.candidates))}. Give a --choice for each."
            )
        if len(self.candidates) ** blanks > COMBINATIONS:
            raise UsageError(
                f"candidates: expected at most {COMBINATIONS:,} combinations, found {len(self.candidates)} in each of "
                f"{counted(blanks, 'blank')}. Give fewer candidates or blanks."
            )

    @property
    def count(self) -> int:
        """How many fillings there are."""
        return math.prod([len(set(self.candidates))] * self.text.count(BLANK))

    def fillings(self) -> list[tuple[str, ...]]:
        """Return every way to fill the blanks, a word for each."""
        words = dict.fromkeys(self.candidates)  # a candidate given twice is one candidate
        return list(itertools.product(words, repeat=self.text.count(BLANK)))

    def filled(self, words: Sequence[str]) -> str:
        """Return the text with a word in each blank."""
        parts = self.text.split(BLANK)
        return parts[0] + "".join(word + part for word, part in zip(words, parts[1:], strict=True))


@dataclass(frozen=True)
class Answer:
    """One way to fill the blanks.

    words: One for each blank.
    bits: Of the whole text with these words in it.
    probability: Its share among all ways that were compared.
    """

    words: tuple[str, ...]
    bits: float
    probability: float


@dataclass(frozen=True)
class Asked:
    """A question of a set, with what is right.

    answer: One word for each blank.
    kind: Any name, by which the results are grouped.
    distance: Characters between the blank and the last mention of what belongs there; None: not said.
    place: Where it stands, for messages.
    """

    question: Question
    answer: tuple[str, ...]
    kind: str = ""
    distance: int | None = None
    place: str = ""


@dataclass(frozen=True)
class Bucket:
    """How many questions were answered right, of those from `low` to below `high` characters, or of all (None)."""

    low: int | None
    high: int | None
    count: int
    correct: int

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / max(1, self.count)


class Filler:
    """Fills blanks with a trained network.

    Args:
        model: In evaluation mode; or what reads, in its place.
        encode: Text to ids.
        counts: Occurrences of each symbol in the training text. (V)
        opening: The ids that are read first, or none.
        rare: The id of the symbol that unknown characters are read as; None: there is none.
    """

    def __init__(
        self, model: "Model | Reader", encode: Encode, counts: Sequence[int], opening: Sequence[int], rare: int | None = None
    ) -> None:
        self._model = model
        self._encode = encode
        self._counts = counts
        self._opening = list(opening)
        self._rare = rare

    def rank(self, questions: Sequence[Question]) -> Iterator[list[Answer]]:
        """Answer questions, many read side by side.

        Yields:
            For each question, in order, its answers, the best one first.

        Raises:
            TextError: A text or candidate has a character that the model does not know.
        """
        waiting: list[Question] = []
        for question in questions:
            if waiting and (len(waiting) == TOGETHER or sum(one.count for one in (*waiting, question)) > COMBINATIONS):
                yield from self._ranked(waiting)
                waiting = []
            waiting.append(question)
        yield from self._ranked(waiting)

    def _ranked(self, questions: Sequence[Question]) -> list[list[Answer]]:
        with self._reading() as reader:
            return self._rank(reader, questions)

    def _reading(self) -> contextlib.AbstractContextManager[Reader]:
        if isinstance(self._model, Reader):
            return contextlib.nullcontext(self._model)
        return reading(self._model)

    def _which(self, ids: Sequence[int]) -> float:
        return 0.0 if self._rare is None else which_char(ids.count(self._rare))

    def _rank(self, reader: Reader, questions: Sequence[Question]) -> list[list[Answer]]:
        # What stands before the first blank is read once, for all candidates.
        heads, tails, owners = [], [], []
        for index, question in enumerate(questions):
            head = question.text.split(BLANK, 1)[0]
            heads.append(self._opening + self._encode(head))
            for words in question.fillings():
                tails.append(self._encode(question.filled(words)[len(head) :]))
                owners.append(index)
        nats, _, state = reader.read(heads, reader.empty(len(heads)))
        unasked = max(0, len(self._opening) - 1)  # what is read first costs nothing
        before = [math.fsum(costs[unasked:]) + self._which(head) for costs, head in zip(nats, heads, strict=True)]
        if not self._opening:
            before = [
                cost + (first_char(self._counts, head[0]) if head else 0.0) for cost, head in zip(before, heads, strict=True)
            ]
        rows, first = [], []
        for owner, tail in zip(owners, tails, strict=True):
            opening = not heads[owner]  # nothing at all stands before this candidate
            first.append(self._which(tail) + (first_char(self._counts, tail[0]) if opening and tail else 0.0))
            rows.append(tail if opening else heads[owner][-1:] + tail)
        after = [math.fsum(costs) for costs in reader.read(rows, reader.pick(state, owners)).nats]
        if not all(map(math.isfinite, [*before, *after])):
            raise not_finite()

        answers: list[list[Answer]] = []
        costs = iter(zip(owners, first, after, strict=True))
        for question in questions:
            fillings = question.fillings()
            nats_ = [before[owner] + one + rest for owner, one, rest in itertools.islice(costs, len(fillings))]
            least = min(nats_)
            total = math.fsum(math.exp(least - cost) for cost in nats_)
            found = [Answer(w, bits(c), math.exp(least - c) / total) for w, c in zip(fillings, nats_, strict=True)]
            answers.append(sorted(found, key=lambda answer: answer.bits))
        return answers


def parse_set(text: str, source: str) -> list[Asked]:
    """Read a set of questions: tab-separated lines, which end at LF or CRLF, under a header that names the columns.

    The columns `text`, `candidates` (joined by `|`) and `answer` (with several blanks joined by `|`) have to be there,
    `kind` and `distance` may be. Others are left alone.

    Raises:
        TextError: A line is not as the header says, or its answer is none of its candidates.
    """
    first, *lines = [line.removesuffix("\r") for line in text.split("\n")]
    header = first.split("\t")
    missing = [name for name in ("text", "candidates", "answer") if name not in header]
    if missing:
        raise TextError(
            f"{source} line 1: expected the column names text, candidates and answer, separated by tabs, found no "
            f"{missing[0]}. The columns kind and distance are optional."
        )
    found = []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            raise TextError(f"{source} line {number}: expected {len(header)} columns, found {len(cells)}.")
        row = dict(zip(header, cells, strict=True))
        answer = tuple(row["answer"].split("|"))
        distance = row.get("distance", "")
        if distance and not (distance.isascii() and distance.isdigit()):
            raise TextError(f"{source} line {number}: expected a distance in characters, found {printable(distance[:40])}.")
        try:
            question = Question(row["text"], tuple(row["candidates"].split("|")))
        except (TextError, UsageError) as error:
            raise TextError(f"{source} line {number}: {error}") from None
        if len(answer) != question.text.count(BLANK) or not set(answer) <= set(question.candidates):
            raise TextError(
                f"{source} line {number}: expected one of the candidates for each blank as answer, "
                f"found {printable(row['answer'][:60])}."
            )
        far = int(distance[:9]) if distance else None
        found.append(Asked(question, answer, row.get("kind", ""), far, f"{source} line {number}"))
    if not found:
        raise TextError(f"{source}: expected questions below the header, found none.")
    return found


def tally(asked: Sequence[Asked], correct: Sequence[bool]) -> Bucket:
    """Count all of them."""
    return Bucket(None, None, len(asked), sum(correct))


def by_distance(asked: Sequence[Asked], correct: Sequence[bool]) -> list[Bucket]:
    """Count the questions that have a distance in rows of equal width, empty ones left out."""
    known = [(one.distance, right) for one, right in zip(asked, correct, strict=True) if one.distance is not None]
    width = WIDTH
    while known and max(distance for distance, _ in known) >= width * ROWS:
        width *= 2
    rows = []
    for low in range(0, width * ROWS, width):
        hits = [right for distance, right in known if low <= distance < low + width]
        if hits:
            rows.append(Bucket(low, low + width, len(hits), sum(hits)))
    return rows


def chance(asked: Sequence[Asked]) -> float:
    """Return the accuracy of guessing."""
    return math.fsum(1 / one.question.count for one in asked) / max(1, len(asked))
