"""The files that a new run takes the place of: out of the way until it is committed, and back unless it is.

`set_aside` and `put_back` are the entry points, for `training`. Their calls go to the disk through `atomic.calls`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lstmlm.storage import atomic

ASIDE = ".old"
"""Folder with the files that a new run takes the place of, complete, until the new run is committed."""
MOVING = ".old.moving"
"""The same while files are on their way into it or back."""
_REPLACED = ".old.done"


@contextlib.contextmanager
def set_aside(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Take files out of the way while others take their place, and put them back unless that is done.

    All of them lie in the folder `ASIDE` while the block runs. The one rename that ends it is the commit: before that,
    whatever happens, `put_back` in this process or in a later one makes the folder as it was.

    Args:
        folder: Locked by the caller.
        names: Of files in it, some perhaps a folder deeper; they need not exist.

    Raises:
        SystemProblem: If the system refuses, here or in the block; the files are as they were.
    """
    try:
        try:
            began = _move_aside(folder, names)
            yield
            if began:
                atomic.calls.replace(folder / ASIDE, folder / _REPLACED)
                atomic.sync_folder(folder)
        except BaseException:
            put_back(folder, names)
            raise
    except OSError as error:
        raise atomic.problem(error, f"cannot begin a run in {folder}") from error
    _remove(folder / _REPLACED)


def put_back(folder: Path, names: Sequence[str]) -> None:
    """Put back what `set_aside` took away and nothing has replaced, and remove what it has replaced.

    What the system refuses now stays set aside until the next call.

    Args:
        folder: Locked by the caller.
        names: As `set_aside` was given.
    """
    with contextlib.suppress(OSError):
        if (folder / ASIDE).is_dir():  # complete: what has one of the names now is new
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    atomic.calls.unlink(folder / name)
            with contextlib.suppress(OSError):  # a disk that refuses this may still rename
                atomic.sync_folder(folder)
            atomic.calls.replace(folder / ASIDE, folder / MOVING)
        if (folder / MOVING).is_dir():
            for path in _files_below(folder / MOVING):
                atomic.calls.replace(path, folder / path.relative_to(folder / MOVING))
            with contextlib.suppress(OSError):
                atomic.sync_folder(folder)
            _remove(folder / MOVING)
    _remove(folder / _REPLACED)


def once_put_back(folder: Path, name: str) -> Path:
    """Return where a file lies that will be called so in a folder once `put_back` has been called; it need not exist."""
    if (folder / ASIDE).is_dir():
        return folder / ASIDE / name
    moving = folder / MOVING / name
    return moving if moving.exists() else folder / name


def _move_aside(folder: Path, names: Sequence[str]) -> bool:
    """Move files into the folder `ASIDE`; say whether there were any."""
    found = [name for name in names if os.path.lexists(folder / name)]
    if not found:
        return False
    for name in found:
        place = folder / MOVING / name
        for parent in [p for p in reversed(place.relative_to(folder).parents) if p.name]:
            with contextlib.suppress(FileExistsError):
                atomic.calls.mkdir(folder / parent)
        atomic.calls.replace(folder / name, place)
        atomic.sync_folder(place.parent)
    atomic.sync_folder(folder)
    atomic.calls.replace(folder / MOVING, folder / ASIDE)
    atomic.sync_folder(folder)
    return True


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _remove(folder: Path) -> None:
    """Remove a folder of set aside files, as far as the system lets us: what stays is litter, not harm."""
    with contextlib.suppress(OSError):
        for path in _files_below(folder):
            atomic.calls.unlink(path)
        for path in sorted(folder.rglob("*"), reverse=True):
            os.rmdir(path)
        os.rmdir(folder)
