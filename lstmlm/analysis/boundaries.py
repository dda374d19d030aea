"""Is anything forgotten at a mark, such as a full stop, and what is the memory worth that is carried over it?

`forget_gates_at` compares the gates, `ablate_memory` zeroes the state, `swap` exchanges two names: the three parts of `inspect
--at`.

Rules, also in the help of `inspect --at`:
- At the mark is the step at which the network reads it; after it is the next step; elsewhere is every other one.
- The interval holds 95 of 100 means of marks drawn again with replacement, in blocks of consecutive marks (at most
  1000), because neighbours are alike.
- A layer forgets where that interval lies below zero and the mean falls by 0.05 or more, and holds on where it lies above zero
  and the mean rises by as much. A smaller change is a small effect, and one whose interval holds zero is none.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lstmlm.analysis.activations import windows
from lstmlm.errors import not_finite
from lstmlm.evaluation.reading import TOGETHER
from lstmlm.evaluation.torch_reader import TorchReader, pick
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, nats, steps_at_once
from lstmlm.model.lstm import StackState
from lstmlm.units import bits

EFFECT = 0.05  # a smaller difference of means is called small, however sure it is
CLOSED = 0.1  # a unit whose mean forget gate is below it forgets
BLOCKS, DRAWS = 1000, 1000
LEFT = {"carried": (1, 1), "C zeroed": (1, 0), "H zeroed": (0, 1), "both zeroed": (0, 0)}
"""What is left of H and C after a mark, by name."""


@dataclass(frozen=True)
class ForgetGateShift:
    """What the forget gates of one layer do at a mark. Means over steps.

    at: Mean forget gate of each unit at the mark. (S)
    after: The same one step later; NaN where every mark ends the text or is followed by another. (S)
    elsewhere: The same at all other steps. (S)
    marks: How many marks that is.
    interval: Of the mean at the mark minus the mean elsewhere, over all units.
    """

    at: Tensor
    after: Tensor
    elsewhere: Tensor
    marks: int
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """Mean at the mark minus mean elsewhere."""
        return float((self.at - self.elsewhere).mean())

    @property
    def is_significant_drop(self) -> bool:
        """Whether the rule above calls this an effect."""
        return self.marks > 1 and self.interval[1] < 0 and self.difference <= -EFFECT

    @property
    def closed_units(self) -> int:
        """Units below CLOSED at the mark that are above it elsewhere."""
        return int(((self.at < CLOSED) & (self.elsewhere >= CLOSED)).sum())

    def drops(self, count: int) -> list[tuple[int, float, float]]:
        """Return the units that drop most: number from 1, mean at the mark, mean elsewhere."""
        order = (self.at - self.elsewhere).argsort()[:count].tolist()
        return [(unit + 1, float(self.at[unit]), float(self.elsewhere[unit])) for unit in order]


@dataclass(frozen=True)
class MemoryAblation:
    """What the text after the marks costs, for one way to treat the state there.

    bits: Of each character, the mean over marks. The first one is the second after the mark: the character right after
        it is predicted by what the network makes of the mark itself, whatever is zeroed then. (K)
    total: Of the K characters together, the mean over marks.
    interval: Of the total minus that with the state carried.
    """

    bits: list[float]
    total: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Swapped:
    """How much a prediction depends on which of two names was said before the mark, by characters after it.

    divergence: Jensen-Shannon divergence of the two distributions, in bits: 0 equal, 1 nothing in common.
    changed: Share in which the likeliest character is another one.
    count: Pairs that are still the same text at this distance.
    """

    divergence: list[float]
    changed: list[float]
    count: list[int]


def forget_gates_at(model: CharLM, ids: Tensor, mark: int) -> list[ForgetGateShift]:
    """Compare the forget gates at a mark with those elsewhere, in memory that does not grow with the text.

    Args:
        model: In evaluation mode.
        ids: (n)
        mark: The id of the mark.

    Returns:
        One for each layer.
    """
    sums = [torch.zeros(3, layer.width, dtype=torch.float64) for layer in model.stack()]
    counts = [0, 0, 0]
    is_mark = ids == mark
    # One tensor for all marks: small ones kept from each piece would lie between the large ones, whose memory is then not
    # found again (3.3 GB for two million characters, 0.55 without).
    singles = torch.empty(len(sums), int(is_mark.sum()), dtype=torch.float64)
    is_after = torch.zeros_like(is_mark)
    is_after[1:] = is_mark[:-1] & ~is_mark[1:]
    kinds = (is_mark, is_after, ~is_mark & ~is_after)
    for start, found in windows(model, ids):
        for row, kind in enumerate(kinds):
            here = kind[start : start + len(found.logits)]
            counts[row] += int(here.sum())
            for index, activity in enumerate(found.layers):
                values = activity.forget[:, 0][here].double()
                sums[index][row] += values.sum(0)
                if row == 0:
                    singles[index, counts[0] - len(values) : counts[0]] = values.mean(-1)
    result = []
    for index, total in enumerate(sums):
        at, elsewhere = (total[row] / max(1, counts[row]) for row in (0, 2))
        after = total[1] / counts[1]
        result.append(ForgetGateShift(at, after, elsewhere, counts[0], interval(singles[index] - elsewhere.mean())))
    return result


def interval(values: Tensor) -> tuple[float, float]:
    """Return where 95 of 100 means lie when the values are drawn again; the same values give the same interval.

    Args:
        values: In their order along the text. (n)
    """
    if not len(values):
        return math.nan, math.nan
    blocks = torch.stack(
        [torch.stack([b.sum(), b.new_tensor(len(b))]) for b in values.double().tensor_split(min(BLOCKS, len(values)))]
    )
    drawn = torch.randint(len(blocks), (DRAWS, len(blocks)), generator=torch.Generator().manual_seed(0))
    sums = blocks[drawn].sum(1)
    low, high = torch.quantile(sums[:, 0] / sums[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def states_after(model: CharLM, ids: Tensor, positions: Sequence[int]) -> StackState:
    """Return the state right after each of some positions, which rise; one row for each."""
    kept = model.initial_state(len(positions))
    places = torch.tensor(positions)
    for start, found in windows(model, ids[: positions[-1] + 1]):
        inside = (places >= start) & (places < start + len(found.logits))
        here = places[inside] - start
        for state, activity in zip(kept, found.layers, strict=False):
            state.hidden[inside], state.cell[inside] = activity.hidden[here, 0], activity.cell[here, 0]
    for seen in kept[len(model.layers) :]:  # of a separator or a pair, which may go on
        for row, place in enumerate(positions):
            own = ids[max(0, place + 1 - seen.hidden.shape[1]) : place + 1] + 1
            seen.hidden[row, -len(own) :] = seen.cell[row, -len(own) :] = own.to(seen.hidden.dtype)
    return kept


def spread(positions: Tensor, most: int) -> list[int]:
    """Return at most so many of some positions, evenly spread."""
    found: list[int] = positions[:: max(1, math.ceil(len(positions) / most))].tolist()
    return found


@torch.inference_mode()
def ablate_memory(
    model: CharLM, ids: Tensor, mark: int, length: int = 100, most: int = 512
) -> tuple[int, dict[str, MemoryAblation]]:
    """Score the text after marks with the state carried over, and with parts of it set to zero.

    Args:
        model: In evaluation mode.
        ids: (n)
        mark: The id of the mark.
        length: K, characters scored after each mark.
        most: Marks that are looked at, evenly spread over the text.

    Returns:
        The number of marks, and for each name in LEFT what it costs. Empty where no mark has enough text after it.
    """
    positions = spread((ids[: max(0, len(ids) - length - 1)] == mark).nonzero().flatten(), most)
    if not positions:
        return 0, {}
    state = states_after(model, ids, positions)
    costs: dict[str, list[Tensor]] = {name: [] for name in LEFT}
    step = steps_at_once(TOGETHER, model.vocabulary)
    for rows in torch.arange(len(positions)).split(TOGETHER):
        text = torch.stack([ids[positions[row] : positions[row] + length + 2] for row in rows.tolist()]).t()
        here = pick(state, rows)
        for name, (hidden, cell) in LEFT.items():
            layers, seen = here[: len(model.layers)], here[len(model.layers) :]
            start = (*(LSTMState(s.hidden * hidden, s.cell * cell) for s in layers), *seen)
            parts = []
            for x, y in zip(text[1:-1].split(step), text[2:].split(step), strict=True):
                logits, start = model(x.contiguous(), start)
                parts.append(nats(logits, y).double())
            costs[name].append(torch.cat(parts))
    each = {name: torch.cat(parts, dim=1) * bits(1.0) for name, parts in costs.items()}  # (K, marks)
    carried = each["carried"].sum(0)
    result = {}
    for name, values in each.items():
        result[name] = MemoryAblation(values.mean(1).tolist(), float(values.sum(0).mean()), interval(values.sum(0) - carried))
    return len(positions), result


@torch.inference_mode()
def swap(model: CharLM, pairs: Iterable[tuple[list[int], list[int], list[int]]], length: int) -> Swapped:
    """Read two versions of a text up to the mark, then the same continuation, and compare what is predicted.

    Args:
        model: In evaluation mode.
        pairs: One version, the other version, and how the text goes on after both; each at least one id.
        length: Characters after the mark.

    Returns:
        By distance: the first is the prediction of the character right after the mark.
    """
    sums = torch.zeros(3, length, dtype=torch.float64)
    waiting = list(pairs)
    for low in range(0, len(waiting), TOGETHER):
        group = waiting[low : low + TOGETHER]
        rows = [version for one, other, _ in group for version in (one, other)]
        found = TorchReader(model).read(rows, model.initial_state(len(rows)))
        if not all(map(math.isfinite, itertools.chain.from_iterable(found.nats))):
            raise not_finite()
        state = found.state
        last = torch.tensor([row[-1] for row in rows])
        steps = max(min(length, len(text)) for _, _, text in group)
        texts = torch.zeros(steps, len(rows), dtype=torch.int64)  # what is after the end is computed, and not counted
        texts[0] = last
        alive = torch.zeros(steps, len(group), dtype=torch.float64)
        for index, (_, _, text) in enumerate(group):
            count = min(steps, len(text))
            texts[1:count, 2 * index] = texts[1:count, 2 * index + 1] = torch.tensor(text[: count - 1], dtype=torch.int64)
            alive[:count, index] = 1
        at_once = steps_at_once(len(rows), model.vocabulary)
        for start in range(0, steps, at_once):
            here = slice(start, min(start + at_once, steps))
            logits, state = model(texts[here], state)
            p = torch.softmax(logits.double(), -1)
            one, other = p[:, ::2], p[:, 1::2]
            middle = (one + other) / 2
            divergence = entropy(middle) - (entropy(one) + entropy(other)) / 2
            changed = (one.argmax(-1) != other.argmax(-1)).double()
            for row, values in enumerate((divergence, changed, torch.ones_like(changed))):
                sums[row, here] += (values * alive[here]).sum(1)
    reached = int((sums[2] > 0).sum())
    counts = sums[2, :reached]
    return Swapped((sums[0, :reached] / counts).tolist(), (sums[1, :reached] / counts).tolist(), counts.int().tolist())


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of distributions in bits. (..., V) -> (...)"""
    found: Tensor = torch.special.entr(p).sum(-1) * bits(1.0)
    return found
