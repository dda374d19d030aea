"""Exact scores of a text: every character once, whatever the batch and window.

`Scorer` takes a text of any length in pieces, for `eval` and `api`; `score_ids` scores ids at once, for scripts and tests;
training validates with `estimate` and `side_by_side`. It needs no torch where the `reader` needs none.

Rules, also in the help of `eval`:
- warm: the state is carried through the whole text. cold: windows of N inputs, each from the empty state, and the
  character after each input is scored.
- The first character of a text has nothing before it. It is charged at its frequency in the training text, one added to
  each count, and is not counted as correct.
- A text that is scored after another one has that before it: its first character is charged by the network.
- A character without a symbol of its own is charged log2(1,114,112) bits for saying which it is, as if drawn from all code
  points. Where the model has a symbol for such characters (`data.min_count`), that is fed, and charged by the network beside;
  else nothing is fed.
"""

import itertools
import math
import statistics
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lstmlm.errors import not_finite
from lstmlm.evaluation.reader import reading
from lstmlm.evaluation.reading import Read, Reader
from lstmlm.model.weights import StoredNetwork
from lstmlm.units import bits

if TYPE_CHECKING:
    from lstmlm.model.ensemble import Network

Model: TypeAlias = "Network | StoredNetwork"
"""What is read, in evaluation mode."""

CODE_POINTS = 1_114_112
SEGMENT = 1 << 18  # characters scored at once: bounds memory, whatever the length of the text
SAME = 16  # two runs of a stream whose states differ by this many roundings have met
RERUNS = 3  # a text is read by streams where reading it again so many times makes them meet, else from left to right ...
RERUNS_IN_A_HURRY = 1  # ... or not at all
STREAMS = 64  # side by side in an estimate ...
WARM_UP = 256  # ... each of which reads so many characters before those that count ...
STREAM_CHARS = 1024  # ... where there are so many for each stream: an estimate reads 1.3 times what it counts, at most


@dataclass(frozen=True)
class Score:
    """The sum over a text, in units that say what they are.

    chars: Characters of the text, known or not.
    bytes: Its length in UTF-8.
    unknown: Characters without a symbol of their own.
    nats: Minus the log probability of the whole text, every character included.
    correct: Characters that had the largest probability.
    order0: Nats that the text takes by the frequencies of the training text alone, under the same rules.
    costs: Where it was asked for (`LanguageModel.score`), the bits of each character.
    rare: How many of the unknown characters were read as the symbol for them.
    """

    chars: int
    bytes: int
    unknown: int
    nats: float
    correct: int
    order0: float
    costs: tuple[float, ...] = ()
    rare: int = 0

    @property
    def nats_per_char(self) -> float:
        """Nats per character."""
        return self.nats / max(1, self.chars)

    @property
    def bits_per_char(self) -> float:
        """Bits per character."""
        return bits(self.nats_per_char)

    @property
    def known_bits_per_char(self) -> float:
        """Bits per character of those that the network read, without what it takes to say which unknown one each is."""
        return bits((self.nats - which_char(self.unknown)) / max(1, self.chars - self.unknown + self.rare))

    @property
    def order0_bits_per_char(self) -> float:
        """Bits per character by frequencies alone: what a network that has learnt nothing else reaches."""
        return bits(self.order0 / max(1, self.chars))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text in UTF-8: comparable between vocabularies."""
        return bits(self.nats / max(1, self.bytes))

    @property
    def perplexity(self) -> float:
        """The number of equally likely characters that would be as hard to guess."""
        return math.exp(min(700.0, self.nats_per_char))

    @property
    def accuracy(self) -> float:
        """The share of characters that were the network's first guess."""
        return self.correct / max(1, self.chars)


class StreamsApartError(Exception):
    """The streams of a text do not meet, and it was not to be read from left to right."""


@dataclass(frozen=True)
class Scored:
    """The scores of consecutive characters, and the state after them.

    nats: Minus the log probability of each. (n)
    correct: Whether each was the likeliest. (n)
    state: See `Reader`; of one row.
    """

    nats: Sequence[float]
    correct: Sequence[int]
    state: Any


def which_char(count: int) -> float:
    """Return the nats that it takes to say which character each of some is, drawn from all code points."""
    return count * math.log(CODE_POINTS)


def first_char(counts: Sequence[int], symbol: int) -> float:
    """Return the nats of a text's first character: its frequency in the training text, one added to each count."""
    return math.log(sum(counts) + len(counts)) - math.log(counts[symbol] + 1)


def frequencies(counts: Sequence[int]) -> list[float]:
    """Return the nats of each symbol by its frequency in the training text, one added to each count. (V)"""
    whole = math.log(sum(counts) + len(counts))
    return [whole - math.log(count + 1) for count in counts]


def warm(
    model: Model,
    ids: Sequence[int],
    state: Any = None,
    batch: int | None = None,
    window: int = 64,
    *,
    one_pass: bool = True,
    ask: Callable[[], object] | None = None,
) -> Scored:
    """Score ids[1:] with the state carried from the first to the last, in parallel, and exactly.

    The text is cut into `batch` streams that run side by side. Each starts from the empty state at first; then every
    stream is run again from the state in which the one before it ended, until it meets its earlier run (an LSTM forgets
    where it started, after some hundred characters as a rule) or its end. When no stream has moved, the result is that
    of one pass from left to right. How fast the second run comes near the first is seen halfway through it: where streams
    would not meet soon, as the model remembers for too long, the text is read from left to right instead.

    Args:
        model: In evaluation mode.
        ids: (n)
        state: Before the first of the ids; None is the empty one.
        batch: Streams side by side, at most; None: as few as the reader needs to be quick, as each reads again for as long as the
            model remembers.
        window: Characters between two looks at the states.
        one_pass: Whether a text may be read from left to right, many times as slow as side by side; where not, it is read
            `1 + RERUNS_IN_A_HURRY` times at most.
        ask: See `reader.reading`.

    Returns:
        Scores of the n - 1 characters after the first, and the state after ids[-2], the last input.

    Raises:
        StreamsApartError: It would have to be read from left to right.
    """
    nats, correct = array("d"), bytearray()
    with reading(model, ask) as reader:
        state = reader.empty(1) if state is None else state
        for start in range(0, len(ids) - 1, SEGMENT):
            part = _parallel(reader, ids[start : start + SEGMENT + 1], state, batch, window, one_pass)
            state = part.state
            nats.extend(part.nats)
            correct.extend(part.correct)
    return Scored(nats, correct, state)


def cold(model: Model, ids: Sequence[int], window: int, batch: int = 64) -> Scored:
    """Score ids[1:] in non-overlapping windows of `window` inputs, each from the empty state.

    This is how models with a fixed context are scored.
    """
    rows = [ids[start : start + window + 1] for start in range(0, len(ids) - 1, window)]
    nats, correct = array("d"), bytearray()
    with reading(model) as reader:
        for low in range(0, len(rows), batch):
            group = rows[low : low + batch]
            found = reader.read(group, reader.empty(len(group)))
            nats.extend(itertools.chain.from_iterable(found.nats))
            correct.extend(itertools.chain.from_iterable(found.correct))
        return Scored(nats, correct, reader.empty(1))


def _parallel(reader: Reader, ids: Sequence[int], state: Any, batch: int | None, window: int, one_pass: bool) -> Scored:
    """Score one segment; see `warm`."""
    n = len(ids) - 1
    if batch is None:
        batch = min(reader.streams, n // reader.stream_chars)
    batch = max(1, min(batch, n // (16 * window)))
    most = (1 + (RERUNS if one_pass else RERUNS_IN_A_HURRY)) * n  # characters that streams read before they are given up
    length = n // batch  # of every stream but the last, which takes the rest in a part of its own
    edges = list(range(0, length, window))

    found: list[list[Read | None]] = [[None] * len(edges) for _ in range(batch)]  # of each stream and window, one row each
    before: list[Any] = [None] * len(edges)  # the states in which each window was last entered
    streams = list(range(batch))
    entry = reader.joined(state, reader.empty(batch - 1)) if batch > 1 else state
    read, halfway = 0, len(edges) // 2
    final = reader.empty(batch)
    while streams:
        if read > most:
            return _from_left_to_right(reader, ids, state, one_pass)
        alive, current = streams, entry
        quarter = 0.0  # how far the streams are from their earlier run, in roundings, after a quarter
        for index, start in enumerate(edges):
            if before[index] is None:
                before[index] = current
            else:
                far = reader.roundings(current, reader.pick(before[index], alive))
                moved = [place for place, roundings in enumerate(far) if roundings > SAME]
                if len(moved) < len(alive):
                    alive, current, far = [alive[m] for m in moved], reader.pick(current, moved), [far[m] for m in moved]
                    if not alive:
                        break
                if index == halfway // 2:
                    quarter = statistics.median_low(far)
                elif index == halfway:
                    windows = halfway - halfway // 2
                    if not _will_meet(quarter, statistics.median_low(far), windows, read, most, batch * window):
                        return _from_left_to_right(reader, ids, state, one_pass)
                before[index] = reader.put(before[index], alive, current)
            stop = min(start + window, length)
            part = reader.read([ids[s * length + start : s * length + stop + 1] for s in alive], current)
            for s, nats, correct in zip(alive, part.nats, part.correct, strict=True):
                found[s][index] = Read([nats], [correct], None)
            current = part.state
            read += len(alive) * (stop - start)
        else:
            final = reader.put(final, alive, current)
        # Streams whose predecessor has ended in another state than the one they started from run again.
        streams = [s + 1 for s in alive if s < batch - 1]
        entry = reader.pick(final, [s - 1 for s in streams])
    rest = reader.read([ids[batch * length :]], reader.pick(final, [batch - 1]))
    parts = [part for stream in found for part in stream if part is not None] + [rest]
    return Scored(
        array("d", itertools.chain.from_iterable(part.nats[0] for part in parts)),
        bytes(itertools.chain.from_iterable(part.correct[0] for part in parts)),
        rest.state,
    )


def _from_left_to_right(reader: Reader, ids: Sequence[int], state: Any, one_pass: bool) -> Scored:
    if not one_pass:
        raise StreamsApartError
    whole = reader.read([ids], state)
    return Scored(whole.nats[0], whole.correct[0], whole.state)


def _will_meet(quarter: float, half: float, windows: int, read: int, most: int, each: int) -> bool:
    """Say halfway through a run of streams whether they will meet before too much is read.

    Args:
        quarter: How far they were from their earlier run after a quarter of the windows, in roundings, more than `SAME`.
        half: How far they are now, likewise.
        windows: How many lie between.
        read: Characters read so far.
        most: That may be read.
        each: That a window of all streams has.
    """
    gained = math.log(quarter / half) / windows  # in each window; what does not come nearer never meets
    return gained > 0 and read + each * math.log(half / SAME) / gained <= most


class Scorer:
    """Scores a text that comes in pieces, in constant memory, by the rules above.

    Args:
        model: In evaluation mode.
        counts: Occurrences of each symbol in the training text. (V)
        protocol: warm or cold.
        window: Inputs of a cold window; for warm only a matter of speed.
        batch: Windows or streams side by side; None: as many as are quick. Only a matter of speed.
        read: Scores all ids but the first in place of the protocol, a multiple of `window` of them but for the last call.
        after: What stands before the text, warm: it is read, and not scored.
        rare: The id of the symbol that unknown characters are read as; None: there is none.

    Attributes:
        costs: The nats of each character that is read; None until somebody puts a list there, as a text may be of any length.
    """

    costs: list[float] | None = None

    def __init__(
        self,
        model: Model,
        counts: Sequence[int],
        protocol: str = "warm",
        window: int = 256,
        batch: int | None = None,
        read: Callable[[Sequence[int]], Scored] | None = None,
        after: Sequence[int] = (),
        rare: int | None = None,
    ) -> None:
        self._model = model
        self._rare_id, self._rare = rare, 0
        self._frequencies = frequencies(counts)
        self._protocol = protocol
        self._window = window
        self._batch = batch
        self._read = read
        self._state: Any = warm(model, after).state if after else None
        self._waiting = list(after[-1:])
        self._known = 0
        self._chars = 0
        self._bytes = 0
        self._nats = 0.0
        self._order0 = 0.0
        self._correct = 0

    def add(self, ids: Sequence[int], chars: int, size: int) -> None:
        """Take the next piece.

        Args:
            ids: Its characters that are read. (n)
            chars: All of its characters.
            size: Its length in UTF-8, in bytes.

        Raises:
            CheckpointError: The model gives something that is no probability: a score of NaN would pass any check.
        """
        self._chars += chars
        self._bytes += size
        if len(ids) and not self._known and not self._waiting:
            self._take([self._frequencies[ids[0]]])
        self._order0 += math.fsum(self._frequencies[id_] for id_ in ids)
        self._known += len(ids)
        if self._rare_id is not None:
            self._rare += ids.count(self._rare_id)
        self._waiting.extend(ids)
        if len(self._waiting) > SEGMENT:
            self._score(final=False)

    def finish(self) -> Score:
        """Score what is left and return the sum.

        Raises:
            CheckpointError: As `add`.
        """
        self._score(final=True)
        unknown = self._chars - self._known + self._rare
        nats, order0 = (sum_ + which_char(unknown) for sum_ in (self._nats, self._order0))
        return Score(self._chars, self._bytes, unknown, nats, self._correct, order0, rare=self._rare)

    def _score(self, *, final: bool) -> None:
        ids = self._waiting
        count = len(ids) - 1 if final else (len(ids) - 1) // self._window * self._window
        if count < 1:
            return
        part = ids[: count + 1]
        if self._read is not None:
            scored = self._read(part)
        elif self._protocol == "cold":
            scored = cold(self._model, part, self._window, self._batch or STREAMS)
        else:
            scored = warm(self._model, part, self._state, self._batch)
            self._state = scored.state
        self._take(scored.nats)
        if not math.isfinite(self._nats):
            raise not_finite()
        self._correct += sum(scored.correct)
        self._waiting = ids[count:]  # the last id was scored; it is still to be fed

    def _take(self, nats: Sequence[float]) -> None:
        self._nats += math.fsum(nats)
        if self.costs is not None:
            self.costs.extend(nats)


def score_ids(
    model: Model,
    ids: Sequence[int],
    counts: Sequence[int],
    *,
    byte_length: int,
    unknown: int = 0,
    protocol: str = "warm",
    window: int = 256,
    batch: int | None = None,
    after: Sequence[int] = (),
    rare: int | None = None,
) -> Score:
    """Score a whole text at once; the arguments are those of `Scorer`.

    Args:
        model: In evaluation mode.
        ids: The known characters of the text. (n)
        counts: Occurrences of each symbol in the training text. (V)
        byte_length: Length of the text in UTF-8, unknown characters included.
        unknown: Number of characters that are not among the ids.
        protocol: warm or cold.
        window: Inputs of a cold window.
        batch: Windows or streams side by side; None: as many as are quick.
        after: Ids of a text that is read first and not scored. (m)
        rare: The id of the symbol that unknown characters are read as; None: there is none.
    """
    scorer = Scorer(model, counts, protocol, window, batch, after=after, rare=rare)
    scorer.add(ids, len(ids) + unknown, byte_length)
    return scorer.finish()


def side_by_side(
    models: Sequence[Model],
    ids: Sequence[int],
    counts: Sequence[int],
    *,
    one_pass: bool = True,
    ask: Callable[[], object] | None = None,
    costs: list[float] | None = None,
) -> tuple[float, tuple[float, ...]]:
    """Score a text, warm, by several networks: nats per character of the mean of their probabilities, and of each alone.

    Each reads the text once: what the mean gives to a character follows from what each of them gives to it.

    Args:
        models: In evaluation mode.
        ids: (n)
        counts: Occurrences of each symbol in the training text. (V)
        one_pass: See `warm`.
        ask: See `reader.reading`.
        costs: Takes the nats of each character after the first by all networks as one.

    Raises:
        StreamsApartError: See `warm`.
    """
    if not len(ids):
        return 0.0, (0.0,) * len(models)
    first = first_char(counts, ids[0])
    each = [warm(model, ids, one_pass=one_pass, ask=ask).nats for model in models]
    every = _with_mean(each)
    if costs is not None:
        costs += every[0]
    together, *alone = [(first + math.fsum(one)) / len(ids) for one in every]
    return together, tuple(alone)


def streams_of(n: int, chars: int) -> int:
    """Return in how many streams `estimate` reads so many of n characters; 1: the text is so short that it is read exactly."""
    return max(1, min(STREAMS, min(max(chars, 2 * STREAM_CHARS), n) // STREAM_CHARS))


def estimate(
    models: Sequence[Model],
    ids: Sequence[int],
    counts: Sequence[int],
    chars: int,
    ask: Callable[[], object] | None = None,
    costs: list[float] | None = None,
) -> tuple[float, tuple[float, ...]]:
    """Score some characters of a text as `side_by_side` would, nearly: always at the cost of reading 1.3 times as many at most.

    They are the ends of `STREAMS` streams, evenly over the text; each begins in the empty state `WARM_UP` characters earlier. A
    short text is read from left to right.

    Args:
        models: In evaluation mode.
        ids: (n)
        counts: Occurrences of each symbol in the training text. (V)
        chars: How many characters are to count.
        ask: See `reader.reading`.
        costs: Takes the nats of each of them by all networks as one.
    """
    streams = streams_of(len(ids), chars)
    if streams == 1:
        return side_by_side(models, ids, counts, ask=ask, costs=costs)
    length = WARM_UP + min(chars, len(ids) - 1 - WARM_UP) // streams
    starts = [(len(ids) - 1 - length) * stream // (streams - 1) for stream in range(streams)]
    rows = [ids[start : start + length + 1] for start in starts]
    each = []
    for model in models:
        with reading(model, ask) as reader:
            found = reader.read(rows, reader.empty(len(rows)))
        each.append([cost for row in found.nats for cost in row[WARM_UP:]])
    every = _with_mean(each)
    if costs is not None:
        costs += every[0]
    together, *alone = [math.fsum(one) / len(one) for one in every]
    return together, tuple(alone)


def _with_mean(each: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return what the mean of several networks' probabilities takes, and after it what each takes. (M, n)"""
    if len(each) == 1:
        return [each[0], each[0]]
    return [[_mean(costs) for costs in zip(*each, strict=True)], *each]


def _mean(costs: Sequence[float]) -> float:
    least = min(costs)
    return least + math.log(len(costs)) - math.log(math.fsum(math.exp(least - cost) for cost in costs))
