"""What several commands ask of what was typed: a word among a few, a text or a small file, characters that the model lacks."""

import contextlib
import difflib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from lstmlm import machine
from lstmlm.display.console import Console
from lstmlm.errors import TextError, UsageError, in_shell, printable
from lstmlm.units import counted

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.data.corpus import Corpus
    from lstmlm.data.tokenizer import OnUnknown


def open_model(
    console: Console, name: str | None, threads: int = 0, device: str = "auto", corpus: str | None = None
) -> "LanguageModel":
    """Open the model of a command, and say which one it is where none was named.

    Args:
        console: Takes also what is said of a damaged checkpoint.
        name: See `LanguageModel.open`; so is `device`.
        threads: 0: all cores.
        device: Where to compute.
        corpus: Where the text that it was trained on is now, if it was moved.
    """
    from lstmlm.api import LanguageModel

    opened = LanguageModel.open(name, threads=threads or machine.cpus(), device=device, report=console.warn)
    opened.text_place = corpus
    if name is None:
        console.say(f"model {printable(str(opened.path))}")
    return opened


def standard_input(what: str) -> BinaryIO:
    """Return the bytes of standard input.

    Raises:
        TextError: It is closed, as in a service; `what` asked for it.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise TextError(f"{what}: expected text on standard input, found it closed. Name a file, or pipe text in.")
    return sys.stdin.buffer


@contextlib.contextmanager
def open_file(flag: str, name: str) -> Iterator[BinaryIO]:
    """Open the file or pipe that a flag names, or standard input for `-`, to be read as bytes.

    Raises:
        TextError: It cannot be opened or read, or is a device: some of them have no end.
    """
    if name == "-":
        yield standard_input(f"{flag} -")
        return
    shown = f"{flag} {printable(name[:200])}"
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise TextError(f"{shown}: expected a file or a pipe, found a device. Copy what you need of it into a file first.")
        with open(name, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TextError(f"{shown}: expected a file to read, found: {printable(reason)}. Check its name.") from None


def read_text(flag: str, name: str, errors: str = "strict") -> str:
    """Return the text of the file that a flag names, or of standard input for `-`; UTF-8, a byte order mark left out.

    With `surrogateescape`, for a model of bytes, what is no UTF-8 comes as the characters that stand for its bytes.

    Raises:
        TextError: It cannot be read, or is not UTF-8.
    """
    with open_file(flag, name) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        shown = f"{flag} {printable(name[:200])}"
        raise TextError(f"{shown}: expected UTF-8, found byte {byte:#04x} at offset {error.start}. Write it as UTF-8.") from None


def listed(name: str) -> Iterator[str]:
    """Give the file names of a list, one a line, as they come; empty lines are none.

    Raises:
        TextError: The list cannot be read, or there is no name in it: a check of nothing would pass.
    """
    found = 0
    with open_file("--files-from", name) as lines:
        for line in lines:
            if file := os.fsdecode(line.rstrip(b"\r\n")):
                found += 1
                yield file
    if not found:
        raise TextError(f"--files-from {printable(name)}: expected the name of a file, found none. Put one in a line.")


def one_of(flag: str, given: str, words: Sequence[str]) -> str:
    """Return a word that a flag may be.

    Raises:
        UsageError: It is none of them; with the one that was probably meant.
    """
    if given in words:
        return given
    near = difflib.get_close_matches(given.lower(), words, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    named = " or ".join(piece for piece in (", ".join(words[:-1]), words[-1]) if piece)
    raise UsageError(f"{flag}: expected {named}, found {_quoted(given)}.{hint}")


def one_text(command: str, words: Sequence[str]) -> str | None:
    """Return the text on the command line, if there is one.

    Raises:
        UsageError: There are several words without quotes, or the text is the name of a file.
    """
    if len(words) > 1:
        whole = in_shell(" ".join(words))
        raise UsageError(f"{command}: expected one text, found {len(words)} words without quotes. Did you mean {whole}?")
    text = words[0] if words else None
    # A file of one word may be called like a text; one with an ending or a folder is hardly meant as text.
    if text and (os.sep in text or os.path.splitext(text)[1]) and os.path.isfile(text):
        name = in_shell(text)
        raise UsageError(f"{command}: expected the text itself, found the name of a file. Did you mean --file {name}?")
    return text


def one_symbol(flag: str, given: str, model: "LanguageModel") -> int:
    """Return the id of the one character that a flag asks for.

    Raises:
        UsageError: It is none, or more than one.
        TextError: The model does not know it.
    """
    from lstmlm.data.tokenizer import describe

    if model.tokenizer.rare is None and (unknown := model.tokenizer.unknown(given)):
        found = describe(unknown[0][1])
        raise TextError(f"{flag}: expected a character that the model knows, found {found}. Take one of its training text.")
    ids = model.tokenizer.encode(given)
    if len(ids) != 1:
        one = "character" if model.tokenizer.kind == "char" else "character of one byte, as the model reads bytes"
        raise UsageError(f"{flag}: expected one {one}, found {_quoted(given)}.")
    return ids[0]


def known_ids(model: "LanguageModel", text: str, on_unknown: "OnUnknown") -> list[int]:
    """Return the ids of a text to look into, of which there is at least one.

    Raises:
        TextError: A character is not in the vocabulary and may not be left out, or none of them is.
    """
    ids = model.tokenizer.encode(text, on_unknown)
    if not ids:
        found = f"none in {counted(len(text), 'character')}"
        raise TextError(f"text to inspect: expected a character that the model knows, found {found}. Take another text.")
    return ids


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

    corpus = open_for(model, advice)
    return validation_text(model, corpus, most, advice)


def validation_text(model: "LanguageModel", corpus: "Corpus", most: int | None, advice: str) -> str:
    """Return the beginning of a run's validation part, as `statistics_text`; bytes that are no UTF-8 as what stands for them.

    Raises:
        TextError: There is none.
    """
    if not len(corpus.val):
        raise TextError(f"text: expected a validation part in this run, found none. {advice}")
    return written(model, corpus.val.tensor(0, len(corpus.val) if most is None else most).tolist())


def written(model: "LanguageModel", ids: list[int]) -> str:
    """Return the text of ids with nothing lost: bytes that are no UTF-8 as the characters that stand for them."""
    if model.tokenizer.kind == "byte":
        return bytes(ids).decode("utf-8", "surrogateescape")
    return model.tokenizer.decode(ids)


def _quoted(given: str) -> str:
    """Return what was typed, fit for a message; spaces at its ends can be seen."""
    return f"'{printable(given[:40])}'" if given else "nothing"
