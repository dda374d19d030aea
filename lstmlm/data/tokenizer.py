"""Characters <-> ids, and bytes <-> ids.

A token is one code point (`CharTokenizer`) or one byte of UTF-8 (`ByteTokenizer`); nothing is merged, normalised or dropped.
`prepare` makes one from a text, `from_dict` one from a checkpoint, for `api`.
"""

import codecs
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from lstmlm.errors import CheckpointError, TextError, UsageError, printable

MAX_SYMBOLS = 0x110000  # every code point there is
OnUnknown = Literal["error", "skip", "replace"]
RARE = "\ufffd"
"""The symbol of all characters that have none of their own, in a vocabulary that has one for them; and how it is written."""
FORMS: dict[str, Literal["NFC", "NFD"]] = {"nfc": "NFC", "nfd": "NFD"}
"""Unicode forms that a text may be brought into: an accented letter as one character, or as a letter and a mark."""

# Typographic forms that NFKD keeps although every keyboard has a plain twin.
_PLAIN = dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‐‑‒–—―−", "-") | {"\r": ""}


class TextStream:
    """Turn ids into text piece by piece, holding back what is not yet a whole character.

    Bytes that are no UTF-8 become the characters that stand for them (`surrogateescape`); `readable` is for eyes.
    """

    def __init__(self, tokenizer: "CharTokenizer | ByteTokenizer") -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that these ids complete; it may be empty."""
        if isinstance(self._tokenizer, CharTokenizer):
            return self._tokenizer.decode(ids)
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))


def readable(text: str) -> str:
    """Return a text with U+FFFD in place of what stands for bytes that are no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class CharTokenizer:
    """One id for each code point: the position of the character in `symbols`, which is sorted.

    Args:
        symbols: The vocabulary, in any order; duplicates count once. Surrogates are not characters.
        form: Unicode form that every text is brought into: nfc, nfd, or none for what it is.
        rare: Whether U+FFFD is the symbol of every character that is not among the others. A U+FFFD of the text is one of these:
            what is decoded can be encoded again, and nothing takes the symbol for a character of its own.

    Attributes:
        rare: The id of that symbol; None: the vocabulary has none.

    Raises:
        TextError: If there is no symbol, or one is a surrogate.
    """

    kind = "char"
    bad_bytes = "strict"
    """What a file that it is to encode does with bytes that are no UTF-8: an error handler of `bytes.decode`."""

    def __init__(self, symbols: Iterable[str], form: str = "none", *, rare: bool = False) -> None:
        self.form = form
        # Numbers sort ten times faster than strings, which matters for a million of them.
        self.symbols = "".join(map(chr, sorted({*map(ord, symbols), *map(ord, RARE if rare else "")})))
        self.rare = self.symbols.index(RARE) if rare else None
        if not self.symbols:
            raise TextError("vocabulary: expected a character or more, found none. Train on a text that is not empty.")
        surrogate = _surrogate(self.symbols)
        if surrogate is not None:
            raise TextError(
                f"vocabulary: expected characters, found the surrogate U+{ord(surrogate):04X}, which is half of one. "
                "Use `--tokenizer byte`, or another `--encoding`."
            )

    @cached_property
    def _id(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and (self.symbols, self.rare) == (other.symbols, other.rare)

    def __hash__(self) -> int:
        return hash(self.symbols)

    def __repr__(self) -> str:
        return f"CharTokenizer({len(self)} symbols)"

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> list[int]:
        """Return the id of each character of `text`.

        Args:
            text: Any string.
            on_unknown: `error` refuses a character outside the vocabulary, or takes the symbol of rare ones for it, where there
                is one; `skip` leaves it out; `replace` puts its nearest known relative (see `substitute`), or nothing.

        Raises:
            TextError: If a character is unknown, `on_unknown` is `error`, and there is no symbol of rare ones.
        """
        text = in_form(text, self.form)
        try:
            return [self._id[c] for c in text]
        except KeyError:
            pass
        if on_unknown == "skip":
            return [self._id[c] for c in text if c in self._id]
        if on_unknown == "replace":
            return [self._id[s] for c in text for s in (c if c in self._id else self.substitute(c))]
        if self.rare is not None:
            return [self._id.get(c, self.rare) for c in text]
        raise self._refusal(text)

    def encode_scored(self, text: str) -> list[int]:
        """Return the ids that are read where a text is scored: unknown characters as the symbol of rare ones, or left out."""
        return self.encode(text, "skip" if self.rare is None else "error")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; a negative id is as wrong as one that is too large.

        Raises:
            IndexError: If an id is outside the vocabulary.
        """
        ids = list(ids)
        if ids and min(ids) < 0:
            raise IndexError(f"id {min(ids)} is negative")
        return "".join([self.symbols[i] for i in ids])

    def symbol(self, id_: int) -> str:
        """Return the character of an id."""
        return self.symbols[id_]

    def stream_decoder(self) -> TextStream:
        """Return a decoder that takes ids as they come."""
        return TextStream(self)

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """List the characters of `text` without a symbol of their own, each with its position (0 is the first)."""
        rare = RARE if self.rare is not None else ""
        return [(i, c) for i, c in enumerate(in_form(text, self.form)) if c not in self._id or c == rare]

    def other_form(self, text: str) -> str | None:
        """Return the Unicode form in which more of `text` is known than as it is; None where there is none."""
        unknown = len(self.unknown(text))
        return next((name for name in FORMS.values() if unknown and len(self.unknown(in_form(text, name))) < unknown), None)

    def substitute(self, char: str) -> str:
        """Return the nearest known text for an unknown character, or nothing.

        In this order: its plain typographic twin, its base letters (NFKD without marks), its other case, the other
        case of its base letters, the symbol of rare ones, a space. Marks, controls and format characters are left out instead.
        """
        base = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
        for candidate in (_PLAIN.get(char), base, char.swapcase(), base.swapcase()):
            if candidate is not None and all(c in self._id for c in candidate):
                return candidate
        silent = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Mn", "Me") and not char.isspace()
        other = RARE if self.rare is not None else " "
        return other if other in self._id and not silent else ""

    def to_dict(self) -> dict[str, object]:
        """Return what `from_dict` needs to make the same tokenizer."""
        return {"kind": self.kind, "symbols": self.symbols, **({} if self.rare is None else {"rare": True})}

    def _refusal(self, text: str) -> TextError:
        found = self.unknown(text)
        position, char = found[0]
        more = f" ({len(found)} such characters in all)" if len(found) > 1 else ""
        known = self.other_form(text)
        form = f"In the Unicode form {known} it is known: bring the text into it. " if known else ""
        return TextError(
            f"text at character {position}: expected one of the {len(self)} characters that the model knows, "
            f"found {describe(char)}{more}. {form}Leave it out, or use `--on-unknown skip` or `--on-unknown replace`."
        )


class ByteTokenizer:
    """One id for each byte: ids are the bytes of the text's UTF-8, so every text can be encoded."""

    kind = "byte"
    bad_bytes = "surrogateescape"
    rare = None

    def __init__(self, form: str = "none") -> None:
        self.form = form

    def __len__(self) -> int:
        return 256

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByteTokenizer)

    def __hash__(self) -> int:
        return hash(self.kind)

    def __repr__(self) -> str:
        return "ByteTokenizer()"

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> list[int]:
        """Return the UTF-8 bytes of `text`; bytes that the system smuggled in as surrogates come out as they were.

        Raises:
            TextError: If a lone surrogate is no smuggled byte and `on_unknown` is `error`.
        """
        try:
            return list(in_form(text, self.form).encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as error:
            if on_unknown == "error":
                raise TextError(
                    f"text at character {error.start}: expected a character, found "
                    f"{describe(text[error.start])}, which is half of one. Leave it out, or use `--on-unknown skip`."
                ) from None
        return list(text.encode("utf-8", "replace" if on_unknown == "replace" else "ignore"))

    def encode_scored(self, text: str) -> list[int]:
        """Return the ids that are read where a text is scored."""
        return self.encode(text, "skip")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, with U+FFFD in place of bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes themselves."""
        return bytes(list(ids))

    def stream_decoder(self) -> TextStream:
        """Return a decoder that takes ids as they come."""
        return TextStream(self)

    def unknown(self, text: str) -> list[tuple[int, str]]:
        """List what cannot be encoded: surrogates that are no smuggled bytes, each with its position."""
        return [(i, c) for i, c in enumerate(text) if "\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff"]

    def other_form(self, text: str) -> None:
        """Return None: every text is known in any form."""

    def symbol(self, id_: int) -> str:
        r"""Return the character of an id; of a byte that is only a part of one, `\xNN`."""
        return bytes([id_]).decode("utf-8", "backslashreplace")

    def to_dict(self) -> dict[str, object]:
        """Return what `from_dict` needs to make the same tokenizer."""
        return {"kind": self.kind}


Tokenizer = CharTokenizer | ByteTokenizer


def from_dict(data: object, form: str = "none") -> Tokenizer:
    """Make the tokenizer that `to_dict` described, trusting nothing: the description comes out of a file.

    Args:
        data: As `to_dict` gave it.
        form: Unicode form of its texts: nfc, nfd or none.

    Raises:
        CheckpointError: If it is not such a description, to the letter.
    """
    if not isinstance(data, dict) or data.get("kind") not in ("char", "byte"):
        raise _damaged("a kind, char or byte", data.get("kind") if isinstance(data, dict) else data)
    expected = {"kind"} if data["kind"] == "byte" else {"kind", "symbols"}
    if set(data) - ({"rare"} if data.get("rare") is True and data["kind"] == "char" else set()) != expected:
        raise _damaged(f"the keys {', '.join(sorted(expected))}", ", ".join(sorted(map(str, data))))
    if data["kind"] == "byte":
        return ByteTokenizer(form)
    symbols = data["symbols"]
    if not isinstance(symbols, str) or not 1 <= len(symbols) <= MAX_SYMBOLS:
        raise _damaged(f"1 to {MAX_SYMBOLS} symbols", len(symbols) if isinstance(symbols, str) else symbols)
    if _surrogate(symbols) is not None:
        raise _damaged("characters", "a surrogate among them")
    tokenizer = CharTokenizer(symbols, form, rare="rare" in data)
    if tokenizer.symbols != symbols:
        raise _damaged("sorted symbols, each once", "others")
    return tokenizer


def separator_ids(separator: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of a text that parts documents (`model.document_separator`); none where there is no such text.

    Raises:
        UsageError: The vocabulary has not all of its characters, so that it would never be found.
    """
    if separator is None:
        return ()
    if unknown := tokenizer.unknown(separator):
        hint = "Did you mean a line end, --document-separator $'\\n'? " if "\\" in separator else ""
        why = "which it has not" if tokenizer.rare is None else "which it has not, or more rarely than --min-count"
        raise UsageError(
            f"--document-separator '{printable(separator[:40])}': expected what stands in the text, found "
            f"{describe(unknown[0][1])}, {why}. {hint}Give what stands between its documents, or leave it out."
        )
    return tuple(tokenizer.encode(separator))


def in_form(text: str, form: str) -> str:
    """Return a text in a Unicode form: nfc, nfd, or none for what it is."""
    name = FORMS.get(form.lower())
    return unicodedata.normalize(name, text) if name and not text.isascii() else text


CONTROLS = {"\t": "tab", "\n": "line feed", "\r": "carriage return"}
"""Names of characters that Unicode gives none."""


def describe(char: str) -> str:
    """Name a character for a message: itself where it can be shown, its code point, its Unicode name."""
    name = unicodedata.name(char, CONTROLS.get(char, ""))
    shown = f"'{char}' " if char.isprintable() and not unicodedata.combining(char) else ""
    return f"{shown}U+{ord(char):04X}{f' ({name.lower()})' if name else ''}"


def _surrogate(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _damaged(expected: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"tokenizer of the model: expected {expected}, found {printable(repr(found)[:60])}. "
        "The file is damaged or was not written by lstmlm; use another copy."
    )
