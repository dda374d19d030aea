"""Features without labels, and the area under the curve by which units are ranked."""

import pytest
import torch

from lstmlm.analysis.probes import FEATURES, after_capital, areas, depth, feature, find, in_line, in_word, quoted, since_stop
from lstmlm.errors import TextError, UsageError


@pytest.mark.parametrize(
    ("count", "text", "expected"),
    [
        (in_line, "ab\nc", [0, 1, 2, 0]),
        (quoted, 'a"bc"d', [0, 1, 1, 1, 0, 0]),
        (quoted, '"a\nb', [1, 1, 0, 0]),
        (quoted, "“a”b", [1, 1, 0, 0]),
        (depth, "a(b[c])d", [0, 1, 1, 2, 2, 1, 0, 0]),
        (depth, ")(\n\na", [0, 1, 1, 0, 0]),
        (after_capital, "aBc", [0, 0, 1]),
        (in_word, "ab c", [0, 1, 0, 0]),
        (since_stop, "ab.cd", [0, 1, 0, 1, 2]),
    ],
)
def test_features_are_counted(count: object, text: str, expected: list[float]) -> None:
    """Each feature, character by character, on a text that a person can check."""
    assert callable(count)
    assert count(text) == expected


def test_every_feature_gives_one_value_for_each_character() -> None:
    """All of them, on a text with something of everything."""
    text = 'He said "no (not [yet])." Then A.\nEnd of it, "so"\n\n' * 12
    for name in FEATURES:
        true, meaning = feature(name, text)
        assert true.shape == (len(text),)
        assert meaning


def test_an_expression_is_true_within_its_matches() -> None:
    """Every character of a match, and no other."""
    true, _ = feature("re:b+", "abbc" * 30)

    assert true.tolist() == [False, True, True, False] * 30


@pytest.mark.parametrize(
    ("name", "error"), [("lines", UsageError), ("re:(", UsageError), ("quotes", TextError), ("re:.", TextError)]
)
def test_what_cannot_be_found_is_refused(name: str, error: type[Exception]) -> None:
    """No such feature, no such expression, or one that is the same at nearly every character."""
    with pytest.raises(error, match="--find"):
        feature(name, "abcd " * 40)


@pytest.mark.parametrize("own", [False, True])
def test_areas_are_the_share_of_pairs_in_order(own: bool) -> None:
    """The chance that a true character has the larger value than a false one, ties counted half, over all pairs."""
    values = torch.randint(0, 6, (40, 70)).float()  # more units than a block, and many ties
    true = torch.rand(40, 70) < 0.4 if own else torch.rand(40) < 0.4
    found = areas(values, true)

    for unit in (0, 1, 63, 64, 69):
        mask = true[:, unit] if own else true
        high, low = values[mask, unit][:, None], values[~mask, unit][None]
        expected = ((high > low).double() + (high == low).double() / 2).mean()
        assert float(found[unit]) == pytest.approx(float(expected), abs=1e-12)


def test_the_unit_that_knows_is_found() -> None:
    """Among noise, a unit that is high, and one that is low, where the feature is true come first; chance is near a half."""
    true = torch.arange(400).remainder(2).bool()[torch.randperm(400)].repeat_interleave(10)
    values = torch.randn(4000, 30)
    values[:, 7] += 3.5 * true
    values[:, 21] -= 4.5 * true
    found = find(values, true, 3)

    assert [(c.unit, c.sign) for c in found.carriers[:2]] == [(21, -1), (7, 1)]
    assert all(c.area > 0.95 for c in found.carriers[:2])
    assert found.chance < 0.65
    assert found.true == 0.5


def test_the_area_shown_is_not_the_one_chosen_by() -> None:
    """A unit that tells the feature in the first half alone is chosen, and is shown at chance."""
    true = torch.rand(2000) < 0.5
    values = torch.randn(2000, 5)
    values[:1000, 2] += 5 * true[:1000]
    (best,) = find(values, true, 1).carriers

    assert best.unit == 2
    assert best.chosen > 0.95
    assert abs(best.area - 0.5) < 0.06
