"""Which unit carries what: features of a text that need no labels, and how well each unit tells them.

`feature` marks the characters that have a feature and `find` ranks the units by it, for `inspect --find`.

Rules, also in the help of `inspect --find`:
- A feature is true or false at each character. Those that count (position, distance) are true above their median.
- The area is that under the curve of hits over false alarms when one threshold on one unit's value tells the feature:
  0.5 is chance, 1 is certainty. A unit that is low where the feature is true counts as well: its area is mirrored.
- Units are chosen, and mirrored, by the first half of the text. The area shown is that of the second half, on which
  nothing was chosen.
- Chance is measured, not assumed: the feature is shifted along the text by another random distance for each unit, and
  the unit that is best on the first half is measured on the second half, as the real one.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.errors import TextError, UsageError, printable

BLOCK = 64  # units whose areas are computed at once: bounds memory
OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Carrier:
    """A unit, and how well it tells a feature.

    unit: Its number, from 0, among all units given.
    area: Of the second half, mirrored where `sign` is -1.
    chosen: Of the first half, by which it was chosen.
    sign: 1: high where the feature is true. -1: low.
    """

    unit: int
    area: float
    chosen: float
    sign: int


@dataclass(frozen=True)
class ProbeResult:
    """The best units for a feature.

    carriers: The best by the first half, in order of their area on the second.
    chance: Area of the best of as many units for features that were shifted along the text.
    true: Share of the characters where the feature is true.
    """

    carriers: list[Carrier]
    chance: float
    true: float


def in_line(text: str) -> list[float]:
    """Return the position in the line, from 0."""
    found, start = [], 0
    for index, char in enumerate(text):
        found.append(float(index - start))
        if char == "\n":
            start = index + 1
    return found


def quoted(text: str) -> list[float]:
    """Return whether a character stands inside double quotes; a line end closes them."""
    found, inside, closing = [], False, ""
    for char in text:
        if not inside and char in '"“':
            inside, closing = True, "”" if char == "“" else '"'
        elif inside and char in (closing, "\n"):
            inside = False
        found.append(float(inside))
    return found


def depth(text: str) -> list[float]:
    """Return how many round, square and curly brackets are open; an empty line closes them all."""
    found, open_ = [], 0
    for index, char in enumerate(text):
        open_ = open_ + 1 if char in OPENING else max(0, open_ - 1) if char in CLOSING else open_
        if char == "\n" and index and text[index - 1] == "\n":
            open_ = 0
        found.append(float(open_))
    return found


def after_capital(text: str) -> list[float]:
    """Return whether the character before is a capital letter."""
    return [float(index > 0 and text[index - 1].isupper()) for index in range(len(text))]


def in_word(text: str) -> list[float]:
    """Return whether the character is a letter that follows a letter."""
    return [float(c.isalpha() and index > 0 and text[index - 1].isalpha()) for index, c in enumerate(text)]


def since_stop(text: str) -> list[float]:
    """Return the characters since the last full stop, or the start."""
    found, last = [], 0
    for index, char in enumerate(text):
        if char == ".":
            last = index
        found.append(float(index - last))
    return found


FEATURES: dict[str, tuple[Callable[[str], list[float]], float | None, str]] = {
    "line": (in_line, None, "far into its line (position above the median)"),
    "quotes": (quoted, 1, "inside double quotes"),
    "brackets": (depth, 1, "inside brackets"),
    "depth": (depth, 2, "two brackets deep or more"),
    "capital": (after_capital, 1, "right after a capital letter"),
    "word": (in_word, 1, "within a word"),
    "stop": (since_stop, None, "far from the last full stop (distance above the median)"),
}
"""name -> how it is counted, from which count on it is true (None: above the median), and what that means."""


def feature(name: str, text: str) -> tuple[Tensor, str]:
    """Return where a feature is true, and what it is in words.

    Args:
        name: One of FEATURES, or `re:` and a regular expression: true within its matches.
        text: Any.

    Raises:
        UsageError: There is no such feature, or the expression is none.
        TextError: It is true, or false, nearly everywhere in one half of the text.
    """
    if name.startswith("re:"):
        try:
            pattern = re.compile(name[3:], re.MULTILINE)
        except re.error as error:
            raise UsageError(f"--find re: expected a regular expression, found {printable(str(error))}.") from None
        true = torch.zeros(len(text), dtype=torch.bool)
        for match in pattern.finditer(text):
            true[match.start() : match.end()] = True
        meaning = f"within a match of {printable(name[3:])}"
    elif name in FEATURES:
        count, least, meaning = FEATURES[name]
        values = torch.tensor(count(text))
        true = values > values.median() if least is None else values >= least
    else:
        near = difflib.get_close_matches(name.lower(), FEATURES, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"--find: expected {', '.join(FEATURES)} or re:EXPRESSION, found '{printable(name[:40])}'.{hint}")
    half = len(text) // 2
    for part in (true[:half], true[half:]):
        if min(int(part.sum()), int((~part).sum())) < 10:
            raise TextError(
                f"--find {printable(name[:40])}: expected 10 characters or more where it is true, and where it is false, in "
                f"each half of the text, found {int(part.sum())} and {int((~part).sum())}. Take more text, or another one."
            )
    return true, meaning


def areas(values: Tensor, true: Tensor) -> Tensor:
    """Return for each unit the chance that it is higher where the feature is true than where it is false; ties count half.

    Args:
        values: (n, units)
        true: (n), or (n, units) for a feature of its own for each
    """
    result = []
    for low in range(0, values.shape[1], BLOCK):
        part = values[:, low : low + BLOCK].t().contiguous()
        mask = true[:, low : low + BLOCK].t() if true.dim() == 2 else true.expand(len(part), -1)
        ordered, order = part.sort(dim=1)
        hits = mask.gather(1, order).double()
        left = torch.searchsorted(ordered, ordered, right=False)
        right = torch.searchsorted(ordered, ordered, right=True)
        ranks = (left + right + 1).double() / 2  # equal values share the mean of their ranks
        positives = hits.sum(1)
        negatives = len(values) - positives
        result.append(((ranks * hits).sum(1) - positives * (positives + 1) / 2) / (positives * negatives))
    return torch.cat(result)


def find(values: Tensor, true: Tensor, top: int, seed: int = 0) -> ProbeResult:
    """Rank units by how well they tell a feature on text that they were not chosen by.

    Args:
        values: Of every unit at every character. (n, units)
        true: Where the feature is. (n)
        top: How many to return.
        seed: Of the shifts that measure chance.
    """
    half = len(values) // 2
    best = _best(values, true, half, top)
    generator = torch.Generator().manual_seed(seed)
    # Not less than a tenth of the text away, so that a shifted feature is not nearly the real one.
    low, high = len(values) // 10, len(values) - len(values) // 10
    shifts = torch.randint(low, max(low + 1, high), (values.shape[1],), generator=generator)
    steps = torch.arange(len(values))
    shifted = torch.stack([true[(steps - int(shift)) % len(values)] for shift in shifts], dim=1)
    chance = _best(values, shifted, half, 1)[0].area
    return ProbeResult(sorted(best, key=lambda carrier: -carrier.area), chance, float(true.double().mean()))


def _best(values: Tensor, true: Tensor, half: int, top: int) -> list[Carrier]:
    chosen, held = areas(values[:half], true[:half]), areas(values[half:], true[half:])
    strength = torch.nan_to_num((chosen - 0.5).abs(), nan=0.0)
    found = []
    for unit in strength.argsort(descending=True, stable=True)[:top].tolist():
        sign = 1 if chosen[unit] >= 0.5 else -1
        mirrored: Sequence[float] = [float(area[unit]) if sign > 0 else 1 - float(area[unit]) for area in (held, chosen)]
        found.append(Carrier(unit, mirrored[0], mirrored[1], sign))
    return found
