"""What reads known ids, and what it gives: what `reader`, in C, and `torch_reader` share, and all that scores knows of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

TOGETHER = 64
"""Rows that are read side by side where there are many: questions, lines, places of a mark."""


class Read(NamedTuple):
    """What the ids of some rows cost.

    nats: Minus the log probability of each id after the row's first one.
    correct: Whether each of them was the likeliest.
    state: After the last id but one of each row, which is the last that was fed.
    """

    nats: list[Sequence[float]]
    correct: list[Sequence[int]]
    state: Any


@runtime_checkable
class Reader(Protocol):
    """Reads rows of ids. A state belongs to the reader's model, has a row for each text, and is never changed but by `put`.

    Attributes:
        streams: Rows that are read side by side about as quickly, a character, as any number of them.
        stream_chars: Of a stream of a text at least, for reading in several to be quicker than in one.
    """

    streams: int
    stream_chars: int

    def empty(self, rows: int) -> Any:
        """Return the state before any text."""

    def read(self, rows: Sequence[Sequence[int]], state: Any) -> Read:
        """Read rows of any lengths, each from its own state; one of fewer than two ids costs nothing and stays where it is."""

    def pick(self, state: Any, rows: Sequence[int]) -> Any:
        """Return the states of some rows, in their order; a row may be asked for more than once."""

    def put(self, state: Any, rows: Sequence[int], new: Any) -> Any:
        """Return a state whose rows are the new ones, and else as it was, which is not used any more."""

    def joined(self, one: Any, other: Any) -> Any:
        """Return the rows of two states."""

    def roundings(self, one: Any, other: Any) -> list[float]:
        """Return by how many roundings, of 1 or of its own size, the unit that differs most does so in each row."""
