import random

import pytest

from lstmlm.data import packing
from lstmlm.data.ids import Ids
from lstmlm.data.tokenizer import CharTokenizer, OnUnknown
from lstmlm.errors import TextError
from tests.corpora import EVERY


def test_packing_is_the_tokenizer_made_fast() -> None:
    """The fast path and the slow one give the same ids, whatever the mixture of characters."""
    random_text = random.Random(5)
    for alphabet in ("abc", "aé", EVERY[:255], EVERY[:300], EVERY[100:70_000]):
        symbols = CharTokenizer(alphabet)
        packer = packing.Packer(symbols)
        for size in (0, 1, 7, 3000):
            text = "".join(random_text.choices(alphabet, k=size))
            ids = Ids(bytearray(packer.pack(text)), packer.width, 0, size)

            assert ids.tensor(0, size).tolist() == symbols.encode(text)


def test_unknown_characters() -> None:
    """What is left out or replaced is what the tokenizer does; it is counted, and a refusal names the text."""
    symbols = CharTokenizer("abce \"'")
    text = "ab“cé” ÀĦ’a" * 3
    rules: tuple[OnUnknown, ...] = ("skip", "replace")
    for rule in rules:
        packer = packing.Packer(symbols, on_unknown=rule)
        packed = bytearray(packer.pack(text))

        assert Ids(packed, packer.width, 0, len(packed)).tensor(0, len(packed)).tolist() == symbols.encode(text, rule)
        assert packer.skipped == len(symbols.unknown(text))
    with pytest.raises(TextError, match=r"text book\.txt at character 2: .* and 1 more\. Leave them out\.$"):
        packing.Packer(symbols, name="book.txt", advice="Leave them out.").pack(text)
    with pytest.raises(TextError, match=r" and 1 more\.$"):
        packing.Packer(symbols).pack(text)
