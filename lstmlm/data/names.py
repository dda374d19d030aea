"""Names in a text, and other ones in their place, so that a text that is read often does not become all the names there are.

    name    a word that occurs three times or more, almost never in small letters alone, and in few places
    other   a word of the same length that the names' own letters suggest, in the case of the one that it replaces

A network that has read its text some times is sure of how each speaker's name goes on, and pays for it with several nats a letter
in a text with other people. Where names are others in each section, it has to look for them in what it has just read. `batches`
asks for a section at a time, from the second pass on. A script without capital letters has no names here, nor has a text that is
mostly in capitals.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from lstmlm.data.ids import Ids

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.data.tokenizer import Tokenizer

WORD = re.compile(r"[^\W\d_]+")  # letters alone
BLOCK = 8192  # characters of a place
SEARCHED = 4 << 20  # characters in which names are looked for; of a larger text, in pieces from all over it
SHORTEST, RAREST = 3, 3  # letters of a name, and how often it occurs at least
SMALL = 0.05  # share of a name's occurrences that may be in small letters
PLACES = 0.75  # a name is in fewer places than this share of those that a word as frequent would be in, strewn at random
FEWEST = 12  # names, from which others can be made up
START = "^"


class _Next(NamedTuple):
    """Letters that follow two others in names, and the sums of how often each does."""

    letters: list[str]
    sums: list[int]


class Renaming:
    """Other names for those of a text, drawn for each section of it that is read.

    Args:
        ids: The text.
        tokenizer: Whose ids these are.
        share: Of a section's names, each of which is replaced wherever it begins with a capital there, or nowhere.
        separator: Ids of what parts documents; where renaming would make or spoil one, a section stays as it is.
    """

    def __init__(self, ids: Ids, tokenizer: "Tokenizer", share: float, separator: tuple[int, ...] = ()) -> None:
        self._text, self._tokenizer, self._share = ids, tokenizer, share
        self._separator = re.compile(f"(?={re.escape(self._read(separator))})") if separator else None

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the text, in small letters: looked for when they are asked for."""
        places = [self._read(self._text.tensor(start, stop).tolist()) for start, stop in _places(len(self._text))]
        return _names(places)

    def replaced(self, section: "Tensor", place: tuple[int, ...]) -> "Tensor":
        """Return a section of the text with other names.

        Args:
            section: Ids. (n,)
            place: Numbers that no other section has: they decide which names are replaced, and by what.

        Returns:
            (n,), of the same type.
        """
        text, drawn = self._read(section.tolist()), random.Random(repr(place))
        others: dict[str, str] = {}
        changed: dict[int, int] = {}
        for match in self._capital.finditer(text):
            name = match[0].lower()
            if name not in self.names or len(name) != len(match[0]):
                continue
            if name not in others:
                others[name] = self._other(len(name), drawn) if drawn.random() < self._share else ""
            for at, (letter, other) in enumerate(zip(match[0], others[name], strict=False), match.start()):
                id_ = self._ids.get(other.upper() if letter.isupper() else other)
                if id_ is not None:
                    changed[at] = id_
        found = section.clone()
        for at, id_ in changed.items():
            found[at] = id_
        if self._separator and self._ends(text) != self._ends(self._read(found.tolist())):
            return section.clone()
        return found

    @cached_property
    def _capital(self) -> re.Pattern[str]:
        """A word that begins with a capital letter."""
        capitals = "".join(symbol for symbol in self._symbols if symbol.isupper())
        return re.compile(rf"(?<![^\W\d_])[{re.escape(capitals)}][^\W\d_]*" if capitals else "(?!)")

    def _ends(self, text: str) -> list[int]:
        assert self._separator
        return [match.start() for match in self._separator.finditer(text)]

    @cached_property
    def _symbols(self) -> list[str]:
        """The character of each id; one that is none stands for several."""
        rare = self._tokenizer.rare
        return ["\0" if id_ == rare else self._tokenizer.decode([id_]) for id_ in range(len(self._tokenizer))]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: id_ for id_, symbol in enumerate(self._symbols)}

    @cached_property
    def _follows(self) -> dict[str, _Next]:
        """Of each two letters those that come after them in names."""
        follows: dict[str, Counter[str]] = defaultdict(Counter)
        for name in sorted(self.names):
            for at, letter in enumerate(name):
                follows[_before(name[:at])][letter] += 1
        return {before: _Next(list(found), list(accumulate(found.values()))) for before, found in follows.items()}

    def _read(self, ids: Iterable[int]) -> str:
        return "".join(map(self._symbols.__getitem__, ids))

    def _other(self, letters: int, drawn: random.Random) -> str:
        """Make up a name: each letter follows the two before it as in the names there are."""
        other = ""
        while len(other) < letters:
            before = _before(other)
            found = self._follows.get(before) or self._follows.get(START + before[1]) or self._follows[START + START]
            other += drawn.choices(found.letters, cum_weights=found.sums)[0]
        return other


def _before(word: str) -> str:
    """Return the last two letters of what there is of a word, with START where there are none."""
    return (START + START + word)[-2:]


def _places(chars: int) -> list[tuple[int, int]]:
    """Return where the text is looked at, in blocks: all of a short one."""
    blocks = -(-chars // BLOCK)
    step = max(1, -(-blocks * BLOCK // SEARCHED))
    return [(start, start + BLOCK) for start in range(0, chars, step * BLOCK)]


def _names(places: list[str]) -> frozenset[str]:
    """Return the names, in small letters, of the texts of some places; none, if they are few."""
    total: Counter[str] = Counter()
    holding: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for text in places:
        here: Counter[str] = Counter()
        for word, count in Counter(WORD.findall(text)).items():
            lower = word.lower()
            here[lower] += count
            if word == lower:
                small[lower] += count
        total.update(here)
        holding.update(here.keys())
    if small.total() < total.total() / 2:
        return frozenset()
    found = frozenset(
        word
        for word, count in total.items()
        if count >= RAREST
        and len(word) >= SHORTEST
        and small[word] <= SMALL * count
        and holding[word] < PLACES * len(places) * (1 - (1 - 1 / len(places)) ** count)
    )
    return found if len(found) >= FEWEST else frozenset()
