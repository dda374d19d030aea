"""The run folder: which checkpoint a user means, and who may write.

A run is a folder with `best.safetensors` or `last.safetensors` in it. `load` opens the one that a MODEL argument means, for
`api` and `info`; `lock` keeps two trainings apart, for `train`.
"""

import contextlib
import difflib
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lstmlm.errors import CheckpointError, SystemProblem, printable
from lstmlm.storage import atomic, checkpoint
from lstmlm.storage.header import KINDS, Header, parse_json

ROOT = Path("runs")
SUFFIX = ".safetensors"
LOCK = ".lock"

_Read = TypeVar("_Read")

_DEPTH = 3  # runs/a, runs/a/b and runs/a/b/c are found
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run folder and when its newest checkpoint was written, in nanoseconds."""

    folder: Path
    changed: int


def found(root: Path = ROOT) -> list[RunDir]:
    """Return the runs below a folder, the newest first; equal ages in order of name."""
    runs: list[RunDir] = []
    _collect(root, _DEPTH, runs)
    return sorted(runs, key=lambda run: (-run.changed, str(run.folder)))


def candidates(model: str | Path | None, kind: str = "best", root: Path = ROOT) -> list[Path]:
    """Return the checkpoints that a MODEL argument can mean, the one asked for first.

    Args:
        model: A run folder, a file, or None for the newest run below `root`.
        kind:  "best" or "last": which of a run comes first.
        root:  Where runs are.

    Raises:
        CheckpointError: If there is none; names the runs that exist and what was perhaps meant.
    """
    if model is None:
        runs = found(root)
        if not runs:
            raise CheckpointError(
                f"no model given and no run below {printable(str(root))}/. Train one (lstmlm train stories), or name one with -m."
            )
        model = runs[0].folder
    path = Path(model)
    if _exists(path) and not path.is_dir():
        return [path]
    order = sorted(KINDS, key=lambda name: name != kind)
    if present := _files(path, order):
        return present
    state = f"no {kind}{SUFFIX} in it" if _exists(path) else "not found"
    raise CheckpointError(f"model {printable(str(path)[:200])}: {state}. {_advice(path, root)}")


def find(model: str | Path | None, kind: str = "best", root: Path = ROOT) -> Path:
    """Return the first of `candidates`."""
    return candidates(model, kind, root)[0]


def load(
    model: str | Path | None,
    kind: str = "best",
    *,
    report: Callable[[str], None] | None = None,
    check: Callable[[Header], object] | None = None,
    root: Path = ROOT,
) -> tuple[Path, checkpoint.Checkpoint]:
    """Read the checkpoint that a MODEL argument means; where it is damaged, the other one of the run.

    Args:
        model:  As in `candidates`.
        kind:   As in `candidates`.
        report: Called with a sentence when the first one is refused and the other one is used. None: never fall back.
        check:  As in `checkpoint.read`.
        root:   As in `candidates`.

    Returns:
        The path that was read, and what it holds.

    Raises:
        CheckpointError: If none can be read; that of the one asked for.
    """
    return _first_whole(candidates(model, kind, root), lambda path: checkpoint.read(path, check), report)


def load_header(
    model: str | Path | None, report: Callable[[str], None], check: Callable[[Header], object]
) -> tuple[Path, Header]:
    """Read what the best checkpoint of a MODEL argument says about itself, but not its tensors; otherwise as `load`."""
    return _first_whole(candidates(model), lambda path: checkpoint.read_header(path, check), report)


def _first_whole(paths: list[Path], read: Callable[[Path], _Read], report: Callable[[str], None] | None) -> tuple[Path, _Read]:
    """Return the first path that can be read, and what was read from it."""
    first: CheckpointError | None = None
    for path in paths:
        try:
            state = read(path)
        except CheckpointError as error:
            first = first or error
            if report is None:
                break
            continue
        if first and report:
            report(f"{first} Using {printable(str(path))} instead.")
        return path, state
    assert first is not None
    raise first


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[str | None]:
    """Hold a run folder for writing until the block ends or the process dies, however it dies.

    Gives None, or a sentence to report where the system has no such lock (not POSIX, some network drives): then two
    trainings in one folder are not prevented.

    Raises:
        SystemProblem: If another process holds it (named by number and host), or the folder cannot be written.
    """
    try:
        fd, note = _acquire(folder)
    except OSError as error:
        raise atomic.problem(error, f"cannot lock {folder}") from error
    try:
        yield note
    finally:
        os.close(fd)  # the file stays: removing it would let two processes lock two files of one name


def _acquire(folder: Path) -> tuple[int, str | None]:
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        fd = os.open(path, flags, 0o666)
        try:
            note = _flock(fd, folder)
            if note is None and not _same(fd, path):  # the folder was removed and made again meanwhile
                os.close(fd)
                continue
            os.ftruncate(fd, 0)
            os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        return fd, note


def _flock(fd: int, folder: Path) -> str | None:
    """Take the lock; return why there is none, where the system has none."""
    name = printable(str(folder))
    try:
        import fcntl  # only POSIX has it
    except ImportError:
        return f"{name} is not locked, because this system has no flock: train only once in it at a time."
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemProblem(
            f"run folder {name}: in use by {_holder(fd)}. Wait for it, or choose another folder with --out."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            raise
        return f"{name} is not locked, because its file system has no locks: train only once in it at a time."
    return None


def _holder(fd: int) -> str:
    """Return who wrote the lock file, as far as it says so."""
    try:
        owner = parse_json(os.read(fd, 1000).decode())
    except (OSError, ValueError):  # taken a moment ago, or somebody else's file
        return "another process"
    if not isinstance(owner, dict) or type(owner.get("pid")) is not int:
        return "another process"
    return f"process {owner['pid']} on {printable(str(owner.get('host'))[:100])}"


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _collect(folder: Path, depth: int, runs: list[RunDir]) -> None:
    """Add the runs below a folder; what cannot be looked at is no run."""
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not entry.is_dir():
                    continue
                path = folder / entry.name
                if (changed := _changed(path)) is not None:
                    runs.append(RunDir(path, changed))
                elif depth > 1:
                    _collect(path, depth - 1, runs)


def _changed(folder: Path) -> int | None:
    """Return when the newest checkpoint of a folder was written; None if it has none."""
    times = []
    for kind in KINDS:
        with contextlib.suppress(OSError):
            times.append((folder / f"{kind}{SUFFIX}").stat().st_mtime_ns)
    return max(times, default=None)


def _exists(path: Path) -> bool:
    """Whether there is something; what cannot be looked at, or cannot be a name, is not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _files(folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Return the checkpoints of a folder."""
    return [file for kind in kinds if _exists(file := folder / f"{kind}{SUFFIX}")]


def _advice(path: Path, root: Path) -> str:
    """Say what was perhaps meant, or which runs there are, in one line."""
    names = [str(run.folder) for run in found(path) or found(root)]
    if not names:
        return f"There is no run below {printable(str(root))}/ either: train one (lstmlm train stories)."
    wanted = str(path)
    same = [name for name in names if Path(name).name.lower() == path.name.lower()]
    near = (
        same
        or difflib.get_close_matches(wanted, [*map(str, _files(path.parent)), *names], 1)
        or [name for name in names if difflib.get_close_matches(path.name, [Path(name).name], 1)]
    )
    if near:
        return f"Did you mean {printable(near[0])}?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"There are: {', '.join(printable(name) for name in names[:_SHOWN])}{more}."
