"""What plainer means make of a text: counts against a count by hand, compressors against their own sizes."""

import bz2
import lzma
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
import torch

from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation import baselines
from lstmlm.evaluation.scoring import frequencies
from tests.helpers import ids_of, some_ids

V = 11


def by_hand(train: Sequence[int], text: Sequence[int], order: int) -> float:
    """Return the nats of a text, one character after another, from dictionaries."""
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for k in range(1, order + 1):
        for i in range(k, len(train)):
            followers[tuple(train[i - k : i])][train[i]] += 1
    total = 0.0
    for i, symbol in enumerate(text):
        p = (train.count(symbol) + 1) / (len(train) + V)
        for k in range(1, min(i, order) + 1):
            if seen := followers.get(tuple(text[i - k : i])):
                p = (seen[symbol] + len(seen) * p) / (seen.total() + len(seen))
        total -= math.log(p)
    return total


@pytest.mark.parametrize("direct", [0, 50, 1 << 22])
@pytest.mark.parametrize("order", [0, 1, 3, 5])
@pytest.mark.parametrize(("length", "scored"), [(1, 1), (2, 9), (400, 90), (3, 0)])
def test_by_counts(monkeypatch: pytest.MonkeyPatch, direct: int, order: int, length: int, scored: int) -> None:
    """The nats are those of counting by hand, for every order, for texts shorter than it, and however keys are ranked."""
    monkeypatch.setattr(baselines, "_DIRECT", direct)
    train, text = some_ids(length, V), some_ids(scored, V)
    counts = torch.bincount(train, minlength=V).tolist()
    found = baselines.by_counts(train, text, frequencies(counts), order)

    assert found == pytest.approx(by_hand(train.tolist(), text.tolist(), order))


def test_probabilities_sum_to_one() -> None:
    """After any three characters, seen or not, the probabilities of what follows sum to one."""
    train = some_ids(200, V)
    table = frequencies(torch.bincount(train, minlength=V).tolist())
    for before in (train[50:53].tolist(), [8, 8, 8]):
        known = baselines.by_counts(train, torch.tensor(before), table)
        each = [baselines.by_counts(train, torch.tensor([*before, symbol]), table) - known for symbol in range(V)]

        assert sum(math.exp(-nats) for nats in each) == pytest.approx(1)


def test_many_symbols() -> None:
    """A vocabulary of a million symbols overflows nothing."""
    train, text = torch.randint(0, 10**6, (3000,)), torch.randint(0, 10**6, (100,))
    found = baselines.by_counts(train, text, [math.log(10**6)] * 10**6)

    assert 50 < found < 100 * math.log(2 * 10**6)


def test_compressors() -> None:
    """A compressor is charged for what the text adds to the training text, which is little for a text that is in it."""
    train = b"Bob is a baker. Dan ran home. " * 40 + bytes(range(256))
    text = train[300:800]

    assert baselines.by_bzip2(train, text) == 8 * (len(bz2.compress(train + text)) - len(bz2.compress(train)))
    assert baselines.by_xz(train, text) == 8 * (len(lzma.compress(train + text)) - len(lzma.compress(train)))
    assert baselines.by_xz(train, text) < 8 * len(lzma.compress(text))

    again = b"Bob is a sailor. He lives in Dover.\n" * 6
    train, text = again[:200], again[200:210]
    assert len(bz2.compress(train + text)) < len(bz2.compress(train))  # it may take less for more
    assert baselines.by_bzip2(train, text) == 0


def test_a_text_that_moves_on_is_like_itself() -> None:
    """A log's dates are new in its end, and in every end of it: it is not unlike; another language is."""
    rows = [
        f"2026-{i // 900 + 1:02}-{i // 30 % 30 + 1:02} {i % 24:02}:00:00 INFO GET /{'abc'[i * i % 3]} 200\n" for i in range(9000)
    ]
    for text, is_like in (("".join(rows), True), ("".join(rows[:8000]) + "the old mill stands by the river\n" * 900, False)):
        symbols = CharTokenizer(text)
        ids = symbols.encode(text)
        train, val = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
        held, own = baselines.unlike(ids_of(train), ids_of(val), [train.count(i) for i in range(len(symbols))])

        assert (held < 1.4 * own) == is_like
