"""Raw bytes of files -> decoded text, in pieces, in constant memory, with what is worth knowing about it counted.

`documents` is the entry point for `prepare`, `decode` for `eval`; `join` does for bytes what can be done for them. Every
character arrives as it was written, unless another Unicode form is asked for: line ends are never changed, only put between files
where one is missing, and what cannot be decoded is refused with its place, never replaced.
"""

import codecs
import contextlib
import difflib
import encodings.aliases
import hashlib
import itertools
import operator
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import AnyStr

from lstmlm.data import recognition, records
from lstmlm.data.recognition import HEAD
from lstmlm.data.sources import Source
from lstmlm.data.tokenizer import FORMS
from lstmlm.errors import ConfigError, TextError, printable
from lstmlm.units import counted

MARKS = (  # the longer mark first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NOT_FOR_FILES = ("idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape")

C1 = re.compile(rb"\xc2[\x80-\x9f]")  # control characters that no text has, in UTF-8
# Characters that never join with the one before them: what comes before is normalised alike with and without them.
BORDER = re.compile("[\x00-\u02ff\u3000-\u3029\u3041-\u3096\u30a1-\ud7a3]")
HELD = 1 << 16  # characters in which a border is looked for: a text without one is cut all the same


@dataclass(frozen=True, slots=True)
class Reading:
    """How the bytes of files become a text.

    Attributes:
        encoding: A canonical name, from `find_encoding`.
        field: Which field of each record of a .jsonl, .csv or .tsv file is text; None: such files are read as they are.
        normalize: Unicode form of the text: nfc, nfd, or none for what it is.
        new: Whether it is for a new model, so that the user may choose to read bytes.
        errors: What becomes of a byte that is no text: `strict` refuses it, `surrogateescape` gives a character that stands for
            it alone and is in no vocabulary (UTF-16 and UTF-32 refuse it all the same: what follows would be out of step).
        alone: Whether it is for one file, which another encoding would be for, or for many, of which most may be in this one.
    """

    encoding: str = "utf-8"
    field: str | None = None
    normalize: str = "none"
    new: bool = False
    errors: str = "strict"
    alone: bool = True


@dataclass(slots=True)
class Tally:
    """What is found out about a text while it streams by, as UTF-8 (or as the bytes it is)."""

    chars: int = 0
    lf: int = 0
    cr: int = 0
    pairs: int = 0  # CR and LF together
    nuls: int = 0
    c1: int = 0
    joined: int = 0  # line ends put between documents
    marks: list[str] = field(default_factory=list)  # names of the files whose byte order mark was dropped
    raw: list[str] = field(default_factory=list)  # files of records that were read as they are, with the names of their fields
    records: int = 0  # of which one field was read
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _after_cr: bool = False

    def add(self, chars: int, data: bytes) -> None:
        """Count `chars` characters that are `data` in UTF-8; a CRLF may lie across two pieces."""
        self.chars += chars
        self.digest.update(data)
        self.lf += data.count(b"\n")
        self.nuls += data.count(b"\0")
        if not data.isascii():
            self.c1 += len(C1.findall(data))
        if self._after_cr or b"\r" in data:
            self.cr += data.count(b"\r")
            self.pairs += data.count(b"\r\n") + (self._after_cr and data.startswith(b"\n"))
            self._after_cr = data.endswith(b"\r") if data else self._after_cr

    def notes(self) -> list[str]:
        """Say in words what a reader should know."""
        found = []
        if self.marks:
            more = f" and {len(self.marks) - 1} more" if len(self.marks) > 1 else ""
            found.append(f"{self.marks[0]}{more}: the byte order mark at the start is no part of the text")
        if self.nuls:
            found.append(f"{counted(self.nuls, 'NUL character')}, kept; text in UTF-16 without a mark needs --encoding utf-16-le")
        if self.c1:
            controls = counted(self.c1, "control character")
            found.append(f"{controls} from U+0080 to U+009F, kept; text from Windows needs --encoding cp1252")
        cr, lf = self.cr - self.pairs, self.lf - self.pairs
        if (self.pairs > 0) + (cr > 0) + (lf > 0) > 1:
            found.append(f"mixed line ends, kept: {lf:,} LF, {self.pairs:,} CRLF, {cr:,} CR alone")
        elif cr:
            found.append(f"{_every(cr)} CR alone, kept")
        elif self.pairs:
            found.append(f"{_every(self.pairs)} CRLF, kept")
        if self.joined and not self.records:
            found.append(f"{counted(self.joined, 'line end')} put between files, after those that end without one")
        if self.raw:
            more = f" and {len(self.raw) - 1} more" if len(self.raw) > 1 else ""
            found.append(f"{self.raw[0]}{more}: records read as they are, names and quotes too; --field NAME takes one field")
        return found


def _every(line_ends: int) -> str:
    return "the only line end is" if line_ends == 1 else f"all {line_ends:,} line ends are"


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


def encoding_of(kind: str, encoding: str, field: str | None, normalize: str) -> str:
    """Return what files are read in for a kind of tokenizer: `bytes` for that of bytes, which asks for an encoding only where a
    field is to be found or a form to be made.

    Raises:
        ConfigError: As `find_encoding`.
    """
    return "bytes" if kind == "byte" and not field and normalize == "none" else find_encoding(encoding)


def decode(pieces: Iterable[tuple[Source, bytes]], how: Reading, tally: Tally | None = None) -> Iterator[str]:
    """Decode what several sources hold, piece by piece; see `documents`."""
    return (text for _, text in documents(pieces, how, tally))


def documents(pieces: Iterable[tuple[Source, bytes]], how: Reading, tally: Tally | None = None) -> Iterator[tuple[int, str]]:
    """Decode what several sources hold, piece by piece, each with the number of its document (0 is the first).

    A document is a file, or where a field is read a record. A line end is put after one that lacks it, where another follows.

    Args:
        pieces: Raw bytes in order, each with the source it is from.
        how: Encoding, field and form.
        tally: Is brought up to date with every piece. None: nobody asks.

    Raises:
        TextError: At the first byte that is not text, naming file, offset, byte and the way out.
    """
    tally = tally or Tally()
    for number, text in _joined(_texts(pieces, how, tally), ("\n", "\r"), tally):
        tally.add(len(text), text.encode("utf-8", "surrogatepass"))
        yield number, text


def join(pieces: Iterable[tuple[Source, bytes]], tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Give bytes as they are, each piece with the number of its document; line ends between documents as in `documents`."""
    sources = ((raw for _, raw in raws) for _, raws in itertools.groupby(pieces, key=operator.itemgetter(0)))
    for number, raw in _joined(sources, (b"\n", b"\r"), tally):
        tally.add(len(raw), raw)
        yield number, raw


def readable(sources: Iterable[Source], how: Reading, bad: dict[str, TextError]) -> list[Source]:
    """Read files to their end, and return those that are text; of an archive that is whole, all but the members that are not.

    Args:
        sources: What can be read only once is taken as it is.
        how: As for `decode`; its encoding may be `bytes`.
        bad: Takes the names of the others, each with what is wrong.
    """
    good = []
    for source in sources:
        wrong: dict[str, TextError] = {}
        if source.identity is not None:
            _read_through(source, how, wrong)
        bad |= wrong
        if not wrong:
            good.append(source)
        elif source.archive and source.name not in wrong:
            good.append(replace(source, without=frozenset(wrong)))
    return good


def _read_through(source: Source, how: Reading, wrong: dict[str, TextError]) -> None:
    """Read a source, and note what is wrong with it as a whole, or with its members."""

    def watched() -> Iterator[tuple[Source, bytes]]:
        try:
            yield from source.pieces()
        except TextError as error:
            wrong[source.name] = error

    for member, raws in itertools.groupby(watched(), key=operator.itemgetter(0)):
        try:
            for _ in raws if how.encoding == "bytes" else decode(raws, how):
                pass
        except TextError as error:
            wrong.setdefault(member.name, error)


def _joined(documents: Iterable[Iterable[AnyStr]], ends: tuple[AnyStr, AnyStr], tally: Tally) -> Iterator[tuple[int, AnyStr]]:
    """Give texts with the numbers of their documents, and line ends between documents where one is missing."""
    before, unended = 0, False
    for number, document in enumerate(documents):
        for text in document:
            if not text:
                continue
            if unended and number > before:
                tally.joined += 1
                yield before, ends[1] + ends[0] if tally.pairs else ends[0]
            before, unended = number, not text.endswith(ends)
            yield number, text


def _texts(pieces: Iterable[tuple[Source, bytes]], how: Reading, tally: Tally) -> Iterator[Iterable[str]]:
    """Give the texts of one document after another; each is to be used up before the next one."""
    for source, raws in itertools.groupby(pieces, key=operator.itemgetter(0)):
        texts: Iterable[str] = _decoded(source, (raw for _, raw in raws), how, tally)
        separator = records.separator(source)
        if source.path is None and how.field:  # what comes through a pipe has no name to tell by
            first = next(iter(texts), "")
            separator = "" if first.lstrip().startswith("{") else None
            texts = itertools.chain([first], texts)
        if separator is not None and how.field:
            for record in records.texts(source.name, texts, separator, how.field):
                tally.records += 1
                yield _normalized([record], how.normalize)
            continue
        if separator is not None:
            tally.raw.append(source.name)
        yield _normalized(texts, how.normalize)


def _normalized(texts: Iterable[str], form: str) -> Iterable[str]:
    """Give texts in a Unicode form, whatever the borders between them."""
    return texts if form == "none" else (unicodedata.normalize(FORMS[form], text) for text in at_borders(texts))


def at_borders(texts: Iterable[str]) -> Iterator[str]:
    """Give a text in other pieces, each of which can be brought into a Unicode form by itself; no whole line is held back."""
    held = ""
    for text in texts:
        held += text
        cut = len(held) if held.endswith(("\n", "\r")) else 0
        cut = cut or next((at for at in range(len(held) - 1, max(-1, len(held) - HELD), -1) if BORDER.match(held[at])), 0)
        cut = cut or (len(held) if len(held) > HELD else 0)
        yield held[:cut]
        held = held[cut:]
    yield held


def _decoded(source: Source, raws: Iterable[bytes], how: Reading, tally: Tally) -> Iterator[str]:
    """Give the text of one source."""
    encoding = how.encoding
    decoder = codecs.getincrementaldecoder(encoding)(how.errors)
    head = b""
    offset = 0  # of the end of what the decoder was given, in bytes
    for raw, final in itertools.chain(((raw, False) for raw in raws), [(b"", True)]):
        start = offset == 0 and not final
        head += raw[: HEAD - len(head)]
        if start:
            _refuse_mark(source, encoding, raw)
            _refuse_kind(source, raw, how)
        given = raw[3:] if start and encoding == "utf-8" and raw.startswith(codecs.BOM_UTF8) else raw
        offset += len(raw)
        try:
            text = decoder.decode(given, final)
        except UnicodeDecodeError as error:
            # What the decoder held back from the piece before is part of its object, so count from the end.
            at = offset - len(error.object) + error.start
            near = error.object[error.object.rfind(b"\n", 0, error.start) + 1 :][:HEAD]
            found = f"0x{error.object[error.start]:02X} ({printable(error.reason)})"
            raise _undecodable(source, how, head if at < len(head) else near, at, found) from None
        except UnicodeError as error:
            raise _undecodable(source, how, head, offset - len(raw), printable(str(error))) from None
        marked = len(given) < len(raw)
        if start and text.startswith("\ufeff") and encoding != "utf-8":
            marked, text = True, text[1:]
        if marked:
            tally.marks.append(source.name)
        yield text


def _refuse_mark(source: Source, encoding: str, raw: bytes) -> None:
    if encoding != "utf-8":
        return
    for mark, name in MARKS:
        if raw.startswith(mark):
            raise TextError(
                f"text {source.name}: expected UTF-8, found the byte order mark of {name.upper()} at byte 0. "
                f"Use `--encoding {name}`."
            )


def _refuse_kind(source: Source, head: bytes, how: Reading) -> None:
    """Refuse what is no text although every byte of it may be."""
    what, advice = recognition.kind(head) or ("", "")
    if what in recognition.REFUSED:
        raise TextError(f"text {source.name}: expected text, found {what}. {advice}{_or_bytes(how)}.")


def _or_bytes(how: Reading) -> str:
    return ", or use `--tokenizer byte` for bytes as they are" if how.new else ""


def _undecodable(source: Source, how: Reading, near: bytes, offset: int, found: str) -> TextError:
    """Name place and way out; `near` are bytes around it, which tell what the file may be."""
    place = f"text {source.name} at byte {offset}: expected {how.encoding.upper()}, found {found}"
    what, advice = recognition.kind(near) or ("", "")
    if not what and b"\0" in near:  # no encoding of a byte a character has it in a text
        what, advice = "does not look like text", "Leave the file out"
        return TextError(f"{place}, in what {what}. {advice}{_or_bytes(how)}.")
    if what:
        return TextError(f"{place}, in what looks like {what}. {advice}{_or_bytes(how)}.")
    likely = [name for name in recognition.encodings_of(near) if name != how.encoding]
    if how.encoding != "utf-8" and not near.isascii():
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder("utf-8")().decode(near)
            likely.insert(0, "utf-8")
    if how.encoding == "utf-8" and recognition.mostly_utf8(near):
        skip = " (`--on-bad-file skip`)" if how.new else ""
        return TextError(f"{place}, though most of it is UTF-8. Mend it, or leave the file out{skip}{_or_bytes(how)}.")
    if likely and not how.alone:
        skip = ", leave it out (`--on-bad-file skip`)" if how.new else ""
        return TextError(
            f"{place}. It looks like {' or '.join(likely[:2])}: bring it into {how.encoding.upper()}{skip}, or use "
            f"`--encoding {likely[0]}` if all of the files are in that."
        )
    if likely:
        return TextError(f"{place}. It looks like {' or '.join(likely[:2])}: use `--encoding {likely[0]}`{_or_bytes(how)}.")
    return TextError(f"{place}. Name what it is written in with `--encoding NAME`{_or_bytes(how)}.")
