"""Reading known ids: what each of them costs after those before it, for many rows side by side.

`reading` gives the `Reader` of a model, for all that scores: a text, lines, blanks, validations. On the CPU that is the generator
in C, which needs no torch, for a checkpoint's bytes and for a network in training alike; `torch_reader` where that cannot run.
"""

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lstmlm.evaluation.reading import TOGETHER, Read, Reader
from lstmlm.evaluation.sampler import keep, native_generator
from lstmlm.kernels.generate import Generator
from lstmlm.model.weights import StoredNetwork

if TYPE_CHECKING:
    from lstmlm.model.ensemble import Network

PIECE = 1 << 12  # ids in one call: bounds memory, and how long nobody is asked whether to go on


@contextlib.contextmanager
def reading(model: "Network | StoredNetwork", ask: Callable[[], object] | None = None) -> Iterator[Reader]:
    """Read with a model.

    Args:
        model: In evaluation mode.
        ask: Called now and then; what it raises ends the reading.
    """
    generator = native_generator(model, TOGETHER, "float32")
    if generator is None:
        from lstmlm.evaluation.torch_reader import TorchReader

        assert not isinstance(model, StoredNetwork)
        yield TorchReader(model, ask)
        return
    try:
        yield NativeReader(generator, ask)
    finally:
        keep(model, generator)


class NativeReader:
    """The generator in C. A state is the bytes of each row's, one after another.

    A row's bits depend neither on the rows beside it nor on the number of threads.

    Args:
        generator: In float32; nobody else has it.
        ask: See `reading`.
    """

    streams = 16
    stream_chars = 1 << 14  # one row is read a third as quickly as sixteen, and many models remember for thousands of characters

    def __init__(self, generator: Generator, ask: Callable[[], object] | None = None) -> None:
        self._generator = generator
        self._ask = ask
        self._size = generator.state_bytes

    def empty(self, rows: int) -> bytes:
        """See `Reader`."""
        return bytes(rows * self._size)

    def read(self, rows: Sequence[Sequence[int]], state: bytes) -> Read:
        """See `Reader`."""
        nats: list[Sequence[float]] = [array("d")] * len(rows)
        correct: list[Sequence[int]] = [b""] * len(rows)
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # the longest first: each leaves when it has ended
        for low in range(0, len(order), self._generator.n):
            group = order[low : low + self._generator.n]
            group = [row for row in group if len(rows[row]) > 1]
            if not group:
                break
            self._generator.put_states(self.pick(state, group))
            found = self._read([rows[row] for row in group])
            for row, own, hits in zip(group, *found, strict=True):
                nats[row], correct[row] = own, hits
            state = self.put(state, group, self._generator.take_states(len(group)))
        return Read(nats, correct, state)

    def _read(self, rows: list[Sequence[int]]) -> tuple[list["array[float]"], list[bytes]]:
        """Read rows, the longest first, from where the generator's streams are."""
        ids = [array("q", row) for row in rows]
        nats, correct = [array("d") for _ in rows], [bytearray() for _ in rows]
        alive, done = len(rows), 0
        while alive:
            if self._ask is not None:
                self._ask()
            end = min(len(ids[alive - 1]) - 1, done + max(1, PIECE // alive))
            inputs, targets = (array("q", bytes(8 * alive * (end - done))) for _ in range(2))
            for row, own in enumerate(ids[:alive]):
                inputs[row::alive], targets[row::alive] = own[done:end], own[done + 1 : end + 1]
            costs, hits = self._generator.score(alive, inputs, targets)
            for row in range(alive):
                nats[row] += costs[row::alive]
                correct[row] += hits[row::alive]
            done = end
            while alive and len(ids[alive - 1]) - 1 == done:
                alive -= 1
        return nats, list(map(bytes, correct))

    def pick(self, state: bytes, rows: Sequence[int]) -> bytes:
        """See `Reader`."""
        return b"".join([state[row * self._size : (row + 1) * self._size] for row in rows])

    def put(self, state: bytes, rows: Sequence[int], new: bytes) -> bytes:
        """See `Reader`."""
        if len(new) == len(state) and list(rows) == list(range(len(rows))):
            return new
        whole = bytearray(state)
        for index, row in enumerate(rows):
            whole[row * self._size : (row + 1) * self._size] = new[index * self._size : (index + 1) * self._size]
        return bytes(whole)

    def joined(self, one: bytes, other: bytes) -> bytes:
        """See `Reader`."""
        return one + other

    def roundings(self, one: bytes, other: bytes) -> list[float]:
        """See `Reader`."""
        size = self._size
        return [self._generator.roundings(one[at : at + size], other[at : at + size]) for at in range(0, len(one), size)]
