"""One setting: its key, type, default, help and range; text into its value, and a mistake into a message that helps.

`setting` declares one as a dataclass field, for `schema`; `Setting.parse` reads a value from a file, a flag or the
environment, for `run_config`.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from lstmlm.errors import ConfigError, printable

Value: TypeAlias = int | float | bool | str | None

INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LONGEST_NUMBER = 40  # characters; int() and float() need not see more, and a message need not show more
LONGEST_TEXT = 256  # characters of a string value
NONE_WORDS = ("null", "auto")
NEARLY_CHOICE = {
    "gpu": "cuda",
    "fp32": "float32",
    "float": "float32",
    "half": "bfloat16",
    "c": "native",
    "bytes": "byte",
}
SCALES = {"%": 0.01, "k": 1e3, "m": 1e6}
MINUTES = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1 / 60),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 1.0),
    **dict.fromkeys(("h", "hour", "hours"), 60.0),
}
"""Units that people write behind a number, and what they are worth; the second for a setting that counts minutes."""
DECIMAL_COMMA = re.compile(r"[-+]?(0|[1-9][0-9]*),(?![0-9]{3}$)[0-9]+|[-+]?0,[0-9]+")
NEARLY_BOOL = {"on": "true", "yes": "true", "y": "true", "1": "true", "t": "true"}
NEARLY_BOOL |= {"off": "false", "no": "false", "n": "false", "0": "false", "f": "false", "none": "false"}


class Located(NamedTuple):
    """A value of a layer, with the place it came from.

    Attributes:
        value: The value, of its setting's type.
        line: Line in the file, from 1; None where there are no lines.
        source: The place as a person would look for it: `configs/minute.yaml:12`, `env LSTMLM_TRAIN_LR`, `--lr`.
    """

    value: Value
    line: int | None
    source: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What can be set under one key; `config.keys()` has them all.

    Attributes:
        key: `<section>.<name>`, as in YAML and `--set`.
        type: int, float, bool or str.
        default: Value when nothing sets it.
        help: What it does, in one phrase without a full stop, with the unit.
        low: Smallest value, None: no limit.
        high: Largest value, None: no limit.
        above_low: `low` itself is excluded.
        below_high: `high` itself is excluded.
        choices: The only values, for a str.
        accept: Says whether a str is good, where `choices` cannot.
        words: What `accept` accepts, for messages.
        optional: None is a value.
        none_word: How None is written and read: `auto` (chosen for the run) or `null` (not set). Both are read.
        group: Heading of `lstmlm train --help` below which its flag stands; empty: it has none.
        metavar: What its value is called there, where there are no choices.
    """

    key: str
    type: type
    default: Value
    help: str
    low: float | None = None
    high: float | None = None
    above_low: bool = False
    below_high: bool = False
    choices: tuple[str, ...] = ()
    accept: Callable[[str], bool] | None = None
    words: str = "a text"
    optional: bool = False
    none_word: str = "auto"
    group: str = ""
    metavar: str = ""

    @property
    def section(self) -> str:
        """The part of the key before the dot."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """The part of the key after the dot."""
        return self.key.partition(".")[2]

    @property
    def flag(self) -> str:
        """The flag of `lstmlm train`, where its `group` says that it has one: `--val-fraction`."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable: `LSTMLM_TRAIN_LR`."""
        return "LSTMLM_" + self.key.replace(".", "_").upper()

    @property
    def allowed(self) -> str:
        """The type and range in words: `a whole number from 1 to 64, or auto`."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        elif self.type is bool:
            words = "true or false"
        elif self.type is str:
            words = self.words
        else:
            words = "a whole number" if self.type is int else "a number"
            words += self._range()
        return f"{words}, or {self.none_word}" if self.optional else words

    def _range(self) -> str:
        """Say the range in words, with a blank before them."""
        low, high = (None if bound is None else f"{bound:,}" for bound in (self.low, self.high))
        if low is not None and high is not None and not self.above_low:
            return f" from {low} to {'below ' if self.below_high else ''}{high}"
        parts = []
        if low is not None:
            parts.append(f"above {low}" if self.above_low else f"at least {low}")
        if high is not None:
            parts.append(f"below {high}" if self.below_high else f"at most {high}")
        return " " + " and ".join(parts) if parts else ""

    def check(self, value: object, source: str = "") -> Value:
        """Return a value of this setting's type and range, or refuse it.

        An int is taken for a float; nothing else is converted.

        Args:
            value: What was given, of any type.
            source: Where it was given, for the message.

        Returns:
            The value, a float where the setting is one.

        Raises:
            ConfigError: Wrong type, out of range, not a choice, or not finite.
        """
        if value is None:
            if self.optional:
                return None
            raise self.refuse("nothing", source)
        if self.type is float and type(value) is int and abs(value) <= 2**63:
            value = float(value)
        if type(value) is not self.type:
            raise self.refuse(describe(value), source)
        if isinstance(value, str):
            if self.choices and value not in self.choices:
                nearly = NEARLY_CHOICE.get(value.lower(), "")
                meant = nearly if nearly in self.choices else closest(value, self.choices)
                raise self.refuse(describe(value), source, meant)
            if not 0 < len(value) <= LONGEST_TEXT or (self.accept and not self.accept(value)):
                raise self.refuse(describe(value), source)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._check_range(value, source)
        return value  # type: ignore[return-value]  # its type is self.type, which is one of Value's

    def _check_range(self, value: int | float, source: str) -> None:
        """Refuse a number that is out of range or not finite."""
        inside = isinstance(value, int) or math.isfinite(value)
        if self.low is not None:
            inside = inside and (value > self.low if self.above_low else value >= self.low)
        if self.high is not None:
            inside = inside and (value < self.high if self.below_high else value <= self.high)
        if not inside:
            raise self.refuse(describe(value), source)

    def parse(self, text: str, source: str = "", quoted: bool = False) -> Value:
        """Return the value that a text stands for, by this setting's type alone.

        Numbers are decimal, without `_`, `:`, `0x` or leading zeros; booleans are `true` and `false`. In quotes
        a text is a text, never a number.

        Args:
            text: The text, such as `3e-4`.
            source: Where it was found, for the message.
            quoted: It stood in quotes (YAML).

        Returns:
            The value, within its range.

        Raises:
            ConfigError: The text is no such value.
        """
        if self.type is str:
            return None if self.optional and text in NONE_WORDS and not quoted else self.check(text, source)
        if quoted:
            meant = text if self._reads(text) else ""
            raise self.refuse(f'the quoted text "{shorten(text)}"', source, meant, "Without quotes:")
        if self.optional and text in NONE_WORDS:
            return None
        if self.type is bool:
            if text in ("true", "false"):
                return text == "true"
            near = text.lower() if text.lower() in ("true", "false") else NEARLY_BOOL.get(text.lower(), "")
            raise self.refuse(describe(text), source, near)
        pattern = INT if self.type is int else FLOAT
        if len(text) > LONGEST_NUMBER or not pattern.fullmatch(text):
            raise self.refuse(describe(text), source, self._nearly(text))
        if self.type is int:
            return self.check(int(text), source)
        value = float(text)
        if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise self.refuse(f"{text}, which is too small to hold", source)
        return self.check(value, source)

    def _reads(self, text: str) -> bool:
        """Say whether a text without quotes would be taken."""
        try:
            self.parse(text)
        except ConfigError:
            return False
        return True

    def _nearly(self, text: str) -> str:
        """Guess which number was meant by one that is refused for its notation; empty if none."""
        if len(text) > LONGEST_NUMBER:
            return ""
        if self.optional and text.lower() in ("", "~", "none", "null", "auto", "default"):
            return self.none_word
        plain = _plain(text, MINUTES if self.name == "minutes" else SCALES)
        if self.type is float and DECIMAL_COMMA.fullmatch(plain):
            plain = plain.replace(",", ".")
        plain = plain.replace("_", "").replace(",", "").strip()
        plain = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", plain)
        if re.fullmatch(r"0[xob][0-9a-fA-F]+", text):
            try:
                plain = str(int(text, 0))
            except ValueError:
                return ""
        elif self.type is int and FLOAT.fullmatch(plain) and math.isfinite(float(plain)) and float(plain).is_integer():
            plain = write(int(float(plain)))
        return plain if plain != text and self._reads(plain) else ""

    def refuse(self, found: str, source: str = "", meant: str = "", how: str = "") -> ConfigError:
        """Return the error for a value that cannot be taken.

        Args:
            found: What was found, already fit for a terminal.
            source: Where.
            meant: The value that was probably meant; empty: none.
            how: Words before that value in place of a question.

        Returns:
            The error, to be raised by the caller.
        """
        message = f"{self.key}{at(source)}: expected {self.allowed}, found {found}."
        if meant:
            return ConfigError(f"{message} {how} {meant}." if how else f"{message} Did you mean {meant}?")
        default = self.none_word if self.default is None else write(self.default)
        return ConfigError(f"{message} The default is {default}.")


def _plain(text: str, units: dict[str, float]) -> str:
    """Return a number with a unit as the number alone that it stands for; any other text as it is."""
    parts = re.fullmatch(r"([-+]?[0-9]+(?:\.[0-9]+)?) ?([a-z%]+)", text.strip().lower())
    return format(float(parts[1]) * units[parts[2]], ".12g") if parts and parts[2] in units else text


def setting(default: Value, help: str, **limits: Any) -> Any:
    """Return a dataclass field that carries its help and range.

    Args:
        default: The field's default.
        help: What it does, with the unit.
        limits: `low`, `high`, `above_low`, `below_high`, `choices`, `accept`, `words`, `none_word`, `group`, `metavar`, as in
            `Setting`.

    Returns:
        A `dataclasses.field`.
    """
    return field(default=default, metadata={"help": help, **limits})


def at(source: str) -> str:
    """Return the place for a message, in brackets after the key; empty for none."""
    return f" ({shorten(source, 120)})" if source else ""


def shorten(text: str, width: int = 48) -> str:
    """Return text from outside on one line, escaped for a terminal, cut in the middle to about `width` characters."""
    if len(text) > width:
        text = text[: width - 12] + "..." + text[-9:]
    safe = printable(text)
    return safe if len(safe) <= 2 * width else safe[: 2 * width - 3] + "..."


def describe(value: object) -> str:
    """Return any value in words that fit a message: short, escaped, and never expensive to make."""
    if isinstance(value, str):
        return f"'{shorten(value)}'" if value else "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() < 130 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    names = {dict: "a mapping", list: "a list", tuple: "a list", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def write(value: Value | float) -> str:
    """Return a value as text that `Setting.parse` reads back to the same value; None is `null`, and a text stays as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def closest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Return the known word most like a given one; empty if none is."""
    if len(word) > LONGEST_TEXT:
        return ""  # difflib is quadratic
    lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.strip().lower(), lower, 1, likeness)
    return lower[matches[0]] if matches else ""
