from dataclasses import replace

import pytest

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.training import backprop, memory
from lstmlm.training.memory import OTHER, memory_bytes, training_bytes

V = 5
NETWORK = ModelConfig(hidden=8, layers=2, dropout=0.0, weight_dropout=0.0, multiplicative=False)
CONFIG = RunConfig(NETWORK, train=TrainConfig(batch=300, window=10, average=0.0))


def needed(config: RunConfig, parameters: int = 1000) -> int:
    """Return the numbers that a run keeps at most: its memory, what every run has left out, in floats."""
    return round((training_bytes(config, V, parameters) - OTHER) / 4 / memory.BETWEEN)


def test_parts() -> None:
    """Parameters in four copies, five with averages; activations of what is kept at a time; W as it is packed; reading."""
    averaged = replace(CONFIG, train=replace(CONFIG.train, average=0.5))
    pieces = replace(CONFIG, train=replace(CONFIG.train, segment=4))
    dropped = replace(CONFIG, model=replace(NETWORK, weight_dropout=0.1))
    multiplied = replace(CONFIG, model=replace(NETWORK, multiplicative=True))
    reading = 2048 * (9 * 8 + 3 * V) + 3 * 1000

    assert needed(CONFIG) == 4 * 1000 + 2 * 4 * 64 + 3000 * (7 * 16 + 2 * 8 + V) + reading
    assert needed(averaged) - needed(CONFIG) == 1000
    assert needed(CONFIG) - needed(pieces) == 1800 * (7 * 16 + 2 * 8 + V)
    assert needed(dropped) - needed(CONFIG) == 2 * 2 * 4 * 64
    assert needed(multiplied) - needed(CONFIG) == 3000 * 2 * 8


def test_saving_takes_a_copy() -> None:
    """Of a large network it is the checkpoint's copy that takes most, not reading."""
    more = needed(CONFIG, 10**9) - needed(CONFIG, 10**9 - 10**6)

    assert more == (4 + 3) * 10**6


def test_members_have_their_own() -> None:
    """Members train in the same memory, one after another, and are read so."""
    three = replace(CONFIG, model=replace(NETWORK, members=3))

    assert needed(three, 3000) - needed(CONFIG) == (4 + 3) * 2000


def test_a_teacher_reads_a_window() -> None:
    """A teacher takes what a layer of it needs for a whole window, however little of it is kept, and what it expects there."""
    pieces = replace(CONFIG, train=replace(CONFIG.train, segment=4))
    more = training_bytes(pieces, V, 0, replace(NETWORK, hidden=32)) - training_bytes(pieces, V, 0)

    assert more == pytest.approx(4 * memory.BETWEEN * 3000 * (9 * 32 + 4 * V), rel=1e-6)


def test_a_large_vocabulary_is_bounded() -> None:
    """Scores of next characters are there some at a time: so many in training, and a step of each stream in reading."""
    less, more = needed(CONFIG, 0), round((training_bytes(CONFIG, 100_000, 0) - OTHER) / 4 / memory.BETWEEN)

    assert backprop.SCORES < 3000 * 100_000
    assert more - less < backprop.SCORES + 3 * 64 * 100_000


def test_a_direct_readout_is_as_wide_as_the_vocabulary() -> None:
    """The last layer counts with the width that it has."""
    direct = replace(CONFIG, model=replace(NETWORK, readout="direct", layers=1, hidden=1))

    assert training_bytes(direct, 900, 0) > 50 * training_bytes(replace(direct, model=NETWORK), 9, 0) / 9


@pytest.mark.parametrize(("now", "most", "expected"), [(10**8, 10**8, 10**8), (10**8, 10**12, None)])
def test_the_whole_process(now: int, most: int, expected: int | None) -> None:
    """What the process has is part of what it takes, and it takes no less than it once had."""
    takes = most if expected is None else expected + training_bytes(CONFIG, V, 1000)

    assert memory_bytes(CONFIG, V, 1000, (now, most)) == takes
