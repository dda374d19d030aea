"""What the first bytes of a file tell: whether it is text, in which encodings it may be written, and what else it is.

`decoding` asks for its advice, and `sources` for what it leaves out of a folder. Nothing is decided here for the user: an
encoding is offered by name, and taken only when it is named.
"""

import codecs
import contextlib
import re
import unicodedata

HEAD = 8192  # bytes that are looked at
KINDS = (
    (b"\x1f\x8b", "compressed data", "Give the file a name that ends in .gz"),
    (b"\xfd7zX", "compressed data", "Give the file a name that ends in .xz"),
    (b"BZh", "compressed data", "Give the file a name that ends in .bz2"),
    (b"%PDF-", "a PDF", "Take its text out first, such as with pdftotext"),
    (b"PK\x03\x04", "a ZIP archive or an office document", "Name it .zip if texts are in it, or save it as plain text"),
    (b"\xd0\xcf\x11\xe0", "an office document", "Save it as plain text"),
    (b"{\\rtf", "an RTF document", "Save it as plain text"),
    (b"\x89PNG", "a picture", "Leave it out"),
    (b"\xff\xd8\xff", "a picture", "Leave it out"),
    (b"GIF8", "a picture", "Leave it out"),
    (b"\x7fELF", "a program", "Leave it out"),
    (b"SQLite format 3", "a database", "Write its texts into a file first"),
    (b"safetensors", "a model", "Leave it out"),
)
"""How a file of a kind begins, what it is, and what to do about it."""
TAR = (257, b"ustar")
REFUSED = ("a PDF", "an RTF document", "a tar archive")
"""Kinds that may be UTF-8 to the last byte, and are no text all the same."""

_KANA = frozenset(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FD), 0x3001, 0x3002]))
_HANGUL = frozenset(map(chr, range(0xAC00, 0xD7A4)))
_HAN = frozenset(
    "的一是不了在人有我他這这個个們们來来到時时大地為为子中你說说生國国年著着就那和要她出也得里後后自以會会家可下過过上小，。、“”「」"
)
# The commonest letters, in lower case alone: one encoding read as another gives capitals, or the rare ones.
_SCRIPTS = (
    ("shift_jis", _KANA, 0.25),
    ("euc-jp", _KANA, 0.25),
    ("euc-kr", _HANGUL, 0.9),
    ("gb18030", _HAN, 0.1),
    ("big5", _HAN, 0.1),
    ("cp1251", frozenset("оеаинтсрвлі"), 0.45),
    ("koi8-r", frozenset("оеаинтсрвл"), 0.45),
    ("cp866", frozenset("оеаинтсрвл"), 0.45),
    ("cp1253", frozenset("αοιετσνηυρ"), 0.45),
    ("cp1255", frozenset("יוהלארתבםשמ"), 0.5),
    ("cp1256", frozenset("اليمنورتبعده"), 0.6),
    ("cp874", frozenset("านรอกเงมยลวดท่้"), 0.5),
)
"""Encodings, what is common in a text in them, and the share that it has of the characters beyond ASCII, at least."""
_LATIN = ("latin-1", "cp1252", "cp1250", "cp1254")
_MARKS = frozenset("‘’“”„‚…–—«»•€°§·¿¡ºª£©®")
_SVG = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE\s+svg[^>]*>\s*)?<svg[\s>]", re.S)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_LONE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
"""A byte beyond ASCII with none beside it, as accented letters mostly are."""


def kind(head: bytes) -> tuple[str, str] | None:
    """Return what a file is that begins like this, and what to do about it; None where nothing is known of it."""
    if head[TAR[0] :].startswith(TAR[1]):
        return "a tar archive", "Give the file a name that ends in .tar or .tar.gz"
    return next(((what, advice) for magic, what, advice in KINDS if head.startswith(magic)), None)


def binary(head: bytes, encoding: str) -> bool:
    """Say whether a file that begins like this is no text, as grep and git do: a NUL is in it, or it is of a known kind."""
    if encoding.startswith(("utf-16", "utf-32")) or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    return b"\0" in head or kind(head) is not None


def drawing(head: bytes) -> bool:
    """Say whether a file that begins like this is a picture that is written as text."""
    return _SVG.match(head) is not None


def encodings_of(data: bytes) -> list[str]:
    """Return the encodings other than UTF-8 in which some bytes are likely text, the likeliest first; none where none is known.

    Args:
        data: From the beginning of a line on, if it can be had: a character of several bytes begins there.
    """
    if 50 * len(_CONTROLS.findall(data)) > len(data):
        return []
    high = sum(byte > 0x7F for byte in data)
    lone = len(_LONE.findall(data))
    shares: dict[str, float] = {}
    if 2 * lone < high:
        for name, common, least in _SCRIPTS:
            beyond = [char for char in _decoded(data, name) if char > "\x7f"]
            share = sum(char in common for char in beyond) / max(1, len(beyond))
            if share >= least:
                shares[name] = share / least
    if not shares and 4 * lone > high:
        # In one encoding a letter, in another a sign: words have letters in them.
        for name in _LATIN:
            beyond = [char for char in _decoded(data, name) if char > "\x7f"]
            good = sum(unicodedata.category(char) in ("Ll", "Lu") or char in _MARKS for char in beyond)
            shares[name] = good / len(beyond) if beyond else 0.0
        best = max(shares.values())
        return [name for name in _LATIN if best and shares[name] == best][:1]
    return sorted(shares, key=lambda name: -shares[name])


def mostly_utf8(data: bytes) -> bool:
    """Say whether most bytes beyond ASCII are UTF-8, with a few among them that are not."""
    high, good = (sum(byte > 0x7F for byte in part) for part in (data, data.decode("utf-8", "ignore").encode()))
    return 2 * good > high


def _decoded(data: bytes, encoding: str) -> str:
    """Return some bytes as text, a cut last character left out; nothing where they are not of this encoding."""
    with contextlib.suppress(UnicodeDecodeError):
        return codecs.getincrementaldecoder(encoding)().decode(data)
    return ""
