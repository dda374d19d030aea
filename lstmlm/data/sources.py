"""Names on a command line -> files -> raw bytes, decompressed, in pieces, in constant memory.

`find_sources` is the entry point, for `corpus` and the commands that read a text. Files are read in the order given; a folder
gives its files by sorted relative path, a .zip its members by name, and a .tar, which can only be read from its beginning, in its
own order.
"""

import bz2
import contextlib
import difflib
import errno
import fnmatch
import gzip
import io
import lzma
import os
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from lstmlm.data import recognition
from lstmlm.errors import SystemProblem, TextError, UsageError, printable
from lstmlm.units import counted

CHUNK = 256 << 10  # bytes read at a time: what is made of them stays in the processor's cache
MADE_UP = 64 << 20  # bytes read of a file that says that it has none, as those below /proc do; some of them have no end
PACKED = (".gz", ".xz", ".bz2")
TAR = {".tar": "", ".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2"} | {f".tar{packed}": packed for packed in PACKED}
"""Endings of tar archives, and what each is packed with."""
VERSIONS = ("CVS", "RCS", "SCCS", "_darcs", "__MACOSX")  # folders of version control, and of resources, that are not hidden
LONGEST_HEADER = 1 << 20  # bytes of a long name or of attributes in a tar archive, which is read as a whole

_Identity = tuple[int, int, int, int, int]
_DEVICE = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder or an archive are read; one that is named itself always is.

    Hidden files and folders, those of version control, and what is no text are left out, as by grep and its kin.

    Attributes:
        include: Patterns of which a file has to match one, if there are any: `*.md`, or with a slash `texts/*.md` of its path
            below the folder.
        exclude: Patterns of which neither a file nor a folder above it may match one.
        encoding: What the files are written in, or `bytes`: then anything is text.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    encoding: str = "utf-8"

    def takes(self, path: PurePosixPath) -> bool:
        """Say whether a file is wanted, by its path below its folder."""
        return not any(map(self.bars, [path, *path.parents])) and (
            not self.include or any(_matches(path, pattern) for pattern in self.include)
        )

    def bars(self, path: PurePosixPath) -> bool:
        """Say whether a file or folder is excluded by its own name or path."""
        return any(_matches(path, pattern) for pattern in self.exclude)

    def is_text(self, head: bytes) -> bool:
        """Say whether a file that begins like this is text; a picture written as text is where files are asked for by pattern."""
        if self.encoding == "bytes":
            return True
        return not recognition.binary(head, self.encoding) and (bool(self.include) or not recognition.drawing(head))


@dataclass(slots=True)
class LeftOut:
    """What was passed over in folders and archives, as grep does, to be said in one line."""

    hidden: int = 0
    binary: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Say what was left out; no line where it was nothing."""
        parts = []
        if self.binary:
            more = f", and {len(self.binary) - 3} more" if len(self.binary) > 3 else ""
            parts.append(f"{counted(len(self.binary), 'file')} without text ({', '.join(self.binary[:3])}{more})")
        if self.hidden:
            parts.append(f"{self.hidden} hidden or of version control")
        return [f"left out: {', '.join(parts)}"] if parts else []


@dataclass(frozen=True, slots=True)
class Source:
    """One file, FIFO, standard input, or member of an archive.

    Attributes:
        name: As to be shown: printable.
        path: Where it is; None is standard input.
        identity: Device, inode, size, and times of change in nanoseconds; None for what can be read only once.
        selection: Which members are read, where it is an archive.
        without: Names of members that are not, as they are shown.
    """

    name: str
    path: Path | None
    identity: _Identity | None
    selection: Selection = Selection()
    without: frozenset[str] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether it can be read again, as it is, with its size known."""
        return self.identity is not None and not self.archive and self.suffix not in PACKED

    @property
    def suffix(self) -> str:
        """The last ending of its name, in lower case."""
        return self.path.suffix.lower() if self.path else ""

    @property
    def archive(self) -> str:
        """The ending of its name that makes it an archive; empty if it is none."""
        name = self.path.name.lower() if self.path else ""
        return next((ending for ending in (".zip", *TAR) if name.endswith(ending)), "")

    @property
    def size(self) -> int:
        """Bytes as stored; 0 if unknown."""
        return self.identity[2] if self.identity else 0

    @property
    def changed(self) -> int:
        """Time of the last change to it or to its attributes, in nanoseconds; 0 if unknown."""
        return max(self.identity[3:]) if self.identity else 0

    def pieces(self, left_out: LeftOut | None = None) -> "Iterator[tuple[Source, bytes]]":
        """Give the bytes in pieces, each with the source that it is of: the file itself, or a member of the archive.

        Raises:
            TextError, SystemProblem: As `read`.
        """
        if not self.archive:
            yield from ((self, raw) for raw in self.read())
            return
        left_out = left_out or LeftOut()
        assert self.path is not None
        try:
            with open(self.path, "rb", buffering=0, opener=_opener) as raw:
                self._unchanged(os.fstat(raw.fileno()))
                for name, file in self._of_zip(raw) if self.archive == ".zip" else self._of_tar(raw):
                    yield from self._member(name, file, left_out)
                self._unchanged(os.fstat(raw.fileno()))
        except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the last: it has a password
            raise self._broken(self.archive, error) from error
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise _unreadable(self.name, error) from error
            raise self._broken(self.archive, error) from error

    def _member(self, name: str, file: "_Readable", left_out: LeftOut) -> "Iterator[tuple[Source, bytes]]":
        """Give the bytes of a member that is wanted; it is read before the next one is looked for."""
        assert self.path is not None
        path = PurePosixPath(name)
        if any(part in VERSIONS or (part.startswith(".") and part.strip(".")) for part in path.parts):
            left_out.hidden += 1
            return
        member = Source(f"{self.name}:{printable(name)}", self.path / name.lstrip("/"), self.identity)
        if not self.selection.takes(path) or member.name in self.without:
            return
        head = _filled(file, recognition.HEAD)
        if not self.selection.is_text(head):
            left_out.binary.append(member.name)
            return
        yield member, head
        while data := _filled(file, max(4, CHUNK)):
            yield member, data

    def head(self) -> bytes:
        """Return the first bytes, decompressed; none of an archive, and of what can be read only once or not at all."""
        if self.identity is not None and not self.archive:
            with contextlib.suppress(TextError, SystemProblem):
                return next(self.read(recognition.HEAD), b"")
        return b""

    # Links in an archive are never followed, and nothing of it is written anywhere.
    def _of_zip(self, raw: io.FileIO) -> "Iterator[tuple[str, _Readable]]":
        with zipfile.ZipFile(raw) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                    with archive.open(info) as file:
                        yield info.filename, file

    def _of_tar(self, raw: io.FileIO) -> "Iterator[tuple[str, _Readable]]":
        unpacked = _unpacked(raw, TAR[self.archive])
        with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:  # type: ignore[call-overload]  # only read
            while (info := archive.next()) is not None:
                archive.members.clear()  # or it would keep one for each file
                if info.isreg() and not info.issparse() and (file := archive.extractfile(info)):
                    yield info.name, file
        while unpacked.read(CHUNK):  # its checksum is at its end
            pass

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
        suffix = self.suffix
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
                            f"text {self.name}: expected a file, found what the system makes up as it is read, still going on "
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
            f"text {self.name}: expected a whole {suffix} file, found: {printable(str(error))}. "
            "Fetch or compress it again; if it is plain text, take the suffix away."
        )

    def _unchanged(self, now: os.stat_result) -> None:
        # Times of mere attributes (ctime) are left out: making a link to a file does not change its text.
        if self.identity is not None and _identity(now)[:4] != self.identity[:4]:
            raise changed(self.name)


def find_sources(
    names: Sequence[str],
    bundled: Path | None = None,
    selection: Selection | None = None,
    left_out: LeftOut | None = None,
    bad: dict[str, TextError] | None = None,
) -> list[Source]:
    """Turn names into sources: files, folders, `-`, or the stem of a file in `bundled`; what exists wins.

    Below a folder all regular files count that the selection takes, sorted by relative path; special files do not, and links to
    folders are not followed.

    Args:
        names: As on the command line.
        bundled: Folder of the corpora that come along.
        selection: Which files of a folder or archive count; None: any text.
        left_out: Takes what was passed over.
        bad: Takes the names that lead nowhere, each with its error, in place of raising it.

    Raises:
        TextError: If a name leads nowhere, to nothing readable, or to a device.
    """
    if not names:
        raise UsageError("text: expected the name of a file, found none. Give one, such as `stories`.")
    refuse_twice(names)
    found: list[Source] = []
    for name in names:
        try:
            found += _sources(name, bundled, selection or Selection(), left_out or LeftOut())
        except TextError as error:
            if bad is None:
                raise
            bad[printable(name)] = error
    return found


def refuse_twice(names: Sequence[str | None]) -> None:
    """Refuse to read standard input more than once.

    Raises:
        UsageError: It is named twice.
    """
    if list(names).count("-") > 1:
        raise UsageError("text -: expected standard input once, found it twice. It can be read only once.")


def require(names: Sequence[str], bundled: Path | None = None) -> None:
    """Look whether all names lead somewhere, before anything else is done.

    Raises:
        TextError: One does not.
    """
    for name in names:
        if name != "-" and not os.path.lexists(name) and not _bundled(name, bundled):
            raise _missing(name, bundled)


def _bundled(name: str, folder: Path | None) -> Path | None:
    """Return the file of a text that comes along; None where there is none of this name."""
    path = folder / f"{name}.txt" if folder and os.sep not in name else None
    return path if path and path.is_file() else None


def changed(name: str) -> TextError:
    """Make the error for a file that is not what it was a moment ago."""
    return TextError(
        f"text {name}: expected a file that stays as it is, found that it changed while it was read. "
        "Run the command again, or work on a copy."
    )


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Say whether a pattern fits a name, or with a slash in it a path; a slash at its end stands for the folder."""
    pattern = pattern.rstrip("/")
    return fnmatch.fnmatchcase(str(path) if "/" in pattern else path.name, pattern.removeprefix("./"))


def _sources(name: str, bundled: Path | None, selection: Selection, left_out: LeftOut) -> Iterator[Source]:
    if name == "-":
        yield _standard_input()
        return
    shown = printable(name)
    path = Path(name)
    try:
        status = os.stat(name)
    except FileNotFoundError:
        chosen = _bundled(name, bundled)
        if chosen is None:
            raise _missing(name, bundled) from None
        path, status = chosen, os.stat(chosen)
    except (OSError, ValueError) as error:
        raise _unreadable(shown, error) from None
    if not stat.S_ISDIR(status.st_mode):
        yield _single(path, status, selection)
        return
    before = len(left_out.binary)
    files = sorted(_below(path, selection, left_out), key=lambda file: file.relative_to(path).as_posix())
    some = False
    for file in files:
        source = _single(file, os.stat(file), selection)
        if selection.is_text(source.head()):
            some = True
            yield source
        else:
            left_out.binary.append(source.name)
    if not some:
        wanted = f" that match {printable(' or '.join(selection.include))}" if selection.include else ""
        passed = (
            f"; {counted(len(left_out.binary) - before, 'file')} without text left out" if len(left_out.binary) > before else ""
        )
        raise TextError(
            f"text {shown}: expected a folder with text files{wanted}, found none in it (hidden ones do not count{passed}). "
            "Name a file, or a folder that holds some."
        )


def _below(folder: Path, selection: Selection, left_out: LeftOut) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise _unreadable(printable(str(error.filename)), error)

    def passes(name: str) -> bool:
        hidden = name.startswith(".") or name in VERSIONS
        left_out.hidden += hidden
        return not hidden

    for base, folders, files in os.walk(folder, onerror=refuse):
        below = PurePosixPath(Path(base).relative_to(folder).as_posix())
        folders[:] = [name for name in folders if passes(name) and not selection.bars(below / name)]
        for name in files:
            if not passes(name) or not selection.takes(below / name):
                continue
            file = Path(base, name)
            try:
                regular = file.is_file()
            except OSError as error:
                raise _unreadable(printable(str(file)), error) from None
            if regular:
                yield file


def _single(path: Path, status: os.stat_result, selection: Selection) -> Source:
    shown = printable(str(path))
    mode = status.st_mode
    if stat.S_ISREG(mode):
        # Files that the system makes up as they are read (/proc) say 0 bytes; they are read like a pipe.
        return Source(shown, path, _identity(status) if status.st_size else None, selection)
    if stat.S_ISFIFO(mode):
        return Source(shown, path, None)
    kind = "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a socket"
    raise TextError(
        f"text {shown}: expected a file, a folder or a pipe, found {kind}. Copy what you need of it into a file first."
    )


def _standard_input() -> Source:
    if sys.stdin is None or sys.stdin.closed:
        raise TextError("text -: expected text on standard input, found it closed. Name a file, or pipe text in.")
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        mode = 0  # something in memory that stands in for it
    if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not sys.stdin.isatty()):
        raise TextError("text -: expected text on standard input, found a device. Pipe a file in instead.")
    return Source("standard input", None, None)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Readable(Protocol):
    """What has bytes to be read."""

    def read(self, size: int, /) -> bytes | None:
        """Return up to `size` bytes; none at the end."""
        ...


_ATTRIBUTES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Member(tarfile.TarInfo):
    """A header in a tar archive. Python's reader takes one that is damaged or cut for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """Read a header.

        Raises:
            EOFError: It is cut, or none.
            tarfile.HeaderError: It is the end of the archive.
            tarfile.ReadError: What follows it is to be read as a whole, and larger than any name.
        """
        end = len(buf) == tarfile.BLOCKSIZE and not any(buf)
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if end:
                raise
            raise EOFError(f"damaged or cut where a member begins ({error})") from None
        if member.type in _ATTRIBUTES and member.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


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


def _filled(file: _Readable, size: int) -> bytes:
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
        return SystemProblem(f"text {name}: expected to read it, found: {reason}. Check the device and try again.")
    return TextError(f"text {name}: expected a file that can be read, found: {printable(reason)}. Name another one.")


def _missing(name: str, bundled: Path | None) -> TextError:
    path = Path(name)
    offers: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        offers = {entry: str(path.parent / entry) for entry in sorted(os.listdir(path.parent)) if entry[0] != "."}
    own = sorted(file.stem for file in bundled.glob("*.txt")) if bundled and os.sep not in name else []
    offers |= {stem: stem for stem in own if stem not in offers}
    # An ending alone makes no name like another: of short names it is half of both.
    alike = [entry for entry in offers if difflib.SequenceMatcher(None, Path(entry).stem, path.stem).ratio() >= 0.6]
    close = difflib.get_close_matches(path.name, alike, 2, 0.6)
    hints = [f"Did you mean {' or '.join(printable(repr(offers[c])) for c in close)}?"] if close else []
    if own:
        hints.append(f"Texts that come along: {', '.join(own)}.")
    if "://" in name:
        return TextError(
            f"text {printable(repr(name))}: expected a file or folder, found an address. Fetch it into a file first."
        )
    found = "nothing there" if path.parent.is_dir() else f"no folder '{printable(str(path.parent))}'"
    return TextError(
        f"text {printable(repr(name))}: expected a file or folder, found {found}. " + (" ".join(hints) or "Check the name.")
    )
