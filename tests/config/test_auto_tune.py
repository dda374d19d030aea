import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from lstmlm.config import auto_tune
from lstmlm.config.run_config import DEFAULT_MINUTES, ModelConfig, RunConfig, TrainConfig

LONG, SHORT = 1_000_000, 5_000
SPEED = 2.5e11  # FLOP/s


def machine(speed: float = SPEED, least: float = 0.0) -> Callable[[RunConfig], float]:
    """Return what a step takes on a machine of a speed, the readout left out, and at least so many seconds."""

    def seconds(config: RunConfig) -> float:
        model, train = config.model, config.train
        sizes = (model.hidden, model.layers, train.batch, train.window)
        assert None not in (*sizes, model.dropout, train.lr, train.warmup)
        hidden, layers, batch, window = (size or 0 for size in sizes)
        return max(least, 24 * hidden**2 * (2 * layers - 1) * batch * window * model.members / speed)

    return seconds


def choose(config: RunConfig, chars: int, speed: float = SPEED) -> tuple[RunConfig, str, int]:
    """Choose for a machine on which nothing has passed yet."""
    return auto_tune.choose(config, chars, 65, lambda: (config.train.minutes or 0) * 60, machine(speed))


@pytest.mark.parametrize("chars", [2, SHORT, 100_000, LONG, 10**10])
@pytest.mark.parametrize("train", [TrainConfig(), TrainConfig(steps=7), TrainConfig(epochs=0.5), TrainConfig(minutes=600.0)])
def test_nothing_stays_open(chars: int, train: TrainConfig) -> None:
    """Whatever is left open is chosen within its range, and one line says so."""
    if train == TrainConfig():
        train = TrainConfig(minutes=DEFAULT_MINUTES)
    chosen, line, steps = choose(RunConfig(train=train), chars)
    sizes = [chosen.model.hidden, chosen.model.layers, chosen.train.batch, chosen.train.window, chosen.train.lr]

    assert all(size is not None and size > 0 for size in sizes)
    assert None not in (chosen.model.dropout, chosen.model.weight_dropout, chosen.train.warmup, chosen.train.weight_decay)
    assert None not in (chosen.model.forget_span, chosen.model.forget_share)
    assert f"{chosen.model.layers} x {chosen.model.hidden} units" in line
    assert steps >= 1
    assert (chosen.train.warmup or 0) <= steps // 10


def test_what_is_set_stays() -> None:
    """A value that the user set is never changed, and where nothing was open nothing is said."""
    model = ModelConfig(hidden=9, layers=3, dropout=0.0, weight_dropout=0.0, forget_span=7.0, forget_share=0.1, pairs=7)
    train = TrainConfig(steps=5, batch=2, window=3, lr=0.5, warmup=0, weight_decay=0.0)
    given = RunConfig(model, train=train)

    assert choose(given, LONG) == (given, "", 5)
    timed = RunConfig(model, train=replace(train, steps=None, minutes=1.0))
    assert choose(timed, LONG)[:2] == (timed, "")


def test_pairs_have_rows_in_a_run_of_few_passes() -> None:
    """In more passes they would be learnt by heart; what the user set stays, and a direct readout has none."""

    def rows(epochs: float, **model: Any) -> int | None:
        config = RunConfig(ModelConfig(**model), train=TrainConfig(epochs=epochs))
        return auto_tune.choose(config, LONG, 65, lambda: 0.0, machine(), pairs=500)[0].model.pairs

    assert rows(0.9 * auto_tune.PAIRED_PASSES) == 500
    assert rows(1.1 * auto_tune.PAIRED_PASSES) == 0
    assert rows(1.1 * auto_tune.PAIRED_PASSES, pairs=20) == 20
    assert rows(1.0, readout="direct") == 0


def test_the_window_grows_with_what_a_run_reads() -> None:
    """A run of some passes has long windows, and half the steps, from WIDE_RUN characters on; a run of some steps never."""
    usual, long = (
        choose(RunConfig(train=TrainConfig(epochs=read / LONG)), LONG)
        for read in (0.9 * auto_tune.WIDE_RUN, 1.1 * auto_tune.WIDE_RUN)
    )
    epochs = 1.1 * auto_tune.WIDE_RUN / LONG
    given = choose(RunConfig(train=TrainConfig(epochs=epochs, window=auto_tune.WINDOW)), LONG)

    assert [found[0].train.window for found in (usual, long, given)] == [
        auto_tune.WINDOW,
        auto_tune.LONG_WINDOW,
        auto_tune.WINDOW,
    ]
    assert long[2] == given[2] // 2
    assert choose(RunConfig(train=TrainConfig(steps=1_000_000)), LONG)[0].train.window == auto_tune.WINDOW


@pytest.mark.parametrize(("slower", "window"), [(1.0, 128), (1.2, 128), (1.3, 64)])
def test_a_long_window_that_reads_much_less_is_not_taken(slower: float, window: int) -> None:
    """Of a budget in minutes windows of 128 are timed too, and taken where they read four fifths of what 64 read."""
    assert (auto_tune.WINDOW, auto_tune.LONG_WINDOW, auto_tune.LONG_LEAST) == (64, 128, 0.8)
    usual = machine()

    def step_seconds(config: RunConfig) -> float:
        return usual(config) * (slower if config.train.window == auto_tune.LONG_WINDOW else 1.0)

    config = RunConfig(ModelConfig(hidden=256), train=TrainConfig(minutes=10.0))
    chosen, _, steps = auto_tune.choose(config, LONG, 65, lambda: 600.0, step_seconds)

    assert chosen.train.window == window
    taken = step_seconds(chosen)
    assert steps == int(auto_tune.TRAINING * 600 / taken)


def test_a_long_run_starts_with_long_memories() -> None:
    """From LONG_RUN characters on a quarter of the units start with memories of their own, but not where H_t is read out."""
    steps = math.ceil(auto_tune.LONG_RUN / (auto_tune.BATCHES[0] * auto_tune.WINDOW))
    spans = [
        choose(RunConfig(ModelConfig(readout=readout), train=TrainConfig(steps=count)), LONG)[0].model.forget_span
        for readout in ("linear", "direct")
        for count in (steps - 1, steps)
    ]

    assert spans == [0.0, auto_tune.LONG_MEMORY, 0.0, 0.0]


def test_a_longer_run_has_more_of_them() -> None:
    """From WIDE_RUN characters on half of the units start with such a memory, and a share that is set stays."""
    reads = (0.9 * auto_tune.WIDE_RUN, 1.1 * auto_tune.WIDE_RUN)
    shares = [
        choose(RunConfig(ModelConfig(forget_share=given), train=TrainConfig(epochs=read / LONG)), LONG)[0].model.forget_share
        for given in (None, 0.7)
        for read in reads
    ]

    assert shares == [auto_tune.LONG_SHARE, auto_tune.WIDE_SHARE, 0.7, 0.7]


@pytest.mark.parametrize(
    ("passes", "weights", "expected"),
    [
        (0.1, 9.0, (0.0, 0.0)),
        (1.0, 9.0, (0.0, 0.0)),
        (2.8, 1.0, (0.05, 0.0)),
        (8.0, 1.0, (0.27, 0.08)),
        (15.0, 0.5, (0.27, 0.08)),
        (15.0, 1.0, (0.28, 0.15)),
        (41.0, 1.0, (0.4, 0.2)),
        (500.0, 1.0, (0.4, 0.2)),
        (3.0, auto_tune.MOST_WEIGHTS, (0.25, 0.07)),
        (3.0, 500.0, (0.25, 0.07)),
    ],
)
def test_dropout_grows_with_the_passes(passes: float, weights: float, expected: tuple[float, float]) -> None:
    """None in one pass; at the rows of the table it is theirs, between them by the logarithm; weights count up to a limit."""
    assert auto_tune.dropouts(passes, weights) == expected


def test_a_wide_network_has_more_dropout() -> None:
    """Twice the units of a layer know a text by heart four times as soon, and so do as many on a quarter of the text."""
    found = [
        choose(RunConfig(ModelConfig(hidden=units), train=TrainConfig(epochs=8)), chars)[0].model
        for units, chars in ((128, LONG), (256, LONG), (512, LONG), (256, LONG // 4))
    ]
    drops = [(model.dropout, model.weight_dropout) for model in found]

    assert drops[0] < drops[1] < drops[2] == drops[3]


def test_several_networks_have_less_dropout() -> None:
    """Networks that answer together have the dropout of a share of the weights, as they gain less where they err alike."""
    train = TrainConfig(epochs=8)
    one, several = (choose(RunConfig(ModelConfig(hidden=512, members=count), train=train), LONG)[0].model for count in (1, 3))
    known = auto_tune.dropouts(8, auto_tune.SEVERAL * 4 * 512**2 / LONG)

    assert (several.dropout, several.weight_dropout) == pytest.approx(known, abs=0.01)
    assert (several.dropout or 0) < (one.dropout or 0)


def test_a_tuned_run_has_a_smaller_rate() -> None:
    """From a trained model the rate is half that of a new one of its size; a rate that was set stays."""
    new = RunConfig(ModelConfig(hidden=64), train=TrainConfig(steps=100))
    fresh, tuned = (auto_tune.choose(new, LONG, 65, lambda: 0.0, machine(), tuned=tuned)[0].train for tuned in (False, True))
    given = replace(new, train=replace(new.train, lr=0.5))

    assert fresh.lr is not None
    assert tuned == replace(fresh, lr=fresh.lr * auto_tune.TUNING)
    assert auto_tune.choose(given, LONG, 65, lambda: 0.0, machine(), tuned=True)[0].train.lr == 0.5


def test_a_taught_run_has_less_dropout() -> None:
    """Beside a teacher values are dropped half as often, recurrent weights as often as ever; what was set stays."""
    new = RunConfig(ModelConfig(hidden=256), train=TrainConfig(epochs=40))
    alone, taught = (auto_tune.choose(new, LONG, 65, lambda: 0.0, machine(), taught=taught)[0].model for taught in (False, True))
    given = replace(new, model=replace(new.model, dropout=0.5))

    assert alone.dropout
    assert taught == replace(alone, dropout=round(alone.dropout * auto_tune.TAUGHT, 2))
    assert auto_tune.choose(given, LONG, 65, lambda: 0.0, machine(), taught=True)[0].model.dropout == 0.5


def test_steps_of() -> None:
    """Steps are as asked, passes are rounded up, minutes are open."""
    given = RunConfig()

    assert auto_tune.steps_of(replace(given, train=TrainConfig(steps=5)), 100) == 5
    assert auto_tune.steps_of(replace(given, train=TrainConfig(epochs=0.251)), 100) == 26
    assert auto_tune.steps_of(replace(given, train=TrainConfig(epochs=1e-9)), 100) == 1
    assert auto_tune.steps_of(replace(given, train=TrainConfig(minutes=1.0)), 100) is None


def test_plan() -> None:
    """A plan's numbers follow from the sizes; a text that is soon known by heart is said to be one."""
    chosen, _, steps = choose(RunConfig(train=TrainConfig(steps=7, batch=2, window=5)), LONG)
    rows = auto_tune.plan(chosen, LONG, 50, 1234, steps, 999)

    assert (rows["parameters"], rows["steps"], rows["chars_per_step"], rows["steps_per_epoch"]) == (1234, 7, 10, LONG // 10)
    assert "warning" not in rows
    assert "by heart" in str(auto_tune.plan(chosen, 500, 50, 1234, steps, 999)["warning"])


def test_members_share_the_time() -> None:
    """N members get the sizes that one would get in an N-th of the time, and the line says how many they are."""

    def chosen(minutes: float, members: int) -> tuple[RunConfig, str]:
        return choose(RunConfig(ModelConfig(members=members), train=TrainConfig(minutes=minutes)), LONG)[:2]

    for minutes in (0.2, 1.0, 6.0):
        several, line = chosen(minutes, 4)
        alone, other = chosen(minutes / 4, 1)
        sizes = replace(several.model, members=1, dropout=alone.model.dropout, weight_dropout=alone.model.weight_dropout)
        assert sizes == alone.model
        assert "4 members of " in line
        assert "members" not in other
    assert chosen(1.0, 1)[0].model.hidden != chosen(1.0, 64)[0].model.hidden


def test_a_slow_machine_is_not_timed_for_ever() -> None:
    """Timing stops at a third of the budget; the sizes not tried are estimated from the last one that was."""
    left, tried = [60.0], []

    def step_seconds(config: RunConfig) -> float:
        left[0] -= 15
        tried.append(config.model.hidden)
        return machine(SPEED / 300)(config)

    config = RunConfig(train=TrainConfig(minutes=1.0, window=auto_tune.WINDOW))
    slow, _, steps = auto_tune.choose(config, LONG, 65, lambda: left[0], step_seconds)

    assert tried[0] == 256
    assert len(tried) == 2
    assert slow.model.hidden in auto_tune.WIDTHS
    assert steps > 100


def test_sizes_follow_the_time_and_the_machine() -> None:
    """More time or a faster machine means a wider network; more passes over a text mean more dropout."""

    def chosen(minutes: float, chars: int = LONG, speed: float = SPEED) -> RunConfig:
        return choose(RunConfig(train=TrainConfig(minutes=minutes)), chars, speed)[0]

    widths = [chosen(minutes).model.hidden for minutes in (0.05, 0.3, 1.0, 3.0, 600.0)]
    dropouts = [chosen(3.0, chars).model.dropout for chars in (10**8, 3 * 10**6, 10**6, 10**5)]

    assert widths == sorted(widths, key=lambda width: width or 0)
    assert widths[0] != widths[-1]
    assert chosen(1.0, speed=SPEED / 50).model.hidden != chosen(1.0, speed=SPEED * 50).model.hidden
    assert dropouts == sorted(dropouts, key=lambda dropout: dropout or 0)
    assert dropouts[0] == 0.0


@pytest.mark.parametrize(("chars", "often"), [(10**6, "0.031"), (1100, "28"), (129, "30"), (100, "19"), (2, "15")])
def test_passes_are_said_in_digits(chars: int, often: str) -> None:
    """How often the text is read is said as people write it, however short the text."""
    train = TrainConfig(steps=30, batch=16, window=64)

    assert choose(RunConfig(train=train), chars)[1].endswith(f"about {often} passes")


def test_few_sizes_are_measured() -> None:
    """Three or four steps of a network are timed before a run, and none where its budget is no time."""
    asked: list[int | None] = []

    def watched(config: RunConfig) -> float:
        asked.append(config.model.hidden)
        return machine()(config)

    for seconds in (1.0, 6.0, 60.0, 600.0, 36_000.0):
        auto_tune.choose(RunConfig(train=TrainConfig(minutes=seconds / 60)), LONG, 65, partial(float, seconds), watched)
        assert 1 <= len(asked) <= 5, asked
        asked.clear()
    auto_tune.choose(RunConfig(train=TrainConfig(steps=9)), LONG, 65, lambda: 0.0, watched)
    assert asked == []


def test_steps_are_estimated() -> None:
    """The steps of a budget in minutes are what fits, validation and saving set apart."""
    _, line, steps = choose(RunConfig(ModelConfig(hidden=256), train=TrainConfig(minutes=1.0, window=64)), LONG)

    assert steps == pytest.approx(0.93 * 60 * SPEED / (24 * 256**2 * 1024), rel=0.001)
    assert f"some {steps:,} steps, about {steps * 1024 / LONG:.2g} passes" in line


def test_a_slow_machine_gets_a_network_that_it_can_train() -> None:
    """Where few steps fit, the network becomes narrower and then the batch smaller, until there are enough."""

    def chosen(speed: float, least: float = 0.0) -> tuple[int, int | None, int | None]:
        config, _, steps = auto_tune.choose(
            RunConfig(train=TrainConfig(minutes=0.1)), LONG, 65, lambda: 3.0, machine(speed, least)
        )
        return steps, config.model.hidden, config.train.batch

    assert chosen(SPEED / 100)[0] >= auto_tune.FEWEST_STEPS
    assert chosen(SPEED / 150)[1:] == (32, 8)
    assert chosen(SPEED / 150)[0] >= auto_tune.FEWEST_STEPS
    assert chosen(SPEED, least=0.5) == (5, 32, 4)


@pytest.mark.parametrize("train", [TrainConfig(minutes=1.0), TrainConfig(steps=9)])
def test_a_layer_that_is_its_readout_is_as_wide_as_the_vocabulary(train: TrainConfig) -> None:
    """The article's network has V units, whatever would be chosen: that is what is said, measured, and rated."""
    config, line, _ = choose(RunConfig(ModelConfig(layers=1, readout="direct"), train=train), LONG)

    assert config.model.hidden == 65
    assert line.startswith("1 x 65 units")


@pytest.mark.parametrize(
    ("wanted", "chars", "expected"),
    [
        ((16, 64), 2, (1, 1)),
        ((16, 64), 40, (1, 39)),
        ((16, 64), 65, (1, 64)),
        ((16, 64), 200, (3, 64)),
        ((16, 64), 1025, (16, 64)),
        ((16, 64), 10**10, (16, 64)),
        ((1, 1), 2, (1, 1)),
    ],
)
def test_sizes_shrink_to_the_text(wanted: tuple[int, int], chars: int, expected: tuple[int, int]) -> None:
    """The window shrinks to a short text first, then the batch to what is left."""
    assert auto_tune.clamped(*wanted, chars) == expected


def test_what_fits_a_short_text_is_measured() -> None:
    """Steps, passes and what is timed are those of the batch and window that a short text has room for."""
    asked: list[tuple[int | None, int | None]] = []

    def watched(config: RunConfig) -> float:
        asked.append((config.train.batch, config.train.window))
        return 0.01

    chosen, line, steps = auto_tune.choose(RunConfig(train=TrainConfig(minutes=0.1)), 200, 30, lambda: 5.0, watched)
    rows = auto_tune.plan(chosen, 200, 30, 1, steps, 1)

    assert set(asked) == {(3, 64)}
    assert rows["chars_per_step"] == 192
    assert rows["steps_per_epoch"] == 1
    assert rows["passes"] == pytest.approx(steps * 192 / 200, rel=1e-3)
    assert f"about {steps * 192 / 200:,.0f} passes" in line


def test_measuring_takes_time() -> None:
    """Steps are what fits into the time that is left when they have been timed."""
    now = [0.0]

    def watched(config: RunConfig) -> float:
        now[0] += 2.0
        return 0.001

    given = RunConfig(ModelConfig(hidden=64), train=TrainConfig(minutes=0.1))
    assert auto_tune.choose(given, LONG, 65, lambda: 6.0 - now[0], watched)[2] == int(auto_tune.TRAINING * 4.0 / 0.001)
