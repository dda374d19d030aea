"""Where a picture goes: whole or not at all, and never over a file that is no such picture.

`write` is the entry point, for every flag that draws into a file.
"""

import os
from pathlib import Path

from lstmlm.errors import UsageError, printable
from lstmlm.storage import atomic

MARK = "<!-- written by lstmlm -->\n"
"""The last line of every picture: without it a file is somebody's own page or drawing, and stays."""


def refuse_other(flag: str, name: str | None) -> None:
    """Refuse to write where something else lies: whoever takes the flag for a switch names the text behind it.

    Raises:
        UsageError: There is a file that does not end as the pictures of this program do, or the name is empty.
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
            file.seek(max(0, size - len(MARK)))
            end = file.read()
    except OSError as error:
        raise atomic.problem(error, f"cannot read {name}") from None
    if size and end != MARK.encode():
        raise UsageError(
            f"{flag} {printable(name)}: expected a new name or an earlier picture, found a file that lstmlm has not written. "
            "Name another file."
        )


def write(flag: str, name: str, text: str) -> None:
    """Write a picture; where that fails, an earlier one is still there.

    Raises:
        UsageError: As in `refuse_other`.
        SystemProblem: It cannot be written.
    """
    refuse_other(flag, name)
    path, text = Path(name), f"{text.rstrip(chr(10))}\n{MARK}"
    if _regular(path) or not path.exists():
        atomic.write_text(Path(os.path.realpath(name)) if path.is_symlink() else path, text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise atomic.problem(error, f"cannot write {name}") from None


def _regular(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
