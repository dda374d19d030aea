"""The strict YAML reader: sections or dotted keys, each with one plain scalar, and nothing else of YAML.

It works on the parser's events, so nothing is resolved, constructed or recursed into. It does not know which keys
there are: its caller sees each key as it is met, so that a file of nonsense ends at its first line.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lstmlm.errors import ConfigError, printable
from lstmlm.settings import shorten

LARGEST = 65_536  # bytes; PyYAML scans about 0.5 MB/s at its worst, and a bad file is to be refused in half a second
DEEPEST = 20
_PLAIN = "Write each setting as `key: value`"


class Entry(NamedTuple):
    """One key of the file.

    Attributes:
        key: Its dotted name.
        text: Its unresolved scalar; empty if a mapping begins here.
        quoted: The scalar stood in quotes, or in a block (`|`, `>`).
        mapping: A mapping begins here.
        line: From 1.
    """

    key: str
    text: str
    quoted: bool
    mapping: bool
    line: int


class StrictLoader(yaml.SafeLoader):
    """SafeLoader, used for its scanner and parser alone: `entries` never asks it to construct anything."""


def read_file(path: Path, shown: str, like: str = "") -> str:
    """Return the text of a configuration file.

    Args:
        path: The file.
        shown: Its name for messages.
        like: What may have been meant if it does not exist.

    Returns:
        Its text, without a byte order mark.

    Raises:
        ConfigError: Missing, not a regular file, unreadable, too large, or not UTF-8.
    """
    where = shorten(shown, 120)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a FIFO would block and /dev/zero would never end
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "something that is not a regular file"
            raise ConfigError(f"{where}: expected a YAML file, found {kind}. Name the file itself.")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        hint = f"Did you mean {shorten(like, 120)}?" if like else "Check the path."
        raise ConfigError(f"{where}: expected a YAML file, found nothing there. {hint}") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ConfigError(f"{where}: cannot be read: {printable(reason or 'unknown reason')}.") from None
    if len(data) > LARGEST:
        raise _too_large(shown, status.st_size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        found = f"byte 0x{data[problem.start]:02x} at offset {problem.start}"
        hint = "It looks like UTF-16. " if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ConfigError(f"{where}: expected UTF-8 text, found {found}. {hint}Save it as UTF-8.") from None


def entries(text: str, source: str) -> Iterator[Entry]:
    """Yield the keys of a YAML text in order, sections joined to names with a dot.

    Args:
        text: The file's text; a byte order mark is dropped.
        source: The file's name, for messages.

    Yields:
        An `Entry` for each scalar, and for each mapping below the root when it begins.

    Raises:
        ConfigError: Not YAML; or YAML with an alias, anchor, tag, merge key, directive, list, second document,
            a mapping where a scalar belongs, a key given twice, more than 20 levels or 64 KiB.
    """
    if len(text) > LARGEST:
        raise _too_large(source, len(text))
    parts: list[str] = []  # keys of the mappings that are open, the outermost first
    key: str | None = None  # a key whose value comes next
    seen: dict[str, int] = {}
    depth, documents = 0, 0
    try:
        for event in yaml.parse(text.removeprefix("\ufeff"), Loader=StrictLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refuse(source, line, "one document", "a second one after `---`", "Delete it")
                if event.version or event.tags:
                    raise _refuse(source, line, "`key: value`", "a % directive", "Delete it")
                continue
            if isinstance(event, yaml.AliasEvent):
                raise _refuse(source, line, "a value", f"the alias *{shorten(str(event.anchor))}", _PLAIN)
            if not isinstance(event, yaml.NodeEvent):
                if isinstance(event, yaml.MappingEndEvent):
                    depth -= 1
                    if parts:
                        parts.pop()
                continue
            if event.anchor is not None:
                raise _refuse(source, line, "a value", f"the anchor &{shorten(str(event.anchor))}", _PLAIN)
            if (tag := getattr(event, "tag", None)) is not None:
                raise _refuse(source, line, "a value", f"the tag {shorten(str(tag))}", _PLAIN)
            path = ".".join([*parts, key] if key is not None else parts)
            if isinstance(event, yaml.SequenceStartEvent):
                raise _refuse(source, line, "one value" if path else "`key: value`", "a list", _PLAIN, path)
            if isinstance(event, yaml.MappingStartEvent):
                depth += 1
                if depth > DEEPEST:
                    raise _refuse(source, line, f"at most {DEEPEST} levels", "more", "Sections are one level deep")
                if depth > 1 and key is None:
                    raise _refuse(source, line, "a key", "a mapping", _PLAIN)
                if key is not None:
                    parts.append(key)
                    key = None
                    yield Entry(path, "", False, True, line)
                continue
            assert isinstance(event, yaml.ScalarEvent)
            if depth == 0:
                if event.value == "" and event.style is None:
                    continue  # an empty file sets nothing
                found = f"'{shorten(event.value)}'"
                raise _refuse(source, line, "`key: value`", found, "Put a colon and a blank after the key")
            if key is None:
                key = event.value
                path = ".".join([*parts, key])
                if key == "<<":
                    raise _refuse(source, line, "a key", "the merge key <<", _PLAIN)
                if path in seen:
                    raise _refuse(source, line, "each key once", f"it on line {seen[path]} too", "Delete one", path)
                seen[path] = line
                continue
            key = None
            yield Entry(path, event.value, event.style is not None, False, line)
    except yaml.YAMLError as problem:
        raise _broken(source, problem) from None
    except (ValueError, OverflowError):  # PyYAML on "\\UFFFFFFFF" and on %YAML followed by 5,000 digits
        raise ConfigError(
            f"{shorten(source, 120)}: expected YAML, found a broken escape or number. {_PLAIN}."
        ) from None


def _refuse(source: str, line: int, expected: str, found: str, hint: str, key: str = "") -> ConfigError:
    """Return the error for something at a line of the file."""
    what = f"{shorten(key)} ({shorten(source, 120)}:{line})" if key else f"{shorten(source, 120)}:{line}"
    return ConfigError(f"{what}: expected {expected}, found {found}. {hint}.")


def _too_large(source: str, size: int) -> ConfigError:
    """Return the error for a file above the limit."""
    where = shorten(source, 120)
    return ConfigError(f"{where}: expected at most {LARGEST:,} bytes, found {size:,}. Is it a configuration?")


def _broken(source: str, problem: yaml.YAMLError) -> ConfigError:
    """Return the error for a text that is not YAML."""
    where = shorten(source, 120)
    if isinstance(problem, yaml.MarkedYAMLError):
        mark = problem.problem_mark or problem.context_mark
        where += f":{mark.line + 1}" if mark else ""
        said = shorten(problem.problem or problem.context or "broken syntax", 80)
        if "'\\t'" in said:
            return ConfigError(f"{where}: expected blanks, found a tab. Indent with blanks.")
        return ConfigError(f"{where}: expected YAML, found broken syntax ({said}). {_PLAIN}.")
    if isinstance(problem, yaml.reader.ReaderError):
        character: Any = problem.character  # an int or a str, by the stage that met it
        code = character if isinstance(character, int) else ord(character)
        return ConfigError(f"{where}: expected text, found the character U+{code:04X}. Delete it.")
    return ConfigError(f"{where}: expected YAML, found something else. {_PLAIN}.")
