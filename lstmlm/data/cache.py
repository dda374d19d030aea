"""A file of ids that outlives the run: the passes over a large text are made once.

The file holds a header of one page, the ids in 1, 2 or 4 bytes each, and a trailer that says what they are. It is written
beside, fsynced and renamed; whatever is damaged, stale or half-written counts as no file at all. `corpus` asks `find` first,
and writes with a `Writer` where nothing is found.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lstmlm.data.ids import Ids, Store, map_file
from lstmlm.errors import SystemProblem, printable

MAGIC = b"lstmlm-ids-1\n"
PAGE = 4096
MEMORY_LIMIT = 64 << 20  # bytes of ids that are kept in memory without a file
SAMPLES = 64  # pages of the body whose checksum is compared each time the file is opened


class Writer:
    """Collect ids in memory, and in a file of `folder` once they are more than `MEMORY_LIMIT` bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._memory, self._file = folder, bytearray(), -1
        self._temp = folder / f".{os.getpid()}-{time.monotonic_ns()}.tmp"
        self._hash = hashlib.sha256()
        self.size = 0
        self.started = time.time_ns()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(OSError):
                self._temp.unlink()

    def append(self, data: bytes | bytearray) -> None:
        """Add ids, as they are to be stored.

        Raises:
            SystemProblem: If the folder cannot be written to or the disk is full.
        """
        self.size += len(data)
        # In memory nothing is known of files, and nothing of them can fail.
        if self._file < 0 and self.size <= MEMORY_LIMIT:
            self._memory += data
            return
        with writing_to(self._folder):
            if self._file < 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                _sweep(self._folder)
                self._file = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
                _write(self._file, b"\0" * PAGE + self._memory)
                self._hash.update(self._memory)
                self._memory = bytearray()
            _write(self._file, data)
            self._hash.update(data)

    def ids(self, width: int) -> Ids:
        """Return what was collected so far; nothing can be added while it is in use."""
        if self._file < 0:
            return Ids(self._memory, width, 0, self.size // width)
        return Ids(map_file(self._file), width, PAGE, self.size // width)

    def finish(self, width: int, facts: dict[str, Any], key: str, stamp: str, place: str) -> Store:
        """Close the collection: in memory as it is, a file with its header and trailer, whole or not at all.

        Args:
            width: Bytes of one id.
            facts: What the ids are; JSON must be able to hold it.
            key: Name of the file: what it is made from, as a digest.
            stamp: The state of the source files, as a digest; `find` knows the file by it.
            place: The names of the source files, as a digest; older files of the same place are removed.

        Raises:
            SystemProblem: If the folder cannot be written to or the disk is full.
        """
        if self._file < 0:
            return Store(self._memory, width, 0, facts)
        trailer = json.dumps(facts).encode()
        header = {
            "width": width, "size": self.size, "body": self._hash.hexdigest(), "stamp": stamp, "stamped": self.started,
            "place": place, "trailer": len(trailer), "trailer_sha256": hashlib.sha256(trailer).hexdigest(),
        }  # fmt: skip
        path = self._folder / f"{key}.ids"
        with writing_to(self._folder):
            _write(self._file, trailer)
            header["sample"] = _sample(self._file, self.size)
            os.lseek(self._file, 0, os.SEEK_SET)
            _write(self._file, _pack(header))
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            try:
                os.replace(self._temp, path)
            except OSError:
                self._temp.unlink()
                raise
            _sync_folder(self._folder)
            _remove_older(path, place)
        store = load(path)
        if store is None:
            raise SystemProblem(
                f"cache {printable(str(path))}: expected the ids just written, found something else. "
                "Check the disk, or set another cache folder."
            )
        return store


def load(path: Path, *, thorough: bool = False) -> Store | None:
    """Map a file of ids, or return None if it is missing or not whole.

    Args:
        path: The file.
        thorough: Compare the digest of all ids instead of the checksum of some pages.
    """
    try:
        with open(path, "rb") as file:
            header = _unpack(file.read(PAGE))
            if header is None or os.fstat(file.fileno()).st_size != PAGE + header["size"] + header["trailer"]:
                return None
            if header["sample"] != _sample(file.fileno(), header["size"]):
                return None
            file.seek(PAGE + header["size"])
            trailer = file.read(header["trailer"])
            if hashlib.sha256(trailer).hexdigest() != header["trailer_sha256"]:
                return None
            if thorough and not _body_is_whole(file.fileno(), header):
                return None
            buffer = map_file(file.fileno())
            return Store(buffer, header["width"], PAGE, json.loads(trailer))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(folder: Path, stamp: str, newest: int) -> Store | None:
    """Find the ids of source files that have not changed since, or None.

    A source changed in the same instant as it was read could look unchanged, so its files must be two seconds older.

    Args:
        folder: The cache folder; it need not exist.
        stamp: The state of the source files now.
        newest: Time of the last change to any of them, in nanoseconds.
    """
    for path in sorted(folder.glob("*.ids")):
        header = _header(path)
        if header and header.get("stamp") == stamp and newest < int(header.get("stamped", 0)) - 2_000_000_000:
            store = load(path)
            if store is not None:
                return store
    return None


def restamp(path: Path, stamp: str, place: str, started: int) -> None:
    """Note that the same content was found at `stamp`; where that cannot be written the next start is only slower."""
    header = _header(path)
    if header is None:
        return
    header |= {"stamp": stamp, "place": place, "stamped": started}
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        file.write(_pack(header))
        file.flush()
        os.fsync(file.fileno())


def _pack(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    page = MAGIC + text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"
    return page.ljust(PAGE, b"\0")


def _unpack(page: bytes) -> dict[str, Any] | None:
    lines = page.rstrip(b"\0").split(b"\n")
    if len(page) != PAGE or not page.startswith(MAGIC) or len(lines) != 4:
        return None
    if hashlib.sha256(lines[1]).hexdigest().encode() != lines[2]:
        return None
    header: dict[str, Any] = json.loads(lines[1])
    return header


def _header(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            return _unpack(file.read(PAGE))
    except (OSError, ValueError):
        return None


def _sample(descriptor: int, size: int) -> int:
    """Checksum pages spread over the body, the first and the last among them."""
    check = 0
    for i in range(SAMPLES):
        offset = max(0, size - PAGE) * i // (SAMPLES - 1)
        os.lseek(descriptor, PAGE + offset, os.SEEK_SET)
        check = zlib.crc32(os.read(descriptor, min(PAGE, size)), check)
    return check


def _body_is_whole(descriptor: int, header: dict[str, Any]) -> bool:
    digest, left = hashlib.sha256(), int(header["size"])
    os.lseek(descriptor, PAGE, os.SEEK_SET)
    while left and (data := os.read(descriptor, min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
    return bool(digest.hexdigest() == header["body"])


def _write(descriptor: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _remove_older(kept: Path, place: str) -> None:
    for path in kept.parent.glob("*.ids"):
        header = _header(path)
        if path != kept and header and header.get("place") == place:
            with contextlib.suppress(OSError):
                path.unlink()


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in folder.glob(".*-*.tmp"):
        owner = path.name[1:].split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end it there; such leftovers stay
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # a folder cannot be fsynced there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into a SystemProblem that says what to do."""
    try:
        yield
    except OSError as error:
        raise SystemProblem(
            f"cache folder {printable(str(folder))}: expected to write the ids of the corpus, found: "
            f"{error.strerror or error}. Make room or make it writable, or set another cache folder."
        ) from error
