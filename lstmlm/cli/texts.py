"""What several commands ask of texts: a small file as a whole, and what becomes of characters that the model lacks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lstmlm.errors import TextError, UsageError, printable
from lstmlm.tokenizer import OnUnknown

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel


def read_text(name: str) -> str:
    """Return a file's text, or that of standard input for `-`; UTF-8, a byte order mark left out.

    Raises:
        TextError: It cannot be read, or is not UTF-8.
    """
    shown = printable(name[:200])
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TextError(f"{shown}: expected a file to read, found: {printable(reason)}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise TextError(f"{shown}: expected UTF-8, found byte {byte:#04x} at offset {error.start}.") from None


def unknown_rule(given: str) -> OnUnknown:
    """Return what --on-unknown asks for.

    Raises:
        UsageError: There is no such rule.
    """
    rules: dict[str, OnUnknown] = {"error": "error", "skip": "skip", "replace": "replace"}
    if given in rules:
        return rules[given]
    raise UsageError(f"--on-unknown: expected error, skip or replace, found {printable(given[:40])}.")


def one_symbol(flag: str, given: str, model: "LanguageModel") -> int:
    """Return the id of the one character that a flag asks for.

    Raises:
        UsageError: It is none, or more than one.
        TextError: The model does not know it.
    """
    ids = model.tokenizer.encode(given)
    if len(ids) != 1:
        raise UsageError(f"{flag}: expected one character, found {printable(given[:40]) or 'none'}.")
    return ids[0]


def statistics_text(
    model: "LanguageModel", text: str | None, most: int | None = None, advice: str = "Give a TEXT or --file."
) -> str:
    """Return the text to count over: the one given, else the run's own validation part; `advice` where there is none.

    With `most`, only its beginning: so many characters, or bytes of a validation part read as bytes.

    Raises:
        TextError: There is none, or it has changed since.
    """
    if text is not None:
        return text[:most]
    from lstmlm.cli.corpora import open_for

    corpus = open_for(model.meta["corpus"], model.config, model.meta["tokenizer"].get("symbols"), advice)
    if not len(corpus.val):
        raise TextError(f"corpus: expected a validation part in this run, found none. {advice}")
    end = len(corpus.val) if most is None else min(most, len(corpus.val))
    return model.tokenizer.decode(corpus.val.tensor(0, end).tolist())
