"""A run's journals: files that only grow, a record at a time.

`Journal` is the entry point, for `run_files` and `clock_log`. Its calls go to the disk through `atomic.calls`.
"""

import contextlib
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lstmlm.errors import CheckpointError, printable
from lstmlm.storage import atomic


class Journal:
    """A file that only grows, one record at a time, and can be cut back to a length that is known to be good.

    A record is written completely or not at all as far as this process can tell; a kill may leave half a record at
    the end, which `open` with the length stored in the checkpoint cuts off. So sync the journal, then write the
    checkpoint that holds its `size`.
    """

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self._fd = fd
        self._size = size

    @classmethod
    def open(cls, path: Path, size: int = 0) -> Self:
        """Open a journal and cut it to its first `size` bytes; 0 begins a new one.

        Raises:
            CheckpointError: If it is no file, or shorter, or `size` is not the end of a line.
            SystemProblem: If the system refuses.
        """
        name = printable(str(path))
        try:
            fd = atomic.calls.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | atomic.NO_LINK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise CheckpointError(f"journal {name}: expected a file, found a FIFO or device. Move it away.")
                found = status.st_size
                if found < size:
                    raise CheckpointError(
                        f"journal {name}: expected at least {size} bytes, as the checkpoint says, found {found}: "
                        f"the last {size - found} are missing. Put the file back from a copy, or begin again with "
                        "--overwrite."
                    )
                os.lseek(fd, max(size - 1, 0), os.SEEK_SET)
                if size and os.read(fd, 1) != b"\n":
                    raise CheckpointError(
                        f"journal {name}: expected the end of a line at byte {size}, as the checkpoint says, found "
                        "other text. Put the file back from a copy, or begin again with --overwrite."
                    )
                if found > size:
                    atomic.calls.truncate(fd, size)
                # A checkpoint that counts on this file must not outlive its name.
                atomic.sync_folder(path.parent)
            except BaseException:
                atomic.calls.close(fd)
                raise
        except OSError as error:
            raise atomic.problem(error, f"cannot open {path}") from error
        return cls(path, fd, size)

    @property
    def size(self) -> int:
        """Length in bytes of the records so far."""
        return self._size

    def append(self, record: dict[str, Any]) -> None:
        """Append one record as one line of strict JSON (a value that is not finite is a ValueError)."""
        self.append_text(json.dumps(record, allow_nan=False) + "\n")

    def append_text(self, text: str) -> None:
        """Append text, which ends with a line end, and hand it to the system at once.

        Raises:
            SystemProblem: If the system refuses; the journal is cut back to what it was.
        """
        if not text.endswith("\n"):
            raise ValueError("a record ends with a line end")
        data = text.encode("utf-8", "surrogateescape")
        try:
            atomic.write_all(self._fd, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                atomic.calls.truncate(self._fd, self._size)
            raise atomic.problem(error, f"cannot write {self.path}") from error
        self._size += len(data)

    def sync(self) -> None:
        """Wait until every record would survive a power loss."""
        try:
            atomic.sync(self._fd)
        except OSError as error:
            raise atomic.problem(error, f"cannot write {self.path}") from error

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            atomic.calls.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
