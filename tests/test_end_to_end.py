"""Real processes: killed at any moment, stopped by signals, resumed to the same bits.

Most of them are forked from this one, which has torch already: starting up takes seconds, and writes nothing.
"""

import io
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm.display import progress_view
from lstmlm.display.progress_view import RunView
from lstmlm.storage import atomic
from lstmlm.training import events, validation
from tests.cli.conftest import call
from tests.cli.test_train import digest

ROOT = Path(__file__).resolve().parents[1]
TEXT = "Où est Bob? Bob est là; Ann le voit.\nAnn is there, and Bob is not.\n" * 12
FLAGS = [
    "--steps", "24", "--hidden", "9", "--layers", "2", "--dropout", "0.3", "--batch", "4", "--window", "12", "--threads", "1",
    "--set", "train.eval_every=7", "--set", "train.save_every=4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LSTMLM_KERNEL", "eager")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(validation, "SAMPLE_LENGTH", 10)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    warm(tmp_path_factory.mktemp("warm"))


def warm(folder: Path) -> None:
    """Train once in this process: what torch imports only when it is used, no forked process imports again."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    result = call("train", folder / "text.txt", *FLAGS, "--steps", "2", "--out", folder / "run", "-q")
    assert result.code == 0, result.err


def train(*flags: str, before: Callable[[], None] = lambda: None) -> int:
    """Fork a process that trains; return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a fork would lose: there are none at work
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        nowhere = os.open("err.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8") for fd in (1, 2))
        sys.argv = ["lstmlm", "train", "text.txt", *flags]
        before()
        from lstmlm.cli import main

        main()
    except SystemExit as left:
        code = int(left.code or 0)
    except KeyboardInterrupt:  # between the command's end and the process's: as in lstmlm/__main__.py
        code = 130
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; return its exit code, below zero for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(call: int) -> Callable[[], None]:
    """Let a process be killed at its so many-th call on the way to the disk."""

    def prepare() -> None:
        left = [call]

        def counted(name: str) -> Callable[..., object]:
            honest = getattr(atomic.Disk, name)

            def method(self: atomic.Disk, *args: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return honest(self, *args)

            return method

        methods = ("open", "write", "fsync", "truncate", "close", "replace", "unlink", "mkdir")
        atomic.calls = type("Dying", (atomic.Disk,), {name: counted(name) for name in methods})()

    return prepare


def resume(out: str, before: Callable[[], None] = lambda: None) -> int:
    """Go on with a run that was killed, or begin it again where nothing of it was committed."""
    started = Path(out, "config.yaml").exists()
    return ended(train(*FLAGS, "--out", out, "--resume" if started else "--overwrite", before=before))


def signalled(rng: random.Random, count: int, expected: dict[str, str], within: float = 10.0) -> list[str]:
    """Send signals to runs at random moments, every third time a second one; return what was not as it should be.

    Args:
        rng: Where the moments come from.
        count: How many runs.
        expected: Digests of the uninterrupted run, which each has to reach when it is resumed.
        within: Seconds from the first signal to the end.
    """
    wrong = []
    began = time.monotonic()
    assert resume("unsignalled") == 0
    seconds = time.monotonic() - began
    for index in range(count):
        out, numbers = f"signal{index}", [rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))]
        if index % 3 == 2:
            numbers.append(rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
        Path("err.txt").write_text("")
        pid = train(*FLAGS, "--out", out)
        time.sleep(rng.random() * seconds)
        began = time.monotonic()
        for number in numbers:
            os.kill(pid, number)
            time.sleep(rng.random() * 0.005)
        code, told = ended(pid), Path("err.txt").read_text()
        late = time.monotonic() - began > within
        # Before the handlers are there the system itself ends a process: a shell says 128 + n for that too.
        codes = [0, *(128 + number for number in numbers), *(-number for number in numbers)]
        lines = told.count("saving after this step")
        saved = "the checkpoint is saved" in told
        if code not in codes or "Traceback" in told or late or lines > 1 or (saved and code != 128 + numbers[0]):
            wrong.append(f"{out}: {[number.name for number in numbers]}, exit {code}, {told[-500:]!r}")
        if resume(out) != 0 or digest(Path(out)) != expected:
            wrong.append(f"{out}: {[number.name for number in numbers]}, other bits")
    return wrong


@pytest.fixture
def whole() -> dict[str, str]:
    """Return digests of the uninterrupted run."""
    assert ended(train(*FLAGS, "--out", "whole")) == 0, Path("err.txt").read_text()
    return digest(Path("whole"))


@pytest.mark.slow
def test_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped at a step and resumed by a process started from nothing leaves the same bits as one that was not."""
    monkeypatch.setattr(validation, "SAMPLE_LENGTH", 240)  # as in the other process
    assert ended(train(*FLAGS, "--out", "whole")) == 0
    assert ended(train(*FLAGS, "--out", "halves", before=signal_at(10, signal.SIGTERM))) == 143

    command = [sys.executable, "-m", "lstmlm", "train", "text.txt", *FLAGS, "--out", "halves", "--resume", "-q"]
    second = subprocess.run(command, capture_output=True, timeout=120)

    assert (second.returncode, second.stdout, second.stderr) == (0, b"", b"")
    assert digest(Path("halves")) == digest(Path("whole"))


@pytest.mark.slow
def test_killed_at_disk_calls(whole: dict[str, str]) -> None:
    """A process killed at any one of its calls on the way to the disk loses nothing that resuming does not bring back."""
    differing = []
    for at in (1, 2, 3, 5, 8, 13, *range(20, 140, 17)):
        out = f"killed{at}"
        code = ended(train(*FLAGS, "--out", out, before=die_at(at)))
        assert code == -signal.SIGKILL, f"call {at}: {code}"
        if resume(out) != 0 or digest(Path(out)) != whole:
            differing.append(at)

    assert differing == []


@pytest.mark.slow
def test_killed_again_and_again(whole: dict[str, str]) -> None:
    """A run whose process is killed every few calls on the way to the disk, resuming included, still ends the same."""
    kills = 0
    for at in [25, 31, 40, 18, 44, 27, 50, 60, 70, 80]:
        code = resume("patient", die_at(at))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert resume("patient") == 0

    assert kills >= 3
    assert digest(Path("patient")) == whole


@pytest.mark.slow
def test_killed_at_random_moments(whole: dict[str, str]) -> None:
    """Kill -9 at random moments of training, as often as it takes, changes no bit of the end."""
    rng = random.Random(3)
    began = time.monotonic()
    assert resume("timed") == 0
    seconds = time.monotonic() - began
    for index in range(6):
        out = f"timed{index}"
        pid = train(*FLAGS, "--out", out)
        time.sleep(rng.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) in (0, -signal.SIGKILL)
        assert resume(out) == 0, Path("err.txt").read_text()

        assert digest(Path(out)) == whole


def signal_at(step: int, *numbers: int) -> Callable[[], None]:
    """Let signals come to a process right after a step."""

    def prepare() -> None:
        class View(RunView):
            def __call__(self, record: events.Event) -> None:
                super().__call__(record)
                if isinstance(record, events.StepDone) and record.step == step:
                    for number in numbers:
                        os.kill(os.getpid(), number)

        vars(progress_view)["RunView"] = View

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("step", [1, 7])
def test_signals(whole: dict[str, str], number: int, code: int, step: int) -> None:
    """INT, TERM and HUP end with their own exit code and a committed checkpoint that resumes to the same bits."""
    assert ended(train(*FLAGS, "--out", "stopped", before=signal_at(step, number))) == code

    told = Path("err.txt").read_text()
    assert f"{signal.Signals(number).name}: saving after this step" in told
    assert f"stopped at step {step}: the checkpoint is saved" in told
    assert "Traceback" not in told
    assert resume("stopped") == 0
    assert digest(Path("stopped")) == whole


def test_second_signal(whole: dict[str, str]) -> None:
    """A second signal leaves at once, without a checkpoint of its own, and harms nothing."""
    assert ended(train(*FLAGS, "--out", "hasty", before=signal_at(6, signal.SIGINT, signal.SIGTERM))) == 143
    assert "stopped at step" not in Path("err.txt").read_text()

    assert resume("hasty") == 0
    assert digest(Path("hasty")) == whole


def test_ignored_hangup(whole: dict[str, str]) -> None:
    """A run under nohup does not stop when its terminal goes."""

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_at(5, signal.SIGHUP)()

    assert ended(train(*FLAGS, "--out", "nohup", before=prepare)) == 0
    assert digest(Path("nohup")) == whole


def test_two_at_once() -> None:
    """While one process trains in a folder, a second one leaves with exit 5; a killed owner's lock is free."""

    def wait() -> None:
        signal_at(2, signal.SIGSTOP)()

    owner = train(*FLAGS, "--out", "shared", before=wait)
    os.waitpid(owner, os.WUNTRACED)  # it stands still in the middle of its training
    second = ended(train(*FLAGS, "--out", "shared", "--resume"))
    told = Path("err.txt").read_text()
    os.kill(owner, signal.SIGKILL)
    ended(owner)

    assert second == 5
    assert f"in use by process {owner}" in told
    assert resume("shared") == 0
