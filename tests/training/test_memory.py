from dataclasses import replace

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.training.memory import OTHER, memory_bytes

V = 5
NETWORK = ModelConfig(hidden=8, layers=2, dropout=0.0, weight_dropout=0.0)
CONFIG = RunConfig(NETWORK, train=TrainConfig(batch=300, window=10, average=0.0))


def needed(config: RunConfig, parameters: int = 1000) -> int:
    """Return the memory of a run, what every run has left out."""
    return memory_bytes(config, V, parameters) - OTHER


def test_parts() -> None:
    """Parameters in seven copies, ten with averages; activations of what is kept at a time; W as it is packed; reading."""
    averaged = replace(CONFIG, train=replace(CONFIG.train, average=0.5))
    pieces = replace(CONFIG, train=replace(CONFIG.train, segment=4))
    dropped = replace(CONFIG, model=replace(NETWORK, weight_dropout=0.1))
    reading = 4 * 4096 * (9 * 8 + 3 * V)

    assert needed(CONFIG) == 28 * 1000 + 4 * 2 * 4 * 64 + 4 * 3000 * (8 * 16 + 8 + V) + reading
    assert needed(averaged) - needed(CONFIG) == 12 * 1000
    assert needed(CONFIG) - needed(pieces) == 4 * 1800 * (8 * 16 + 8 + V)
    assert needed(dropped) - needed(CONFIG) == 4 * 2 * 2 * 4 * 64


def test_members_have_their_own() -> None:
    """Members train side by side and are read one after another."""
    three = replace(CONFIG, model=replace(NETWORK, members=3))

    assert needed(three, 3000) - needed(CONFIG) == 28 * 2000 + 2 * 4 * 3000 * (8 * 16 + 8)


def test_a_large_vocabulary_costs_its_scores() -> None:
    """A score of each next character is kept in training; in reading there is a bound to them."""
    less, more = (memory_bytes(CONFIG, vocabulary, 0) for vocabulary in (10_000, 100_000))

    assert more - less < 4 * 3000 * 90_000 * 1.01


def test_a_direct_readout_is_as_wide_as_the_vocabulary() -> None:
    """The last layer counts with the width that it has."""
    direct = replace(CONFIG, model=replace(NETWORK, readout="direct", layers=1, hidden=1))

    assert memory_bytes(direct, 900, 0) > 100 * memory_bytes(replace(direct, model=NETWORK), 9, 0) / 9
