import hashlib
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lstmlm.data import sources
from lstmlm.data.decoding import Reading, Tally, decode
from lstmlm.data.sources import Source
from lstmlm.data.tokenizer import FORMS
from lstmlm.errors import ConfigError, TextError
from tests.corpora import REFUSED, Reader, text_of


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("chunk", [4, 5, 65_536])
def test_bad_texts_are_refused_with_their_place(
    read: Reader, data: bytes, message: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused text names file, offset and way out, wherever the borders of the pieces read lie."""
    if len(data) > 100_000 and chunk < 100:
        chunk += 7777
    monkeypatch.setattr(sources, "CHUNK", max(chunk, 5 * data.startswith(b"%PDF")))
    with pytest.raises(TextError, match=message) as caught:
        read(read.file(data))

    assert "text.txt" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), chunk=st.integers(4, 9))
def test_any_bytes_are_text_or_an_error_of_ours(data: bytes, chunk: int, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file is decoded as Python decodes it, or refused at the offset at which Python refuses it."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    path = read.file(data)
    marks = ("\ufeff".encode(), b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
    body = data.removeprefix(marks[0])
    assume(not body.startswith((b"%PDF-", rb"{\rtf")))  # these are known by their names
    try:
        expected = body.decode()
    except UnicodeDecodeError as error:
        message = "order mark" if data.startswith(marks[1:]) else f"at byte {len(data) - len(body) + error.start}:"
        with pytest.raises(TextError, match=message):
            read(path)
        return
    if len(expected) < 2 or data.startswith(marks[1:]):
        with pytest.raises(TextError):
            read(path)
        return

    assert text_of(read(path)) == expected


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("latin-1", bytes(range(256)) * 3),
        ("utf-16", "héllo 😀\r\n".encode("utf-16") + "x".encode("utf-16-le") * 30),
        ("utf-16-le", "héllo 😀".encode("utf-16-le") * 9),
        ("utf-32", "héllo 😀".encode("utf-32")),
        ("cp1252", b"\x93quoted\x94 " * 9),
        ("shift_jis", "日本語 text".encode("shift_jis") * 9),
        ("gb18030", "中文 😀".encode("gb18030") * 9),
        ("utf-7", "naïve +-".encode("utf-7") * 9),
    ],
)
def test_other_encodings_decode_across_borders(read: Reader, encoding: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a stated encoding gives the text that Python's codec gives; its tally is for those who ask for it."""
    monkeypatch.setattr(sources, "CHUNK", 5)

    assert text_of(read(read.file(data), encoding=encoding)) == data.decode(encoding)
    pieces = [(Source("text", None, None), data[at : at + 5]) for at in range(0, len(data), 5)]
    tally = Tally()
    texts = ["".join(decode(pieces, Reading(encoding), one)) for one in (tally, None)]
    assert texts == [data.decode(encoding)] * 2
    assert tally.digest.hexdigest() == hashlib.sha256(data.decode(encoding).encode()).hexdigest()


@pytest.mark.parametrize(
    ("encoding", "data", "offset"),
    [
        ("utf-16-le", b"ab\0\xd8cd", 2),
        ("utf-16-le", "abcdé".encode("utf-16-le")[:-1], 8),
        ("shift_jis", "日本語".encode("shift_jis") + b"\x81", 6),
        ("cp1252", b"abcdefg\x81", 7),
        ("ascii", b"abcdefgh\xe9", 8),
    ],
)
def test_offsets_are_right_in_other_encodings(
    read: Reader, encoding: str, data: bytes, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offset of a bad byte is that in the file, also where the decoder held bytes back."""
    monkeypatch.setattr(sources, "CHUNK", 5)
    with pytest.raises(TextError, match=f"at byte {offset}:"):
        read(read.file(data), encoding=encoding)


def test_surrogates_of_a_lax_encoding_are_refused(read: Reader) -> None:
    """UTF-7 can spell half a character, which is no text."""
    with pytest.raises(TextError, match=r"U\+D800|surrogate"):
        read(read.file(b"ab+2AA-cd"), encoding="utf-7")


@pytest.mark.parametrize("name", ["utf-99", "", "hex", "rot13", "idna", "unicode_escape", "utf 8\0", "x" * 5000])
def test_unknown_encodings_are_configuration_errors(read: Reader, name: str) -> None:
    """What is no encoding of files is refused before a file is read."""
    with pytest.raises(ConfigError, match=r"data\.encoding"):
        read(read.file(b"abc"), encoding=name)


def test_a_mark_at_the_start_is_dropped_and_said(read: Reader) -> None:
    """The byte order mark of each file is no part of the text, and the notes say so."""
    one, two = read.file(b"\xef\xbb\xbfab", "one.txt"), read.file(b"\xef\xbb\xbfcd", "two.txt")
    joined = read(one, two)

    assert text_of(joined) == "ab\ncd"
    assert any("one.txt and 1 more" in note and "byte order mark" in note for note in joined.notes)
    assert text_of(read(read.file("\ufeffabc".encode("utf-16-le")), encoding="utf-16-le")) == "abc"


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"a\nb\r\nc\r" * 40, "mixed line ends, kept: 40 LF, 40 CRLF, 40 CR alone"),
        (b"a\r\n" * 40, "all 40 line ends are CRLF, kept"),
        (b"a\r" * 40, "all 40 line ends are CR alone, kept"),
        (b"a\0b\0" * 40, "80 NUL characters"),
        (b"a\0b" + b"cd" * 40, "1 NUL character, kept"),
        (b"a\r\n" + b"cd" * 40, "the only line end is CRLF, kept"),
    ],
)
def test_notes_say_what_is_odd(read: Reader, data: bytes, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends and NULs are kept, counted right across the borders of pieces, and said."""
    monkeypatch.setattr(sources, "CHUNK", 5)

    assert any(note in n for n in read(read.file(data)).notes)


def test_ordinary_text_has_no_notes(read: Reader) -> None:
    """Nothing is said about a text with nothing odd in it."""
    assert read(read.file("naïve text\n" * 40)).notes == []


@pytest.mark.parametrize(
    ("encoding", "data", "text"),
    [("utf-8", b"a\xd0b\xe2\x82", "a\udcd0b\udce2\udc82"), ("gbk", b"a\xffb", "a\udcffb"), ("cp1252", b"a\x81b", "a\udc81b")],
)
def test_bad_bytes_may_be_let_through(encoding: str, data: bytes, text: str) -> None:
    """With surrogateescape a byte that is no text becomes a character that stands for it alone, at any border of pieces."""
    source, how = Source("bytes", None, None), Reading(encoding, errors="surrogateescape")
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        assert "".join(decode(((source, piece) for piece in pieces), how)) == text


@pytest.mark.parametrize("chunk", [4, 7, 1 << 18])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_unicode_form_is_that_of_the_whole_text(
    read: Reader, tokenizer: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text in another form is what Python makes of it as a whole, wherever the borders of the pieces lie."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    text = "e\u0301t\u00e9 o\u0323\u0302 \u1100\u1161\u11a8 \uac01 か\u3099 日本 x" * 9
    path = read.file(text)

    assert text_of(read(path, tokenizer=tokenizer)) == text
    for form in FORMS:
        got = read(path, normalize=form, tokenizer=tokenizer)
        assert text_of(got) == unicodedata.normalize(FORMS[form], text)
        assert got.tokenizer.encode("e\u0301") == got.tokenizer.encode("\u00e9")


def test_control_characters_of_another_encoding_are_noted(read: Reader) -> None:
    """Text from Windows that is read as Latin-1 has controls where it had quotes: that is said, with the way out."""
    got = read(read.file(b"It\x92s \x93green\x94.\n" * 9), encoding="latin-1")

    assert [n for n in got.notes if n.startswith("27 control characters") and "--encoding cp1252" in n]


def test_one_file_of_many_is_not_all_of_them(read: Reader) -> None:
    """An encoding is offered for all files only where they all are in it, as the others would be read wrongly."""
    good, bad = read.file("Où est Bob?\n" * 20, "good.txt"), read.file("Où est Bob?\n".encode("latin-1") * 20, "bad.txt")

    with pytest.raises(TextError, match=r"looks like latin-1: use `--encoding latin-1`"):
        read(bad)
    with pytest.raises(TextError, match=r"looks like latin-1: bring it into UTF-8, leave it out .* if all of the files"):
        read(good, bad)
