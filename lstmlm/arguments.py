"""The arguments of the Python interface: what each may be, and how a message speaks of it.

`in_python` and the checks by name are the entry points, for `api` and `api_train`.
"""

import contextlib
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

from lstmlm.config import run_config
from lstmlm.errors import LstmlmError, UsageError, printable

T = TypeVar("T")

_ARGUMENTS = (
    (r"`--([a-z-]+) ([\w.-]+)`", lambda found: f'`{_argument(found[1])}="{found[2]}"`'),
    (r"--(device) (auto|cpu|cuda)\b", lambda found: f'{found[1]}="{found[2]}"'),
    (r"--set ", lambda found: ""),
    (r"--(resume|overwrite)\b", lambda found: f"{found[1]}=True"),
    (r"--from\b", lambda found: "start_from"),
    (r"--([a-z][a-z-]*)", lambda found: _argument(found[1])),
    (rf"\b(?:model|data|train)\.({'|'.join(one.name for one in run_config.keys().values())})\b", lambda found: found[1]),
    (r"\b(or|is) null\b", lambda found: f"{found[1]} None"),
    (r"lstmlm train stories", lambda found: 'lstmlm.train("stories")'),
)
"""What messages say of the command line, and what that is in Python."""


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Let an error that leaves the block speak of arguments, not of flags: `temperature`, not `--temperature`."""
    try:
        yield
    except LstmlmError as error:
        text = str(error)
        for flag, argument in _ARGUMENTS:
            text = re.sub(flag, argument, text)
        error.args = (text,)
        raise


def _argument(flag: str) -> str:
    return flag.replace("-", "_")


def file_name(argument: str, given: object) -> str:
    """Return the name of a file or folder that an argument gives.

    Raises:
        TypeError: It is neither a string nor a path.
        UsageError: It is empty, which would be the folder one is in, or has a NUL.
    """
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else given
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a string or a path, found {type(given).__name__}.")
    if not name or "\0" in name:
        raise UsageError(f"{argument}: expected the name of a file or folder, found {_shown(name)}. Name one, or leave it out.")
    return name


def strings(name: str, given: object) -> list[str]:
    """Return one string or several as a list.

    Raises:
        TypeError: It is something else, or has something else in it.
    """
    found: list[Any] = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not all(isinstance(one, str) for one in found):
        raise TypeError(f"{name}: expected a string, or several, found {_shown(given)}.")
    return found


def require_text(**texts: object) -> None:
    """Refuse what is no string, by its name.

    Raises:
        TypeError: Says which.
    """
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected a string, found {_shown(value)}.")


def require_word(known: Sequence[str], **words: object) -> None:
    """Refuse what is none of some words, by its name.

    Raises:
        UsageError: Says which.
    """
    for name, value in words.items():
        if value not in known:
            raise UsageError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, found {_shown(value)}.")


def whole(**numbers: object) -> list[int]:
    """Return whole numbers as those of Python: half a character is never reached, and a sample would not end.

    Raises:
        UsageError: Says which is none.
    """
    return _converted(numbers, SupportsIndex, operator.index, "a whole number")


def real(**numbers: object) -> list[float]:
    """Return numbers as those of Python.

    Raises:
        UsageError: Says which is none.
    """
    return _converted(numbers, SupportsFloat, float, "a number")


def _converted(numbers: dict[str, object], kind: type, convert: Callable[[Any], T], what: str) -> list[T]:
    """Return values as Python's own, or refuse by its name the first that is not of a kind."""
    for name, value in numbers.items():
        if not isinstance(value, kind):
            raise UsageError(f"{name}: expected {what}, found {_shown(value)}.")
    return [convert(value) for value in numbers.values()]


def switches(**given: object) -> list[bool]:
    """Return what is on and what is off: "no" is neither.

    Raises:
        UsageError: Says which is neither.
    """
    for name, value in given.items():
        if value not in (True, False):
            raise UsageError(f"{name}: expected True or False, found {_shown(value)}.")
    return [bool(value) for value in given.values()]


def _shown(value: object) -> str:
    return printable(repr(value)[:40])
