"""Scores line by line, and character by character within a line.

`LineScorer` is the entry point, for `eval --lines` and `eval --chars`.

Rules, also in the help of `eval --lines`:
- A line ends with its line end (LF, CRLF or CR), which is part of it and is scored with it, unless that is not asked for. What
  the model does not know of a line end costs nothing and is not counted: a text in CRLF costs a model of LF what it costs in LF.
- reset: every line starts from the empty state, after a line end has been read, if the model knows one; if it knows
  none, the line's first character is charged at its frequency. carried: the state goes on from line to line, and only
  the first character of all is charged at its frequency, so that the lines sum to what `eval` says of the whole text.
- After another text, every line (reset) or the first one (carried) starts where that text ends.
- A character that the model does not know costs log2(1,114,112) bits and is not fed to the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.data.tokenizer import Tokenizer
from lstmlm.errors import not_finite
from lstmlm.evaluation.ragged import TOGETHER, pick
from lstmlm.evaluation.scoring import CODE_POINTS, first_char, warm
from lstmlm.model.char_lm import nats, steps_at_once
from lstmlm.model.ensemble import Network
from lstmlm.units import bits


@dataclass(frozen=True)
class Line:
    """One line and its score.

    number: From 1.
    text: With its line end, if it has one.
    costs: Bits of each symbol that counts, in order: of a character, or for a model of bytes of a byte.
    unknown: How many of them are outside the vocabulary.
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
        model: Network,
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
        self._state = warm(model, torch.tensor(after, dtype=torch.int64)).state if after else model.initial_state(1)
        # The id that is still to be fed: before every line, or carried before the next one.
        self._last = list(after[-1:]) if after or carried else tokenizer.encode("\n", on_unknown="skip")[:1]

    def score(self, lines: Sequence[str]) -> list[Line]:
        """Score the next lines; the result does not depend on how many come at a time.

        Raises:
            CheckpointError: The model gives something that is no probability.
        """
        ids = [self._tokenizer.encode(line, on_unknown="skip") for line in lines]
        costs = self._in_a_row(ids) if self._carried else self._apart(ids)
        found = []
        for line, own in zip(lines, costs, strict=True):
            self._number += 1
            ends = len(line.removesuffix("\n").removesuffix("\r"))
            unknown = [position for position, _ in self._tokenizer.unknown(line) if position < ends]
            each = own.tolist()
            if not math.isfinite(math.fsum(each)):
                raise not_finite()
            if not self._line_ends:
                each = each[: len(each) - len(self._tokenizer.encode(line[ends:], on_unknown="skip"))]
            for position in unknown:  # in rising order, so that each lands where it stands in the line
                each.insert(position, math.log2(CODE_POINTS))
            found.append(Line(self._number, line, each, len(unknown)))
        return found

    def _in_a_row(self, ids: list[list[int]]) -> list[Tensor]:
        flat = [symbol for line in ids for symbol in line]
        first = torch.empty(0, dtype=torch.float64)
        if flat and not self._last:
            first = torch.tensor([first_char(self._counts, flat[0])], dtype=torch.float64)
        scored = warm(self._model, torch.tensor([*self._last, *flat], dtype=torch.int64), self._state)
        self._state = scored.state
        self._last = flat[-1:] or self._last
        costs = torch.cat([first, scored.nats.double()]) * bits(1.0)
        return list(costs.split([len(line) for line in ids]))

    @torch.inference_mode()
    def _apart(self, ids: list[list[int]]) -> list[Tensor]:
        costs = [torch.empty(0, dtype=torch.float64) for _ in ids]
        rows = [self._last + line for line in ids]
        order = sorted(range(len(ids)), key=lambda index: len(rows[index]))  # lines of like length share a batch
        for low in range(0, len(order), TOGETHER):
            group = order[low : low + TOGETHER]
            longest = max(len(rows[index]) for index in group)
            padded = torch.tensor([rows[index] + [0] * (longest - len(rows[index])) for index in group]).t()
            state = pick(self._state, torch.zeros(len(group), dtype=torch.int64, device=self._state[0].hidden.device))
            padded = padded.to(state[0].hidden.device)
            scores = torch.empty(max(0, longest - 1), len(group), dtype=torch.float64)
            step = steps_at_once(len(group), self._model.vocabulary)
            for start in range(0, longest - 1, step):
                stop = min(start + step, longest - 1)
                x, y = padded[start:stop], padded[start + 1 : stop + 1]
                logits, state = self._model(x.contiguous(), state)
                scores[start:stop] = nats(logits, y).double() * bits(1.0)
            for column, index in enumerate(group):
                own = scores[: max(0, len(rows[index]) - 1), column]
                if not self._last and rows[index]:
                    opening = first_char(self._counts, rows[index][0]) * bits(1.0)
                    own = torch.cat([torch.tensor([opening], dtype=torch.float64), own])
                costs[index] = own
        return costs
