"""Where a picture or an exported model goes: into a file whole or not at all, and never over one that this program has not
written; into a pipe as it comes.

`write` is the entry point for texts, `write_bytes` for all else.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lstmlm.errors import UsageError, printable
from lstmlm.storage import atomic

MARK = "<!-- written by lstmlm -->\n"
"""The last line of every text that is written: without it a file is somebody's own page or drawing, and stays."""
HEAD = 256
"""Bytes at the beginning of a file that is no text, among which its mark stands."""


def refuse_other(flag: str, name: str | None, mark: bytes = b"") -> None:
    """Refuse to write where something else lies: whoever takes the flag for a switch names the text behind it.

    Args:
        flag: Which asked for it.
        name: Of the file; None: nothing is to be written.
        mark: What this program writes into the head of such a file; none: it is a text, which ends with MARK.

    Raises:
        UsageError: There is a file that this program has not written, or the name is empty.
    """
    if name is None:
        return
    if not name:
        raise UsageError(f"{flag}: expected the name of a file to write, found nothing.")
    path = Path(name)
    if not _regular(path):
        return  # nothing there, a folder, which is refused when it is written to, or a pipe
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0 if mark else max(0, size - len(MARK)))
            own = mark in file.read(HEAD) if mark else file.read() == MARK.encode()
    except OSError as error:
        raise atomic.problem(error, f"cannot read {name}") from None
    if size and not own:
        raise UsageError(
            f"{flag} {printable(name)}: expected a new name or an earlier result, found a file that lstmlm has not written "
            "there. Name another file."
        )


def write(flag: str, name: str, text: str, comment: str = "") -> None:
    """Write a text that ends with MARK, in a comment of the text's language; see `write_bytes`."""
    write_bytes(flag, name, [f"{text.rstrip(chr(10))}\n{comment}{MARK}".encode("utf-8", "surrogateescape")])


def write_bytes(flag: str, name: str, pieces: Sequence[atomic.Bytes], mark: bytes = b"") -> None:
    """Write a file; where that fails, an earlier one is still there.

    Raises:
        UsageError: As in `refuse_other`.
        SystemProblem: It cannot be written.
    """
    refuse_other(flag, name, mark)
    path = Path(name)
    if _regular(path) or not path.exists():
        atomic.write_atomic(Path(os.path.realpath(name)) if path.is_symlink() else path, pieces)
        return
    try:
        with open(path, "wb") as file:
            file.writelines(pieces)
    except OSError as error:
        raise atomic.problem(error, f"cannot write {name}") from None


def _regular(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
