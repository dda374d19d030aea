"""What a run does with its time where the user leaves it open: sizes, rates, steps, and when to look.

`choose` fills in the open sizes before training, for `train`; the trainer asks `plan_steps` once the speed is known. The
numbers rest on few runs of one seed each of about a minute, recorded in `scripts/experiments/results/`; what they say of
longer budgets is extrapolated.
"""

import math
from dataclasses import replace

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.units import counted

DEFAULT_MINUTES = 3.0
EVALUATION_CHARS = 1 << 18  # of the validation text, its beginning; `lstmlm eval` scores all of it
WIDTHS = (128, 192, 256, 384, 512, 768, 1024)
ENOUGH_CHARS = 1.2e6  # for 256 units: fewer, and a narrower network that sees more is better
WIDEST = ((50_000, 128), (300_000, 384), (600_000, 512), (3_000_000, 768), (math.inf, 1024))  # for texts below so many characters
# Below so many passes, this rate for 256 units, and this much dropout of values and of recurrent weights.
PASSES = (
    (1.5, 1.1e-2, 0.0, 0.0),
    (4.0, 1.1e-2, 0.1, 0.0),
    (7.0, 8e-3, 0.2, 0.1),
    (14.0, 8e-3, 0.3, 0.2),
    (math.inf, 8e-3, 0.4, 0.2),
)
SHARE_OF_SPEED = 0.95  # of a float32 matrix product's speed that a whole training step reaches: scripts/bench/bench.py train


def choose(config: RunConfig, chars: int, speed: float) -> tuple[RunConfig, str]:
    """Fill in what is open, and say what was chosen and why in one line.

    Args:
        config: As the user left it.
        chars: Length of the training text.
        speed: Of this machine's matrix products, FLOP/s, which the members share.

    Returns:
        The configuration with no size or rate open, and the line; the line is empty where nothing was open.
    """
    model, train = config.model, config.train
    speed /= model.members
    if train.minutes is None and train.steps is None and train.epochs is None:
        train = replace(train, minutes=DEFAULT_MINUTES)
    batch, window = train.batch or 16, train.window or 64
    steps = steps_of(replace(config, train=train), max(1, chars // (batch * window)))
    layers = model.layers or 1
    hidden = model.hidden or _hidden(chars, layers, train.minutes, steps, speed)
    passes = (_chars_in(train.minutes, hidden, layers, speed) if steps is None else steps * batch * window) / chars
    rate, values, weights = next(row for most, *row in PASSES if passes < most)
    dropout = model.dropout if model.dropout is not None else values
    weight_dropout = model.weight_dropout if model.weight_dropout is not None else weights
    lr = train.lr if train.lr is not None else rate * math.sqrt(256 / hidden)
    chosen_model = replace(model, hidden=hidden, layers=layers, dropout=dropout, weight_dropout=weight_dropout)
    warmup = train.warmup if train.warmup is not None else (min(100, steps // 10) if steps is not None else 100)
    weight_decay = train.weight_decay if train.weight_decay is not None else 0.01
    chosen_train = replace(train, batch=batch, window=window, lr=lr, warmup=warmup, weight_decay=weight_decay)
    chosen = replace(config, model=chosen_model, train=chosen_train)
    opened = _opened(model, train)
    line = ""
    if opened:
        several = f"{model.members} members of " if model.members > 1 else ""
        budget = counted(steps, "step") if steps is not None else counted(train.minutes or DEFAULT_MINUTES, "minute")
        often = f"{passes:.2g}" if passes < 99.5 else f"{passes:,.0f}"
        line = (
            f"{several}{layers} x {hidden} units, batch {batch}, window {window}, rate {lr:.2g}, dropout {dropout:g} "
            f"(weights {weight_dropout:g}): chosen for {budget} on {chars:,} characters, about {often} passes"
        )
    return chosen, line


def _chars_in(minutes: float | None, hidden: int, layers: int, speed: float) -> float:
    """Estimate how many characters are trained on in so many minutes: 6 FLOP for each recurrent and input weight."""
    return (minutes or DEFAULT_MINUTES) * 60 * SHARE_OF_SPEED * speed / (24 * hidden * hidden * (2 * layers - 1))


def _hidden(chars: int, layers: int, minutes: float | None, steps: int | None, speed: float) -> int:
    """Return the width: the largest that still sees enough of the text in the time, and that the text can fill."""
    if steps is not None:
        return 128 if chars < 50_000 else 256
    fitting = [width for width in WIDTHS if _chars_in(minutes, width, layers, speed) >= ENOUGH_CHARS * width / 256]
    largest = next(width for most, width in WIDEST if chars < most)
    return min(largest, max(fitting, default=WIDTHS[0]))


def _opened(model: ModelConfig, train: TrainConfig) -> bool:
    return None in (model.hidden, model.layers, model.dropout, train.batch, train.window, train.lr)


def steps_of(config: RunConfig, steps_per_epoch: int) -> int | None:
    """Return the number of steps that steps or epochs ask for; None for a budget in minutes."""
    if config.train.steps is not None:
        return config.train.steps
    if config.train.epochs is not None:
        return max(1, math.ceil(config.train.epochs * steps_per_epoch))
    return None


def plan(config: RunConfig, chars: int, vocabulary: int, parameters: int) -> dict[str, int | float | str]:
    """Return what a run would be, without running it.

    Args:
        config: As `choose` returned it.
        chars: Length of the training text.
        vocabulary: V.
        parameters: Of all members.

    Returns:
        Sizes by name; memory is that of `memory_bytes`.
    """
    model, train = config.model, config.train
    assert model.hidden is not None
    assert model.layers is not None
    assert train.batch is not None
    assert train.window is not None
    per_step = train.batch * train.window
    steps = steps_of(config, max(1, chars // per_step))
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
        "steps_per_epoch": max(1, chars // per_step),
        "steps": steps if steps is not None else f"as many as fit into {counted(train.minutes or 0, 'minute')}",
        "memory_bytes": memory_bytes(config, vocabulary, parameters),
    }
    if chars < 100 * per_step:
        rows["warning"] = f"the text has only {chars:,} characters: it will soon be known by heart"
    return rows


def memory_bytes(config: RunConfig, vocabulary: int, parameters: int) -> int:
    """Return about how much memory a run takes beside its text and torch itself.

    Weights, gradients, both moments and the averages, where there are any (20 bytes a parameter, or 16), and for each member,
    layer, unit and character that is kept at a time 6 float32 values (`kernels.Activations`); its logits too.

    Args:
        config: As `choose` returned it.
        vocabulary: V.
        parameters: Of all members.
    """
    model, train = config.model, config.train
    assert model.hidden is not None
    assert model.layers is not None
    assert train.batch is not None
    assert train.window is not None
    kept = train.batch * (min(train.segment, train.window) or train.window)
    each = 20 if train.average else 16
    return each * parameters + model.members * (24 * model.layers * model.hidden + 8 * vocabulary) * kept
