import errno
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lstmlm
from lstmlm.display.console import Console, columns, live_allowed
from lstmlm.errors import SystemProblem, TextError

ROOT = Path(lstmlm.__file__).parents[1]


class Stream(io.TextIOWrapper):
    """A stream with an encoding that says whether it is a terminal, and whose writes can fail."""

    def __init__(self, terminal: bool = False, encoding: str = "utf-8", fails: int = 0) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="", write_through=True)
        self.terminal = terminal
        self.fails = fails

    def isatty(self) -> bool:
        """Answer as told."""
        return self.terminal

    def write(self, text: str) -> int:
        """Write, or fail as told."""
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        return super().write(text)

    @property
    def text(self) -> str:
        """What was written."""
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


def console(terminal: bool = True, quiet: bool = False, env: dict[str, str] | None = None) -> tuple[Console, Stream, Stream]:
    """Return a console with its stdout and stderr."""
    out, err = Stream(terminal), Stream(terminal)
    return Console(quiet=quiet, stdout=out, stderr=err, env={"TERM": "xterm", **(env or {})}), out, err


def test_error_is_red_on_a_terminal() -> None:
    """On a terminal the word `error` is red, the message is not."""
    speaker, out, err = console()
    speaker.error(TextError("corpus.txt: expected text, found nothing."))

    assert err.text == "\x1b[31merror: \x1b[0mcorpus.txt: expected text, found nothing.\n"
    assert out.text == ""


PLAIN: list[tuple[bool, dict[str, str]]] = [
    (False, {}),
    (False, {"FORCE_COLOR": "1"}),
    (True, {"NO_COLOR": "1"}),
    (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}),
    (True, {"TERM": "dumb"}),
]


@pytest.mark.parametrize(("terminal", "env"), PLAIN, ids=str)
def test_no_escape_where_none_belongs(terminal: bool, env: dict[str, str]) -> None:
    """A pipe, NO_COLOR and TERM=dumb get not one ESC byte, whatever is said, overwritten or reported."""
    speaker, out, err = console(terminal, env=env)
    speaker.say("a dim line", "dim")
    if speaker.live:
        speaker.overwrite(("half", "cyan"), (" done", ""))
    speaker.warn("careful")
    speaker.error(TextError("bad \x1b[31m name"))
    speaker.result("a result")
    speaker.as_json({"a": "\x1b \x9b"})

    assert "\x1b" not in err.text + out.text
    assert "error: bad \\x1b[31m name\n" in err.text


@pytest.mark.parametrize("value", ["", None])
def test_empty_no_color_counts_as_absent(value: str | None) -> None:
    """NO_COLOR takes effect when it is not empty, as its convention has it."""
    speaker, _, err = console(env={} if value is None else {"NO_COLOR": value})
    speaker.warn("careful")

    assert "\x1b[33m" in err.text


@pytest.mark.parametrize(
    ("terminal", "env", "expected"),
    [
        (True, {}, True),
        (True, {"CI": "false"}, True),
        (True, {"NO_COLOR": "1"}, True),
        (True, {"CI": "true"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
    ids=str,
)
def test_where_a_line_may_be_overwritten(terminal: bool, env: dict[str, str], expected: bool) -> None:
    """A live line needs a real terminal without a CI log behind it; colour has no say in it."""
    assert live_allowed(Stream(terminal), env) is expected


def test_quiet_says_errors_only() -> None:
    """Quiet drops messages and warnings, and keeps errors and results."""
    speaker, out, err = console(terminal=False, quiet=True)
    speaker.say("hello")
    speaker.warn("careful")
    speaker.error(TextError("no"))
    speaker.result("42")

    assert err.text == "error: no\n"
    assert out.text == "42\n"


def test_an_error_has_six_lines() -> None:
    """However long a message is, six lines are shown, and an empty one says its class."""
    speaker, _, err = console(terminal=False)
    speaker.error(TextError("\n".join(f"line {i}" for i in range(20))))
    speaker.error(KeyError())

    assert err.text.splitlines() == ["error: line 0", *(f"line {i}" for i in range(1, 5)), "...", "error: KeyError"]


def test_a_message_takes_the_live_line_away() -> None:
    """A message or result never stands behind what is left of the live line, with colour and without."""
    cases: list[tuple[dict[str, str], str]] = [({}, "\r\x1b[2K"), ({"NO_COLOR": "1"}, "\r" + " " * 9 + "\r")]
    for env, erased in cases:
        speaker, _, err = console(env=env)
        speaker.overwrite(("half done", ""))
        speaker.say("hello")
        speaker.say("again")

        assert err.text.endswith("half done" + erased + "hello\nagain\n")


def test_a_live_line_is_cut_to_the_width() -> None:
    """The last column stays empty, so that no terminal wraps; without ESC the old line is covered."""
    speaker, _, err = console(env={"NO_COLOR": "1", "COLUMNS": "40"})
    speaker.overwrite(("x" * 30, "cyan"), ("y" * 30, ""))
    speaker.overwrite(("z", ""))

    assert err.text == "\r" + "x" * 30 + "y" * 9 + "\rz" + " " * 38 + "\b" * 38


@pytest.mark.parametrize(("said", "expected"), [("40", 40), ("0", 80), ("wide", 80), ("", 80), ("²", 80)])
def test_width(said: str, expected: int) -> None:
    """COLUMNS decides where it is a number; a stream without a size has 80."""
    assert columns(Stream(), {"COLUMNS": said}) == expected


def test_messages_in_ascii() -> None:
    """With an ASCII stderr a message is escaped, not lost, and nothing raises."""
    err = Stream(encoding="ascii")
    Console(stderr=err, env={}).say("Grüße ━")

    assert err.text == "Gr\\xfc\\xdfe \\u2501\n"


def test_results_in_ascii() -> None:
    """With an ASCII stdout JSON has the same value in escapes, and other results do not crash."""
    out = Stream(encoding="ascii")
    speaker = Console(stdout=out, env={})
    speaker.as_json({"text": "Grüße"})
    speaker.result("Grüße")

    first, second = out.text.splitlines()
    assert json.loads(first) == {"text": "Grüße"}
    assert second == "Gr\\xfc\\xdfe"


def test_results_are_raw() -> None:
    """A result is written to the byte: no markup is read in it, no style is added, on a terminal either."""
    speaker, out, _ = console()
    speaker.result("[red]Bob[/red] \x1b[1m :smile:", end="", flush=True)

    assert out.text == "[red]Bob[/red] \x1b[1m :smile:"


def bare(text: str) -> list[str]:
    """Return lines without what colours them, and without blanks at their ends."""
    return [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()]


ROWS, HEADERS = [("[red]漢字 \x1b", 1.5, 7), ("b", 0.25, 1234)], ("name", "bits", "count")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=["NO_COLOR", "dumb", "pipe"])
def test_a_table_without_colours_is_plain_text(env: dict[str, str]) -> None:
    """Where colours are not welcome a table is aligned text without one ESC byte, and nothing is read as markup."""
    speaker, out, _ = console(terminal=bool(env), env=env)
    speaker.table(ROWS, HEADERS, best=1)
    speaker.headline("the result")

    assert out.text == (
        "name              bits  count\n[red]漢字 \\x1b  1.5000      7\nb               0.2500   1234\nthe result\n"
    )


def test_sentences_break_between_words_on_a_terminal() -> None:
    """A long line of prose is broken between words at the terminal's width, further lines as far in; a pipe gets it whole."""
    text = "a headline\n\n  " + "word " * 30 + "end"
    shown, piped = console(env={"COLUMNS": "40"}), console(terminal=False)
    shown[0].prose(text)
    piped[0].prose(text)
    lines = shown[1].text.splitlines()

    assert max(map(len, lines)) <= 40
    assert lines[:2] == ["a headline", ""]
    assert all(line.startswith("  word") for line in lines[2:])
    assert " ".join(shown[1].text.split()) == " ".join(text.split())
    assert piped[1].text == text + "\n"


def test_a_table_in_colours_has_the_same_text() -> None:
    """On a terminal rich draws it: the heads and the best row stand out, and the text is that of the plain table."""
    plain, coloured = console(terminal=False), console()
    for speaker, _, _ in (plain, coloured):
        speaker.table(ROWS, HEADERS, best=1)
    shown = coloured[1].text

    assert bare(shown) == plain[1].text.splitlines()
    assert [line.startswith("\x1b[1") for line in shown.splitlines()] == [True, False, True]


def test_a_table_fits_the_terminal() -> None:
    """What is wider than the terminal goes on in the next line of its column, and nothing of it is lost."""
    speaker, out, _ = console(env={"COLUMNS": "30"})
    speaker.table([("vocabulary", "abcdefghijklmnopqrstuvwxyz" * 2), ("step", "1")])
    lines = bare(out.text)

    assert max(map(len, lines)) <= 30
    assert "".join(line[10:].strip() for line in lines[:-1]) == "abcdefghijklmnopqrstuvwxyz" * 2


def test_json_round_trips() -> None:
    """Any text comes back from the one line of JSON; characters that could move a cursor are escaped in it."""
    value = {"schema": 1, "text": "Grüße \x00\x1b\x7f\x9b\u202e\u2028\ud800 漢字 \U0001f600"}
    speaker, out, _ = console()
    speaker.as_json(value)

    assert out.text.endswith("}\n")
    assert out.text[:-1].isprintable()
    assert "Grüße" in out.text
    assert json.loads(out.text) == value


def test_json_has_no_nan() -> None:
    """A number that JSON cannot hold is a mistake of the program, not a token that other readers choke on."""
    speaker, out, _ = console()
    with pytest.raises(ValueError, match="JSON"):
        speaker.as_json({"nats_per_char": math.nan})

    assert out.text == ""


def test_a_full_disk_is_exit_5() -> None:
    """A result that cannot be written is a problem of the system; a reader who left is not."""
    with pytest.raises(SystemProblem, match="No space left"):
        Console(stdout=Stream(fails=errno.ENOSPC), env={}).result("x")
    with pytest.raises(BrokenPipeError):
        Console(stdout=Stream(fails=errno.EPIPE), env={}).result("x")


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_lost_messages_do_not_stop_the_work(error: int) -> None:
    """When stderr fails, messages are lost and nothing is raised."""
    speaker = Console(stderr=Stream(terminal=True, fails=error), env={})
    speaker.say("hello")
    speaker.overwrite(("half", ""))
    speaker.error(TextError("no"))

    assert speaker.finish(3) == 3


COMMAND = """
import sys
from lstmlm.display.console import Console
from lstmlm.errors import LstmlmError

speaker = Console()
try:
    {body}
    code = 0
except BrokenPipeError:
    code = 0
except LstmlmError as problem:
    speaker.error(problem)
    code = problem.exit_code
sys.exit(speaker.finish(code))
"""


def run(body: str, tail: str) -> tuple[int, str, str]:
    """Run a command line around `body` in a shell that adds `tail`; return exit code, stdout and stderr."""
    script = Path("command.py")
    script.write_text(COMMAND.replace("{body}", textwrap.indent(textwrap.dedent(body), "    ").strip()), encoding="utf-8")
    command = f'"{sys.executable}" command.py {tail}'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=env, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "tail", "code", "stderr"),
    [
        ("for _ in range(100_000): speaker.result('line')", "| head -1 > /dev/null", 0, ""),
        ("speaker.result('x')\nfor _ in range(100_000): speaker.say('m')", "2>&1 | head -1 > /dev/null", 0, ""),
        ("speaker.result('x')", ">&-", 0, ""),
        ("speaker.say('x')\nspeaker.result('y')", "2>&- > /dev/null", 0, ""),
        ("speaker.result('x' * 10**6)", "> /dev/full", 5, "No space left"),
        ("speaker.result('x')", "> /dev/full", 5, "No space left"),
        ("raise LstmlmError('checked')", "| true", 1, "error: checked\n"),
    ],
    ids=[
        "reader leaves",
        "listener leaves",
        "no stdout",
        "no stderr",
        "full, at once",
        "full, at the end",
        "code kept",
    ],
)
def test_pipes(body: str, tail: str, code: int, stderr: str) -> None:
    """Real pipes that close and disks that fill: the promised exit code, one line or none, never a traceback."""
    if "/dev/full" in tail and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    found, _, said = run(body, tail)

    assert found == code
    assert said == stderr or (stderr and stderr in said and len(said.splitlines()) == 1)


def test_words_from_a_signal_handler() -> None:
    """Inside a handler a line goes past the buffers, below the live line, with controls escaped."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        speaker = Console(stderr=stream, env={"TERM": "xterm", "NO_COLOR": "1"})
        speaker.overwrite(("half", ""))
        speaker.say_from_signal("stopping \x1b")
        found = b""
        while not found.endswith(b"x1b\r\n"):
            found += os.read(leader, 1000)
    os.close(leader)

    assert found.replace(b"\r", b"") == b"half\nstopping \\x1b\n"


def test_importing_the_console_is_cheap() -> None:
    """No module of `display` brings torch, typer, yaml or rich with it."""
    code = (
        "import lstmlm.display.console, lstmlm.display.progress_view, lstmlm.display.text_plots, lstmlm.display.run_svg, sys;"
        "print([m for m in ('torch', 'typer', 'yaml', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    assert done.stdout == "[]\n", done.stderr
