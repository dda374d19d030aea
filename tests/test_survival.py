"""What can happen to a run between its first step and its last, in real processes: signals, full disks, tight places."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lstmlm.cli import sample
from lstmlm.storage import checkpoint
from tests import test_end_to_end as processes
from tests.cli.conftest import TEXT, call
from tests.cli.test_train import digest
from tests.test_end_to_end import FLAGS, ROOT, ended, resume, signal_at, train

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

assert sample  # imported here, so that no forked process has to


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LSTMLM_KERNEL", "eager")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("lstmlm.training.validation.SAMPLE_LENGTH", 10)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    processes.warm(tmp_path_factory.mktemp("warm"))


@pytest.fixture
def whole() -> dict[str, str]:
    """Return digests of the uninterrupted run."""
    assert ended(train(*FLAGS, "--out", "whole")) == 0, Path("err.txt").read_text()
    return digest(Path("whole"))


@pytest.mark.slow
def test_signals_at_random_moments(whole: dict[str, str]) -> None:
    """INT, TERM and HUP, every third time a second one behind it: the right exit code, one line, and nothing harmed."""
    assert processes.signalled(random.Random(4), 12, whole) == []


@pytest.mark.slow
def test_killed_with_the_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for the eager kernel holds for the one in C: killed at calls on the way to the disk, the same bits."""
    monkeypatch.setenv("LSTMLM_KERNEL", "native")
    if "kernel native" not in call("train", "text.txt", *FLAGS, "--steps", "1", "--out", "one").err:
        pytest.skip("this machine cannot build or run the native kernel")
    assert ended(train(*FLAGS, "--out", "whole")) == 0
    expected = digest(Path("whole"))
    for at in (30, 61, 97):
        out = f"killed{at}"
        assert ended(train(*FLAGS, "--out", out, before=processes.die_at(at))) == -signal.SIGKILL
        assert resume(out) == 0

        assert digest(Path(out)) == expected


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 600 KB, where this process may."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("this system has no mount")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this process may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_full_disk(small: Path) -> None:
    """A real disk that fills up while training: exit 5 with what to do, nothing lost, and the same bits after space is made."""
    big = ["--steps", "12", "--hidden", "24", *FLAGS[4:], "--set", "train.save_every=1"]
    assert ended(train(*big, "--out", "whole")) == 0, Path("err.txt").read_text()
    size = Path("whole/last.safetensors").stat().st_size
    assert 3 * size < 600_000
    codes = []
    for free in range(1, 4):  # space for one state, two, three: it is full at different calls
        out = small / f"run{free}"
        ballast = small / "ballast"
        ballast.write_bytes(bytes(max(0, os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - free * size - 9000)))
        Path("err.txt").write_text("")
        codes.append(ended(train(*big, "--out", str(out))))
        told = Path("err.txt").read_text()
        ballast.unlink()
        if codes[-1] != 0:
            assert codes[-1] == 5, told
            assert "the disk is full. Free some space" in told
            assert "Traceback" not in told
            began = (out / "config.yaml").exists()
            Path("err.txt").write_text("")
            assert ended(train(*big, "--out", str(out), "--resume" if began else "--overwrite")) == 0, Path("err.txt").read_text()
        assert digest(out) == digest(Path("whole"))
        shutil.rmtree(out)

    assert 5 in codes


def test_a_full_disk_deletes_nothing_with_overwrite(small: Path) -> None:
    """Where there is no space for a new run, --overwrite is exit 5 and the old run is there to the bit."""
    out = small / "run"
    assert ended(train(*FLAGS, "--out", str(out))) == 0
    before = digest(out)
    (small / "ballast").write_bytes(bytes(os.statvfs(small).f_bavail * os.statvfs(small).f_frsize))

    assert ended(train(*FLAGS, "--hidden", "60", "--out", str(out), "--overwrite")) == 5
    assert digest(out) == before


@pytest.mark.slow
def test_a_thousand_loads_while_training() -> None:
    """A run that saves after each step is read a thousand times meanwhile: each checkpoint is whole, none older than the last."""
    endless = [
        "--steps",
        "1000000",
        *FLAGS[2:],
        "--set",
        "train.save_every=1",
        "--set",
        "train.eval_every=5",
        "--set",
        "train.patience=0",
    ]
    pid = train(*endless, "--out", "run")
    path = Path("run/last.safetensors")
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        steps = []
        for turn in range(1000):
            steps.append(checkpoint.read(path).meta["step"])
            if turn % 250 == 249:
                assert call("info", "run").code == 0
                assert call("sample", "-m", "run", "--length", "3", "--threads", "1").code == 0
    finally:
        os.kill(pid, signal.SIGTERM)
        code = ended(pid)

    assert code == 143
    assert steps == sorted(steps)
    assert len(set(steps)) > 3


# Tight places


def test_no_home_and_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HOME, and with a TMPDIR that is not there, a run begins, ends and is read."""
    for name in ("HOME", "LSTMLM_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    monkeypatch.setattr("tempfile.tempdir", None)

    assert ended(train(*FLAGS, "--out", "run")) == 0, Path("err.txt").read_text()
    assert call("sample", "-m", "run", "--length", "3", "--threads", "1").code == 0


def test_read_only_folder(small: Path) -> None:
    """In a folder that is read-only training is exit 5 and says so; reading and sampling work."""
    assert ended(train(*FLAGS, "--out", str(small / "run"))) == 0
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    for out in ("new", "run"):
        Path("err.txt").write_text("")
        way = ["--resume"] if out == "run" else []
        assert ended(train(*FLAGS, "--out", str(small / out), *way)) == 5
        assert "read-only" in Path("err.txt").read_text()

    assert call("info", small / "run").code == 0
    assert call("sample", "-m", small / "run", "--length", "3", "--threads", "1").code == 0


@pytest.mark.slow
def test_few_file_descriptors(whole: dict[str, str]) -> None:
    """With 64 file descriptors, or so many less that nothing can be opened, a run ends the same or says why it cannot."""

    def limited(left: int) -> int:
        def few() -> None:
            os.closerange(3, 4096)  # what the process of the tests happens to hold open is not the run's
            resource.setrlimit(resource.RLIMIT_NOFILE, (left, left))

        return ended(train(*FLAGS, "--out", f"run{left}", before=few))

    assert limited(64) == 0, Path("err.txt").read_text()
    assert digest(Path("run64")) == whole
    opened = max(int(name) for name in os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 10
    for left in range(3, 8):
        Path("err.txt").write_text("")
        code = limited(left)
        told = Path("err.txt").read_text()
        assert code in (0, 3, 5), (opened, told)
        assert "Traceback" not in told
        assert code == 0 or "oo many open files" in told


def test_no_network(whole: dict[str, str]) -> None:
    """Where opening any socket is an accident, training does not notice."""

    def cut_off() -> None:
        def refuse(*_: object, **__: object) -> None:
            os._exit(77)

        import socket

        vars(socket)["socket"] = refuse
        vars(socket)["create_connection"] = refuse
        vars(socket)["getaddrinfo"] = refuse

    assert ended(train(*FLAGS, "--out", "run", before=cut_off)) == 0
    assert digest(Path("run")) == whole


@pytest.mark.parametrize("jump", [-3600.0, 1e9, -1e9])
def test_a_clock_that_is_set(whole: dict[str, str], jump: float) -> None:
    """The clock of the wall set back or on in the middle of a run changes nothing: same bits, no trouble with ages."""

    def set_clock() -> None:
        honest, began = time.time, time.time()
        vars(time)["time"] = lambda: honest() + (jump if honest() - began > 0.05 else 0)

    assert ended(train(*FLAGS, "--out", "run", before=set_clock)) == 0
    assert digest(Path("run")) == whole
    os.utime("run/last.safetensors", (0, 4e9))

    assert resume("run") == 0
    assert call("sample", "-m", "run", "--length", "3", "--threads", "1").code == 0


@pytest.mark.slow
def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 40 columns, 20, or 1, every command does what it does on 80."""
    for columns in ("40", "20", "1"):
        monkeypatch.setenv("COLUMNS", columns)
        assert call("train", "text.txt", *FLAGS, "--steps", "2", "--out", f"run{columns}", "-v").code == 0
        for line in ("info run40", "sample -m run40 --length 9", "eval text.txt -m run40", "inspect Bob -m run40 --top 2"):
            assert call(*line.split()).code == 0, (columns, line)


def test_folders_that_go_away(whole: dict[str, str]) -> None:
    """A run folder that is deleted under a training process is exit 5 in words; one that is moved away is too, and resumes."""
    for away in (shutil.rmtree, lambda folder: os.rename(folder, "moved")):
        Path("err.txt").write_text("")
        pid = train(*FLAGS, "--out", "run", before=signal_at(5, signal.SIGSTOP))
        os.waitpid(pid, os.WUNTRACED)
        away("run")
        os.kill(pid, signal.SIGCONT)

        assert ended(pid) == 5
        assert "Traceback" not in Path("err.txt").read_text()
    assert resume("moved") == 0
    assert digest(Path("moved")) == whole


# Other systems

ONLY_POSIX = (
    "fcntl",
    "resource",
    "termios",
    "tty",
    "pty",
    "pwd",
    "grp",
    "posix_ipc",
    "syslog",
    "crypt",
    "nis",
    "spwd",
    "readline",
    "curses",
)
ELSEWHERE = """
import os, pkgutil, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {hidden!r}:
            raise ModuleNotFoundError(f"no module named {{name!r}}", name=name)
for name in {hidden!r}:
    sys.modules.pop(name, None)
{torch}
for name in {hidden!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for name in ("O_NONBLOCK", "O_NOCTTY", "O_NOFOLLOW", "sched_getaffinity", "getuid", "geteuid", "fork", "mkfifo"):
    vars(os).pop(name, None)
import signal
for name in ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGALRM", "setitimer"):
    vars(signal).pop(name, None)
import lstmlm
for module in pkgutil.walk_packages(lstmlm.__path__, "lstmlm."):
    if {torch!r} or not module.name.startswith(("lstmlm.kernels", "lstmlm.cli.inspect")):
        {load}
from lstmlm.cli import main
for line in {lines!r}:
    sys.argv = ["lstmlm", *line.split()]
    try:
        main()
    except SystemExit as left:
        assert left.code == 0, (line, left.code)
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_torch", [False, True])
def test_without_what_only_posix_has(with_torch: bool) -> None:
    """With fcntl and its like hidden every module loads, and training, resuming and sampling work without a warning."""
    lines = ["train -h", "train text.txt --print-config"]
    if with_torch:
        flags = " ".join(FLAGS)
        lines = [
            f"train text.txt {flags} --out run",
            f"train text.txt {flags} --out run --resume",
            "sample -m run --length 3",
            "info run",
        ]
    load = "__import__(module.name)" if with_torch else "pass"
    torch = "import torch, torch._dynamo" if with_torch else ""  # torch itself may need them
    script = textwrap.dedent(ELSEWHERE).format(hidden=ONLY_POSIX, torch=torch, load=load, lines=lines)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fine"
    assert "Warning" not in done.stderr
