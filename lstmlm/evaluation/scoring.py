"""Exact scores of a text: every character once, whatever the batch and window.

`Scorer` takes a text of any length in pieces, for `eval`; `score_ids` scores one at once, for `api`; the trainer validates
with `side_by_side`.

Rules, also in the help of `eval`:
- warm: the state is carried through the whole text. cold: windows of N inputs, each from the empty state, and the
  character after each input is scored.
- The first character of a text has nothing before it. It is charged at its frequency in the training text, one added to
  each count, and is not counted as correct.
- A text that is scored after another one has that before it: its first character is charged by the network.
- A character that is not in the vocabulary is charged log2(1,114,112) bits, as if drawn from all code points, and is
  not fed to the network.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.errors import not_finite
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import nats, steps_at_once
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import StackState
from lstmlm.units import bits

CODE_POINTS = 1_114_112
SEGMENT = 1 << 18  # characters scored at once: bounds memory, whatever the length of the text
SAME = 16  # two runs of a stream whose states differ by this many roundings have met
RERUNS = 3  # a text is read by streams where reading it again so many times makes them meet, else from left to right
STREAMS = 64  # side by side in an estimate ...
WARM_UP = 256  # ... each of which reads so many characters before those that count ...
STREAM_CHARS = 1024  # ... where there are so many for each stream: an estimate reads 1.3 times what it counts, at most


@dataclass(frozen=True)
class Score:
    """The sum over a text, in units that say what they are.

    chars: Characters of the text, known or not.
    bytes: Its length in UTF-8.
    unknown: Characters outside the vocabulary.
    nats: Minus the log probability of the whole text, every character included.
    correct: Characters that had the largest probability.
    order0: Nats that the text takes by the frequencies of the training text alone, under the same rules.
    """

    chars: int
    bytes: int
    unknown: int
    nats: float
    correct: int
    order0: float

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
        """Bits per character of those that the model knows, as if there were no others."""
        return bits((self.nats - self.unknown * math.log(CODE_POINTS)) / max(1, self.chars - self.unknown))

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
    """The scores of consecutive characters, on the CPU, and the state after them, where the model is.

    nats: Minus the log probability of each. (n)
    correct: Whether each was the likeliest. (n)
    """

    nats: Tensor
    correct: Tensor
    state: StackState


def first_char(counts: Sequence[int], symbol: int) -> float:
    """Return the nats of a text's first character: its frequency in the training text, one added to each count."""
    return float(frequencies(counts)[symbol])


def frequencies(counts: Sequence[int]) -> Tensor:
    """Return the nats of each symbol by its frequency in the training text, one added to each count. (V), float64"""
    smoothed = torch.tensor(counts, dtype=torch.float64) + 1
    return torch.log(smoothed.sum()) - torch.log(smoothed)


@torch.inference_mode()
def warm(
    model: Network,
    ids: Tensor,
    state: StackState | None = None,
    batch: int = 64,
    window: int = 64,
    *,
    one_pass: bool = True,
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
        batch: Streams side by side.
        window: Characters between two looks at the states.
        one_pass: Whether a text may be read from left to right, many times as slow as side by side.

    Returns:
        Scores of the n - 1 characters after the first, and the state after ids[-2], the last input.

    Raises:
        StreamsApartError: It would have to be read from left to right.
    """
    nats_, correct = [], []
    state = model.initial_state(1) if state is None else state
    for start in range(0, len(ids) - 1, SEGMENT):
        here = ids[start : start + SEGMENT + 1].to(state[0].hidden.device)
        part = _parallel(model, here, state, batch, window, one_pass)
        state = part.state
        nats_.append(part.nats.cpu())
        correct.append(part.correct.cpu())
    if not nats_:
        return _nothing(state)
    return Scored(torch.cat(nats_), torch.cat(correct), state)


@torch.inference_mode()
def cold(model: Network, ids: Tensor, window: int, batch: int = 64) -> Scored:
    """Score ids[1:] in non-overlapping windows of `window` inputs, each from the empty state.

    This is how models with a fixed context are scored.
    """
    n = len(ids) - 1
    state = model.initial_state(1)
    if n < 1:
        return _nothing(state)
    whole = n // window * window
    ids = ids.to(state[0].hidden.device)
    pieces = list(ids[:whole].view(-1, window).split(batch)) if whole else []
    pieces += [ids[None, whole:n]] if whole < n else []
    scores, hits, done = [], [], 0
    for rows in pieces:
        goals = ids[done + 1 : done + 1 + rows.numel()].view(rows.shape).t()
        part = _run(model, rows.t(), goals, model.initial_state(len(rows)))
        done += rows.numel()
        scores.append(part.nats.t().reshape(-1).cpu())
        hits.append(part.correct.t().reshape(-1).cpu())
    return Scored(torch.cat(scores), torch.cat(hits), state)


def _nothing(state: StackState) -> Scored:
    return Scored(torch.empty(0, dtype=state[0].hidden.dtype), torch.empty(0, dtype=torch.bool), state)


def _run(model: Network, inputs: Tensor, goals: Tensor, state: StackState) -> Scored:
    """Score (T, B) characters in pieces that bound memory; both results are (T, B).

    Where they go is allocated first: small ones that stay between large ones that go would keep malloc from using the gaps.
    """
    scores, hits = state[0].hidden.new_empty(goals.shape), torch.empty(goals.shape, dtype=torch.bool, device=goals.device)
    step = steps_at_once(inputs.shape[1], model.vocabulary)
    for start in range(0, len(inputs), step):
        here = slice(start, start + step)
        logits, state = model(inputs[here].contiguous(), state)
        scores[here], hits[here] = nats(logits, goals[here]), logits.argmax(-1) == goals[here]
    return Scored(scores, hits, state)


def _parallel(model: Network, ids: Tensor, state: StackState, batch: int, window: int, one_pass: bool) -> Scored:
    """Score one segment; see `warm`."""
    n = len(ids) - 1
    batch = max(1, min(batch, n // (16 * window)))
    length = n // batch  # of every stream but the last, which takes the rest in a part of its own
    inputs = ids[: batch * length].view(batch, length).t()
    targets = ids[1 : batch * length + 1].view(batch, length).t()
    edges = list(range(0, length, window))

    kind, device = state[0].hidden.dtype, ids.device
    scores = torch.empty(length, batch, dtype=kind, device=device)
    hits = torch.empty(length, batch, dtype=torch.bool, device=device)
    before: list[StackState] = [()] * len(edges)  # the states in which each window was last entered
    streams = torch.arange(batch, device=device)
    entry = _join([state, model.initial_state(batch - 1)])
    read, halfway = 0, len(edges) // 2
    quarter = 0.0  # how far the streams of the second run were from the first, in roundings, after a quarter
    final = model.initial_state(batch)
    while len(streams):
        alive, current = streams, entry
        for index, start in enumerate(edges):
            if before[index]:
                far = _roundings(current, _pick(before[index], alive))
                moved = far > SAME
                if not bool(moved.all()):
                    alive, current, far = alive[moved], _pick(current, moved), far[moved]
                    if not len(alive):
                        break
                if index == halfway // 2 and not quarter:
                    quarter = float(far.median())
                elif index == halfway:
                    windows = halfway - halfway // 2
                    if not _will_meet(quarter, float(far.median()), windows, len(edges), read, n):
                        return _from_left_to_right(model, ids, state, one_pass)
                for kept, new in zip(_flat(before[index]), _flat(current), strict=True):
                    kept[alive] = new
            else:
                before[index] = tuple(LSTMState(s.hidden.clone(), s.cell.clone()) for s in current)
            stop = min(start + window, length)
            goals = targets[start:stop, alive]
            part = _run(model, inputs[start:stop, alive], goals, current)
            scores[start:stop, alive], hits[start:stop, alive], current = part.nats, part.correct, part.state
            read += goals.numel()
        else:
            for kept, new in zip(_flat(final), _flat(current), strict=True):
                kept[alive] = new
        # Streams whose predecessor has ended in another state than the one they started from run again.
        follower = alive[alive < batch - 1] + 1 if len(alive) else alive
        streams, entry = follower, _pick(final, follower - 1)
    last = _pick(final, torch.tensor([batch - 1], device=device))
    scored = Scored(scores.t().reshape(-1), hits.t().reshape(-1), last)
    if batch * length == n:
        return scored
    rest = _run(model, ids[batch * length : -1, None], ids[batch * length + 1 :, None], last)
    scores, hits = torch.cat([scored.nats, rest.nats.view(-1)]), torch.cat([scored.correct, rest.correct.view(-1)])
    return Scored(scores, hits, rest.state)


def _from_left_to_right(model: Network, ids: Tensor, state: StackState, one_pass: bool) -> Scored:
    if not one_pass:
        raise StreamsApartError
    whole = _run(model, ids[:-1, None], ids[1:, None], state)
    return Scored(whole.nats.view(-1), whole.correct.view(-1), whole.state)


def _will_meet(quarter: float, half: float, windows: int, edges: int, read: int, n: int) -> bool:
    """Say halfway through a run of streams whether reading the text again `RERUNS` times at most will make them meet.

    Args:
        quarter: How far they were from their earlier run after a quarter of the windows, in roundings; 0: not known.
        half: How far they are now.
        windows: How many lie between.
        edges: Windows of a stream.
        read: Characters read so far.
        n: Of the text.
    """
    if read > (1 + RERUNS) * n:
        return False
    if not quarter or half <= SAME:
        return True
    gained = math.log(quarter / half) / windows  # in each window; what does not come nearer never meets
    return gained > 0 and math.log(half / SAME) / gained <= RERUNS * edges


def _flat(state: StackState) -> Iterator[Tensor]:
    for layer in state:
        yield from layer


def _pick(state: StackState, index: Tensor) -> StackState:
    return tuple(LSTMState(s.hidden[index], s.cell[index]) for s in state)


def _join(states: list[StackState]) -> StackState:
    return tuple(
        LSTMState(torch.cat([s.hidden for s in layer]), torch.cat([s.cell for s in layer])) for layer in zip(*states, strict=True)
    )


def _roundings(one: StackState, other: StackState) -> Tensor:
    """Return by how many roundings, of 1 or of its own size, the unit that differs most does so in each stream. (B)"""
    far = [
        ((a - b).abs() / (torch.finfo(a.dtype).eps * (1 + b.abs()))).amax(dim=1)
        for a, b in zip(_flat(one), _flat(other), strict=True)
    ]
    return torch.stack(far).amax(dim=0)


class Scorer:
    """Scores a text that comes in pieces, in constant memory, by the rules above.

    Args:
        model: In evaluation mode.
        counts: Occurrences of each symbol in the training text. (V)
        protocol: warm or cold.
        window: Inputs of a cold window; for warm only a matter of speed.
        batch: Windows or streams side by side; only a matter of speed.
        read: Scores all ids but the first in place of the protocol, a multiple of `window` of them but for the last call.
        after: Ids of a text that is read before the first piece and not scored; warm alone. (m)
    """

    def __init__(
        self,
        model: Network,
        counts: Sequence[int],
        protocol: str = "warm",
        window: int = 256,
        batch: int = 64,
        read: Callable[[Tensor], Scored] | None = None,
        after: Tensor | None = None,
    ) -> None:
        self._model = model
        self._frequencies = frequencies(counts)
        self._protocol = protocol
        self._window = window
        self._batch = batch
        self._read = read
        self._state: StackState | None = None
        self._waiting: list[Tensor] = []
        if after is not None and len(after):
            self._state = warm(model, after, batch=batch).state
            self._waiting = [after[-1:]]
        self._known = 0
        self._chars = 0
        self._bytes = 0
        self._nats = 0.0
        self._order0 = 0.0
        self._correct = 0

    def add(self, ids: Tensor, chars: int, size: int) -> None:
        """Take the next piece.

        Args:
            ids: Its known characters. (n)
            chars: All of its characters.
            size: Its length in UTF-8, in bytes.

        Raises:
            CheckpointError: The model gives something that is no probability: a score of NaN would pass any check.
        """
        self._chars += chars
        self._bytes += size
        if len(ids) and not any(map(len, self._waiting)):
            self._nats += float(self._frequencies[ids[0]])
        self._order0 += float(self._frequencies[ids].sum())
        self._known += len(ids)
        self._waiting.append(ids)
        if sum(map(len, self._waiting)) > SEGMENT:
            self._score(final=False)

    def finish(self) -> Score:
        """Score what is left and return the sum.

        Raises:
            CheckpointError: As `add`.
        """
        self._score(final=True)
        unknown = self._chars - self._known
        charge = unknown * math.log(CODE_POINTS)
        return Score(self._chars, self._bytes, unknown, self._nats + charge, self._correct, self._order0 + charge)

    def _score(self, *, final: bool) -> None:
        ids = torch.cat(self._waiting) if self._waiting else torch.empty(0, dtype=torch.int64)
        count = len(ids) - 1 if final else (len(ids) - 1) // self._window * self._window
        if count < 1:
            self._waiting = [ids]
            return
        part = ids[: count + 1]
        if self._read is not None:
            scored = self._read(part)
        elif self._protocol == "cold":
            scored = cold(self._model, part, self._window, self._batch)
        else:
            scored = warm(self._model, part, self._state, self._batch)
            self._state = scored.state
        self._nats += float(scored.nats.double().sum())
        if not math.isfinite(self._nats):
            raise not_finite()
        self._correct += int(scored.correct.sum())
        self._waiting = [ids[count:]]  # the last id was scored; it is still to be fed


def score_ids(
    model: Network,
    ids: Tensor,
    counts: Sequence[int],
    *,
    byte_length: int,
    unknown: int = 0,
    protocol: str = "warm",
    window: int = 256,
    batch: int = 64,
    after: Tensor | None = None,
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
        batch: Windows or streams side by side.
        after: Ids of a text that is read first and not scored. (m)
    """
    scorer = Scorer(model, counts, protocol, window, batch, after=after)
    scorer.add(ids, len(ids) + unknown, byte_length)
    return scorer.finish()


def side_by_side(
    models: Sequence[Network], ids: Tensor, counts: Sequence[int], *, one_pass: bool = True
) -> tuple[float, tuple[float, ...]]:
    """Score a text, warm, by several networks: nats per character of the mean of their probabilities, and of each alone.

    Each reads the text once: what the mean gives to a character follows from what each of them gives to it.

    Args:
        models: In evaluation mode.
        ids: (n)
        counts: Occurrences of each symbol in the training text. (V)
        one_pass: See `warm`.

    Raises:
        StreamsApartError: See `warm`.
    """
    if not len(ids):
        return 0.0, (0.0,) * len(models)
    first = first_char(counts, int(ids[0]))
    each = torch.stack([warm(model, ids, one_pass=one_pass).nats.double() for model in models])
    together, *alone = [(first + float(costs.sum())) / len(ids) for costs in _with_mean(each)]
    return together, tuple(alone)


def streams_of(n: int, chars: int) -> int:
    """Return in how many streams `estimate` reads so many of n characters; 1: the text is so short that it is read exactly."""
    return max(1, min(STREAMS, min(max(chars, 2 * STREAM_CHARS), n) // STREAM_CHARS))


@torch.inference_mode()
def estimate(models: Sequence[Network], ids: Tensor, counts: Sequence[int], chars: int) -> tuple[float, tuple[float, ...]]:
    """Score some characters of a text as `side_by_side` would, nearly: always at the cost of reading 1.3 times as many at most.

    They are the ends of `STREAMS` streams, evenly over the text; each begins in the empty state `WARM_UP` characters earlier. A
    short text is read from left to right.

    Args:
        models: In evaluation mode.
        ids: (n)
        counts: Occurrences of each symbol in the training text. (V)
        chars: How many characters are to count.
    """
    streams = streams_of(len(ids), chars)
    if streams == 1:
        return side_by_side(models, ids, counts)
    length = WARM_UP + min(chars, len(ids) - 1 - WARM_UP) // streams
    starts = [(len(ids) - 1 - length) * stream // (streams - 1) for stream in range(streams)]
    block = torch.stack([ids[start : start + length + 1] for start in starts], dim=1)
    each = torch.stack([_estimate(model, block).double() for model in models])
    together, *alone = [float(costs.mean()) for costs in _with_mean(each)]
    return together, tuple(alone)


def _estimate(model: Network, block: Tensor) -> Tensor:
    """Return the nats of the characters that count, of streams that are columns."""
    state = model.initial_state(block.shape[1])
    block = block.to(state[0].hidden.device)
    return _run(model, block[:-1], block[1:], state).nats[WARM_UP:].cpu().reshape(-1)


def _with_mean(each: Tensor) -> list[Tensor]:
    """Return what the mean of several networks' probabilities takes, and after it what each takes. (M, n)"""
    return [math.log(len(each)) - torch.logsumexp(-each, dim=0), *each]
