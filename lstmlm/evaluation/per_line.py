"""Scores line by line, and character by character within a line.

`LineScorer` is the entry point, for `eval --lines` and `eval --chars`.

Rules, also in the help of `eval --lines`:
- A line ends with its line end (LF, CRLF or CR), which is part of it and is scored with it, unless that is not asked for. What
  the model does not know of a line end costs nothing and is not counted: a text in CRLF costs a model of LF what it costs in LF.
- reset: every line starts from the empty state, after a line end has been read, if the model knows one; if it knows
  none, the line's first character is charged at its frequency. carried: the state goes on from line to line, and only
  the first character of all is charged at its frequency, so that the lines sum to what `eval` says of the whole text.
- After another text, every line (reset) or the first one (carried) starts where that text ends.
- A character without a symbol of its own costs log2(1,114,112) bits, and what the symbol for such costs, where there is one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lstmlm.data.tokenizer import Tokenizer, in_form
from lstmlm.errors import not_finite
from lstmlm.evaluation.reader import reading
from lstmlm.evaluation.scoring import CODE_POINTS, Model, first_char, warm
from lstmlm.units import bits


@dataclass(frozen=True)
class Line:
    """One line and its score.

    number: From 1.
    text: As it was given, with its line end, if it has one.
    costs: Bits of each symbol that counts, in order: of a character in the model's Unicode form, or of a byte.
    unknown: How many of them have no symbol of their own.
    """

    number: int
    text: str
    costs: list[float]
    unknown: int

    @property
    def body(self) -> str:
        """The text without its line end."""
        return self.text.removesuffix("\n").removesuffix("\r")

    @property
    def chars(self) -> int:
        """Symbols that count, known or not."""
        return len(self.costs)

    @property
    def bits(self) -> float:
        """Of the whole line."""
        return math.fsum(self.costs)

    @property
    def bits_per_char(self) -> float:
        """Bits for each of its symbols."""
        return self.bits / max(1, self.chars)


class LineScorer:
    """Scores lines in their order, some at a time.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        counts: Occurrences of each symbol in the training text. (V)
        carried: Whether the state goes on from line to line.
        line_ends: Whether line ends are scored; they are read in any case.
        after: Ids of a text that is read first; none: as the rules say.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        counts: Sequence[int],
        carried: bool = False,
        line_ends: bool = True,
        after: Sequence[int] = (),
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._counts = counts
        self._carried = carried
        self._line_ends = line_ends
        self._number = 0
        self._state: Any = warm(model, after).state if after else None
        # The id that is still to be fed: before every line, or carried before the next one.
        self._last = list(after[-1:]) if after or carried else tokenizer.encode("\n", on_unknown="skip")[:1]

    def score(self, lines: Sequence[str]) -> list[Line]:
        """Score the next lines; the result does not depend on how many come at a time.

        Raises:
            CheckpointError: The model gives something that is no probability.
        """
        formed = [in_form(line, self._tokenizer.form) for line in lines]
        ends = [len(line.removesuffix("\n").removesuffix("\r")) for line in formed]
        ids = [
            self._tokenizer.encode_scored(line[:end]) + self._tokenizer.encode(line[end:], on_unknown="skip")
            for line, end in zip(formed, ends, strict=True)
        ]
        costs = self._in_a_row(ids) if self._carried else self._apart(ids)
        found = []
        for given, line, end, own in zip(lines, formed, ends, costs, strict=True):
            self._number += 1
            unknown = [position for position, _ in self._tokenizer.unknown(line) if position < end]
            each = [bits(nats) for nats in own]
            if not math.isfinite(math.fsum(each)):
                raise not_finite()
            if not self._line_ends:
                each = each[: len(each) - len(self._tokenizer.encode(line[end:], on_unknown="skip"))]
            for position in unknown:  # in rising order, so that each lands where it stands in the line
                if self._tokenizer.rare is None:
                    each.insert(position, 0.0)
                each[position] += math.log2(CODE_POINTS)
            found.append(Line(self._number, given, each, len(unknown)))
        return found

    def _in_a_row(self, ids: list[list[int]]) -> list[list[float]]:
        flat = [symbol for line in ids for symbol in line]
        first = [first_char(self._counts, flat[0])] if flat and not self._last else []
        scored = warm(self._model, [*self._last, *flat], self._state)
        self._state = scored.state
        self._last = flat[-1:] or self._last
        costs, each = iter([*first, *scored.nats]), []
        for line in ids:
            each.append([next(costs) for _ in line])
        return each

    def _apart(self, ids: list[list[int]]) -> list[list[float]]:
        with reading(self._model) as reader:
            start = reader.empty(1) if self._state is None else self._state
            found = reader.read([self._last + line for line in ids], reader.pick(start, [0] * len(ids)))
        if self._last:
            return list(map(list, found.nats))
        return [[*([first_char(self._counts, line[0])] if line else []), *own] for line, own in zip(ids, found.nats, strict=True)]
