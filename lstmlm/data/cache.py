"""A file of ids that outlives the run: the passes over a large text are made once.

The file holds a header of one page, the ids in 1, 2 or 4 bytes each, and a trailer that says what they are and holds the
checksums of their segments. It is written beside, fsynced and renamed; only `restamp` writes a part of it anew, its first page.
All of it is checked before it is used, and whatever is damaged, stale or half-written counts as no file at all. `prepare` asks
`find` first, and writes with a `Writer` where nothing is found. When a file is written, those that nobody has used for long go,
and the longest unused ones beyond a size; `kept` and `clear` are for `lstmlm info`, and count the files of other versions too.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from lstmlm.data.ids import Ids, Store, map_file
from lstmlm.errors import SystemProblem, printable
from lstmlm.storage import atomic

FAMILY = b"lstmlm-ids-"  # how the files of all versions begin
MAGIC = FAMILY + b"2\n"
PAGE = 4096
MEMORY_LIMIT = 64 << 20  # bytes of ids that are kept in memory without a file
SEGMENT = 16 << 20  # bytes of the body that have a checksum of their own: several threads compare them
UNUSED_SECONDS = 30 * 24 * 3600  # after which a file goes ...
MOST_BYTES = 20 << 30  # ... and beyond which, all together, those that were not used for longest
THREADS = 4  # that do so, so that a file is checked as fast as most disks read it


class Writer:
    """Collect ids in memory, and in a file of `folder` once they are more than `MEMORY_LIMIT` bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._memory = folder, bytearray()
        self._draft: atomic.Draft | None = None
        self._checks: list[int] = []  # of the whole segments so far, and of the one that has begun
        self._written = 0
        self.size = 0
        self.started = time.time_ns()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._draft is not None:
            self._draft.discard()

    def append(self, data: bytes | bytearray) -> None:
        """Add ids, as they are to be stored.

        Raises:
            SystemProblem: If the folder cannot be written to or the disk is full.
        """
        self.size += len(data)
        # In memory nothing is known of files, and nothing of them can fail.
        if self._draft is None and self.size <= MEMORY_LIMIT:
            self._memory += data
            return
        with writing_to(self._folder):
            if self._draft is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                atomic.clean(self._folder)
                self._draft = atomic.Draft(self._folder, "ids", 0o600)
                self._draft.write(bytes(PAGE))
                self._write(self._draft, self._memory)
                self._memory = bytearray()
            self._write(self._draft, data)

    def _write(self, draft: atomic.Draft, data: bytes | bytearray) -> None:
        """Write a part of the body, and bring the checksums up to date."""
        left = memoryview(data)
        while left:
            into = self._written % SEGMENT
            if not into:
                self._checks.append(0)
            part = left[: SEGMENT - into]
            self._checks[-1] = zlib.crc32(part, self._checks[-1])
            self._written += draft.write(part)
            left = left[len(part) :]

    def ids(self, width: int) -> Ids:
        """Return what was collected so far; nothing can be added while it is in use."""
        if self._draft is None:
            return Ids(self._memory, width, 0, self.size // width)
        return Ids(map_file(self._draft.fd), width, PAGE, self.size // width)

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
        draft, self._draft = self._draft, None
        if draft is None:
            return Store(self._memory, width, 0, facts)
        trailer = json.dumps({"facts": facts, "checks": self._checks}).encode()
        header = {
            "width": width, "size": self.size, "stamp": stamp, "stamped": self.started, "place": place,
            "trailer": len(trailer), "trailer_sha256": hashlib.sha256(trailer).hexdigest(), "text": facts.get("name", "")[:200],
        }  # fmt: skip
        path = self._folder / f"{key}.ids"
        with writing_to(self._folder):
            try:
                draft.write(trailer)
                os.lseek(draft.fd, 0, os.SEEK_SET)
                draft.write(_pack(header))
                draft.commit(path)
            except BaseException:
                draft.discard()
                raise
            _remove_older(path, place)
            _remove_unused(path)
        store = load(path, trusted=True)
        if store is None:
            raise SystemProblem(
                f"cache {printable(str(path))}: expected the ids just written, found something else. "
                "Check the disk, or set another cache folder (LSTMLM_CACHE)."
            )
        return store


def load(path: Path, *, trusted: bool = False) -> Store | None:
    """Map a file of ids, or return None if it is missing or damaged anywhere.

    Args:
        path: The file.
        trusted: Its body was written by this process just now, and need not be read to be believed.
    """
    try:
        fd, size = atomic.open_regular(path)
        with open(fd, "rb") as file:
            header = _unpack(file.read(PAGE))
            if header is None or size != PAGE + header["size"] + header["trailer"]:
                return None
            file.seek(PAGE + header["size"])
            trailer = file.read(header["trailer"])
            if hashlib.sha256(trailer).hexdigest() != header["trailer_sha256"]:
                return None
            told = json.loads(trailer)
            if not (trusted or _body_checks(path, header["size"]) == told["checks"]):
                return None
            with contextlib.suppress(OSError):
                os.utime(path)  # it has been used
            return Store(map_file(file.fileno()), header["width"], PAGE, told["facts"])
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
    """Note that the same content was found at `stamp`; where that cannot be written the next start is only slower.

    It is written in place, as the file may have gigabytes: cut short it is one without a header, and made again.
    """
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
    """Return the header in the first page of a file; None where there is none, or it is damaged or of another version."""
    if not page.startswith(MAGIC):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        header = json.loads(page.split(b"\n", 2)[1])
        if isinstance(header, dict) and _pack(header) == page:
            return header
    return None


def _page(path: Path) -> bytes:
    """Return the first page of a file; nothing where it is no regular file or cannot be read."""
    try:
        fd, _ = atomic.open_regular(path)
        with open(fd, "rb") as file:
            return file.read(PAGE)
    except (OSError, ValueError):
        return b""


def _header(path: Path) -> dict[str, Any] | None:
    return _unpack(_page(path))


def _body_checks(path: Path, size: int) -> list[int]:
    """Return the checksums of the segments of a file's body."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(partial(_segment_check, path, size), range(0, size, SEGMENT)))


def _segment_check(path: Path, size: int, start: int) -> int:
    check, left = 0, min(SEGMENT, size - start)
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        file.seek(PAGE + start)
        while left > 0 and (count := file.readinto(buffer[:left])):
            check = zlib.crc32(buffer[:count], check)
            left -= count
    return check


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of ids, perhaps a damaged one: what it is of, its bytes, and when it was last used, in seconds since 1970."""

    path: Path
    text: str
    size: int
    used: float


def kept(folder: Path) -> list[Kept]:
    """Return the files of ids in the cache folder, those of other versions too, the last used first."""
    found = []
    for path in folder.glob("*.ids"):
        with contextlib.suppress(OSError):
            status, page = path.stat(), _page(path)
            if page.startswith(FAMILY):
                header = _unpack(page)
                text = "damaged, or of another version" if header is None else header.get("text") or "a text without a name"
                found.append(Kept(path, printable(str(text)), status.st_size, status.st_mtime))
    return sorted(found, key=lambda one: (-one.used, one.path))


def clear(folder: Path) -> int:
    """Remove all files of ids from the cache folder; return how many bytes that was. Who reads one goes on reading it."""
    with contextlib.suppress(OSError):
        atomic.clean(folder)  # what killed processes have begun
    return _remove(kept(folder))


def _remove(files: list[Kept]) -> int:
    gone = 0
    for one in files:
        with contextlib.suppress(OSError):
            one.path.unlink()
            gone += one.size
    return gone


def _remove_unused(newest: Path) -> None:
    """Remove what nobody has used for long, and the longest unused files beyond a size, but never the newest one."""
    others = [one for one in kept(newest.parent) if one.path != newest]
    sizes = accumulate((one.size for one in others), initial=newest.stat().st_size)
    next(sizes)
    oldest = time.time() - UNUSED_SECONDS
    _remove([one for one, size in zip(others, sizes, strict=True) if one.used < oldest or size > MOST_BYTES])


def _remove_older(kept: Path, place: str) -> None:
    for path in kept.parent.glob("*.ids"):
        header = _header(path)
        if path != kept and header and header.get("place") == place:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into a SystemProblem that says what to do."""
    try:
        yield
    except OSError as error:
        raise SystemProblem(
            f"cache folder {printable(str(folder))}: expected to write the ids of the text, found: "
            f"{error.strerror or error}. Free some space, make it writable, or set another folder (LSTMLM_CACHE)."
        ) from error
