import codecs
import gzip
import random

import pytest

from lstmlm.data.recognition import HEAD, binary, encodings_of, kind, mostly_utf8

TEXTS = {
    "gb18030": "山上有水，水边有一座小石桥。那时候他们都不在家。\n",
    "big5": "山上有水，水邊有一座小石橋。我們在這個學校。\n",
    "shift_jis": "山の上に水があり、小さな石の橋がある。\n",
    "euc-jp": "山の上に水があり、小さな石の橋がある。\n",
    "euc-kr": "산 위에 물이 있고 작은 돌다리가 있다.\n",
    "cp1251": "На горе есть вода, у воды каменный мост.\n",
    "koi8-r": "На горе есть вода, у воды каменный мост.\n",
    "cp866": "На горе есть вода, у воды каменный мост.\n",
    "cp1253": "Η πόλη είναι μεγάλη και όμορφη.\n",
    "cp1255": "שלום לכולם, היום אני הולך הביתה מן העבודה.\n",
    "cp1256": "مرحبا بالعالم هذا نص عربي.\n",
    "cp874": "สวัสดีชาวโลก นี่คือข้อความ\n",
    "cp1252": "It’s an old mill – and “green”. Un été à Noël.\n",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy.\n",
    "latin-1": "Größe, schön; un été à la mer.\n",
}


@pytest.mark.parametrize(("encoding", "text"), TEXTS.items())
def test_an_encoding_is_recognised_by_its_letters(encoding: str, text: str) -> None:
    """A text of a few words is offered the encoding that it is written in first, however its bytes are cut."""
    data = text.encode(encoding) * 20

    for end in range(len(data) - 5, len(data)):
        assert encodings_of(data[:end])[0] == encoding


@pytest.mark.parametrize("data", [b"", b"plain\n" * 9, random.Random(0).randbytes(4000), bytes(range(128, 256)) * 9])
def test_what_is_no_text_is_offered_no_encoding(data: bytes) -> None:
    """Plain ASCII, noise, and bytes without an order have no encoding: least of all latin-1, which takes anything."""
    assert "latin-1" not in encodings_of(data)
    assert len(encodings_of(data)) <= 1


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04..", "a ZIP archive or an office document"),
        (b"\x89PNG\r\n", "a picture"),
        (gzip.compress(b"x", mtime=0), "compressed data"),
        (b"x" * 257 + b"ustar  \0", "a tar archive"),
    ],
)
def test_files_of_known_kinds_are_named(head: bytes, what: str) -> None:
    """A file that is no text is called what it is, by how it begins, and counts as binary."""
    found = kind(head)

    assert found is not None
    assert found[0] == what
    assert binary(head, "utf-8")


def test_a_bad_byte_in_utf8_is_no_other_encoding() -> None:
    """Text in UTF-8 with a byte of another encoding among it is known to be UTF-8, and the other way round."""
    assert mostly_utf8("Un été à Noël.\n".encode() * 9 + b"\xe9")
    assert not any(mostly_utf8(text.encode(encoding)) for encoding, text in TEXTS.items())


def test_text_is_no_binary_file() -> None:
    """Text in any encoding is text, in UTF-16 with its NULs too where that is what is read."""
    assert not any(binary(text.encode(encoding)[:HEAD], "utf-8") for encoding, text in TEXTS.items())
    assert not binary("text".encode("utf-16-le"), "utf-16-le")
    assert not binary(codecs.BOM_UTF16_LE + "text".encode("utf-16-le"), "utf-8")
    assert binary(b"a\0b", "utf-8")
