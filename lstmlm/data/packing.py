"""Text -> the characters in it, and text -> ids as they are stored, at the speed of the machine.

`SymbolSet` collects the characters in the first pass of `prepare`, `Packer` writes the ids in the second. Plain ASCII takes one
table look-up for each byte; all other text goes through its code points in a tensor, because a dict of Python
(`str.translate`) is ten times slower.
"""

import sys
from typing import TYPE_CHECKING

from lstmlm.data.ids import stored_type
from lstmlm.data.tokenizer import CharTokenizer, OnUnknown, Tokenizer, describe
from lstmlm.errors import TextError
from lstmlm.units import counted

if TYPE_CHECKING:
    from torch import Tensor

NAMED = 5  # unknown characters that a message names


class SymbolSet:
    """The characters met so far."""

    def __init__(self) -> None:
        self._ascii = b""
        self._others: set[int] = set()  # numbers: a million of them sort ten times faster than strings

    def add(self, text: str) -> None:
        """Add the characters of `text`."""
        if text.isascii():
            self._ascii += bytes(set(text.encode().translate(None, self._ascii)))
        else:
            self._others |= set(_code_points(text).bincount().nonzero().flatten().tolist())

    def symbols(self) -> str:
        """Return them, sorted."""
        return "".join(map(chr, sorted(self._others.union(self._ascii))))


class Counter:
    """How often each character occurs."""

    def __init__(self) -> None:
        import torch

        self._counts = torch.zeros(0x110000, dtype=torch.int64)

    def add(self, text: str) -> None:
        """Count the characters of `text`."""
        found = _code_points(text).bincount()
        self._counts[: len(found)] += found

    def common(self, least: int) -> str:
        """Return the characters that occur so many times or more."""
        return "".join(map(chr, (self._counts >= least).nonzero().flatten().tolist()))


class Packer:
    """Turns text into stored ids of `width` bytes each, in the machine's byte order, and counts ids.

    Args:
        tokenizer: Whose ids. Bytes are stored as they are: there is nothing to pack, only to count.
        on_unknown: As for `CharTokenizer.encode`. `skipped` counts what is left out or replaced, `strange` are the first few.
        name: Of the text, for the message.
        advice: What the user can do about an unknown character, as a sentence.
    """

    def __init__(self, tokenizer: Tokenizer, on_unknown: OnUnknown = "error", name: str = "", advice: str = "") -> None:
        import torch

        self._size, self._rule, self._name, self._done = len(tokenizer), on_unknown, name, 0
        self._tokenizer, self._advice = tokenizer, advice
        self.width = 1 if self._size <= 256 else 2 if self._size <= 65536 else 4
        self._type = stored_type(self.width)
        self.counts = torch.zeros(self._size, dtype=torch.int64)
        self.skipped = 0
        self.strange: list[str] = []
        self._bytes = not isinstance(tokenizer, CharTokenizer)
        if isinstance(tokenizer, CharTokenizer):
            other = tokenizer.rare if on_unknown == "error" and tokenizer.rare is not None else -1
            self._table = torch.full((0x110000,), other, dtype=torch.int32)
            self._table[_code_points(tokenizer.symbols).long()] = torch.arange(self._size, dtype=torch.int32)
            ids = self._table[:128].tolist()
            self._ascii = bytes(max(0, i) for i in ids).ljust(256, b"\0") if self.width == 1 else None
            self._unknown_ascii = bytes(i for i in range(128) if ids[i] < 0)

    def pack(self, text: str | bytes) -> bytes | bytearray:
        """Return the ids of `text`; bytes are their own.

        Raises:
            TextError: If a character is unknown and may not be skipped.
        """
        if isinstance(text, bytes):
            return text
        if self._bytes:
            return text.encode("utf-8", "surrogatepass")
        if self._ascii is not None and text.isascii():
            packed = text.encode().translate(self._ascii, self._unknown_ascii)
            if len(packed) == len(text):
                self._done += len(text)
                return packed
        import torch

        ids = self._table.index_select(0, _code_points(text))
        known = ids >= 0
        if not bool(known.all()):
            strange = self._note(text, known)
            if self._rule == "replace":
                assert isinstance(self._tokenizer, CharTokenizer)
                like = {ord(char): self._tokenizer.substitute(char) for char in strange}
                ids = self._table.index_select(0, _code_points(text.translate(like)))
            else:
                ids = ids[known]
        self._done += len(text)
        stored = bytearray(len(ids) * self.width)
        if stored:
            torch.frombuffer(stored, dtype=self._type).copy_(ids)
        return stored

    def count(self, stored: bytes | bytearray) -> None:
        """Add these ids to `counts`."""
        import torch

        if not stored:
            return
        ids = torch.frombuffer(stored if isinstance(stored, bytearray) else bytearray(stored), dtype=self._type)
        found = (ids if self.width == 1 else ids.to(torch.int32)).bincount()
        self.counts[: len(found)] += found

    def _note(self, text: str, known: "Tensor") -> list[str]:
        places = (~known).nonzero().flatten().tolist()
        names = list(dict.fromkeys(text[i] for i in places))
        if self._rule == "error":
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            found = ", ".join(map(describe, names[:NAMED]))
            raise TextError(
                f"text {self._name + ' ' if self._name else ''}at character {self._done + places[0]}: expected the "
                f"{counted(self._size, 'character')} that the model knows, found {found}{more}. {self._advice}".rstrip()
            )
        self.skipped += len(places)
        self.strange = list(dict.fromkeys(self.strange + names))[:NAMED]
        return names


def _code_points(text: str) -> "Tensor":
    """Return the code points of `text`. (len,) int32"""
    import torch

    if not text:
        return torch.empty(0, dtype=torch.int32)
    data = bytearray(text.encode(f"utf-32-{sys.byteorder[0]}e", "surrogatepass"))
    return torch.frombuffer(data, dtype=torch.int32)
