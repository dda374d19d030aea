import random

from lstmlm.data import packing
from lstmlm.data.ids import Ids
from lstmlm.data.tokenizer import CharTokenizer
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
