"""Where a run stands, and what it reports on the way: numbers without a tensor among them.

The trainer reports an `Event` to whoever watches (`display`) and keeps its `TrainState` in every checkpoint.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lstmlm.errors import CheckpointError, printable


@dataclass(frozen=True)
class StepDone:
    """One step of training.

    step: Counted from 1: the number of steps done.
    steps: Of the whole run; None while the budget in minutes has not been turned into steps.
    nats_per_char: Mean over the window's B x T predictions.
    rate: Learning rate of the step.
    chars: Characters trained on since the run began.
    """

    step: int
    steps: int | None
    nats_per_char: float
    rate: float
    chars: int


@dataclass(frozen=True)
class Planned:
    """The budget in minutes has become a number of steps, or another one.

    step: After which that was.
    steps: Of the whole run.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class Busy:
    """Something begins during which no step is taken: validating, scoring the best model or saving."""

    doing: str


@dataclass(frozen=True)
class Validated:
    """The validation text was scored, warm.

    members: What each network takes alone, where several are read as one.
    exact: Whether this is the score that `lstmlm eval` gives; else an estimate of it.
    """

    step: int
    nats_per_char: float
    best: bool
    members: tuple[float, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Scored:
    """The validation text was scored by the best model, exactly as `lstmlm eval` does."""

    step: int
    nats_per_char: float


@dataclass(frozen=True)
class Sampled:
    """A short text that the network wrote."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint was committed."""

    step: int
    path: Path


@dataclass(frozen=True)
class SteppedBack:
    """A step was not finite, or a score worse than guessing; the run goes on from an earlier step with a smaller rate."""

    step: int
    to: int
    what: str
    rate_scale: float
    why: str = "is not finite"


Event = StepDone | Planned | Busy | Validated | Scored | Sampled | Saved | SteppedBack


# Fields that runs of earlier versions were saved with: what each is called now, or None where it is gone.
FORMER: dict[str, str | None] = {"eval_every": None}


@dataclass
class TrainState:
    """Where a run stands: all that is not a tensor and that going on needs.

    `recent` is the sum of nats and the number of steps since the last record of metrics.jsonl. `validated` is the last
    step after which the validation text was scored, as a signal may come between a step and its validation; -1 where the
    model that a run starts from is still to be scored. `look` is `budget.Looks`. `exact` is the score of the best model as
    `lstmlm eval` gives it, and the model's step once the run has ended and that was tried. `retries` counts the times that
    the run was stepped back, less those that it has been calm since; `diverged_at` is the step that began the count of calm ones.
    `parent` has the nats per character of stretches of the validation text by the model that the run starts from, and `unsure`
    is the best score that was not enough to take that model's place.
    """

    step: int = 0
    steps: int | None = None
    look_chars: int = 0
    look_gap: int = 0
    look_exact: bool = False
    rate_scale: float = 1.0
    retries: int = 0
    best_step: int = 0
    best_nats: float = math.inf
    final_nats: float = math.inf
    exact_nats: float = math.inf
    exact_step: int = -1
    worse: int = 0
    validated: int = 0
    recent_nats: float = 0.0
    recent_steps: int = 0
    metrics_bytes: int = 0
    samples_bytes: int = 0
    diverged_at: int = 0
    parent: list[float] = field(default_factory=list)
    unsure_nats: float = math.inf

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end: it has tried to score its best model exactly, which is the last that it does."""
        return self.exact_step == self.best_step

    def to_meta(self) -> dict[str, Any]:
        """Return what goes into a checkpoint's header, where infinity has no place."""
        return {k: None if v == math.inf else v for k, v in vars(self).items()}

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "TrainState":
        """Return the inverse of `to_meta`, also of an earlier version's: a field that it did not have yet is as in a new run.

        Raises:
            CheckpointError: `step` is missing, or a field is unknown or of the wrong type.
        """
        plain = cls()
        meta = {name: value for key, value in meta.items() if (name := FORMER.get(key, key)) is not None}
        if other := sorted(set(meta) - set(vars(plain))):
            raise CheckpointError(
                f"checkpoint: training.{printable(other[0][:60])}: expected the fields of this version, found one that it does "
                "not know. Go on with the version of lstmlm that wrote it, or start from its weights: --from."
            )
        if "step" not in meta:
            raise CheckpointError(
                "checkpoint: training.step: expected the number of steps done, found none, as in best.safetensors. "
                "Put the run's own last.safetensors back, or start from its weights: --from."
            )
        for key, value in meta.items():
            if key in ("best_nats", "final_nats", "exact_nats", "unsure_nats") and value is None:
                continue
            kind = int if key == "steps" else type(getattr(plain, key))
            if type(value) is not kind and not (key == "steps" and value is None):
                raise CheckpointError(
                    f"checkpoint: training.{key}: expected {kind.__name__}, found {type(value).__name__}. "
                    "Use a copy, or train again."
                )
            if isinstance(value, list) and not all(type(one) is float for one in value):
                raise CheckpointError(f"checkpoint: training.{key}: expected numbers, found something else among them.")
            setattr(plain, key, value)
        return plain


@dataclass(frozen=True)
class Clock:
    """The wall time of the whole command.

    started: `time.perf_counter()` when the process began, as near as can be told. Seconds.
    """

    started: float

    def seconds(self) -> float:
        """Return the seconds since the process began."""
        return time.perf_counter() - self.started
