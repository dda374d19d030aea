import gzip
import random
from pathlib import Path

import pytest
import torch

from lstmlm.data import sources
from lstmlm.data.corpus import name_of
from lstmlm.errors import TextError, UsageError
from tests.corpora import ACCEPTED, REFUSED, Reader, text_of


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_odd_texts_come_back_byte_for_byte(read: Reader, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accepted text decodes to the very bytes of the file, in characters and in bytes, and is counted right."""
    monkeypatch.setattr(sources, "CHUNK", 50_021)  # borders fall inside characters
    path = read.file(data)
    chars, raw = read(path), read(path, tokenizer="byte")

    assert text_of(chars).encode() == data
    assert bytes([*raw.train.tensor(0, raw.chars).tolist(), *raw.val.tensor(0, raw.chars).tolist()]) == data
    assert (chars.chars, raw.chars) == (len(data.decode()), len(data))
    assert chars.tokenizer.encode("".join(sorted(set(data.decode())))) == list(range(len(chars.tokenizer)))
    assert sum(chars.counts) == len(chars.train)
    assert chars.counts == torch.bincount(chars.train.tensor(0, chars.chars), minlength=len(chars.counts)).tolist()


@pytest.mark.parametrize("data", [case[0] for case in REFUSED.values()], ids=REFUSED.keys())
def test_bytes_take_anything_of_two_or_more(read: Reader, data: bytes) -> None:
    """The byte tokenizer, offered as the way out, takes every file with two bytes."""
    path = read.file(data)
    if len(data) < 2:
        with pytest.raises(TextError, match="at least 2"):
            read(path, tokenizer="byte")
        return

    assert read(path, tokenizer="byte").chars == len(data)


@pytest.mark.parametrize(
    ("chars", "fraction", "held_out"),
    [(1000, 0.1, 100), (1009, 0.1, 100), (10, 0.1, 1), (9, 0.1, 0), (2, 0.5, 0), (3, 0.5, 1), (1000, 0.0, 0)],
)
def test_the_end_of_the_text_is_held_out(read: Reader, chars: int, fraction: float, held_out: int) -> None:
    """The last floor(chars * fraction) characters are for validation, and two are always left for training."""
    text = "".join(random.Random(chars).choices("abcdefgh", k=chars))
    split = read(read.file(text), val_fraction=fraction)

    assert (len(split.train), len(split.val)) == (chars - held_out, held_out)
    assert split.tokenizer.decode(split.val.tensor(0, chars).tolist()) == text[chars - held_out :]
    assert any("too few" in note for note in split.notes) == (held_out == 0 and fraction > 0)


def test_the_vocabulary_covers_both_parts(read: Reader) -> None:
    """A character that only the held-out end has is in the vocabulary, with a count of zero."""
    split = read(read.file("ab" * 50 + "z"))

    assert split.tokenizer.encode("z") == [2]
    assert split.counts[2] == 0


def test_a_validation_file_is_encoded_alike(read: Reader) -> None:
    """With a file for validation the whole corpus trains; its unknown characters are left out and counted."""
    split = read(read.file("abc" * 30), val=read.file("cab€cab€é", "val.txt"))

    assert (len(split.train), len(split.val)) == (90, 6)
    assert split.tokenizer.decode(split.val.tensor(0, 9).tolist()) == "cabcab"
    assert any("3 validation characters that training does not have" in note and "U+20AC" in note for note in split.notes)
    assert split.val_unknown == 3


@pytest.mark.parametrize(("data", "found"), [(b"", "empty"), (b"xyz", "none that training has")])
def test_a_validation_file_of_nothing_is_refused(read: Reader, data: bytes, found: str) -> None:
    """A validation file without a single known character can validate nothing."""
    with pytest.raises(TextError, match=rf"val\.txt: .*{found}"):
        read(read.file("abc" * 30), val=read.file(data, "val.txt"))


def test_a_given_vocabulary_is_kept(read: Reader) -> None:
    """A model that goes on keeps its ids, whatever the new text has of them."""
    symbols = "".join(map(chr, range(32, 127)))
    split = read(read.file("hello" * 9), symbols=symbols)

    assert len(split.tokenizer) == len(split.counts) == 95
    assert split.train.tensor(0, 5).tolist() == [symbols.index(c) for c in "hello"]


def test_one_thing_is_said_to_be_one(read: Reader) -> None:
    """What a note counts is in the singular where it is one."""
    path = read.file("a" * 40 + "b")
    grown = read(path, symbols="a", on_unknown="grow").notes[-2:]
    left_out = read(path, symbols="a", on_unknown="skip").notes

    assert any(note.startswith("new to the model, and learnt: 1 character, 'b'") for note in grown)
    assert any(note.startswith("1 character left out that the model does not know: 'b'") for note in left_out)
    with pytest.raises(TextError, match=r"expected the 1 character that the model knows, found 'b'"):
        read(path, symbols="a")


@pytest.mark.parametrize("unknown", ["€", "A"])
def test_characters_outside_a_given_vocabulary_are_named(read: Reader, unknown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new text with characters that the model does not know is refused, with the first one's place."""
    monkeypatch.setattr(sources, "CHUNK", 8)
    with pytest.raises(TextError, match=rf"at character 45: .*{unknown}.*U\+{ord(unknown):04X}"):
        read(read.file("hello" * 9 + unknown), symbols="ehlo")


def test_the_fingerprint_knows_text_and_split(read: Reader) -> None:
    """The fingerprint depends on the decoded text and the split, not on file, encoding or packing."""
    path = read.file("naïve text\n" * 40)
    first = read(path).fingerprint

    assert read(read.file("naïve text\n" * 40, "other.md")).fingerprint == first
    assert read(read.file(gzip.compress(("naïve text\n" * 40).encode()), "t.gz")).fingerprint == first
    assert read(read.file(("naïve text\n" * 40).encode("latin-1"), "l"), encoding="latin-1").fingerprint == first
    assert read(path, val_fraction=0.2).fingerprint != first
    assert read(read.file("naïve text\n" * 39 + "naïve tixt\n")).fingerprint != first


def test_progress_adds_up(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress goes up to the size of the files, once for each pass."""
    monkeypatch.setattr(sources, "CHUNK", 10)
    calls: list[tuple[str, int, int]] = []
    read(read.file("abcdefghij" * 2, "1"), read.file("k" * 5, "2"), progress=lambda *call: calls.append(call))

    assert calls == [(doing, done, 25) for doing in ("reading", "encoding") for done in (10, 20, 25)]


NAMES = {
    "poems.en.txt": "poems.en",
    "v1.2-notes.txt": "v1.2-notes",
    "my.corpus.v2.txt": "my.corpus.v2",
    "stories.txt.gz": "stories",
}
NAMES |= {
    "two words.txt": "two_words",
    "-": "stdin",
    "notes": "notes",
    ".hidden.md": "hidden",
    "folder/x.TXT": "x",
    "a.txt.txt": "a",
    "texts.tar.gz": "texts",
    "subtitles.en.srt": "subtitles.en",
}


@pytest.mark.parametrize(("source", "name"), NAMES.items())
def test_a_corpus_is_called_after_its_first_source(source: str, name: str) -> None:
    """Only known endings are cut off: corpora that differ in the middle of their names have runs of their own."""
    assert name_of(source) == name


@pytest.mark.parametrize("split", ["tail", "lines"])
def test_rare_characters_share_a_symbol(read: Reader, split: str) -> None:
    """Those that the training part has fewer times are one symbol in both parts; the others have their own."""
    lines = [f"abc{chr(0x4E00 + i // 2)}d\n" for i in range(200)]  # each twice, side by side
    found = read(read.file("".join(lines)), min_count=2, split=split, seed=5)
    text = text_of(found)
    train = text[: len(found.train)]
    symbols, rare = found.tokenizer.symbols, found.tokenizer.rare  # type: ignore[union-attr]  # of characters
    whole = read(read.file("".join(lines)), split=split, seed=5)
    original = text_of(whole)[: len(whole.train)]

    assert rare is not None
    assert set(symbols) == {c for c in original if original.count(c) >= 2} | {"\ufffd"}
    assert [a for a, b in zip(train, original, strict=True) if a != b] == ["\ufffd"] * train.count("\ufffd")
    assert found.counts[rare] == train.count("\ufffd")
    assert found.fingerprint == whole.fingerprint
    assert any("rare characters, read as one symbol, U+FFFD" in note for note in found.notes)


def test_a_known_vocabulary_keeps_its_rare_symbol(read: Reader) -> None:
    """A run that goes on needs no count; one that grows takes in what is common now, and a --val file has no unknown ones."""
    text, val = read.file("aab山山水\n" * 1 + "aab\n" * 30), read.file("aab木" * 9, "val.txt")
    on = read(text, min_count=2, symbols="\nab\ufffd", val=val)
    grown = read(text, min_count=2, symbols="\nab\ufffd", on_unknown="grow", val_fraction=0.0)

    assert (on.tokenizer.rare, on.val_unknown) == (3, 0)
    assert [on.counts[3], on.val.tensor(0, 99).tolist().count(3)] == [3, 9]
    assert grown.tokenizer.symbols == "\nab山\ufffd"  # type: ignore[union-attr]  # of characters


def test_bytes_are_never_rare(read: Reader) -> None:
    """With the byte tokenizer a least count is refused: there is no vocabulary to cut."""
    with pytest.raises(UsageError, match="--min-count: expected none with bytes"):
        read(read.file("abc" * 9), tokenizer="byte", min_count=2)


@pytest.mark.parametrize("rule", ["skip", "replace", "grow"])
def test_no_given_vocabulary_no_unknown_characters(read: Reader, rule: str) -> None:
    """Without a model to go on from no character is unknown: rare ones become their symbol, whatever is to happen to others."""
    path = read.file("aab山山水\n" + "aab\n" * 30)

    assert (
        text_of(read(path, min_count=2, on_unknown=rule)) == text_of(read(path, min_count=2)) == "aab山山\ufffd\n" + "aab\n" * 30
    )
