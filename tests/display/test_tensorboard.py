"""TensorBoard for those who have it; the package itself is not needed here."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from lstmlm.display.tensorboard import Board
from lstmlm.training.events import Planned, StepDone, SteppedBack, Validated
from lstmlm.units import bits
from tests.cli.conftest import TINY, Lstmlm, lstmlm, text

__all__ = ["lstmlm", "text"]


class Writer:
    """Stands for torch's SummaryWriter and keeps what it is told."""

    made: ClassVar[list["Writer"]] = []  # emptied by the fixture
    full = False

    def __init__(self, log_dir: str, purge_step: int | None) -> None:
        Path(log_dir).mkdir(exist_ok=True)
        (Path(log_dir) / f"events.out.tfevents.{len(self.made)}").write_text("")
        self.folder, self.purge, self.closed = log_dir, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Keep a number, or say that the disk is full."""
        if self.full:
            raise OSError(28, "No space left on device")
        self.scalars.append((name, value, step))

    def close(self) -> None:
        """Remember that nothing more comes."""
        self.closed = True


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """Put a package in TensorBoard's place; give the writers that are made."""
    package: Any = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr("torch.utils.tensorboard", package, raising=False)
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setattr(Writer, "full", False)
    return Writer.made


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let importing it fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def done(step: int, nats: float = 2.0, steps: int = 25) -> StepDone:
    """Return the record of a step."""
    return StepDone(step, steps, nats, 0.01, step * 15)


def test_scalars(tmp_path: Path, installed: list[Writer]) -> None:
    """The mean of ten steps, the rest of them at the end, each validation and the rate; bits and steps, as everywhere."""
    told: list[str] = []
    shown = Board(tmp_path, 0, told.append)
    shown(Planned(20, 25))
    for step in range(1, 26):
        shown(done(step, float(step)))
    shown(Validated(25, 1.5, True))
    shown.close()
    (writer,) = installed

    assert writer.scalars == [
        ("bits_per_char/training", bits(5.5), 10), ("rate", 0.01, 10),
        ("bits_per_char/training", bits(15.5), 20), ("rate", 0.01, 20),
        ("bits_per_char/training", bits(23.0), 25), ("rate", 0.01, 25),
        ("bits_per_char/validation", bits(1.5), 25),
    ]  # fmt: skip
    assert (writer.folder, writer.purge, writer.closed, told) == (str(tmp_path / "tensorboard"), None, True, [])


def test_going_back(tmp_path: Path, installed: list[Writer]) -> None:
    """What was written after the step that a run is resumed at, or stepped back to, no longer counts."""
    shown = Board(tmp_path, 7, lambda _: None)
    shown(done(10))
    shown(SteppedBack(12, 7, "loss", 0.5))
    shown(done(10, 3.0))

    assert [writer.purge for writer in installed] == [8, 8]
    assert installed[0].closed
    assert installed[1].scalars[0] == ("bits_per_char/training", bits(3.0), 10)


def test_a_full_disk_stops_no_run(tmp_path: Path, installed: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning that says why; after that nothing is tried again."""
    monkeypatch.setattr(Writer, "full", True)
    told: list[str] = []
    shown = Board(tmp_path, 0, told.append)
    for step in range(1, 31):
        shown(done(step))
    shown.close()

    assert len(told) == 1
    assert "No space left" in told[0]


def test_nothing_is_made_before_there_is_a_number(tmp_path: Path, installed: list[Writer]) -> None:
    """A run that ends before its first record leaves no folder."""
    Board(tmp_path, 0, lambda _: None).close()

    assert installed == []


@pytest.mark.usefixtures("missing")
def test_missing(lstmlm: Lstmlm, text: Path) -> None:
    """Where it is not, exit 2 before anything is made, in one message with the command that installs it."""
    result = lstmlm("train", text, *TINY, "--tensorboard")

    assert result.code == 2
    assert "pip install 'lstmlm[tensorboard]'" in result.err
    assert len(result.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_train(lstmlm: Lstmlm, text: Path, installed: list[Writer]) -> None:
    """A run writes its scalars below its folder and is the same run; --overwrite removes them, and no other file."""
    plain = lstmlm("train", text, *TINY, "--out", "plain")
    assert lstmlm("train", text, *TINY, "--out", "run", "--tensorboard").code == plain.code == 0
    steps = [step for name, _, step in installed[0].scalars if name == "bits_per_char/validation"]
    Path("run/tensorboard/notes.txt").write_text("mine")

    assert steps[-1] == 12
    assert installed[0].closed
    assert Path("run/metrics.jsonl").read_bytes() == Path("plain/metrics.jsonl").read_bytes()
    assert lstmlm("train", text, *TINY, "--out", "run", "--overwrite").code == 0
    assert [path.name for path in Path("run/tensorboard").iterdir()] == ["notes.txt"]
