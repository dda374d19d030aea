"""The strict YAML reader: sections or dotted keys, each with one plain scalar, and nothing else of YAML.

`read_file` and `entries` are the entry points, for `run_config`. PyYAML composes mappings of scalars, and whatever else comes is
refused before it is composed; nothing is constructed. Which keys there are, only the caller knows.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lstmlm.config.setting import shorten
from lstmlm.errors import ConfigError, printable

LARGEST = 65_536  # bytes; PyYAML scans about 0.5 MB/s at its worst, and a bad file is to be refused in half a second
DEEPEST = 20
_PLAIN = "Write each setting as `key: value`"


class YamlEntry(NamedTuple):
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


class _OddError(Exception):
    """Something of YAML that is not taken here: where, what was expected, what was found, and the next step."""

    def __init__(self, event: yaml.Event, found: str, expected: str = "", hint: str = _PLAIN) -> None:
        super().__init__(event.start_mark.line + 1 if event.start_mark else 1, expected, found, hint)


class StrictLoader(yaml.SafeLoader):
    """SafeLoader for mappings of scalars, without anchors, aliases, tags and directives; nothing is constructed with it.

    Attributes:
        path: Dotted name of the key whose value comes next; empty where a key does.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""
        self._open: list[str] = []  # keys of the mappings that are open, the outermost first

    def _next(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]  # its stub lacks types

    def compose_document(self) -> yaml.Node | None:
        """Compose a document without directives before it and another one behind it."""
        start = self._next()
        if start.version or start.tags:
            raise _OddError(start, "a % directive")
        root = super().compose_document()
        if not self.check_event(yaml.StreamEndEvent):
            raise _OddError(self._next(), "a second one after `---`", "one document", "Delete it")
        return root

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the value of the key `index`, or where that is None a key of the mapping `parent`, or the root."""
        if index is not None:
            self._open.append(index.value)
            self.path = ".".join(self._open)
        event = self._next()
        if found := _odd(event):
            raise _OddError(event, found, "" if index is not None else "`key: value`")
        if isinstance(event, yaml.MappingStartEvent):
            if parent is not None and index is None:
                raise _OddError(event, "a mapping", "a key")
            if len(self._open) == DEEPEST:
                raise _OddError(event, "more", f"at most {DEEPEST} levels", "Sections are one level deep")
        self.path = ""
        node = super().compose_node(parent, index)
        if index is not None:
            self._open.pop()
        return node


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
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            data = file.read(LARGEST + 1) or b""  # None: some files below /proc are waited for
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


def entries(text: str, source: str, allowed: Callable[[str], str] = lambda key: "a value") -> list[YamlEntry]:
    """Return the keys of a YAML text in order, sections joined to names with a dot.

    Args:
        text: The file's text; a byte order mark is dropped.
        source: The file's name, for messages.
        allowed: What belongs under a key, in words, for messages.

    Returns:
        An `YamlEntry` for each scalar, and for each mapping below the root where it begins.

    Raises:
        ConfigError: Not YAML; or YAML with an alias, anchor, tag, merge key, directive, list, second document,
            a mapping where a key belongs, a key given twice, more than 20 levels or 64 KiB.
    """
    if len(text) > LARGEST:
        raise _too_large(source, len(text))
    try:
        loader = StrictLoader(text.removeprefix("\ufeff"))  # a control character is refused here
    except yaml.YAMLError as problem:
        raise _broken(source, problem, "", "") from None
    try:
        root = loader.get_single_node()
    except _OddError as odd:
        line, expected, found, hint = odd.args
        raise _refuse(source, line, expected or allowed(loader.path), found, hint, loader.path) from None
    except yaml.YAMLError as problem:
        raise _broken(source, problem, loader.path, allowed(loader.path)) from None
    except (ValueError, OverflowError):  # PyYAML on "\UFFFFFFFF" and on %YAML followed by 5,000 digits
        raise ConfigError(f"{shorten(source, 120)}: expected YAML, found a broken escape or number. {_PLAIN}.") from None
    taken: dict[str, YamlEntry] = {}
    if isinstance(root, yaml.MappingNode):
        _collect(root, "", source, taken)
    elif isinstance(root, yaml.ScalarNode) and (root.value or root.style):  # an empty file may be an empty scalar
        line, found = root.start_mark.line + 1, f"'{shorten(root.value)}'"
        raise _refuse(source, line, "`key: value`", found, "Put a colon and a blank after the key")
    return list(taken.values())


def _collect(mapping: yaml.MappingNode, above: str, source: str, found: dict[str, YamlEntry]) -> None:
    """Add the entries of a mapping and of those in it; refuse a key that is there already."""
    for key, value in mapping.value:
        path, line = above + key.value, key.start_mark.line + 1
        if path in found:
            raise _refuse(source, line, "each key once", f"it on line {found[path].line} too", "Delete one", path)
        if isinstance(value, yaml.MappingNode):
            found[path] = YamlEntry(path, "", False, True, line)
            _collect(value, f"{path}.", source, found)
        else:
            found[path] = YamlEntry(path, value.value, value.style is not None, False, value.start_mark.line + 1)


def _odd(event: yaml.Event) -> str:
    """Name what is YAML and not taken here; empty for the rest."""
    if isinstance(event, yaml.AliasEvent):
        return f"the alias *{shorten(str(event.anchor))}"
    if not isinstance(event, yaml.NodeEvent):
        return ""
    if event.anchor is not None:
        return f"the anchor &{shorten(str(event.anchor))}"
    if (tag := getattr(event, "tag", None)) is not None:
        return f"the tag {shorten(str(tag))}"
    if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
        return "the merge key <<"
    return "a list" if isinstance(event, yaml.SequenceStartEvent) else ""


def _refuse(source: str, line: int, expected: str, found: str, hint: str, key: str = "") -> ConfigError:
    """Return the error for something at a line of the file."""
    what = f"{shorten(key)} ({shorten(source, 120)}:{line})" if key else f"{shorten(source, 120)}:{line}"
    return ConfigError(f"{what}: expected {expected}, found {found}. {hint}.")


def _too_large(source: str, size: int) -> ConfigError:
    """Return the error for a file above the limit."""
    where = shorten(source, 120)
    return ConfigError(f"{where}: expected at most {LARGEST:,} bytes, found {size:,}. Is it a configuration?")


def _broken(source: str, problem: yaml.YAMLError, key: str, allowed: str) -> ConfigError:
    """Return the error for a text that is not YAML, under a key if one waited for its value."""
    where = shorten(source, 120)
    if isinstance(problem, yaml.MarkedYAMLError):
        mark = problem.problem_mark or problem.context_mark
        said = shorten(problem.problem or problem.context or "broken syntax", 80)
        expected, found, hint = allowed if key else "YAML", f"broken YAML ({said})", _PLAIN
        if "'\\t'" in said:
            expected, found, hint = "blanks", "a tab", "Indent with blanks"
        return _refuse(source, mark.line + 1 if mark else 1, expected, found, hint, key)
    if isinstance(problem, yaml.reader.ReaderError):
        character: Any = problem.character  # an int or a str, by the stage that met it
        code = character if isinstance(character, int) else ord(character)
        return ConfigError(f"{where}: expected text, found the character U+{code:04X}. Delete it.")
    return ConfigError(f"{where}: expected YAML, found something else. {_PLAIN}.")
