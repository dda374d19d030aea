"""Odd texts, accepted and refused, and a way to read them; for every test that takes a corpus."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lstmlm.data.corpus import Corpus, open_corpus

EVERY = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


class Reader:
    """Opens corpora below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"

    def file(self, data: bytes | str, name: str = "text.txt") -> str:
        """Write a file and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)

    def __call__(self, *names: str, **options: Any) -> Corpus:
        """Open these sources."""
        return open_corpus(names, cache_dir=self.cache, **options)


def text_of(read: Corpus) -> str:
    """Decode both parts."""
    ids = [*read.train.tensor(0, len(read.train)).tolist(), *read.val.tensor(0, len(read.val)).tolist()]
    return read.tokenizer.decode(ids)


ACCEPTED: dict[str, bytes] = {
    "two characters": b"ab",
    "one character repeated": b"a" * 5000,
    "shorter than a window": b"hello",
    "plain": b"To be, or not to be.\n" * 40,
    "no newline at the end": b"line\nline",
    "only newlines": b"\n" * 300,
    "only blanks": b" \t " * 100,
    "NULs": b"a\0b\0" * 200,
    "only NULs": b"\0" * 999,
    "controls": bytes(range(32)) * 20,
    "CRLF": b"one\r\ntwo\r\n" * 100,
    "CR alone": b"one\rtwo\r" * 100,
    "mixed line ends": b"a\nb\r\nc\rd\n\r" * 100,
    "CR at the end": b"abc\r",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0c".encode() * 50,
    "a single long line": b"word " * 100_000,
    "one-character lines": b"x\n" * 100_000,
    "two bytes each": "åéîøü".encode() * 400,
    "three bytes each": "日本語の文章。".encode() * 300,
    "four bytes each": "😀🚀𝄞𐍈".encode() * 300,
    "all lengths": "a\x80ß߿ࠀ€￿\U00010000😀\U0010ffff".encode() * 300,
    "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ".encode() * 100,
    "right to left with controls": "\u202eשלום\u202c \u2066مرحبا\u2069\u200f ".encode() * 100,
    "200 combining marks": ("e" + "\u0301" * 200).encode() * 20,
    "decomposed beside composed": "é e\u0301 ".encode() * 100,
    "every code point": EVERY.encode(),
    "the basic plane": EVERY[:63488].encode(),
    "ids beyond a byte": "".join(map(chr, range(32, 400))).encode() * 10,
    "exactly 256 symbols": "".join(map(chr, range(256))).encode() * 10,
    "exactly 257 symbols": "".join(map(chr, range(257))).encode() * 10,
    "ids that look like surrogates": "".join(map(chr, range(0x10000, 0x10000 + 60_000))).encode(),
    "private use and unassigned": "\ue000\U000f0000\u0378\ufffe\uffff".encode() * 50,
    "a replacement character": "a\ufffdb".encode() * 100,
    "a mark inside": "a\ufeffb".encode() * 100,
    "ANSI art": b"\x1b[31m\xe2\x96\x88\x1b[0m\x1b]0;title\x07\n" * 100,
    "JSON lines": b'{"a": [1, 2], "b": "\\u00e9"}\n' * 100,
    "ASCII and then not": b"plain " * 50_000 + "é".encode(),
    "not ASCII and then plain": "é".encode() + b"plain " * 50_000,
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found none: it is empty"),
    "one character": (b"a", "expected at least 2 characters, found 1"),
    "one wide character": ("😀".encode(), "expected at least 2 characters, found 1"),
    "only a mark": (b"\xef\xbb\xbf", "found none: it is empty"),
    "bad at the start": (b"\xffabc", "at byte 0: .*0xFF"),
    "bad in the middle": (b"ab\xc0\xafcd", "at byte 2: .*0xC0"),
    "bad at the end": (b"abc\x80", "at byte 3: .*0x80"),
    "bad after much": (b"a" * 1_000_000 + b"\xfe" + b"b" * 9, "at byte 1000000: .*0xFE"),
    "bad after wide characters": ("é".encode() * 333_333 + b"\xff", "at byte 666666: .*0xFF"),
    "truncated last code point": ("abc€".encode()[:-1], "at byte 3: .*0xE2"),
    "overlong": (b"ab\xe0\x80\xaf", "at byte 2: .*0xE0"),
    "beyond Unicode": (b"ab\xf4\x90\x80\x80", "at byte 2: .*0xF4"),
    "a surrogate": (b"abc\xed\xa0\x80", "at byte 3: .*0xED"),
    "Latin-1": ("naïve café".encode("latin-1"), "at byte 2: .*0xEF.*--encoding latin-1"),
    "UTF-16": ("hello".encode("utf-16"), "byte order mark of UTF-16.*--encoding utf-16`"),
    "UTF-16, the other way": ("\ufeffhello".encode("utf-16-be"), "byte order mark of UTF-16.*--encoding utf-16`"),
    "UTF-32": ("hello".encode("utf-32"), "byte order mark of UTF-32.*--encoding utf-32`"),
    "an ELF file": (
        b"\x7fELF\x02\x01\x01\0\0\0\x80\xff",
        "at byte 10: .*looks like a program.*Leave it out.*--tokenizer byte",
    ),
    "bytes without a meaning": (b"ab\0\x80\xff", "at byte 3: .*does not look like text.*Leave the file out.*--tokenizer byte"),
    "a PDF": (b"%PDF-1.4\n1 0 obj\n", "expected text, found a PDF.*pdftotext"),
    "gzip under another name": (gzip.compress(b"abc"), "compressed data.*ends in .gz"),
    "xz under another name": (lzma.compress(b"abc"), "compressed data.*ends in .xz"),
}
