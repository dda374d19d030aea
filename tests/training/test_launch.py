import time
from pathlib import Path

import pytest
import torch

from lstmlm.config.run_config import ModelConfig, RunConfig, TrainConfig
from lstmlm.data.corpus import Corpus, open_corpus
from lstmlm.errors import SystemProblem
from lstmlm.training import launch
from lstmlm.training.distributed import ProcessGroup
from lstmlm.training.events import Clock
from lstmlm.training.run_setup import Start
from tests.helpers import TEXT


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


@pytest.mark.parametrize(
    ("model", "batch", "memory"), [({"hidden": 65_536}, None, 2**36), ({"hidden": 512, "layers": 8}, 24, 700 * 2**20)]
)
def test_too_large_is_refused_before_a_step_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, int], batch: int | None, memory: int
) -> None:
    """Sizes that cannot fit into memory, with a window that is open too, are refused with what they need: no step fills it."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20, encoding="utf-8")
    corpus = open_corpus([str(path)], cache_dir=tmp_path / "cache")
    monkeypatch.setattr("lstmlm.training.step_timing.timer", lambda *_: lambda config: pytest.fail("timed"))
    train = TrainConfig(minutes=1.0, batch=batch, kernel="eager", device="cpu")
    asked = RunConfig(ModelConfig(**model), train=train)  # type: ignore[arg-type]  # all are numbers
    monkeypatch.setattr("lstmlm.machine.memory", lambda: memory)
    monkeypatch.setattr("lstmlm.machine.memory_used", lambda: (0, 0))

    with pytest.raises(SystemProblem, match=r"fits into the \S+ .iB of this machine, found one that needs some \S+ .iB"):
        launch.prepare(Start(Path(), asked, {}), corpus, Clock(time.perf_counter()), ProcessGroup())
