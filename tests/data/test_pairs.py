"""The pairs of a text that are most frequent: the same ones each time, and none that is rare."""

from collections import Counter
from itertools import pairwise

import pytest

from lstmlm.data import pairs
from tests.helpers import ids_of, some_ids


@pytest.mark.parametrize("vocabulary", [11, 70_000])
@pytest.mark.parametrize("most", [0, 1, 5, 10_000])
def test_the_most_frequent_ones(most: int, vocabulary: int) -> None:
    """They are the first of all pairs by their number, none of which occurs fewer than `RAREST` times, in ascending order."""
    text = some_ids(9000).tolist()
    counts = Counter(pairwise(text))
    often = [pair for pair, count in counts.most_common(most) if count >= pairs.RAREST]
    found = pairs.frequent(ids_of(text), vocabulary, most)

    assert found == sorted(found)
    assert sorted(counts[pair] for pair in found) == sorted(counts[pair] for pair in often)
    assert most < 10_000 or 0 < len(found) < len(counts)


def test_a_large_text_is_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text beyond what is searched, pieces from all over it count."""
    monkeypatch.setattr(pairs, "SEARCHED", 4000)
    monkeypatch.setattr(pairs, "PIECE", 500)
    text = [0, 1] * 10_000 + [2, 3] * 10_000

    assert pairs.frequent(ids_of(text), 4) == [(0, 1), (1, 0), (2, 3), (3, 2)]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_text_without_pairs(length: int) -> None:
    """A text of no pair, or of one, has no frequent one."""
    assert pairs.frequent(ids_of([0] * length), 1) == []
