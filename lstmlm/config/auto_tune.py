"""Sizes and rates of a run, where the user leaves them open: as its time and its text allow.

`choose` fills in the open sizes before training, for `train`, by what steps of some sizes are measured to take. The numbers
rest on few runs of one seed each of about a minute, recorded in `scripts/experiments/results/`; what they say of longer budgets
is extrapolated.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

from lstmlm.config.run_config import DEFAULT_MINUTES, ModelConfig, RunConfig, TrainConfig
from lstmlm.units import counted

WIDTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Characters for 128 units, and how their number grows with the width: fewer, and a narrower network that sees more is better.
ENOUGH_CHARS, ENOUGH_POWER = 0.6e6, 1.4
WIDEST = (
    (50_000, 128),
    (300_000, 384),
    (1_500_000, 512),
    (3_000_000, 768),
    (math.inf, 1024),
)  # for texts below so many characters
RATES = ((7.0, 1.1e-2), (math.inf, 8e-3))  # for 256 units, below so many passes
# How often a text is read again, times the recurrent weights for each of its characters: so much dropout of values and of
# recurrent weights, between the rows by the logarithm. Weights beyond MOST_WEIGHTS a character were not measured.
DROPOUTS = (
    *((0.3, 0.0, 0.0), (1.8, 0.05, 0.0), (3.0, 0.17, 0.03), (7.0, 0.27, 0.08), (12.0, 0.27, 0.13)),
    *((20.0, 0.3, 0.2), (40.0, 0.4, 0.2)),
)
MOST_WEIGHTS = 3.0
SEVERAL = 0.7  # of that, where networks answer together: with more dropout they err alike, and gain less by it
# Of that rate, where a run starts from a trained model: with it tuning was better than parent and new model in all that
# `scripts/experiments/tuning.py --hidden 64 --factors 1 0.5 0.25` had tried; with 1 and with 0.25 not in one case each.
TUNING = 0.5
PAIRED_PASSES = 6.0  # below so many, frequent pairs have rows of their own: a guess, as 3.9 and 6.8 gain by them and 15 lose
TAUGHT = 0.5  # of the dropout of values, where a run learns from a trained model too (`scripts/README.md`, Learning from a model)
BATCHES = (16, 8, 4)  # the first that leaves time for enough steps
WINDOW = 64
LONG_WINDOW = 128  # from WIDE_RUN characters on half the steps of twice the window are as good, quicker, and remember more
LONG_LEAST = 0.8  # of the characters that windows of 64 would read
WIDE_RUN = 6_000_000
FEWEST_STEPS = 200  # in which something can be learnt
LONG_MEMORY = 400  # `model.forget_span` of a run that reads so many characters; in fewer, units with a long memory are not filled
LONG_RUN = 1_500_000
LONG_SHARE, WIDE_SHARE = 0.25, 0.5  # `model.forget_share`, and from WIDE_RUN on: in fewer, so many learn the rest too slowly
TIMING = 1 / 3  # of what is left of a budget that timing may take; after that it is estimated from what was timed last
GROWS = 1.7  # as this power of the width a step's time grows, about
TRAINING = 0.93  # of a budget in minutes that is left for steps: the rest goes into validating and saving


def clamped(batch: int, window: int, chars: int) -> tuple[int, int]:
    """Return the batch and window that fit a text: the window shrinks to the text, then the batch to what is left.

    Args:
        batch: Streams wanted.
        window: Time steps wanted.
        chars: Length of the text; at least 2, as one character is a target of nothing.
    """
    window = max(1, min(window, chars - 1))
    return max(1, min(batch, (chars - 1) // window)), window


def choose(
    config: RunConfig,
    chars: int,
    vocabulary: int,
    left: Callable[[], float],
    step_seconds: Callable[[RunConfig], float],
    *,
    pairs: int = 0,
    tuned: bool = False,
    taught: bool = False,
) -> tuple[RunConfig, str, int]:
    """Fill in what is open, and say what was chosen and why in one line.

    Args:
        config: As the user left it.
        chars: Length of the training text.
        vocabulary: V: the width of a network whose one layer is its readout.
        left: Says how many seconds are left of a budget in minutes, as measuring takes some.
        step_seconds: Measures a step of a configuration with no size open; asked only where the budget is in minutes.
        pairs: So many are frequent enough to have rows of their own.
        tuned: The run starts from a trained model.
        taught: It learns from one too.

    Returns:
        The configuration with no size or rate open, the line, which is empty where nothing of what it names was open, and the
        number of steps: an estimate where the budget is in minutes.
    """
    model, train = config.model, config.train
    if train.minutes is None and train.steps is None and train.epochs is None:
        train = replace(train, minutes=DEFAULT_MINUTES)
    window, layers = train.window or WINDOW, model.layers or 1
    if layers == 1 and model.readout == "direct":
        model = replace(model, hidden=vocabulary)
    rows = model.pairs
    if rows is None:  # H_t itself is a score where the readout is direct
        rows = pairs if model.readout == "linear" else 0
    model, train = replace(model, layers=layers, pairs=rows), replace(train, window=window)
    if train.minutes is not None:
        hidden, batch, steps = _by_time(replace(config, model=model, train=train), chars, left, step_seconds)
    else:
        batch = train.batch or BATCHES[0]
        hidden = model.hidden or (128 if chars < 50_000 else 256)
        found = steps_of(replace(config, train=train), chars // math.prod(clamped(batch, window, chars)))
        assert found is not None
        steps = found
    read = steps * math.prod(clamped(batch, window, chars))
    if config.train.window is None and train.steps is None and read >= WIDE_RUN:
        count = steps * window // LONG_WINDOW
        if train.minutes is not None:
            moved = replace(train, window=LONG_WINDOW, batch=batch)
            _, _, count = _by_time(replace(config, model=replace(model, hidden=hidden), train=moved), chars, left, step_seconds)
        if count * LONG_WINDOW >= LONG_LEAST * steps * window:
            window, steps = LONG_WINDOW, count
    passes = steps * math.prod(clamped(batch, window, chars)) / chars
    rate = next(rate for most, rate in RATES if passes < most)
    known = 4 * layers * hidden**2 / chars * (SEVERAL if model.members > 1 else 1.0)
    values, weights = dropouts(passes, known)
    dropout = model.dropout if model.dropout is not None else round(TAUGHT * values if taught else values, 2)
    weight_dropout = model.weight_dropout if model.weight_dropout is not None else weights
    lr = train.lr if train.lr is not None else rate * math.sqrt(256 / hidden) * (TUNING if tuned else 1.0)
    span = model.forget_span
    if span is None:  # H_t itself is a score where the readout is direct: it should follow each character
        span = LONG_MEMORY if read >= LONG_RUN and model.readout != "direct" else 0.0
    share = model.forget_share
    if share is None:
        share = WIDE_SHARE if read >= WIDE_RUN else LONG_SHARE
    if config.model.pairs is None and passes >= PAIRED_PASSES:
        rows = 0
    dropped = replace(model, dropout=dropout, weight_dropout=weight_dropout)
    chosen_model = replace(dropped, hidden=hidden, forget_span=span, forget_share=share, pairs=rows)
    warmup = train.warmup if train.warmup is not None else min(100, steps // 10)
    weight_decay = train.weight_decay if train.weight_decay is not None else 0.01
    chosen_train = replace(train, batch=batch, window=window, lr=lr, warmup=warmup, weight_decay=weight_decay)
    chosen = replace(config, model=chosen_model, train=chosen_train)
    return chosen, _said(chosen, chars, steps, passes) if _opened(config.model, config.train) else "", steps


def _said(chosen: RunConfig, chars: int, steps: int, passes: float) -> str:
    """Say in one line what was chosen, and for what."""
    model, train = chosen.model, chosen.train
    several = f"{model.members} members of " if model.members > 1 else ""
    budget = counted(steps, "step") if train.minutes is None else counted(train.minutes, "minute")
    often = f"{passes:.2g}" if passes < 99.5 else f"{passes:,.0f}"
    about = f"some {counted(steps, 'step')}, about" if train.minutes is not None else "about"
    return (
        f"{several}{model.layers} x {model.hidden} units, batch {train.batch}, window {train.window}, rate {train.lr:.2g}, "
        f"dropout {model.dropout:g} (weights {model.weight_dropout:g}): chosen for {budget} on {chars:,} characters, "
        f"{about} {often} passes"
    )


def dropouts(passes: float, weights: float) -> tuple[float, float]:
    """Return the dropout of values and of recurrent weights, to two digits.

    Args:
        passes: How often the text is read.
        weights: Recurrent weights for each of its characters.
    """
    known = max(0.0, passes - 1) * min(weights, MOST_WEIGHTS)
    for (low, *less), (high, *more) in pairwise(DROPOUTS):
        if known < high:
            way = math.log(max(1.0, known / low)) / math.log(high / low)
            dropped, of_weights = (round(one + way * (other - one), 2) for one, other in zip(less, more, strict=True))
            return dropped, of_weights
    return DROPOUTS[-1][1:]


def _by_time(
    config: RunConfig, chars: int, left: Callable[[], float], step_seconds: Callable[[RunConfig], float]
) -> tuple[int, int, int]:
    """Return width, batch and steps for a budget in minutes; layers and window are decided.

    The width is the largest that still sees enough of the text in the time, and that the text can fill.
    """
    model, train = config.model, config.train
    widest = next(width for most, width in WIDEST if chars < most)
    widths = [width for width in WIDTHS if width <= widest] if model.hidden is None else [model.hidden]
    batch = train.batch or BATCHES[0]
    enough_left = (1 - TIMING) * left()
    timed: list[tuple[int, int, float]] = []

    @cache
    def steps(width: int, batch: int) -> int:
        rows, window = clamped(batch, train.window or 0, chars)
        rates = replace(train, batch=rows, window=window, lr=train.lr or 0.0, warmup=train.warmup or 0)
        rates = replace(rates, weight_decay=train.weight_decay or 0.0)
        # Whether values are dropped depends on what is measured here; it is a small part of a step.
        dropped = replace(model, hidden=width, dropout=model.dropout or 0.0, weight_dropout=model.weight_dropout or 0.0)
        if not timed or left() >= enough_left:
            timed.append((width, rows, max(1e-9, step_seconds(replace(config, model=dropped, train=rates)))))
        last, streams, taken = timed[-1]
        each = taken * (width / last) ** GROWS * rows / streams
        return max(1, int(TRAINING * left() / each))

    def share(width: int) -> float:  # of what has to be read for such a width
        enough = ENOUGH_CHARS * math.pow(width / 128, ENOUGH_POWER)
        return steps(width, batch) * math.prod(clamped(batch, train.window or 0, chars)) / enough

    at = len(widths) - 1
    if at:
        first = min(256, widths[-1])
        guess = first * share(first) ** (1 / (GROWS + ENOUGH_POWER))
        at = max(0, sum(width <= guess for width in widths) - 1)
        while at + 1 < len(widths) and share(widths[at + 1]) >= 1:
            at += 1
        while at > 0 and share(widths[at]) < 1:
            at -= 1
    smaller = [size for size in BATCHES if size < batch] if train.batch is None else []
    while smaller and steps(widths[at], batch) < FEWEST_STEPS:
        batch = smaller.pop(0)
    return widths[at], batch, steps(widths[at], batch)


def _opened(model: ModelConfig, train: TrainConfig) -> bool:
    return None in (model.hidden, model.layers, model.dropout, train.batch, train.window, train.lr)


def steps_of(config: RunConfig, steps_per_epoch: int) -> int | None:
    """Return the number of steps that steps or epochs ask for; None for a budget in minutes."""
    if config.train.steps is not None:
        return config.train.steps
    if config.train.epochs is not None:
        return max(1, math.ceil(config.train.epochs * steps_per_epoch))
    return None


def plan(
    config: RunConfig, chars: int, vocabulary: int, parameters: int, steps: int, memory: int
) -> dict[str, int | float | str]:
    """Return what a run would be, without running it.

    Args:
        config: As `choose` returned it.
        chars: Length of the training text.
        vocabulary: V.
        parameters: Of all members.
        steps: As `choose` returned them.
        memory: Bytes that it takes.

    Returns:
        Sizes by name.
    """
    model, train = config.model, config.train
    assert model.hidden is not None
    assert model.layers is not None
    assert train.batch is not None
    assert train.window is not None
    per_step = math.prod(clamped(train.batch, train.window, chars))
    rows: dict[str, int | float | str] = {
        "parameters": parameters,
        "members": model.members,
        "layers": model.layers,
        "hidden": model.hidden,
        "vocabulary": vocabulary,
        "training_chars": chars,
        "batch": train.batch,
        "window": train.window,
        "chars_per_step": per_step,
        "steps_per_epoch": chars // per_step,
        "steps": steps,
        "passes": round(steps * per_step / chars, 3),
        "memory_bytes": memory,
    }
    if train.minutes is not None:
        rows["note"] = f"steps are an estimate: as many as fit into {counted(train.minutes, 'minute')}"
    if chars < 100 * per_step:
        rows["warning"] = f"the text has only {chars:,} characters: it will soon be known by heart"
    elif train.minutes is not None and steps < FEWEST_STEPS:
        rows["warning"] = f"some {counted(steps, 'step')}: too few to learn much. Give it more time"
    return rows
