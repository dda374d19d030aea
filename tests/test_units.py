import math

import pytest

from lstmlm import units


def test_bits_of_a_fair_coin() -> None:
    """The nats of one fair coin are one bit."""
    assert units.bits(math.log(2)) == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (38.4, "0:38"),
        (59.6, "1:00"),
        (3723, "1:02:03"),
        (360000, "100:00:00"),
        (-1, "0:00"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations are minutes and seconds, with hours where there are any, and rounding carries over."""
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.25, "0.25"), (950, "950"), (999.6, "1k"), (41_234, "41.2k"), (412_000, "412k"), (3_050_000, "3.05M"),
     (2e15, "2000T"), (math.nan, "?")],
)  # fmt: skip
def test_counts(number: float, text: str) -> None:
    """A count has three digits that matter and never reads 1000."""
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, "1 step"), (1, "1 step"), (0, "0 steps"), (0.5, "0.5 steps"), (3.0, "3 steps"), (1200, "1,200 steps")],
)
def test_counted_nouns(number: float, text: str) -> None:
    """One thing is one, and all else are many."""
    assert units.counted(number, "step") == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (512, "512 B"), (3_250_586, "3.1 MiB"), (1 << 30, "1 GiB")])
def test_sizes(number: float, text: str) -> None:
    """Sizes are in powers of 1024, and say so."""
    assert units.size(number) == text
