"""How the program speaks: results on stdout, everything else on stderr, colours where they are welcome.

Every command makes one `Console`, and all that it writes goes through it.

Colours and tables on a terminal are rich's, which is imported when the first one is written.

Rules:
- A stream that is not a terminal, NO_COLOR (not empty) or TERM=dumb: not one ESC byte on that stream. FORCE_COLOR is no
  exception: what goes into a file or pipe is read by programs.
- Results are written as they are; messages have their control characters escaped.
- Nobody reads stderr any more: the work goes on without messages.
- Nobody reads stdout any more: BrokenPipeError, which `cli.main` answers with `finish(0)`. The reader had what it wanted:
  that is no failure.
"""

import contextlib
import errno
import io
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from lstmlm.display.text_plots import cells_of, numeric, table
from lstmlm.errors import SystemProblem, printable

ERROR_LINES = 6
CLEAR_LINE = "\x1b[2K"


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person sits behind a stream; a closed or missing one has nobody."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def colour_allowed(stream: TextIO | None, env: Mapping[str, str]) -> bool:
    """Say whether ESC sequences may be written to a stream."""
    if not is_terminal(stream) or env.get("NO_COLOR") or env.get("TERM") == "dumb":
        return False
    # Old Windows consoles print the sequences; the new terminal names itself.
    return os.name != "nt" or bool(env.get("WT_SESSION") or env.get("TERM") or env.get("ANSICON"))


def live_allowed(stream: TextIO | None, env: Mapping[str, str]) -> bool:
    """Say whether a line may be overwritten in place: a real terminal, and no log of a CI service behind it."""
    return is_terminal(stream) and env.get("TERM") != "dumb" and env.get("CI", "").lower() in ("", "0", "false")


def columns(stream: TextIO | None, env: Mapping[str, str]) -> int:
    """Return the width of a stream in columns: COLUMNS, else the terminal's, else 80."""
    said = env.get("COLUMNS", "")
    if said.isascii() and said.isdigit() and int(said[:6]) > 0:
        return int(said[:6])
    try:
        return (os.get_terminal_size(stream.fileno()).columns if stream is not None else 0) or 80
    except (OSError, ValueError, AttributeError):
        return 80


def styled(text: str, style: str) -> str:
    """Return a text in one of rich's styles, such as `red` or `color(15) on color(54)`; the caller has asked `colour_allowed`."""
    from rich.style import Style

    return Style.parse(style).render(text)


def unicode_allowed(stream: TextIO | None) -> bool:
    """Say whether a stream takes every character: blocks and braille, or ASCII only."""
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


class Console:
    """The two streams of one command.

    Args:
        quiet: Only errors and results.
        verbose: Also what is usually left out.
        stdout: For results; None: `sys.stdout`, looked up at each call.
        stderr: For messages; None: `sys.stderr`, looked up at each call.
        env: The environment; None: the process's own.
    """

    def __init__(
        self,
        quiet: bool = False,
        verbose: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.env = os.environ if env is None else env
        self._stdout = stdout
        self._stderr = stderr
        self._live = 0  # columns of the line that is being overwritten, 0: none

    @property
    def stdout(self) -> TextIO | None:
        """Where results go; None where the process was started without it."""
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO | None:
        """Where messages go; None where the process was started without it."""
        return self._stderr or sys.stderr

    @property
    def colour(self) -> bool:
        """Whether messages may be coloured."""
        return colour_allowed(self.stderr, self.env)

    @property
    def live(self) -> bool:
        """Whether a line of messages may be overwritten in place, and is wanted."""
        return not self.quiet and live_allowed(self.stderr, self.env)

    @property
    def width(self) -> int:
        """Columns for messages."""
        return columns(self.stderr, self.env)

    def say(self, text: str = "", style: str = "") -> None:
        """Write a message of one or more lines in one of rich's styles; nothing when quiet."""
        if not self.quiet:
            self._message(text, style)

    def warn(self, text: str) -> None:
        """Write `warning: text`; nothing when quiet."""
        if not self.quiet:
            self._message(text, label="warning: ", label_style="yellow")

    def error(self, problem: BaseException) -> None:
        """Write `error: message` in at most six lines, quiet or not."""
        lines = (str(problem).strip() or type(problem).__name__).splitlines()
        if len(lines) > ERROR_LINES:
            lines = [*lines[: ERROR_LINES - 1], "..."]
        self._message("\n".join(lines), label="error: ", label_style="red")

    def say_from_signal(self, text: str) -> None:
        """Write a message from inside a signal handler, past the buffers: a handler may have interrupted a write."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if self.stderr is not None and not self.quiet:
                line = ("\r\n" if self._live else "") + printable(text) + "\n"
                os.write(self.stderr.fileno(), line.encode("ascii", "backslashreplace"))
                self._live = 0

    def overwrite(self, *pieces: tuple[str, str]) -> None:
        """Show a line that the next message, result or `overwrite` takes the place of; the caller has asked `live`.

        Args:
            pieces: Text of narrow characters, each with one of rich's styles or "", cut to the width; without any the line goes.
        """
        space = self.width - 1
        shown = []
        for text, style in pieces:
            shown.append((text[:space], style))
            space -= len(shown[-1][0])
        length = sum(len(text) for text, _ in shown)
        if self.colour:
            self._write_message("\r" + CLEAR_LINE + "".join(self._styled(*piece) for piece in shown))
        else:
            # Without ESC the rest of the old line is covered by spaces; the cursor goes back to the end of the new one.
            padding = max(0, min(self._live, self.width - 1) - length)
            self._write_message("\r" + "".join(text for text, _ in shown) + " " * padding + "\b" * padding)
        self._live = length

    def result(self, text: str, end: str = "\n", flush: bool = False) -> None:
        r"""Write a result as it is; characters that stdout cannot encode are written as `\u....`.

        Characters that stand for bytes (`surrogateescape`) are written as these bytes: of a model of bytes none is lost.

        Raises:
            BrokenPipeError: Nobody reads any more.
            SystemProblem: The disk is full, or the like.
        """
        stream = self.stdout
        if stream is None:
            return
        if self._live:
            self.overwrite()
        try:
            try:
                stream.write(text + end)
            except UnicodeEncodeError:
                _write_bytes(text + end, stream)
            if flush:
                stream.flush()
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise _unwritable(problem) from None

    def prose(self, text: str) -> None:
        """Write a result in sentences: on a terminal its lines break between words. Raises as `result` does."""
        self.result(self._wrapped(text))

    def headline(self, text: str) -> None:
        """Write the line of a result that matters most: bold where colours are welcome. Raises as `result` does."""
        text = self._wrapped(text)
        self.result(styled(text, "bold") if colour_allowed(self.stdout, self.env) else text)

    def _wrapped(self, text: str) -> str:
        if not is_terminal(self.stdout):
            return text
        found, width = [], max(20, columns(self.stdout, self.env))
        for line in text.split("\n"):
            indent = " " * (len(line) - len(line.lstrip(" ")))
            fitted = (
                line
                if len(line) <= width
                else textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
            )
            found.append(fitted)
        return "\n".join(found)

    def table(self, rows: Sequence[Sequence[str | int | float]], headers: Sequence[str] = (), best: int | None = None) -> None:
        """Write rows as a result: on a terminal with colours drawn by rich, elsewhere as plain aligned text.

        Args:
            rows: Of equal length.
            headers: One for each column, or none: then the first column says what the others are.
            best: The row that is shown in bold.

        Raises:
            BrokenPipeError, SystemProblem: As in `result`.
        """
        if not colour_allowed(self.stdout, self.env):
            self.result(table(rows, headers))
            return
        from rich.console import Console as Rich
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(headers), header_style="bold cyan")
        for column in range(len(rows[0])):
            drawn.add_column(
                Text(headers[column]) if headers else "",
                style="" if headers or column else "cyan",
                justify="right" if numeric(rows, column) else "left",
                overflow="fold",
            )
        for number, row in enumerate(rows):
            drawn.add_row(*map(Text, cells_of(row)), style="bold" if number == best else None)
        width = columns(self.stdout, self.env)
        rich = Rich(file=io.StringIO(), width=width, force_terminal=True, color_system="standard", legacy_windows=False)
        with rich.capture() as shown:
            rich.print(drawn)
        self.result(shown.get(), end="")

    def as_json(self, value: Any, *, flush: bool = False) -> None:
        r"""Write one JSON object in one line; characters that could move a cursor are written as `\u....`.

        Raises:
            ValueError: A number in it is not finite: JSON has no word for that.
            BrokenPipeError, SystemProblem: As in `result`.
        """
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        if not text.isprintable():
            text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
        if not unicode_allowed(self.stdout):
            text = json.dumps(value, allow_nan=False)
        self.result(text, flush=flush)

    def finish(self, exit_code: int) -> int:
        """Flush what is left, and make sure that the interpreter has nothing to complain about when it leaves.

        Args:
            exit_code: Of the command; 0 for a BrokenPipeError.

        Returns:
            The exit code: the same, or 5 where the results could not be written.
        """
        if self._live:
            self.overwrite()
        for stream in (self.stderr, self.stdout):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError) as problem:
                _to_nowhere(stream)
                unwritten = isinstance(problem, OSError) and not isinstance(problem, BrokenPipeError)
                if unwritten and stream is self.stdout and exit_code == 0:
                    failure = _unwritable(problem)
                    self.error(failure)
                    exit_code = failure.exit_code
        return exit_code

    def _styled(self, text: str, style: str) -> str:
        return styled(text, style) if style and text and self.colour else text

    def _message(self, text: str, style: str = "", label: str = "", label_style: str = "") -> None:
        erase = ""
        if self._live:
            erase = "\r" + (CLEAR_LINE if self.colour else " " * min(self._live, self.width - 1) + "\r")
            self._live = 0
        lines = [self._styled(line, style) for line in self._fitted([printable(line) for line in text.split("\n")], len(label))]
        self._write_message(erase + self._styled(label, label_style) + "\n".join(lines) + "\n")

    def _fitted(self, lines: list[str], label: int) -> list[str]:
        """Break lines that are too long for a terminal between words; what is indented, such as a command, stays in one line."""
        if not is_terminal(self.stderr) or all(len(line) < self.width - label for line in lines):
            return lines
        found: list[str] = []
        for number, line in enumerate(lines):
            if line.startswith(" "):
                found.append(line)
                continue
            start = " " * label if not number else ""  # the label stands there
            fitted = textwrap.wrap(
                line, max(20, self.width - 1), initial_indent=start, break_long_words=False, break_on_hyphens=False
            )
            found += [fitted[0][len(start) :], *fitted[1:]] if fitted else [line]
        return found

    def _write_message(self, text: str) -> None:
        stream = self.stderr
        if stream is None:
            return
        try:
            stream.write(_encodable(text, stream))
            stream.flush()
        except (OSError, ValueError):
            _to_nowhere(stream)  # a lost message is no reason to lose the work


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _write_bytes(text: str, stream: TextIO) -> None:
    """Write a text in which something cannot be encoded."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        data = text.encode(encoding, "surrogateescape")
        stream.flush()
        stream.buffer.write(data)
    except (UnicodeEncodeError, AttributeError):  # it is no stand-in for a byte, or the stream takes text alone
        stream.write(_encodable(text, stream))


def _unwritable(problem: Exception) -> SystemProblem:
    reason = getattr(problem, "strerror", None) or str(problem)
    full = getattr(problem, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    step = "Free some space" if full else "Send it elsewhere (> FILE)"
    return SystemProblem(f"standard output: expected to write the result, found: {reason}. {step}.")


def _to_nowhere(stream: TextIO | None) -> None:
    """Let a stream that failed end in the null device: what its buffer holds is tried again when the process leaves."""
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        if stream is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
