"""Names on a command line -> files -> raw bytes, decompressed, in pieces, in constant memory.

`find_sources` is the entry point, for `corpus` and the commands that read a text. Files are read in the order given; a folder
gives all its files by sorted relative path; nothing is put between them.
"""

import bz2
import contextlib
import difflib
import errno
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lstmlm.errors import SystemProblem, TextError, UsageError, printable

CHUNK = 256 << 10  # bytes read at a time: what is made of them stays in the processor's cache
MADE_UP = 64 << 20  # bytes read of a file that says that it has none, as those below /proc do; some of them have no end
PACKED = (".gz", ".xz", ".bz2")

_Identity = tuple[int, int, int, int, int]
_DEVICE = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Source:
    """One file, FIFO or standard input.

    Attributes:
        name: As to be shown: printable.
        path: Where it is; None is standard input.
        identity: Device, inode, size, and times of change in nanoseconds; None for what can be read only once.
    """

    name: str
    path: Path | None
    identity: _Identity | None

    @property
    def plain(self) -> bool:
        """Whether it can be read again, as it is, with its size known."""
        return self.identity is not None and self.path is not None and self.path.suffix.lower() not in PACKED

    @property
    def size(self) -> int:
        """Bytes as stored; 0 if unknown."""
        return self.identity[2] if self.identity else 0

    @property
    def changed(self) -> int:
        """Time of the last change to it or to its attributes, in nanoseconds; 0 if unknown."""
        return max(self.identity[3:]) if self.identity else 0

    def read(self, chunk: int | None = None) -> Iterator[bytes]:
        """Give the bytes, decompressed, in pieces of `chunk` (the last one shorter).

        Raises:
            TextError: If it cannot be read, is not what its suffix says, or changes while it is read.
            SystemProblem: If the device fails.
        """
        chunk = max(4, chunk or CHUNK)  # a byte order mark lies in one piece
        if self.path is None:
            yield from iter(lambda: sys.stdin.buffer.read(chunk), b"")
            return
        suffix = self.path.suffix.lower()
        try:
            made_up = self.identity is None and not stat.S_ISFIFO(os.stat(self.path).st_mode)
            with open(self.path, "rb", buffering=0, opener=_opener if made_up or self.identity else None) as raw:
                self._unchanged(os.fstat(raw.fileno()))
                file = _unpacked(raw, suffix)
                left = self.size if self.plain else MADE_UP if made_up else sys.maxsize  # a file that grows is not chased
                while data := _filled(file, min(chunk, left)):
                    left -= len(data)
                    if made_up and not left:
                        raise TextError(
                            f"corpus {self.name}: expected a file, found what the system makes up as it is read, still going on "
                            f"after {MADE_UP >> 20} MiB. Copy what you need of it into a file first."
                        )
                    yield data
                self._unchanged(os.fstat(raw.fileno()))
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise self._broken(suffix, error) from error
        except OSError as error:
            if suffix == ".bz2" and error.errno is None:
                raise self._broken(suffix, error) from error
            raise _unreadable(self.name, error) from error

    def _broken(self, suffix: str, error: Exception) -> TextError:
        return TextError(
            f"corpus {self.name}: expected a whole {suffix} file, found: {printable(str(error))}. "
            "Fetch or compress it again; if it is plain text, take the suffix away."
        )

    def _unchanged(self, now: os.stat_result) -> None:
        # Times of mere attributes (ctime) are left out: making a link to a file does not change its text.
        if self.identity is not None and _identity(now)[:4] != self.identity[:4]:
            raise changed(self.name)


def find_sources(names: Sequence[str], bundled: Path | None = None) -> list[Source]:
    """Turn names into sources: files, folders, `-`, or the stem of a file in `bundled`; what exists wins.

    Below a folder all regular files count, sorted by relative path; hidden files and folders (a leading dot) do not,
    nor do special files, and links to folders are not followed.

    Raises:
        TextError: If a name leads nowhere, to nothing readable, or to a device.
    """
    if not names:
        raise UsageError("corpus: expected the name of a file, found none. Give one, such as `stories`.")
    if list(names).count("-") > 1:
        raise UsageError("corpus -: expected standard input once, found it twice. It can be read only once.")
    return [source for name in names for source in _sources(name, bundled)]


def changed(name: str) -> TextError:
    """Make the error for a file that is not what it was a moment ago."""
    return TextError(
        f"corpus {name}: expected a file that stays as it is, found that it changed while it was read. "
        "Run the command again, or work on a copy."
    )


def _sources(name: str, bundled: Path | None) -> Iterator[Source]:
    if name == "-":
        yield _standard_input()
        return
    shown = printable(name)
    path = Path(name)
    try:
        status = os.stat(name)
    except FileNotFoundError:
        chosen = bundled / f"{name}.txt" if bundled and os.sep not in name else None
        if chosen is None or not chosen.is_file():
            raise _missing(name, bundled) from None
        path, status = chosen, os.stat(chosen)
    except (OSError, ValueError) as error:
        raise _unreadable(shown, error) from None
    if not stat.S_ISDIR(status.st_mode):
        yield _single(path, status)
        return
    files = sorted(_below(path), key=lambda file: file.relative_to(path).as_posix())
    if not files:
        raise TextError(
            f"corpus {shown}: expected a folder with text files, found none in it (hidden ones do not count). "
            "Name a file, or a folder that holds some."
        )
    for file in files:
        yield _single(file, os.stat(file))


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise _unreadable(printable(str(error.filename)), error)

    for base, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            file = Path(base, name)
            try:
                regular = not name.startswith(".") and file.is_file()
            except OSError as error:
                raise _unreadable(printable(str(file)), error) from None
            if regular:
                yield file


def _single(path: Path, status: os.stat_result) -> Source:
    shown = printable(str(path))
    mode = status.st_mode
    if stat.S_ISREG(mode):
        # Files that the system makes up as they are read (/proc) say 0 bytes; they are read like a pipe.
        return Source(shown, path, _identity(status) if status.st_size else None)
    if stat.S_ISFIFO(mode):
        return Source(shown, path, None)
    kind = "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a socket"
    raise TextError(
        f"corpus {shown}: expected a file, a folder or a pipe, found {kind}. Copy what you need of it into a file first."
    )


def _standard_input() -> Source:
    if sys.stdin is None or sys.stdin.closed:
        raise TextError("corpus -: expected text on standard input, found it closed. Name a file, or pipe text in.")
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        mode = 0  # something in memory that stands in for it
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not sys.stdin.isatty()):
        raise TextError("corpus -: expected text on standard input, found a device. Pipe a file in instead.")
    return Source("standard input", None, None)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Streams:
    """The streams of an .xz or .bz2 file, joined. Python's own readers take a second one whose start is damaged for the end."""

    def __init__(self, raw: io.FileIO, begin: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor]) -> None:
        self._raw, self._begin, self._stream = raw, begin, begin()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end of the file.

        Raises:
            EOFError, lzma.LZMAError, OSError: A stream is cut or damaged, or something else follows the last one.
        """
        while True:
            given = b""
            if self._stream.eof:
                given = self._stream.unused_data.lstrip(b"\0")  # padding, which both formats' tools pass over
                while not given and (data := self._raw.read(CHUNK)):
                    given = data.lstrip(b"\0")
                if not given:
                    return b""
                self._stream = self._begin()
            elif self._stream.needs_input:
                given = self._raw.read(CHUNK)
                if not given:
                    raise EOFError("the file ends before its last stream does")
            if data := self._stream.decompress(given, size):
                return data


def _unpacked(raw: io.FileIO, suffix: str) -> io.FileIO | gzip.GzipFile | _Streams:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".xz":
        return _Streams(raw, lzma.LZMADecompressor)
    return _Streams(raw, bz2.BZ2Decompressor) if suffix == ".bz2" else raw


def _opener(path: str, flags: int) -> int:
    """Open what is no pipe, and wait for nothing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _filled(file: io.FileIO | gzip.GzipFile | _Streams, size: int) -> bytes:
    """Read until `size` bytes or the end: a pipe gives less than was asked for."""
    parts = []
    while size > 0 and (data := file.read(size)) != b"":
        if data is None:  # nothing now, perhaps something later: such as the kernel's messages
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        parts.append(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unreadable(name: str, error: OSError | ValueError) -> TextError | SystemProblem:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.errno in _DEVICE:
        return SystemProblem(f"corpus {name}: expected to read it, found: {reason}. Check the device and try again.")
    return TextError(f"corpus {name}: expected a file that can be read, found: {printable(reason)}. Name another one.")


def _missing(name: str, bundled: Path | None) -> TextError:
    path = Path(name)
    offers: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        offers = {entry: str(path.parent / entry) for entry in sorted(os.listdir(path.parent)) if entry[0] != "."}
    own = sorted(file.stem for file in bundled.glob("*.txt")) if bundled else []
    offers |= {stem: stem for stem in own if stem not in offers}
    close = difflib.get_close_matches(path.name, list(offers), 2, 0.6)
    hints = [f"Did you mean {' or '.join(printable(repr(offers[c])) for c in close)}?"] if close else []
    if own:
        hints.append(f"Corpora that come along: {', '.join(own)}.")
    if "://" in name:
        return TextError(
            f"corpus {printable(repr(name))}: expected a file or folder, found an address. Fetch it into a file first."
        )
    found = "nothing there" if path.parent.is_dir() else f"no folder '{printable(str(path.parent))}'"
    return TextError(
        f"corpus {printable(repr(name))}: expected a file or folder, found {found}. " + (" ".join(hints) or "Check the name.")
    )
