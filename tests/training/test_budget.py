import math
from itertools import pairwise

import pytest

from lstmlm.config.run_config import TrainConfig
from lstmlm.training import budget
from lstmlm.training.budget import Budget, Looks


def looked(steps: int, steps_per_pass: int, gap: int) -> list[int]:
    """Return the steps after which a run looks."""
    found = [0]
    while found[-1] < steps:
        found.append(budget.next_look(found[-1], steps, steps_per_pass, gap))
    return found[1:]


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 99, 1000, 2159, 50_000])
@pytest.mark.parametrize("steps_per_pass", [1, 17, 882, 10**6])
@pytest.mark.parametrize("gap", [1, 7, 130, 10**6])
def test_looks_of_a_run(steps: int, steps_per_pass: int, gap: int) -> None:
    """A run looks at its end, five times or more where the gap allows, and no two looks are nearer than the gap."""
    found = looked(steps, steps_per_pass, gap)

    assert found[-1] == steps
    assert all(later - earlier >= min(gap, steps) for earlier, later in pairwise([0, *found]))
    if gap <= steps / 10:
        assert len(found) >= 5


def test_looks_double() -> None:
    """A short text is looked at after 1, 2, 4, 8 ... passes, and at quarters between; later evenly."""
    found = looked(17 * 200, 17, 1)

    assert {17 * passes for passes in (1, 2, 4, 8, 16, 32, 64)} <= set(found)
    assert found[0] == 17
    assert [step / 17 for step in found if 16 * 17 <= step <= 32 * 17] == [16, 20, 24, 28, 32]
    assert max(later - earlier for earlier, later in pairwise(found)) <= 17 * 20


@pytest.mark.parametrize("steps", [5, 25, 300, 2159, 10**6])
@pytest.mark.parametrize("text", [0, 18, 2000, 111_539, 1 << 18])
@pytest.mark.parametrize("every", [None, 1, 50])
def test_validating_takes_its_share_at_most(steps: int, text: int, every: int | None) -> None:
    """Looks and the exact score together take 8 % of a run, counted in steps; only the least that is looked at may take more."""
    cost = 0.5 / 1024
    found = budget.plan_looks(steps, text, cost, every)
    times = len(looked(steps, 882, found.gap)) if every is None else math.ceil(steps / every)
    whole = times * 1.3 * found.chars * cost + found.exact * budget.EXACTLY * text * cost

    assert found.chars <= text
    assert found.chars >= min(text, budget.LEAST_CHARS)
    assert whole <= budget.SHARE * steps or times == 1 or (every is not None and found.chars <= budget.LEAST_CHARS)


def test_a_long_run_is_scored_exactly() -> None:
    """There is time for an exact score at the end of a minute on a megabyte, none in 25 steps, none needed for a short text."""
    assert budget.plan_looks(2159, 111_539, 0.5 / 1024, None).exact
    assert not budget.plan_looks(25, 111_539, 0.5 / 8192, None).exact
    assert not budget.plan_looks(2159, 1000, 0.5 / 1024, None).exact


@pytest.mark.parametrize(
    ("patience", "worse", "last", "step", "ends"),
    [
        (None, 3, 2.2, 200, True), (None, 3, 2.2, 199, False), (None, 2, 9.0, 900, False), (None, 30, 2.05, 900, False),
        (None, 0, 2.0, 900, False), (None, 0, math.inf, 0, False), (0, 99, 9.0, 900, False), (2, 1, 9.0, 900, False),
        (2, 2, 2.01, 101, True),
    ],
)  # fmt: skip
def test_should_stop_early(patience: int | None, worse: int, last: float, step: int, ends: bool) -> None:
    """Left open, a run ends after three clearly worse validations and twice the steps; as set, after so many; at 0, never."""
    best = 2.0 if last < math.inf else math.inf
    assert budget.should_stop_early(patience, worse, last, best, step, 100) is ends


class Machine:
    """A machine on which things take as long as they are said to."""

    def __init__(self, minutes: float = 1.0, began: float = 3.0) -> None:
        self.now = began
        self.budget = Budget(minutes, lambda: self.now, 0.5 / 1024)

    def step(self, seconds: float, times: int = 1) -> None:
        """Take steps."""
        for _ in range(times):
            self.now += seconds
            self.budget.stepped()

    def look(self, seconds: float, chars: int) -> None:
        """Validate."""
        self.now += seconds
        self.budget.looked(chars)


def test_a_first_step_is_cold() -> None:
    """The first step pays for what happens once, and says nothing of the others."""
    machine = Machine()
    machine.step(5.0)
    assert machine.budget.per_step == 0
    machine.step(0.1, 10)

    assert machine.budget.per_step == pytest.approx(0.1)


def test_the_last_seconds_count_most() -> None:
    """A machine that has become slower is measured as it is now."""
    machine = Machine()
    machine.step(0.1, 100)
    machine.step(0.5, 20)

    assert machine.budget.per_step == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(("chars", "slower"), [(20_000, 1.0), (111_539, budget.FEW_STREAMS)])
def test_steps_fill_the_time(chars: int, slower: float) -> None:
    """Steps, validations, the exact score in fewer streams and the end of the process fit into what is left, and fill it."""
    machine = Machine()
    machine.step(0.1, 50)
    machine.look(0.6, chars)
    looks = Looks(chars, 50, exact=True)
    steps = machine.budget.steps(50, looks, 111_539)
    exact = budget.EXACTLY * 111_539 * machine.budget.cost * 0.1 * slower
    spent = machine.now + (steps - 50) * 0.1 + 0.6 * (1 + (steps - 50) // 55) + exact

    assert machine.budget.cost == pytest.approx(6 / (1.3 * chars))
    assert 57.5 < spent < 60


@pytest.mark.parametrize("now", [59.5, 60.0, 100.0])
def test_no_time_left(now: float) -> None:
    """When the time is over, so are the steps."""
    machine = Machine()
    machine.step(0.1, 30)
    machine.now = now

    assert machine.budget.steps(30, Looks(8192, 3, exact=False), 8192) == 30


def test_when_the_speed_is_known() -> None:
    """A hundredth of the budget is measured; where the rate falls, 3 % of it or as much as the warm-up lasts."""
    machine = Machine()
    stays, falls = TrainConfig(minutes=1.0, warmup=40), TrainConfig(minutes=1.0, warmup=40, final_lr=0.1)
    assert not machine.budget.known(0, stays)
    machine.step(0.1, 4)
    assert not machine.budget.known(4, stays)
    machine.step(0.1, 4)
    assert machine.budget.known(8, stays)
    assert not machine.budget.known(8, falls)
    assert machine.budget.known(40, falls)
    machine.step(0.1, 13)
    assert machine.budget.known(21, falls)


def test_saving_is_no_step() -> None:
    """What a checkpoint takes is kept for the last ones, and does not make steps slower."""
    machine = Machine()
    machine.step(0.1, 10)
    before = machine.budget.steps(10, None, 0)
    machine.now += 2.0
    machine.budget.saved()
    machine.step(0.1, 1)

    assert machine.budget.per_step == pytest.approx(0.1)
    assert before - machine.budget.steps(11, None, 0) == pytest.approx(60 * (1 - 0.75 * budget.SHARE), abs=2)
