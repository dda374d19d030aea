import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.kernels import Kernel
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.pointwise import Taught
from lstmlm.model import ensemble
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import StackState
from lstmlm.training import step_timing
from lstmlm.training.members import Members
from lstmlm.training.teacher import Teacher


def configured(**model: Any) -> RunConfig:
    """Return a configuration with no size open."""
    network = ModelConfig(**{"hidden": 9, "layers": 1, "dropout": 0.0, "weight_dropout": 0.0, **model})
    return RunConfig(network, train=TrainConfig(minutes=1.0, batch=6, window=5, lr=0.01, warmup=0, weight_decay=0.0))


class Watch:
    """A clock on which a step takes as long as it is said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: dict[int, list[float]]) -> None:
        self.now, self.rows, self.window = 0.0, 0, 0
        self.steps = {count: iter(seconds) for count, seconds in steps.items()}
        learn = Members.learn

        def watched(*args: object) -> object:
            self.now += next(self.steps[torch.get_num_threads()], 0.1)
            self.window, self.rows = args[1].shape  # type: ignore[attr-defined]  # ids
            return learn(*args)  # type: ignore[arg-type]  # as they came

        monkeypatch.setattr(Members, "learn", watched)
        monkeypatch.setattr("lstmlm.training.step_timing.time.perf_counter", lambda: self.now)


def test_a_busy_moment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step and those that something else made slow leave no trace, even if they are half of all."""
    watch = Watch(monkeypatch, {1: [9.0, *[0.1, 0.8] * 30]})
    found = step_timing.step_seconds(configured(), 7, EagerKernel(), torch.device("cpu"), 6, 20.0)

    assert found == pytest.approx(0.1)
    assert watch.now > 20.0


def test_at_least_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time there is, two steps after the first are timed."""
    Watch(monkeypatch, {1: [9.0, 3.0, 2.0]})

    assert step_timing.step_seconds(configured(), 7, EagerKernel(), torch.device("cpu"), 6, 0.0) == pytest.approx(2.0)


def test_one_thread_where_that_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads and one are timed in turn, and the number of threads stays as it was."""
    torch.set_num_threads(2)
    Watch(monkeypatch, {2: [9.0, *[0.5] * 40], 1: [0.2] * 40})

    assert step_timing.step_seconds(configured(), 7, EagerKernel(), torch.device("cpu"), 6, 3.0) == pytest.approx(0.2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("share", "segment", "rows", "window"),
    [(1, 0, 64, 40), (1 / 2, 0, 32, 40), (1 / 8, 0, 16, 20), (1e-9, 0, 16, 8), (1e-9, 5, 16, 20), (1e-9, 20, 16, 40)],
)
def test_of_a_long_step_a_part_is_timed(
    monkeypatch: pytest.MonkeyPatch, share: float, segment: int, rows: int, window: int
) -> None:
    """A step of more than a second or two is estimated by fewer rows, then by a shorter window, but of some segments still."""
    monkeypatch.setattr("lstmlm.training.step_timing.MOST_WORK", share * 3 * (4 * 9 * 9 + 7 * 9) * 64 * 40)
    config = configured()
    config = replace(config, train=replace(config.train, window=40, segment=segment))
    watch = Watch(monkeypatch, {1: [0.1] * 20})
    found = step_timing.step_seconds(config, 7, EagerKernel(), torch.device("cpu"), 64, 1.0)

    assert (watch.rows, watch.window) == (rows, window)
    assert found == pytest.approx(0.1 * 64 * 40 / (rows * window))


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ({"hidden": 9, "layers": 2}, 3 * 4 * 81 + 63),
        ({"hidden": 9, "layers": 1, "members": 3}, 3 * (4 * 81 + 63)),
        ({"hidden": 9, "layers": 2, "readout": "direct"}, 4 * 81 + 4 * 9 * 7 + 4 * 49),
    ],
)
def test_the_work_of_a_step(monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], weights: int) -> None:
    """What is timed whole is told by the weights that are multiplied, three times each, and a teacher's once."""
    config = configured(**model)
    watch = Watch(monkeypatch, {1: [0.1] * 40})
    taught_by = Teacher(ensemble.build(config.model, 7, EagerKernel()), config.model, 0.4)
    found = []
    for teacher, times in ((None, 3), (taught_by, 4)):
        for enough in (1.0, 0.99):
            monkeypatch.setattr("lstmlm.training.step_timing.MOST_WORK", enough * times * weights * 20 * 5)
            step_timing.step_seconds(config, 7, EagerKernel(), torch.device("cpu"), 20, 0.0, teacher)
            found.append(watch.rows)

    assert found == [20, 19, 20, 19]


@pytest.mark.parametrize(("processes", "rows"), [(1, 6), (2, 3)])
def test_a_process_has_its_share_of_the_batch(monkeypatch: pytest.MonkeyPatch, processes: int, rows: int) -> None:
    """What is timed on a CPU is the part of the batch that a process computes."""
    watch = Watch(monkeypatch, {1: [0.1] * 9})
    step_timing.timer(7, EagerKernel(), torch.device("cpu"), 1, processes)(configured())

    assert watch.rows == rows


def test_what_was_timed_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network that was only timed stays in memory."""
    made: list[weakref.ref[Network]] = []
    init = Members.__init__

    def watched(self: Members, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made.append(weakref.ref(self.network))

    monkeypatch.setattr(Members, "__init__", watched)
    step_timing.timer(7, EagerKernel(), torch.device("cpu"), 1, 1)(configured())

    assert [one() for one in made] == [None]


def test_a_gpu_is_not_asked_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a recurrence is timed once, and a step is as many products as its size says."""
    asked: list[torch.device] = []

    def speed(kernel: Kernel, device: torch.device) -> float:
        asked.append(device)
        return 1e9

    monkeypatch.setattr("lstmlm.training.step_timing.speed_of", speed)
    seconds = step_timing.timer(7, EagerKernel(), torch.device("meta"), 3, 2)

    assert seconds(configured(hidden=20, members=3)) == pytest.approx(4 * seconds(configured(hidden=10, members=3)))
    assert seconds(configured(hidden=20, members=3)) == pytest.approx(24 * 400 * 30 * 3 / (0.95e9 * 2))
    assert asked == [torch.device("meta")]


def test_a_teacher_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a teacher is taken to cost a third of what training it would, and on a CPU a step is timed with it."""
    config = configured(hidden=20).model
    taught_by = Teacher(ensemble.build(config, 7, EagerKernel()), config, 0.4)
    monkeypatch.setattr("lstmlm.training.step_timing.speed_of", lambda *_: 1e9)
    meta, cpu, kernel = torch.device("meta"), torch.device("cpu"), EagerKernel()
    alone, taught = (step_timing.timer(7, kernel, meta, 1, 1, by)(configured()) for by in (None, taught_by))
    assert taught - alone == pytest.approx(24 * 400 * 30 / 3 / 0.95e9)

    asked: list[Tensor] = []
    call = Teacher.__call__

    def watched(teacher: Teacher, ids: Tensor, state: StackState) -> tuple[Taught, StackState]:
        asked.append(ids)
        return call(teacher, ids, state)

    monkeypatch.setattr(Teacher, "__call__", watched)
    step_timing.timer(7, kernel, cpu, 1, 1, taught_by)(configured())
    assert len(asked) > 1


def test_documents_are_timed_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a step is timed with what parts documents, beside a teacher too."""
    config = configured(hidden=20).model
    taught_by = Teacher(ensemble.build(config, 7, EagerKernel(), (1, 2)), config, 0.4)
    made: list[tuple[int, ...]] = []
    init = CharLM.__init__

    def watched(self: CharLM, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        made.append(self.separator)

    monkeypatch.setattr(CharLM, "__init__", watched)
    step_timing.timer(7, EagerKernel(), torch.device("cpu"), 2, 1, taught_by, (3, 4, 5))(configured(members=2))

    assert made == [(3, 4, 5)] * 2
