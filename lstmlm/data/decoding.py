"""Raw bytes of files -> decoded text, in pieces, in constant memory, with what is worth knowing about it counted.

`decode` is the entry point, for `corpus` and `eval`. Every character arrives as it was written: line ends are never changed,
and what cannot be decoded is refused with its place, never replaced.
"""

import codecs
import contextlib
import difflib
import encodings.aliases
import hashlib
import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lstmlm.data.sources import Source
from lstmlm.errors import ConfigError, TextError, printable

MARKS = (  # the longer mark first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MAGICS = ((b"\x1f\x8b", ".gz"), (b"\xfd7zX", ".xz"), (b"BZh", ".bz2"))
HEAD = 1024  # bytes at the start of a file that tell what else it may be
NOT_FOR_FILES = ("idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape")


@dataclass(slots=True)
class Tally:
    """What is found out about a text while it streams by, as UTF-8 (or as the bytes it is)."""

    chars: int = 0
    pairs: int = 0  # CR and LF together
    marks: list[str] = field(default_factory=list)  # names of the files whose byte order mark was dropped
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _after_cr: bool = False

    def add(self, chars: int, data: bytes) -> None:
        """Count `chars` characters that are `data` in UTF-8; a character may lie across two pieces."""
        self.chars += chars
        self.digest.update(data)
        if self._after_cr or b"\r" in data:
            self.pairs += data.count(b"\r\n") + (self._after_cr and data.startswith(b"\n"))
            self._after_cr = data.endswith(b"\r") if data else self._after_cr

    def notes(self, counts: dict[str, int]) -> list[str]:
        """Say in words what a reader should know, given the counts of LF, CR and NUL."""
        found = []
        if self.marks:
            more = f" and {len(self.marks) - 1} more" if len(self.marks) > 1 else ""
            found.append(f"{self.marks[0]}{more}: the byte order mark at the start is no part of the text")
        nuls, cr, lf = counts.get("\0", 0), counts.get("\r", 0) - self.pairs, counts.get("\n", 0) - self.pairs
        if nuls:
            found.append(f"{nuls} NUL characters, kept; text in UTF-16 without a mark needs --encoding utf-16-le")
        if (self.pairs > 0) + (cr > 0) + (lf > 0) > 1:
            found.append(f"mixed line ends, kept: {lf} LF, {self.pairs} CRLF, {cr} CR alone")
        elif cr:
            found.append(f"all {cr} line ends are CR alone, kept")
        elif self.pairs:
            found.append(f"all {self.pairs} line ends are CRLF, kept")
        return found


def find_encoding(name: str, where: str = "data.encoding") -> str:
    """Return the canonical name of a text encoding.

    Args:
        name: As it was given.
        where: The setting or flag that gave it, for the message.

    Raises:
        ConfigError: If there is no such encoding, or files are not written in it.
    """
    try:
        canonical = codecs.lookup(name).name
        with contextlib.suppress(UnicodeError):
            bytes(4).decode(name)  # refuses what is an encoding, but not one of text
    except (LookupError, ValueError):
        canonical = ""
    if not canonical or canonical.replace("-", "_") in NOT_FOR_FILES:
        close = difflib.get_close_matches(name.lower(), sorted({*encodings.aliases.aliases.values(), "utf-8"}), 1)
        hint = f"Did you mean {close[0]}?" if close else "Common ones are utf-8, utf-16, latin-1 and cp1252."
        raise ConfigError(f"{where}: expected a text encoding, found '{printable(name)}'. {hint}")
    return canonical


def decode(
    pieces: Iterable[tuple[Source, bytes]], encoding: str, tally: Tally | None = None, errors: str = "strict"
) -> Iterator[str]:
    """Decode what several sources hold, piece by piece; each source is decoded on its own.

    Args:
        pieces: Raw bytes in order, each with the source it is from.
        encoding: A canonical name, from `find_encoding`.
        tally: Is brought up to date with every piece. None: nobody asks.
        errors: What becomes of a byte that is no text: `strict` refuses it, `surrogateescape` gives a character that stands for
            it alone and is in no vocabulary (UTF-16 and UTF-32 refuse it all the same: what follows would be out of step).

    Raises:
        TextError: At the first byte that is not text, naming file, offset, byte and the way out.
    """
    for source, raws in itertools.groupby(pieces, key=operator.itemgetter(0)):
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        head = b""
        offset = 0  # of the end of what the decoder was given, in bytes
        for raw, final in itertools.chain(((raw, False) for _, raw in raws), [(b"", True)]):
            start = offset == 0 and not final
            head += raw[: HEAD - len(head)]
            if start:
                _refuse_mark(source, encoding, raw)
            given = raw[3:] if start and encoding == "utf-8" and raw.startswith(codecs.BOM_UTF8) else raw
            offset += len(raw)
            try:
                text = decoder.decode(given, final)
            except UnicodeDecodeError as error:
                # What the decoder held back from the piece before is part of its object, so count from the end.
                at = offset - len(error.object) + error.start
                raise _undecodable(source, encoding, head, at, error.object[error.start], error.reason) from None
            except UnicodeError as error:
                raise _undecodable(source, encoding, head, offset - len(raw), None, str(error)) from None
            marked = len(given) < len(raw)
            if start and text.startswith("\ufeff") and encoding != "utf-8":
                marked, text = True, text[1:]
            if tally is not None:
                if marked:
                    tally.marks.append(source.name)
                # What is UTF-8 already has no need to be encoded again.
                tally.add(len(text), given if encoding == "utf-8" else text.encode("utf-8", "surrogatepass"))
            if text:
                yield text


def _refuse_mark(source: Source, encoding: str, raw: bytes) -> None:
    if encoding != "utf-8":
        return
    for mark, name in MARKS:
        if raw.startswith(mark):
            raise TextError(
                f"corpus {source.name}: expected UTF-8, found the byte order mark of {name.upper()} at byte 0. "
                f"Use `--encoding {name}`."
            )


def _undecodable(source: Source, encoding: str, head: bytes, offset: int, byte: int | None, reason: str) -> TextError:
    """Name place and way out; `head` are the first bytes, which tell what else the file may be."""
    found = printable(reason) if byte is None else f"0x{byte:02X} ({printable(reason)})"
    suffix = next((suffix for magic, suffix in MAGICS if head.startswith(magic)), None)
    if suffix is not None:
        return TextError(
            f"corpus {source.name} at byte {offset}: expected {encoding.upper()}, found {found}, in what looks like "
            f"compressed data. Give the file a name that ends in {suffix}, or use `--tokenizer byte`."
        )
    if b"\0" in head:  # no encoding of a byte a character has it in a text
        return TextError(
            f"corpus {source.name} at byte {offset}: expected {encoding.upper()}, found {found}, "
            "in what does not look like text. Leave the file out, or use `--tokenizer byte` for bytes as they are."
        )
    other = "latin-1" if encoding == "utf-8" else "utf-8"
    return TextError(
        f"corpus {source.name} at byte {offset}: expected {encoding.upper()}, found {found}. "
        f"Use `--tokenizer byte` for bytes as they are, or name what it is written in, such as `--encoding {other}`."
    )
