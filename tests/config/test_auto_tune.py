from dataclasses import replace

import pytest

from lstmlm.config import auto_tune
from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig

LONG, SHORT = 1_000_000, 5_000
SPEED = 2.5e11  # FLOP/s


@pytest.mark.parametrize("chars", [2, SHORT, 100_000, LONG, 10**10])
@pytest.mark.parametrize("train", [TrainConfig(), TrainConfig(steps=7), TrainConfig(epochs=0.5), TrainConfig(minutes=600.0)])
def test_nothing_stays_open(chars: int, train: TrainConfig) -> None:
    """Whatever is left open is chosen within its range, and one line says so."""
    chosen, line = auto_tune.choose(RunConfig(train=train), chars, SPEED)
    sizes = [chosen.model.hidden, chosen.model.layers, chosen.train.batch, chosen.train.window, chosen.train.lr]

    assert all(size is not None and size > 0 for size in sizes)
    assert None not in (chosen.model.dropout, chosen.model.weight_dropout, chosen.train.warmup, chosen.train.weight_decay)
    assert f"{chosen.model.layers} x {chosen.model.hidden} units" in line


def test_what_is_set_stays() -> None:
    """A value that the user set is never changed, and where nothing was open nothing is said."""
    model = ModelConfig(hidden=9, layers=3, dropout=0.0, weight_dropout=0.0)
    train = TrainConfig(steps=5, batch=2, window=3, lr=0.5, warmup=0, weight_decay=0.0)
    given = RunConfig(model, train=train)

    assert auto_tune.choose(given, LONG, SPEED) == (given, "")


def test_steps_of() -> None:
    """Steps are as asked, passes are rounded up, minutes are open."""
    given = RunConfig()

    assert auto_tune.steps_of(replace(given, train=TrainConfig(steps=5)), 100) == 5
    assert auto_tune.steps_of(replace(given, train=TrainConfig(epochs=0.251)), 100) == 26
    assert auto_tune.steps_of(replace(given, train=TrainConfig(epochs=1e-9)), 100) == 1
    assert auto_tune.steps_of(replace(given, train=TrainConfig(minutes=1.0)), 100) is None


def test_plan() -> None:
    """A plan's numbers follow from the sizes; a text that is soon known by heart is said to be one."""
    chosen, _ = auto_tune.choose(RunConfig(train=TrainConfig(steps=7, batch=2, window=5)), LONG, SPEED)
    rows = auto_tune.plan(chosen, LONG, 50, 1234)

    assert (rows["parameters"], rows["steps"], rows["chars_per_step"], rows["steps_per_epoch"]) == (1234, 7, 10, LONG // 10)
    assert "warning" not in rows
    assert "by heart" in str(auto_tune.plan(chosen, 500, 50, 1234)["warning"])


def test_members_share_the_time() -> None:
    """N members get the sizes that one would get in an N-th of the time, and the line says how many they are."""

    def chosen(minutes: float, members: int) -> tuple[RunConfig, str]:
        return auto_tune.choose(RunConfig(ModelConfig(members=members), train=TrainConfig(minutes=minutes)), LONG, SPEED)

    for minutes in (0.2, 1.0, 6.0):
        several, line = chosen(minutes, 4)
        alone, other = chosen(minutes / 4, 1)
        assert replace(several.model, members=1) == alone.model
        assert "4 members of " in line
        assert "members" not in other
    assert chosen(1.0, 1)[0].model.hidden != chosen(1.0, 64)[0].model.hidden


def test_memory() -> None:
    """A plan's memory is that of weights and moments, and of each member's activations as far as they are kept at a time."""
    config = RunConfig(ModelConfig(hidden=8, layers=2), train=TrainConfig(batch=3, window=10, average=0.0))
    one = auto_tune.memory_bytes(config, 5, 100)
    averaged = auto_tune.memory_bytes(replace(config, train=replace(config.train, average=0.5)), 5, 100)
    pieces = auto_tune.memory_bytes(replace(config, train=replace(config.train, segment=4)), 5, 100)
    three = auto_tune.memory_bytes(replace(config, model=replace(config.model, members=3)), 5, 300)

    assert one == 1600 + (24 * 16 + 40) * 30
    assert averaged - one == 400
    assert pieces == 1600 + (24 * 16 + 40) * 12
    assert three == 3 * one


def test_sizes_follow_the_time_and_the_machine() -> None:
    """More time or a faster machine means a wider network; more passes over a text mean more dropout."""

    def chosen(minutes: float, chars: int = LONG, speed: float = SPEED) -> RunConfig:
        return auto_tune.choose(RunConfig(train=TrainConfig(minutes=minutes)), chars, speed)[0]

    widths = [chosen(minutes).model.hidden for minutes in (0.05, 0.3, 1.0, 3.0, 600.0)]
    dropouts = [chosen(3.0, chars).model.dropout for chars in (10**8, 3 * 10**6, 10**6, 10**5)]

    assert widths == sorted(widths, key=lambda width: width or 0)
    assert widths[0] != widths[-1]
    assert chosen(1.0, speed=SPEED / 50).model.hidden != chosen(1.0, speed=SPEED * 50).model.hidden
    assert dropouts == sorted(dropouts, key=lambda dropout: dropout or 0)
    assert dropouts[0] == 0.0


@pytest.mark.parametrize(("chars", "often"), [(10**6, "0.031"), (1000, "31"), (99, "310"), (2, "15,360")])
def test_passes_are_said_in_digits(chars: int, often: str) -> None:
    """How often the text is read is said as people write it, however short the text."""
    train = TrainConfig(steps=30, batch=16, window=64)

    assert auto_tune.choose(RunConfig(train=train), chars, SPEED)[1].endswith(f"about {often} passes")
