import time
from pathlib import Path

import pytest
import torch

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.data.corpus import Corpus
from lstmlm.errors import SystemProblem
from lstmlm.training import launch
from lstmlm.training.distributed import ProcessGroup
from lstmlm.training.events import Clock
from lstmlm.training.run_setup import Start


def test_choosing_once_more_takes_all_threads(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes chosen again, after a trainer on a busy machine has left one thread, are timed on all of them, which the run gets."""
    timed = []

    def step_seconds(config: RunConfig) -> float:
        timed.append(torch.get_num_threads())
        return 0.01

    monkeypatch.setattr("lstmlm.machine.cpus", lambda: 2)
    monkeypatch.setattr("lstmlm.training.step_timing.timer", lambda *_: step_seconds)
    asked = RunConfig(ModelConfig(), train=TrainConfig(minutes=1.0, kernel="eager", device="cpu"))
    plan = launch.prepare(Start(Path(), asked, {}), corpus, Clock(time.perf_counter()), ProcessGroup())
    torch.set_num_threads(1)
    plan.choose()

    assert set(timed) == {2}
    assert torch.get_num_threads() == 2


def test_too_large_is_refused_before_a_step_is_timed(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that cannot fit into memory is refused with what it needs; timing a step of it would fill the memory first."""
    monkeypatch.setattr("lstmlm.training.step_timing.timer", lambda *_: lambda config: pytest.fail("timed"))
    asked = RunConfig(ModelConfig(hidden=65_536), train=TrainConfig(minutes=1.0, kernel="eager", device="cpu"))
    monkeypatch.setattr("lstmlm.machine.memory", lambda: 2**36)

    with pytest.raises(SystemProblem, match=r"fits into the 64 GiB of this machine, found one that needs some \d+ GiB"):
        launch.prepare(Start(Path(), asked, {}), corpus, Clock(time.perf_counter()), ProcessGroup())
