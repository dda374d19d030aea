"""What must hold when the disk fails, the process is killed or the power goes, at every single call."""

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lstmlm
from lstmlm.errors import CheckpointError, SystemProblem
from lstmlm.storage import atomic
from lstmlm.storage.journal import Journal

ROOT = Path(lstmlm.__file__).parents[1]
OLD, NEW = b"the old text, " * 3, [b"the ", b"new text", b" in pieces"]
WHOLE = b"".join(NEW)
ERRORS = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS]


class Faulty(atomic.Disk):
    """A disk whose k-th call fails, once or for ever; error None: writes are short instead."""

    def __init__(self, at: int, error: int | None, for_ever: bool) -> None:
        self.at, self.error, self.for_ever = at, error, for_ever
        self.count, self.failed = 0, False

    def strikes(self) -> bool:
        """Count a call; say whether this one fails."""
        self.count += 1
        if self.count == self.at or (self.for_ever and self.count > self.at):
            self.failed = True
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            return True
        return False

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open, or fail."""
        self.strikes()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: atomic.Bytes) -> int:
        """Write, or fail, or write half."""
        half = self.strikes()
        return super().write(fd, memoryview(data)[: (len(data) + 1) // 2] if half else data)

    def fsync(self, fd: int) -> None:
        """Sync, or fail."""
        self.strikes()
        super().fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Truncate, or fail."""
        self.strikes()
        super().truncate(fd, size)

    def close(self, fd: int) -> None:
        """Close, and then perhaps say that it failed, as network drives do."""
        super().close(fd)
        self.strikes()

    def replace(self, source: Path, target: Path) -> None:
        """Rename, or fail."""
        self.strikes()
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove, or fail."""
        self.strikes()
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make a folder, or fail."""
        self.strikes()
        super().mkdir(path)


def _faults(monkeypatch: pytest.MonkeyPatch, error: int | None, for_ever: bool) -> Iterator[Faulty]:
    """Give disks that fail at the first call, the second, ... until one is never asked that often."""
    for at in itertools.count(1):
        faulty = Faulty(at, error, for_ever)
        monkeypatch.setattr(atomic, "calls", faulty)
        yield faulty
        if not faulty.failed:
            assert at > 5, "the failures were never reached"
            return


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("error", [*ERRORS, None])
def test_a_failing_call_never_loses_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None, for_ever: bool
) -> None:
    """Whatever call of a write fails, the file is the old or the new one, and the user is told what to do."""
    path = tmp_path / "file"
    for faulty in _faults(monkeypatch, error, for_ever):
        path.write_bytes(OLD)
        problem = None
        try:
            atomic.write_atomic(path, NEW)
        except SystemProblem as caught:
            problem = caught

        assert path.read_bytes() == WHOLE if problem is None else path.read_bytes() in (OLD, WHOLE)
        assert (problem is None) == (error is None or not faulty.failed)
        if problem:
            assert problem.exit_code == 5
            assert str(path) in str(problem)
            assert str(problem).count("\n") < 6
        if not for_ever:
            assert os.listdir(tmp_path) == ["file"]
        for stale in tmp_path.glob(".*"):
            stale.unlink()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from lstmlm.storage import atomic as disk

    class Deadly(disk.Disk):
        def __getattribute__(self, name):
            call = super().__getattribute__(name)
            def counted(*args):
                global left
                left -= 1
                if left == 0 and name == "write" and half:
                    call(args[0], memoryview(args[1])[:3])
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)
            return counted

    left, half = int(sys.argv[2]), int(sys.argv[3])
    disk.calls = Deadly()
    disk.write_atomic(Path(sys.argv[1]), [b"the ", b"new text", b" in pieces"])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 on this system")
@pytest.mark.parametrize("half", [0, 1])
def test_a_kill_at_any_call_leaves_a_whole_file(tmp_path: Path, half: int) -> None:
    """SIGKILL at the k-th call, for all k (also in the middle of a write), leaves the old file or the new one."""
    path, seen = tmp_path / "file", set()
    for at in itertools.count(1):
        path.write_bytes(OLD)
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(at), str(half)]
        status = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode

        assert path.read_bytes() in (OLD, WHOLE)
        seen.add(path.read_bytes())
        atomic.clean(tmp_path)
        assert os.listdir(tmp_path) == ["file"]
        if status == 0:
            break
        assert status == -signal.SIGKILL

    assert seen == {OLD, WHOLE}
    assert at > 8


class Losing(atomic.Disk):
    """A disk that does what it is asked, and remembers what a power loss at any moment could undo.

    The model: a name is durable once its folder is synced after the change, content once its file is synced after
    the write. Until then each change is kept, lost, or (content) kept as zeros, whatever happens to the others.
    """

    def __init__(self, folder: Path, syncs: bool = True) -> None:
        self.folder, self.syncs = folder, syncs
        self.names: dict[str, int] = {}  # durable names
        self.data: dict[int, bytes] = {}  # durable content of each file
        self.pending: list[tuple[str, int, str, bytes]] = []  # (change, file, name, content)
        self.live: dict[str, int] = {}  # names as the process sees them
        self.handles: dict[int, int | None] = {}  # open descriptor -> file, None for the folder
        self.states: list[set[tuple[tuple[str, bytes], ...]]] = []  # after each call, the folders that may be left
        for path in sorted(folder.iterdir()):
            self.live[path.name] = self.names[path.name] = len(self.data)
            self.data[len(self.data)] = path.read_bytes()

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open; a new file is a change of names."""
        fd = super().open(path, flags, mode)
        if path == self.folder:
            self.handles[fd] = None
            return fd
        if path.name not in self.live:
            file = len(self.data)
            self.data[file] = b""
            self.live[path.name] = file
            self.pending.append(("name", file, path.name, b""))
        self.handles[fd] = self.live[path.name]
        self.note()
        return fd

    def write(self, fd: int, data: atomic.Bytes) -> int:
        """Write at the end: a change of content."""
        file = self.handles[fd]
        assert file is not None
        self.pending.append(("data", file, "", bytes(data)))
        self.note()
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        """Make content, or names, durable."""
        if not self.syncs:
            return
        file = self.handles[fd]
        rest = []
        for change in self.pending:
            kind, of, name, data = change
            if kind == "data" and of == file:
                self.data[of] += data
            elif kind == "name" and file is None:
                self.names[name] = of
            elif kind == "gone" and file is None:
                self.names.pop(name, None)
            else:
                rest.append(change)
        self.pending = rest
        self.note()

    def replace(self, source: Path, target: Path) -> None:
        """Rename: the new name is one change, the disappearance of the old one another."""
        file = self.live.pop(source.name)
        self.live[target.name] = file
        self.pending += [("name", file, target.name, b""), ("gone", file, source.name, b"")]
        super().replace(source, target)
        self.note()

    def note(self) -> None:
        """Add every folder that a power loss now could leave."""
        states = set()
        choices = [("kept", "lost", "zeros") if change[0] == "data" else ("kept", "lost") for change in self.pending]
        for fates in itertools.product(*choices):
            names, data = dict(self.names), dict(self.data)
            for (kind, file, name, content), fate in zip(self.pending, fates, strict=True):
                if kind == "data":
                    # Lost in the middle of a file that grew is a hole, which reads as zeros; at the end it is short.
                    data[file] += {"kept": content, "zeros": bytes(len(content)), "lost": b""}[fate]
                elif fate == "kept" and kind == "name":
                    names[name] = file
                elif fate == "kept":
                    names.pop(name, None)
            states.add(tuple((name, data[file]) for name, file in sorted(names.items())))
        self.states.append(states)


def test_a_power_loss_at_any_call_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losing any subset of what is not yet synced leaves the old or the new file, and the new one once it returned."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    losing = Losing(tmp_path)
    monkeypatch.setattr(atomic, "calls", losing)
    atomic.write_atomic(path, NEW)
    left = [[dict(state)["file"] for state in states] for states in losing.states]

    assert {content for contents in left for content in contents} == {OLD, WHOLE}
    assert set(left[-1]) == {WHOLE}
    assert sum(map(len, left)) > 50


def test_the_power_loss_model_notices_a_missing_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without syncs the model finds torn files: so the test above can fail."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    losing = Losing(tmp_path, syncs=False)
    monkeypatch.setattr(atomic, "calls", losing)
    atomic.write_atomic(path, NEW)

    assert not {dict(state)["file"] for states in losing.states for state in states} <= {OLD, WHOLE}


def test_a_power_loss_never_leaves_a_checkpoint_ahead_of_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the journal synced before the file that holds its length, every state left has all the records it needs."""
    losing = Losing(tmp_path)
    monkeypatch.setattr(atomic, "calls", losing)
    path, states = tmp_path / "metrics.jsonl", 0
    with Journal.open(path) as journal:
        for step in range(3):
            journal.append({"step": step})
            journal.append({"step": step, "loss": 1.5})
            journal.sync()
            atomic.write_text(tmp_path / "last", str(journal.size))
    text = path.read_bytes()

    for state in itertools.chain.from_iterable(losing.states):
        files = dict(state)
        if "last" in files:
            size = int(files["last"])
            assert files["metrics.jsonl"][:size] == text[:size]
            states += 1
    assert states > 50


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    """Line ends, accents and bytes of file names that are no UTF-8 come out as they went in; the size is told."""
    path = tmp_path / "config.yaml"
    size = atomic.write_text(path, "a\r\nb\ré\udc80\n")

    assert path.read_bytes() == b"a\r\nb\r\xc3\xa9\x80\n"
    assert size == 9


@pytest.mark.skipif(os.name == "nt", reason="there is no umask on this system")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A file gets the permissions that any program's new file gets, not those of a private temporary one."""
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_clean_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    """Drafts of dead processes go, whatever number they had; one that is being written and all other files stay."""
    gone = {".last.safetensors.1.tmp", f".config.yaml.{os.getpid()}.tmp", f".file.{os.getppid()}.tmp", ".a.0123456789abcdef.tmp"}
    kept = {"last.safetensors", ".lock", "a.1.tmp", ".b.x.tmp"}
    for name in gone | kept:
        (tmp_path / name).write_text("")
    (tmp_path / ".link.1.tmp").symlink_to(tmp_path / "last.safetensors")
    draft = atomic.Draft(tmp_path, "file")
    removed = atomic.clean(tmp_path)
    draft.write(b"text")
    draft.commit(tmp_path / "file")

    assert {path.name for path in removed} == gone
    assert set(os.listdir(tmp_path)) == {*kept, ".link.1.tmp", "file"}
    assert (tmp_path / "file").read_bytes() == b"text"


ELSEWHERE = """
    import sys
    from pathlib import Path
    from lstmlm.storage import atomic as disk
    print("cleaning", flush=True)
    while True:
        disk.clean(Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no flock on this system")
def test_cleaning_meets_writing(tmp_path: Path) -> None:
    """Another process that cleans all the while, as one of another machine would, never takes a file that is being written."""
    command = [sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"cleaning\n"
        try:
            for _ in range(200):
                atomic.write_atomic(tmp_path / "file", NEW)
            assert other.poll() is None
        finally:
            other.kill()

    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("age", "stays"), [(60, True), (100_000, False)])
def test_without_locks_a_draft_goes_with_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, stays: bool) -> None:
    """Where a file cannot be locked, only a draft that nobody has written to for a day is taken for a dead one's."""
    draft = tmp_path / ".file.1.tmp"
    draft.write_text("")
    os.utime(draft, (time.time() - age,) * 2)
    monkeypatch.setattr(atomic, "_flock", lambda fd, *, wait: None)
    atomic.clean(tmp_path)

    assert draft.exists() == stays


@pytest.mark.parametrize("kind", ["FIFO", "folder", "/dev/zero", "/proc/kmsg"])
def test_what_is_no_plain_file_is_never_waited_for(tmp_path: Path, kind: str) -> None:
    """A FIFO, a folder, a device and a file that says nothing yet are refused at once, whoever reads or writes there."""
    path = tmp_path / "file"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif Path(kind).exists():
        path.symlink_to(kind)
    else:
        pytest.skip(f"no {kind}")
    with pytest.raises((OSError, ValueError)):
        atomic.read_regular(path, 1 << 20)
    with pytest.raises((CheckpointError, SystemProblem)):
        Journal.open(path)


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    """Of a longer file the first bytes come, of a shorter one all of them."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 9000)

    assert atomic.read_regular(path, 1_500_000) == path.read_bytes()[:1_500_000]
    assert atomic.read_regular(path, 1 << 30) == path.read_bytes()


@pytest.mark.parametrize("error", ERRORS)
def test_make_folder_says_why_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """A folder that cannot be made is exit 5 with the reason; what was made on the way is no harm to a second try."""
    path = tmp_path / "a" / "b"
    for at in range(1, 9):
        monkeypatch.setattr(atomic, "calls", Faulty(at, error, for_ever=True))
        with pytest.raises(SystemProblem, match="cannot make the folder"):
            atomic.make_folder(tmp_path / f"{at}" / "b" / "c")
    monkeypatch.setattr(atomic, "calls", atomic.Disk())
    atomic.make_folder(path)
    atomic.make_folder(path)

    assert path.is_dir()


def test_make_folder_refuses_a_file_in_its_place(tmp_path: Path) -> None:
    """A file where the folder should be is exit 5, at the end of the path and in the middle."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SystemProblem, match="a file, not a folder"):
            atomic.make_folder(path)


def test_an_error_is_one_short_message_without_control_characters() -> None:
    """Every errno, known or not, becomes one printable line that ends with a next step."""
    for number in [*errno.errorcode, 0, 99999]:
        text = str(atomic.problem(OSError(number, "words"), "cannot write a\x1b]8;;x\x07b"))

        assert text.isprintable()
        assert text.endswith(".")
