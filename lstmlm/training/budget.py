"""What a run does with its time: how many steps it takes, when it looks at the validation text and at how much of it.

A budget in steps or passes is a number of steps, and all else follows from it by counting: no clock changes the result of a run
that does not diverge. One that does goes back to its last checkpoint, and where that is follows from `train.save_every`, or
else from the clock (`trainer.SAVE_SECONDS`). A budget in minutes becomes steps by what steps are seen to take, anew all through
the run (`Budget`). The trainer asks; `auto_tune` chooses the sizes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lstmlm.config.run_config import TrainConfig
from lstmlm.evaluation.scoring import STREAMS, streams_of

SHARE = 0.08  # of a run that may go into validating, the exact score at its end included
EXACT_SHARE = 2 / 3  # of that, at most, for the exact score
LOOKS = 10  # validations, evenly over a run; at 1, 2, 4, 8 ... passes there are more, where they are cheap
LEAST_CHARS = 8192  # of a validation text, if it has as many: fewer say too little
MOST_CHARS = 1 << 18  # of a validation text, its beginning; `lstmlm eval` scores all of a longer one
READING = 0.45  # of the time of a training step, for reading as many characters, in strict float32
EXACTLY = 2.0  # times what a text has are read for its exact score, more or less at most: then it is given up
FEW_STREAMS = 1.5  # times as long takes a character then as in a validation of all its streams side by side: measured
PATIENCE = 3  # validations in a row that are worse than the best ...
WORSE = 1.05  # ... and, the last of them, by this factor, after twice the steps: what follows is known by heart
SLOWER = 0.5  # of the steps that sizes were chosen for: where no more fit in, a smaller network learns more, begun anew ...
EARLY = 1 / 3  # ... before so much of the budget is over, as later what was learnt so far is worth more; not at the very start
SHUTDOWN_SECONDS = 1.0  # at most: the last lines and the end of the process


@dataclass(frozen=True)
class Looks:
    """How a run validates.

    chars: Characters that a validation counts, of the text's.
    gap: Steps between two validations, at least.
    exact: Whether there is time for an exact score at the end.
    """

    chars: int
    gap: int
    exact: bool


def plan_looks(steps: int, text: int, cost: float, eval_every: int | None, chars: int = 0, each: float | None = None) -> Looks:
    """Return how a run validates, so that it takes `SHARE` of the run at most.

    Args:
        steps: Of the whole run.
        text: Characters of the validation text.
        cost: Steps that could be taken in the time of reading a character.
        eval_every: Steps between validations, where the user set it.
        chars: That a validation counts, where that was decided before: scores of other characters are not compared.
        each: Steps that could be taken in the time of a validation, where one was timed.
    """
    steps = max(1, steps)
    share = SHARE * steps
    whole = EXACTLY * text * cost
    exact = streams_of(text, text) > 1 and whole <= EXACT_SHARE * share
    share -= whole * exact
    chars = chars or min(text, max(LEAST_CHARS, int(share / _looks(steps, eval_every) / (1.3 * cost))))
    gap = math.ceil((each or 1.3 * chars * cost) / share * steps)
    return Looks(chars, max(1, min(gap, steps)), exact)


def _looks(steps: int, eval_every: int | None) -> float:
    return 1.2 * LOOKS if eval_every is None else math.ceil(steps / eval_every)


def next_look(last: int, steps: int, steps_per_pass: int, gap: int) -> int:
    """Return the step after which the validation text is scored next.

    That is at 1, 2, 4, 8 ... passes and, where it is cheap enough, at quarters between them; at least `LOOKS` times in a run,
    evenly; and at its end.

    Args:
        last: The step after which it was scored last; 0: never.
        steps: Of the whole run.
        steps_per_pass: Of a pass over the training text.
        gap: Steps between two validations, at least.
    """
    doubling = steps_per_pass
    while doubling < last + gap:
        doubling *= 2
    step = doubling
    if doubling > steps_per_pass:
        spacing = max(gap, doubling // 8)
        step = last + spacing if last + 2 * spacing <= doubling else doubling
    step = min(step, last + max(gap, math.ceil(steps / LOOKS)))
    return step if step <= steps - gap else max(steps, last + 1)


def should_stop_early(patience: int | None, worse: int, last: float, best: float, step: int, best_step: int) -> bool:
    """Say whether going on can no longer make a better model.

    Args:
        patience: Validations in a row without a better score after which to stop; 0: never; None: `PATIENCE` of them, if the last
            is `WORSE` times the best, and the run twice as long.
        worse: Validations since the best one.
        last: Nats per character of the last one.
        best: Of the best one.
        step: Of the last one.
        best_step: Of the best one.
    """
    if patience is not None:
        return bool(patience) and worse >= patience
    return worse >= PATIENCE and last > WORSE * best and step >= 2 * best_step


def limit_nats(vocabulary: int) -> float:
    """Return the nats per character that no training step should take: clearly more than guessing evenly."""
    return 1.1 * math.log(vocabulary) + 0.5


class Budget:
    """Minutes as a number of steps, from what steps are seen to take, as often as it is asked.

    A validation is counted in steps: what slows the one down slows the other.

    Args:
        minutes: From the beginning of the process to its end.
        clock: Seconds since the process began.
        cost: Steps that could be taken in the time of reading a character, as long as none was read.
    """

    def __init__(self, minutes: float, clock: Callable[[], float], cost: float) -> None:
        self.cost = cost
        self._seconds = minutes * 60
        self._clock = clock
        self._memory = max(1.0, 0.05 * self._seconds)  # seconds after which what was measured counts for a third
        self._time = self._steps = 0.0  # of late
        self._measured = 0.0  # seconds of all steps but the first
        self._cold = True
        self._look: float | None = None  # of the last validation, in steps
        self._mark = clock()
        self._saving = 0.0

    @property
    def per_step(self) -> float:
        """Seconds of a step; 0 before the second."""
        return self._time / self._steps if self._steps else 0.0

    def _lap(self) -> float:
        before, self._mark = self._mark, self._clock()
        return self._mark - before

    def begin(self) -> None:
        """Take note that what comes next is a step, and not what was done until now."""
        self._lap()

    def stepped(self) -> None:
        """Take note of a step; the first one finds memory and caches cold."""
        seconds = self._lap()
        if self._cold:
            self._cold = False
            return
        self._measured += seconds
        kept = math.exp(-seconds / self._memory)
        self._time, self._steps = kept * self._time + seconds, kept * self._steps + 1

    def looked(self, chars: int) -> None:
        """Take note of a validation of so many characters, its sample and the best model's file included."""
        seconds = self._lap()
        if self.per_step:
            self._look = seconds / self.per_step
            if chars >= LEAST_CHARS:  # of fewer the sample is the larger part
                self.cost = max(1e-9, self._look / (1.3 * chars))

    def saved(self) -> None:
        """Take note of a checkpoint."""
        self._saving = self._lap()

    def known(self, step: int, train: TrainConfig) -> bool:
        """Say whether enough has been measured for a number of steps.

        Args:
            step: Steps done by this process.
            train: Where the rate falls to the end, the number has to be there before the warm-up ends.
        """
        if not self._steps:
            return False
        measured = self._measured >= 0.01 * self._seconds or step > 64
        if train.final_lr == 1:
            return measured
        return self._measured >= max(0.3, 0.03 * self._seconds) or step >= (train.warmup or 0)

    def slower(self, steps: int, expected: int) -> bool:
        """Say whether the machine has become so slow, so early, that other sizes would have been chosen.

        Args:
            steps: That fit in, done and to come.
            expected: That the sizes were chosen for.
        """
        return steps < SLOWER * expected and 2 * self._memory < self._clock() < EARLY * self._seconds

    def looks(self, steps: int, text: int, eval_every: int | None, chars: int) -> Looks:
        """Return how a run of so many steps validates; see `plan_looks`."""
        return plan_looks(steps, text, self.cost, eval_every, chars, self._look)

    def steps(self, step: int, looks: Looks | None, text: int) -> int:
        """Return how many steps fit into the time: those done, and those that fit into what is left.

        Args:
            step: Steps done.
            looks: How the run validates; None: not known yet.
            text: Characters of the validation text.
        """
        left = self._seconds - self._clock()
        left -= min(SHUTDOWN_SECONDS, 0.1 + 0.01 * self._seconds) + 2 * self._saving
        fit = left / self.per_step
        if looks is None:
            return step + max(0, int(fit * (1 - 0.75 * SHARE)))
        each = self._look or 1.3 * looks.chars * self.cost
        slower = FEW_STREAMS if streams_of(text, looks.chars) == STREAMS else 1.0
        fit -= each + (EXACTLY * text * self.cost * slower if looks.exact else 0.0)
        between = max(looks.gap, (step + fit) / LOOKS)
        fit -= each * max(0, int(fit / (between + each)))
        return step + max(0, int(fit))
