"""Every error that a user can meet, as a tree, each with its exit code.

    LstmlmError
        CheckFailed          1   ran, but a requested check failed
        UsageError           2   a flag, or flags that contradict each other
            ConfigError      2   a key or value of a configuration
        TextError            3   a corpus, a text or a prompt
        CheckpointError      4   missing, damaged or refused
        SystemProblem        5   disk full, read-only, locked, out of memory
        Diverged             6   training reached values that are not finite
        Stopped        128 + n   signal n, after a committed checkpoint

Anything else that is raised is a fault of the program itself: exit 70, with its traceback.

A message reads `<what> <where>: expected <x>, found <y>. <next step>.` and has at most six lines.
"""

import shlex


class LstmlmError(Exception):
    """The root: whatever is raised on purpose and shown without a traceback."""

    exit_code = 1


class CheckFailed(LstmlmError):
    """A requested check did not hold: `--max-bpc` of `eval` or `train`, or `sample --new` found too few samples."""


class UsageError(LstmlmError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown, or its value has the wrong type or range."""


class TextError(LstmlmError):
    """A corpus, text or prompt cannot be read or encoded."""

    exit_code = 3


class CheckpointError(LstmlmError):
    """A checkpoint is missing, damaged, of another version, or refused."""

    exit_code = 4


class SystemProblem(LstmlmError):
    """The machine refused: disk full, read-only, locked, out of memory."""

    exit_code = 5


class Diverged(LstmlmError):
    """Training reached a loss, gradient or weight that is not finite."""

    exit_code = 6


class Stopped(LstmlmError):
    """A signal ended the run after its checkpoint was committed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def not_finite() -> CheckpointError:
    """Return the error of a model whose weights are finite and yet give probabilities that are not numbers."""
    return CheckpointError(
        "model: expected probabilities from its weights, found values that are not finite: the weights are too large to compute "
        "with. Take another checkpoint, or train it again."
    )


def printable(text: str) -> str:
    """Return text from outside the program with control and format characters escaped, fit for a terminal."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def in_shell(*words: str) -> str:
    r"""Return the words of a command as bash and zsh read them, fit for a terminal: what is not printable as `$'\xff'`."""
    return " ".join(map(_word, words))


def _word(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # A shell takes \x85 for a byte: the character U+0085 is \u0085 there, and likewise up to U+00AD.
    long = (f"\\u{ord(c):04x}" if "\x80" <= c <= "\xad" else "\\" + c if c in "\\'" else printable(c) for c in word)
    return f"$'{''.join(long)}'"


def _escaped(char: str) -> str:
    """Return an escape of a character, or of the byte of a name that is no text (`surrogateescape`)."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
