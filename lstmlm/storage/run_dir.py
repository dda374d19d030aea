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
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lstmlm.errors import CheckpointError, SystemProblem, printable
from lstmlm.storage import aside, atomic, checkpoint
from lstmlm.storage.header import KINDS, Header, parse_json

ROOT = Path("runs")
SUFFIX = ".safetensors"
LOCK = ".lock"
HOLDER = ".lock.holder"
"""Who holds the lock: a file of its own, as a locked one cannot be read on Windows."""

_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
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
                f"no model given and no run below {printable(str(root))}/. Train one (lstmlm train stories), or name one."
            )
        model = runs[0].folder
    path = Path(model)
    if _exists(path) and not path.is_dir():
        return [path]
    order = sorted(KINDS, key=lambda name: name != kind)
    if present := _files(path, order):
        return present
    closed = _exists(path) and not os.access(path, os.X_OK)
    state = "permission denied" if closed else f"no {kind}{SUFFIX} in it" if _exists(path) else "not found"
    raise CheckpointError(f"model {printable(str(path)[:200])}: {state}. {_advice(path, root)}")


def is_model(name: str) -> bool:
    """Say whether a name is that of a checkpoint, or of a folder in which one lies."""
    return bool(_files(Path(name))) or (name.endswith(SUFFIX) and os.path.isfile(name))


def find(model: str | Path | None, kind: str = "best", root: Path = ROOT) -> Path:
    """Return the first of `candidates`."""
    return candidates(model, kind, root)[0]


def folder_of(path: Path) -> Path:
    """Return the run folder of a checkpoint, also of one that a killed --overwrite has set aside in it."""
    return path.parent.parent if path.parent.name in (aside.ASIDE, aside.MOVING) else path.parent


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


def contents(folder: Path) -> list[str]:
    """Return the names of what lies in a folder beside the lock of a run; none where there is no folder.

    Raises:
        SystemProblem: It may not be looked into.
    """
    try:
        return sorted({path.name for path in folder.iterdir()} - {LOCK, HOLDER})
    except FileNotFoundError:
        return []
    except OSError as error:
        raise atomic.problem(error, f"cannot look into {folder}") from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[str | None]:
    """Hold a run folder for writing until the block ends or the process dies, however it dies.

    Gives None, or a sentence to report where the file system has no locks: then two trainings in one folder are not
    prevented.

    Raises:
        SystemProblem: If another process holds it (named by number and host), or the folder cannot be written.
    """
    name, note = printable(str(folder)), None
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as until:
            warnings.simplefilter("ignore")  # that a lock is kept as a mere file, where a system has no better ones
            import filelock  # 50 ms that only training needs

            held = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
            if not folder.is_dir():  # filelock would make it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            try:
                until.enter_context(held)
            except filelock.Timeout:
                raise SystemProblem(
                    f"run folder {name}: in use by {_holder(folder)}. Wait for it, or choose another folder with --out."
                ) from None
            except OSError as error:
                if error.errno not in _LOCKLESS:
                    raise
                note = f"{name}: its file system has no locks, so two trainings in it are not kept apart. Start one at a time."
            who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            atomic.write_text(folder / HOLDER, who)
            until.callback(_forget, folder / HOLDER)
            kept = until.pop_all()
    except OSError as error:
        raise atomic.problem(error, f"cannot lock {folder}") from error
    with kept:
        yield note


def _forget(holder: Path) -> None:
    with contextlib.suppress(OSError):
        holder.unlink()


def _holder(folder: Path) -> str:
    """Return who holds a locked folder, as far as its note says so."""
    try:
        owner = parse_json(atomic.read_regular(folder / HOLDER, 1000).decode())
    except (OSError, ValueError):  # taken a moment ago, or somebody else's file
        return "another process"
    if not isinstance(owner, dict) or type(owner.get("pid")) is not int:
        return "another process"
    return f"process {owner['pid']} on {printable(str(owner.get('host'))[:100])}"


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
    for file in _files(folder):
        with contextlib.suppress(OSError):
            times.append(file.stat().st_mtime_ns)
    return max(times, default=None)


def _exists(path: Path) -> bool:
    """Whether there is something; what cannot be looked at, or cannot be a name, is not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _files(folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Return the checkpoints of a folder: of the run in it, or of one that a killed --overwrite has set aside."""
    for place in (folder, folder / aside.ASIDE, folder / aside.MOVING):
        if files := [file for kind in kinds if _exists(file := place / f"{kind}{SUFFIX}")]:
            return files
    return []


def _advice(path: Path, root: Path) -> str:
    """Say what was perhaps meant, or which runs there are, in one line."""
    names = [str(run.folder) for run in found(path) or found(root)]
    if not names:
        return f"There is no run below {printable(str(root))}/ either: train one (lstmlm train stories)."
    same = [name for name in names if Path(name).name.lower() == path.name.lower()]
    # The names alone: what all runs have in common, the folder that they lie in, makes none of them like another.
    alike = {Path(name).name: name for name in reversed([*map(str, _files(path.parent)), *names])}
    near = (
        same
        or [alike[name] for name in difflib.get_close_matches(path.name, alike, 1)]
        or [name for name in names if path.is_relative_to(name)]
        or [name for name in names if len(names) == 1 and Path(name).is_relative_to(path)]
    )
    if near:
        return f"Did you mean {printable(near[0])}?"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"There are: {', '.join(printable(name) for name in names[:_SHOWN])}{more}."
