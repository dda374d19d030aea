"""Exact scores of a text: every character once, whatever the batch and window.

It knows ids, states and nats. It does not know files, commands or how a score is shown.

Rules, also in the help of `eval`:
- warm: the state is carried through the whole text. cold: windows of N inputs, each from the empty state, and the character
  after each input is scored.
- The first character of a text has nothing before it. It is charged at its frequency in the training text, one added to each count.
- A character that is not in the vocabulary is charged log2(1,114,112) bits, as if drawn from all code points, and is not fed
  to the network.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.cell import LSTMState
from lstmlm.model import CharLM, StackState, nats

CODE_POINTS = 1_114_112
SEGMENT = 1 << 18  # characters scored at once: bounds memory, whatever the length of the text
SAME = 1e-7  # two runs of a stream whose states are this close have met


@dataclass(frozen=True)
class Score:
    """The sum over a text, in units that say what they are.

    chars: Characters of the text, known or not.
    bytes: Its length in UTF-8.
    unknown: Characters outside the vocabulary.
    nats: Minus the log probability of the whole text, every character included.
    correct: Characters that had the largest probability.
    """

    chars: int
    bytes: int
    unknown: int
    nats: float
    correct: int

    @property
    def nats_per_char(self) -> float:
        """Nats per character."""
        return self.nats / max(1, self.chars)

    @property
    def bits_per_char(self) -> float:
        """Bits per character: the only place where nats become bits."""
        return self.nats_per_char / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text in UTF-8: comparable between vocabularies."""
        return self.nats / math.log(2) / max(1, self.bytes)

    @property
    def perplexity(self) -> float:
        """The number of equally likely characters that would be as hard to guess."""
        return math.exp(min(700.0, self.nats_per_char))

    @property
    def accuracy(self) -> float:
        """The share of characters that were the network's first guess."""
        return self.correct / max(1, self.chars)


@dataclass(frozen=True)
class Scored:
    """The scores of consecutive characters, and the state after them.

    nats: Minus the log probability of each. (n)
    correct: Whether each was the likeliest. (n)
    """

    nats: Tensor
    correct: Tensor
    state: StackState


def first_char(counts: Sequence[int], symbol: int) -> float:
    """Return the nats of a text's first character: its frequency in the training text, one added to each count."""
    return -math.log((counts[symbol] + 1) / (sum(counts) + len(counts)))


@torch.inference_mode()
def warm(model: CharLM, ids: Tensor, state: StackState | None = None, batch: int = 64, window: int = 64) -> Scored:
    """Score ids[1:] with the state carried from the first to the last, in parallel, and exactly.

    The text is cut into `batch` streams that run side by side. Each starts from the empty state at first; then every stream
    is run again from the state in which the one before it ended, until it meets its earlier run (an LSTM forgets where it
    started, after some hundred characters as a rule) or its end. When no stream has moved, the result is that of one
    pass from left to right: at worst after `batch` rounds.

    Args:
        model: In evaluation mode.
        ids: (n)
        state: Before the first of the ids; None is the empty one.
        batch: Streams side by side.
        window: Characters between two looks at the states.

    Returns:
        Scores of the n - 1 characters after the first, and the state after ids[-2], the last input.
    """
    nats_, correct = [], []
    state = model.initial_state(1) if state is None else state
    for start in range(0, len(ids) - 1, SEGMENT):
        part = _parallel(model, ids[start : start + SEGMENT + 1], state, batch, window)
        state = part.state
        nats_.append(part.nats)
        correct.append(part.correct)
    if not nats_:
        return Scored(torch.empty(0), torch.empty(0, dtype=torch.bool), state)
    return Scored(torch.cat(nats_), torch.cat(correct), state)


@torch.inference_mode()
def cold(model: CharLM, ids: Tensor, window: int, batch: int = 64) -> Scored:
    """Score ids[1:] in non-overlapping windows of `window` inputs, each from the empty state.

    This is how models with a fixed context are scored.
    """
    inputs, targets = ids[:-1], ids[1:]
    whole = len(inputs) // window * window
    pieces = [(inputs[:whole].view(-1, window), targets[:whole].view(-1, window))] if whole else []
    if whole < len(inputs):
        pieces.append((inputs[None, whole:], targets[None, whole:]))
    nats_, correct = [torch.empty(0)], [torch.empty(0, dtype=torch.bool)]
    for x, y in pieces:
        for rows, goals in zip(x.split(batch), y.split(batch), strict=True):
            logits, _ = model(rows.t().contiguous())
            goals = goals.t()
            nats_.append(nats(logits, goals).t().reshape(-1))
            correct.append((logits.argmax(-1) == goals).t().reshape(-1))
    return Scored(torch.cat(nats_), torch.cat(correct), model.initial_state(1))


def _parallel(model: CharLM, ids: Tensor, state: StackState, batch: int, window: int) -> Scored:
    """Score one segment; see `warm`."""
    n = len(ids) - 1
    batch = max(1, min(batch, n // (4 * window)))
    length = n // batch  # of every stream but the last, which takes the rest in a part of its own
    inputs = ids[: batch * length].view(batch, length).t()
    targets = ids[1 : batch * length + 1].view(batch, length).t()
    edges = list(range(0, length, window))

    scores = torch.empty(length, batch)
    hits = torch.empty(length, batch, dtype=torch.bool)
    before: list[StackState] = [()] * len(edges)  # the states in which each window was last entered
    streams = torch.arange(batch)
    entry = _join([state, model.initial_state(batch - 1)])
    final = model.initial_state(batch)
    while len(streams):
        alive, current = streams, entry
        for index, start in enumerate(edges):
            if before[index]:
                moved = _distance(current, _pick(before[index], alive)) > SAME
                if not bool(moved.all()):
                    alive, current = alive[moved], _pick(current, moved)
                    if not len(alive):
                        break
                for kept, new in zip(_flat(before[index]), _flat(current), strict=True):
                    kept[alive] = new
            else:
                before[index] = tuple(LSTMState(s.hidden.clone(), s.cell.clone()) for s in current)
            stop = min(start + window, length)
            goals = targets[start:stop, alive]
            logits, current = model(inputs[start:stop, alive].contiguous(), current)
            scores[start:stop, alive] = nats(logits, goals)
            hits[start:stop, alive] = logits.argmax(-1) == goals
        else:
            for kept, new in zip(_flat(final), _flat(current), strict=True):
                kept[alive] = new
        # Streams whose predecessor has ended in another state than the one they started from run again.
        follower = alive[alive < batch - 1] + 1 if len(alive) else alive
        streams, entry = follower, _pick(final, follower - 1)
    last = _pick(final, torch.tensor([batch - 1]))
    scored = Scored(scores.t().reshape(-1), hits.t().reshape(-1), last)
    if batch * length == n:
        return scored
    goals = ids[batch * length + 1 :, None]
    logits, last = model(ids[batch * length : -1, None].contiguous(), last)
    rest = Scored(nats(logits, goals).view(-1), (logits.argmax(-1) == goals).view(-1), last)
    return Scored(torch.cat([scored.nats, rest.nats]), torch.cat([scored.correct, rest.correct]), last)


def _flat(state: StackState) -> Iterator[Tensor]:
    for layer in state:
        yield from layer


def _pick(state: StackState, index: Tensor) -> StackState:
    return tuple(LSTMState(s.hidden[index], s.cell[index]) for s in state)


def _join(states: list[StackState]) -> StackState:
    return tuple(
        LSTMState(torch.cat([s.hidden for s in layer]), torch.cat([s.cell for s in layer]))
        for layer in zip(*states, strict=True)
    )


def _distance(one: StackState, other: StackState) -> Tensor:
    """Return the largest difference of any unit, for each stream. (B)"""
    return torch.stack([(a - b).abs().amax(dim=1) for a, b in zip(_flat(one), _flat(other), strict=True)]).amax(dim=0)


def score_ids(
    model: CharLM,
    ids: Tensor,
    counts: Sequence[int],
    *,
    byte_length: int,
    unknown: int = 0,
    protocol: str = "warm",
    window: int = 256,
    batch: int = 64,
) -> Score:
    """Score a whole text by the rules above.

    Args:
        model: In evaluation mode.
        ids: The known characters of the text. (n)
        counts: Occurrences of each symbol in the training text. (V)
        byte_length: Length of the text in UTF-8, unknown characters included.
        unknown: Number of characters that are not among the ids.
        protocol: warm or cold.
        window: Inputs of a cold window; for warm only a matter of speed.
        batch: Windows or streams side by side; only a matter of speed.
    """
    total = unknown * math.log(CODE_POINTS)
    correct = 0
    if len(ids):
        total += first_char(counts, int(ids[0]))
        scored = cold(model, ids, window, batch) if protocol == "cold" else warm(model, ids, None, batch)
        total += float(scored.nats.double().sum())
        correct = int(scored.correct.sum())
    return Score(len(ids) + unknown, byte_length, unknown, total, correct)
