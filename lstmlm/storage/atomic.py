"""Files that are written whole or not at all, and files that are read without ever waiting.

`write_atomic` and `read_regular` are the entry points. Every call that can fail on the way to the disk goes through `calls`, one
object with one method for each, so that a test can let the k-th of them fail or kill the process there.

What a power loss can take depends on the system: where a folder cannot be synced (Windows, some network drives) a
file that was just written may come back as its previous version, but never as a mixture.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from lstmlm.errors import SystemProblem, printable
from lstmlm.machine import WINDOWS

Bytes = bytes | bytearray | memoryview

# Flags that some systems lack: text translation on Windows, waiting on a FIFO, terminals that take over.
_BINARY = getattr(os, "O_BINARY", 0)
_CAREFUL = _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
NO_LINK = _BINARY | getattr(os, "O_NOFOLLOW", 0)

_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_TEMP = re.compile(r"\..+\.[0-9a-f]{1,16}\.tmp")
_ABANDONED = 86_400  # seconds without a write after which a draft that cannot be locked has no writer any more

_AGAIN = "then run the command again (`lstmlm train --resume` goes on with a run)"
_FREE = f"Free some space, {_AGAIN}"
_ELSEWHERE = "Change its permissions, or choose another folder"
_MEANING = {
    errno.ENOSPC: ("the disk is full", _FREE),
    getattr(errno, "EDQUOT", errno.ENOSPC): ("the disk quota is used up", _FREE),
    errno.EFBIG: ("the file would be larger than this system allows", "Raise the limit (ulimit -f)"),
    errno.EACCES: ("permission denied", _ELSEWHERE),
    errno.EPERM: ("permission denied", _ELSEWHERE),
    errno.EROFS: ("the file system is read-only", "Choose another folder"),
    errno.EIO: ("the disk reported an error", f"Check the disk, {_AGAIN}"),
    errno.EMFILE: ("too many open files", "Raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many open files on this machine", f"Close other programs, {_AGAIN}"),
    errno.ENOMEM: ("out of memory", f"Close other programs, {_AGAIN}"),
    errno.ENOENT: ("the folder does not exist", f"Make it, {_AGAIN}"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Choose another folder"),
    errno.EISDIR: ("a folder stands where the file should be", "Move it away, or choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
}


class Disk:
    """The calls on the way to the disk, one method each; a test puts a failing one in its place."""

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open `path`; a new file gets the permissions of `mode` that the umask leaves."""
        return os.open(path, flags, mode)

    def write(self, fd: int, data: Bytes) -> int:
        """Write as much of `data` as the system takes, and return how much that was."""
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        """Wait until what was written to `fd` would survive a power loss."""
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut an open file to `size` bytes."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Close `fd`."""
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` to `target`, taking its place in one step."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make one folder."""
        os.mkdir(path)


calls = Disk()


def problem(error: OSError, what: str) -> SystemProblem:
    """Return the error to raise for `error`, in words and with a next step.

    Args:
        error: What the system answered.
        what:  What was being done, such as "cannot write runs/a/last.safetensors"; made printable here.
    """
    meaning, step = _MEANING.get(error.errno or 0, (error.strerror or "the system refused", "Check the path"))
    return SystemProblem(f"{printable(what)}: {meaning}. {step}.")


class Draft:
    """A file in the making: written beside the one whose place it takes in a single step, or gone.

    Its name is drawn at random and the open file is locked, so that `clean`, in whatever process and on whatever machine,
    knows it from what a dead process left behind. A method may raise OSError; `problem` words it.

    Args:
        folder: Where the file will be; it exists.
        name: What the file will be called, as far as that is known.
        mode: Permissions, before the umask.
    """

    def __init__(self, folder: Path, name: str, mode: int = 0o666) -> None:
        self._path = folder / f".{name}.{os.urandom(8).hex()}.tmp"
        self.fd = _create(self._path, mode)

    def write(self, data: Bytes) -> int:
        """Append bytes, and return how many."""
        return write_all(self.fd, data)

    def commit(self, target: Path) -> None:
        """Sync, close, and take the place of `target`, in the same folder; the name is synced too."""
        sync(self.fd)
        # The lock lasts until the draft has its name. On Windows there is none, and a file that is open keeps its name.
        held = -1 if WINDOWS else os.dup(self.fd)
        try:
            fd, self.fd = self.fd, -1
            calls.close(fd)  # where closing fails, so did writing (network drives say it here)
            calls.replace(self._path, target)
        finally:
            if held >= 0:
                os.close(held)
        sync_folder(target.parent)

    def discard(self) -> None:
        """Remove the draft; it was not committed."""
        fd, self.fd = self.fd, -1
        with contextlib.suppress(OSError):
            if fd >= 0:
                calls.close(fd)
        with contextlib.suppress(OSError):
            calls.unlink(self._path)


def write_atomic(path: Path, pieces: Iterable[Bytes]) -> int:
    """Write a file whole or not at all: beside it, synced, renamed over it, folder synced.

    Whatever happens (a kill at any instant, a full disk, a power loss), `path` is afterwards the previous file or the new one,
    whole.

    Args:
        path:   The file; its folder exists.
        pieces: The content, in order.

    Returns:
        The number of bytes written.

    Raises:
        SystemProblem: If the system refuses; the temporary file is gone, and the previous one is still there, unless syncing the
            folder was all that failed.
    """
    try:
        draft = Draft(path.parent, path.name)
        try:
            size = sum(map(draft.write, pieces))
            draft.commit(path)
        except BaseException:
            draft.discard()
            raise
    except OSError as error:
        raise problem(error, f"cannot write {path}") from error
    return size


def write_text(path: Path, text: str) -> int:
    """Write a UTF-8 text file whole or not at all, line ends as they are; see `write_atomic`."""
    return write_atomic(path, [text.encode("utf-8", "surrogateescape")])


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and sync them, so that what is written inside cannot be lost with them.

    Raises:
        SystemProblem: If the system refuses, or a file stands there.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # somebody else was faster: just as good
                calls.mkdir(folder)
            sync_folder(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise problem(error, f"cannot make the folder {path}") from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder would survive a power loss, where the system can do that."""
    if WINDOWS:  # a folder cannot be opened there
        return
    fd = calls.open(folder, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        calls.close(fd)


def is_draft(name: str) -> bool:
    """Say whether a name is that of a `Draft`."""
    return bool(_TEMP.fullmatch(name))


def clean(folder: Path) -> list[Path]:
    """Remove the drafts that killed processes left in a folder, and return them; those that are being written stay."""
    removed = []
    for path in sorted(folder.iterdir()):
        if is_draft(path.name) and _remove_abandoned(path):
            removed.append(path)
    return removed


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file for reading without ever waiting, and return its descriptor and size in bytes.

    Raises:
        OSError: If the system refuses.
        ValueError: If it is a folder, FIFO, device or socket; says which.
    """
    _require_regular(os.stat(path).st_mode)  # first without opening: opening a device can do something
    fd = os.open(path, os.O_RDONLY | _CAREFUL)
    try:
        status = os.fstat(fd)
        _require_regular(status.st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def read_regular(path: Path, most: int) -> bytes:
    """Return the first bytes of a regular file, at most so many, without ever waiting.

    Raises:
        OSError: If the system refuses, or the file would have to be waited for, as some below /proc.
        ValueError: If it is no regular file; says what it is.
    """
    fd, _ = open_regular(path)
    parts = []
    try:
        while most > 0 and (data := os.read(fd, min(most, 1 << 20))):
            parts.append(data)
            most -= len(data)
    finally:
        os.close(fd)
    return b"".join(parts)


def _create(path: Path, mode: int) -> int:
    """Open a new file and lock it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK
    while True:
        fd = calls.open(path, flags, mode)
        _flock(fd, wait=True)  # `clean` may be looking at it
        if os.fstat(fd).st_nlink or WINDOWS:
            return fd
        calls.close(fd)  # and has taken it for an old one


def _flock(fd: int, *, wait: bool) -> bool | None:
    """Lock an open file; False: another process has locked it; None: there are no locks here."""
    try:
        import fcntl  # only POSIX has it
    except ImportError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_abandoned(path: Path) -> bool:
    """Remove a draft that nobody writes any more, and say whether it was one.

    It is removed while it is locked: a process that has just made it waits for the lock, and then sees that it is gone.
    """
    fd = -1
    try:
        if not WINDOWS:  # there a file that is open cannot be removed
            fd = os.open(path, os.O_RDWR | _CAREFUL | NO_LINK)
            free = _flock(fd, wait=False)
            if free is None:
                free = time.time() - os.fstat(fd).st_mtime > _ABANDONED
            if not free:
                return False
        calls.unlink(path)
    except OSError:  # litter, not harm
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True


def write_all(fd: int, data: Bytes) -> int:
    """Write all of `data`, and return how many bytes that was; a system may take it in parts."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        written = calls.write(fd, view[done:])
        if written <= 0:  # never seen on a regular file, and must not become an endless loop
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += written
    return done


def sync(fd: int) -> None:
    """Wait until what was written would survive a power loss, where the system can do that."""
    try:
        calls.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _require_regular(mode: int) -> None:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    if not stat.S_ISREG(mode):
        raise ValueError(kinds.get(stat.S_IFMT(mode), "a special file"))
