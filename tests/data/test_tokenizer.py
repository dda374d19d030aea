import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmlm.data import tokenizer
from lstmlm.data.tokenizer import ByteTokenizer, CharTokenizer, readable
from lstmlm.errors import CheckpointError, TextError

characters = st.characters(exclude_categories=["Cs"])


@given(text=st.text(characters, min_size=1))
def test_characters_round_trip(text: str) -> None:
    """Encoding and decoding is the identity for every text over the vocabulary."""
    symbols = CharTokenizer(text)

    assert symbols.decode(symbols.encode(text)) == text
    assert tokenizer.from_dict(symbols.to_dict()) == symbols


@given(text=st.text(characters))
def test_bytes_round_trip(text: str) -> None:
    """Every text can be encoded as bytes, and comes back as it was, whole or in pieces of one byte."""
    symbols = ByteTokenizer()
    ids = symbols.encode(text)
    stream = symbols.stream_decoder()

    assert symbols.decode(ids) == text
    assert "".join(stream.push([i]) for i in ids) == text


def test_ids_are_the_sorted_positions() -> None:
    """The id of a character is its place in the sorted vocabulary, whatever order it was met in."""
    symbols = CharTokenizer("banana split")

    assert symbols.symbols == " abilnpst"
    assert symbols.encode("nab") == [5, 1, 2]
    assert len(symbols) == 9


def test_an_unknown_character_names_itself() -> None:
    """The error names the character, its code point, its position and the way out."""
    with pytest.raises(TextError, match=r"character 3: .*'é' U\+00E9 \(latin small.*2 such.*--on-unknown skip"):
        CharTokenizer("abcdef").encode("cafés")


def test_an_unknown_control_is_not_printed() -> None:
    """An escape character is named by its code point and never reaches a terminal."""
    with pytest.raises(TextError) as caught:
        CharTokenizer("abc").encode("a\x1b[31m")

    assert "\x1b" not in str(caught.value)
    assert "U+001B" in str(caught.value)


def test_skip_leaves_unknown_characters_out() -> None:
    """With skip the known characters remain, in order."""
    symbols = CharTokenizer("abc ")

    assert symbols.decode(symbols.encode("xaybzc", "skip")) == "abc"
    assert symbols.unknown("xab") == [(0, "x")]


@pytest.mark.parametrize(
    ("char", "expected"),
    [
        ("é", "e"),
        ("Å", "A"),
        ("E", "e"),
        ("É", "e"),
        ("ﬁ", "fi"),
        ("’", "'"),
        ("—", "-"),
        ("日", " "),
        ("\t", " "),
        ("\r", ""),
        ("\x07", ""),
        ("\u0301", ""),
        ("\u200d", ""),
    ],
)
def test_replace_takes_the_nearest_relative(char: str, expected: str) -> None:
    """With replace an unknown character becomes its twin, base letter, other case, a space, or nothing."""
    symbols = CharTokenizer("aAefi '-\n")

    assert symbols.decode(symbols.encode(f"a{char}a", "replace")) == f"a{expected}a"


def test_decoding_refuses_ids_outside() -> None:
    """A negative id does not count from the end, and a large one is no character."""
    with pytest.raises(IndexError):
        CharTokenizer("abc").decode([-1])
    with pytest.raises(IndexError):
        CharTokenizer("abc").decode([3])


def test_smuggled_bytes_come_out_as_they_were() -> None:
    """Bytes of a command line that are not UTF-8 reach the byte tokenizer unharmed."""
    assert ByteTokenizer().encode("a\udcff") == [97, 255]


def test_a_lone_surrogate_is_refused() -> None:
    """Half a character has no bytes, and is refused with its position unless it may be left out."""
    with pytest.raises(TextError, match="character 1"):
        ByteTokenizer().encode("a\ud800")

    assert ByteTokenizer().encode("a\ud800b", "skip") == [97, 98]
    assert ByteTokenizer().unknown("a\ud800b") == [(1, "\ud800")]


def test_byte_stream_holds_back_half_a_character() -> None:
    """A stream gives nothing for a character that is still to be completed, and no byte is lost if it never is."""
    stream = ByteTokenizer().stream_decoder()

    assert stream.push([0xE2, 0x82]) == ""
    assert stream.push([0xAC]) == "€"
    assert stream.push([0xE2]) == ""
    assert stream.push([97]) == "\udce2a"
    assert readable("é\udce2a") == "é\ufffda"


def test_character_stream_gives_each_character_at_once() -> None:
    """A stream over characters holds nothing back."""
    stream = CharTokenizer("a😀").stream_decoder()

    assert stream.push([1]) == "😀"


@pytest.mark.parametrize("symbols", ["", "a\ud800"])
def test_vocabularies_that_cannot_be(symbols: str) -> None:
    """A vocabulary without symbols, or with half a character, is refused."""
    with pytest.raises(TextError):
        CharTokenizer(symbols)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "char",
        {},
        {"kind": "word"},
        {"kind": ["char"]},
        {"kind": "char"},
        {"kind": "char", "symbols": ""},
        {"kind": "char", "symbols": None},
        {"kind": "char", "symbols": ["a"]},
        {"kind": "char", "symbols": "ba"},
        {"kind": "char", "symbols": "aa"},
        {"kind": "char", "symbols": "a\udfff"},
        {"kind": "char", "symbols": "a" * 2_000_000},
        {"kind": "char", "symbols": "ab", "more": 1},
        {"kind": "byte", "symbols": "ab"},
        {"kind": "char", 1: 2},
    ],
    ids=lambda data: repr(data)[:40],
)
def test_damaged_descriptions_are_refused(data: object) -> None:
    """A description that is not one to the letter is an error of the model's file, not a tokenizer."""
    with pytest.raises(CheckpointError, match="tokenizer of the model"):
        tokenizer.from_dict(data)


def test_every_code_point_fits() -> None:
    """The largest vocabulary there is round-trips through its description."""
    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)

    assert tokenizer.from_dict(CharTokenizer(text).to_dict()) == CharTokenizer(text)


class TestRare:
    """One symbol, U+FFFD, for all characters that have none of their own."""

    symbols = CharTokenizer("abc -", rare=True)

    def test_every_text_is_known_and_comes_back(self) -> None:
        """A character without a symbol is read as that of rare ones; what is decoded is encoded to the same ids."""
        ids = self.symbols.encode("aß\ufffdb")

        assert ids == [self.symbols.rare if c == "?" else self.symbols.encode(c)[0] for c in "a??b"]
        assert self.symbols.decode(ids) == "a\ufffd\ufffdb"
        assert self.symbols.encode(self.symbols.decode(ids)) == ids
        assert self.symbols.encode_scored("aß") == ids[:2]

    def test_none_of_them_passes_for_a_known_one(self) -> None:
        """They are listed as unknown, and so is a U+FFFD of the text itself."""
        assert self.symbols.unknown("aß\ufffd") == [(1, "ß"), (2, "\ufffd")]

    def test_the_rule_that_was_asked_for_holds(self) -> None:
        """Skip leaves them out; replace takes a like one where there is one, and else the symbol."""
        assert self.symbols.decode(self.symbols.encode("aßé—山", "skip")) == "a"
        assert self.symbols.decode(self.symbols.encode("a—山\u0301", "replace")) == "a-\ufffd"

    def test_a_checkpoint_says_so(self) -> None:
        """The description has it, is another one than without, and is refused where it cannot be."""
        described = self.symbols.to_dict()

        assert described == {"kind": "char", "symbols": " -abc\ufffd", "rare": True}
        assert tokenizer.from_dict(described) == self.symbols != CharTokenizer(" -abc\ufffd")
        for wrong in ({"rare": False}, {"rare": 1}, {"symbols": " -abc"}, {"kind": "byte"}):
            with pytest.raises(CheckpointError, match="tokenizer of the model"):
                tokenizer.from_dict({**described, **wrong})
