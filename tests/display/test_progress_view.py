import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from lstmlm.display.console import Console
from lstmlm.display.progress_view import RunView, live_line
from lstmlm.training.events import Busy, Event, Planned, Sampled, Saved, StepDone, SteppedBack, Validated
from tests.display.test_console import Stream

NATS = math.log(2)  # of one bit


class Clock:
    """Time that passes when told, and counts how often it is asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0

    def __call__(self) -> float:
        """Return the time."""
        self.asked += 1
        return self.now


def run(steps: int = 2000) -> Iterator[Event]:
    """Yield the records of a whole run of 1,024 characters a step, with all that can happen in one."""
    for step in range(1, steps + 1):
        yield StepDone(step, steps if step > 20 else None, 2.0 * NATS, 0.01, step * 1024)
        if step == 20:
            yield Planned(step, steps)
        if step == 700:
            yield SteppedBack(701, 700, "gradient", 0.5)
        if step % 500 == 0:
            yield Validated(step, (2.5 - step / 2000 if step != 1000 else 2.6) * NATS, step != 1000)
            yield Sampled(step, "Bob is \x1b[31mthe\tking\n" + "x" * 300)
            yield Saved(step, Path("last.safetensors"))


def watch(
    terminal: bool,
    env: dict[str, str] | None = None,
    seconds: float = 0.005,
    quiet: bool = False,
    verbose: bool = False,
) -> Stream:
    """Show a whole run whose steps take so many seconds; return what was written on stderr."""
    err, clock = Stream(terminal), Clock()
    console = Console(quiet=quiet, verbose=verbose, stderr=err, env={"TERM": "xterm", **(env or {})})
    view = RunView(console, clock)
    for record in run():
        clock.now += seconds if isinstance(record, StepDone) else 0.0
        view(record)
    view.close()
    return err


def test_plain_lines_of_a_run() -> None:
    """Off the terminal: a line every ten seconds and one at the end, one for each validation, no samples, no ESC."""
    lines = watch(False, seconds=1 / 64).text.splitlines()

    assert lines == [
        "step 500/2000  validation about 2.2500 bits/char  the best so far",
        "step 644/2000  loss 2.00 bits/char  val 2.25  65.5k chars/s  0:21 left",
        "warning: step 701: the gradient is not finite; back to step 700, from there with 0.5 of the rate",
        "step 1000/2000  validation about 2.6000 bits/char  best 2.2500",
        "step 1352/2000  loss 2.00 bits/char  val 2.25  65.5k chars/s  0:10 left",
        "step 1500/2000  validation about 1.7500 bits/char  the best so far",
        "step 1995/2000  loss 2.00 bits/char  val 1.75  65.5k chars/s  0:00 left",
        "step 2000/2000  loss 2.00 bits/char  val 1.75  65.5k chars/s  0:00 left",
        "step 2000/2000  validation about 1.5000 bits/char  the best so far",
    ]


def test_verbose_shows_samples_in_a_log() -> None:
    """Asked to, a log has the samples too, controls escaped, in few lines."""
    text = watch(False, {"COLUMNS": "60"}, verbose=True).text

    assert text.count("  Bob is \\x1b[31mthe\\tking\n") == 4
    assert "\x1b" not in text


def test_a_run_on_a_terminal() -> None:
    """On a terminal: a bar, the score, the best validation, speed, time left, in one place; samples above."""
    text = watch(True, {"COLUMNS": "100"}).text
    last = text.split("\r\x1b[2K")[-3]

    assert "━" * 24 in last
    assert "100%  2000/2000  loss 2.00 bits/char  val 1.75  205k chars/s  0:00 left" in last
    assert "\x1b[2m  Bob is \\x1b[31mthe\\tking\x1b[0m\n" in text
    assert text.endswith("\r\x1b[2K"), "nothing is left of the line"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_line_fits(width: int) -> None:
    """At every width each drawing fits beside an empty last column and names step, score and time left."""
    text = watch(True, {"NO_COLOR": "1", "COLUMNS": str(width)}).text
    drawings = [d.rstrip(" \b") for d in text.replace("\n", "\r").split("\r") if "loss" in d]

    assert len(drawings) > 20
    assert max(map(len, drawings)) <= width - 1
    assert all("bits/char" in d and "/2000" in d for d in drawings[3:])
    assert "\x1b" not in text


@pytest.mark.parametrize("env", [{"CI": "true"}, {"TERM": "dumb"}], ids=str)
def test_terminals_that_are_logs(env: dict[str, str]) -> None:
    """A CI service's terminal and a dumb one get plain lines."""
    text = watch(True, env).text

    assert "\r" not in text
    assert "step 2000/2000  loss" in text


def test_quiet_shows_nothing() -> None:
    """Quiet shows no record at all, not even the erasing of a line."""
    assert watch(True, quiet=True).text == ""


def test_a_step_formats_nothing() -> None:
    """Two thousand steps in ten seconds are at most fifty drawings: five in a second, whatever the steps take."""
    drawings = watch(True).text.count("\r\x1b[2K") - 10  # messages and closing erase too

    assert drawings <= 50 + 2 * 4  # and one after each validation or sample


def test_a_step_asks_the_time_once() -> None:
    """A step costs one reading of the clock."""
    clock = Clock()
    view = RunView(Console(stderr=Stream(), env={}), clock)
    for step in range(1, 101):
        view(StepDone(step, 1000, 1.0, 0.01, step))

    assert clock.asked == 100


def test_speed_is_that_of_the_last_seconds() -> None:
    """A run that becomes four times slower shows the new speed after a few seconds."""
    err, clock = Stream(), Clock()
    view = RunView(Console(stderr=err, env={}), clock)
    for step in range(1, 3001):
        clock.now += 0.01 if step < 2000 else 0.04
        view(StepDone(step, 10_000, 1.0, 0.01, step * 1000))
    lines = err.text.splitlines()

    assert "100k chars/s" in lines[0]
    assert "25k chars/s" in lines[-1]


def test_a_resumed_run_measures_itself_only() -> None:
    """Time left is judged by the steps watched, not by those of an earlier process."""
    err, clock = Stream(), Clock()
    view = RunView(Console(stderr=err, env={}), clock)
    for step in range(901, 1000):
        clock.now += 1.0
        view(StepDone(step, 1000, 1.0, 0.01, step * 1000))

    assert "step 911/1000" in err.text
    assert err.text.splitlines()[0].endswith("1:29 left")


def test_without_validation_a_sample_names_its_step() -> None:
    """Where no validation line stands above a sample, the step does."""
    err = Stream(True)
    view = RunView(Console(stderr=err, env={"TERM": "xterm", "NO_COLOR": "1"}), Clock())
    view(Sampled(7, "Bob\n"))

    assert err.text == "step 7\n  Bob\n  \n"


def test_what_is_no_event_is_the_callers_mistake() -> None:
    """The view takes the events that the trainer may report, as a type checker sees too, and nothing else in silence."""
    with pytest.raises(AssertionError):
        RunView(Console(stderr=Stream(), env={}))("step")  # type: ignore[arg-type]  # that is the point


def test_the_bar_without_unicode() -> None:
    """The bar of a stream that is not UTF-8 is ASCII, and a run of unknown length has none."""
    line = "".join(text for text, _ in live_line([("step", "50/100")], 0.5, 80, unicode=False))

    assert line == "#" * 12 + "-" * 12 + "   50%  50/100"
    assert live_line([("step", "50")], None, 80, unicode=True) == [("50", "")]


def lines_of(err: Stream) -> list[str]:
    """Return what a terminal was shown, drawing by drawing."""
    return [drawn.rstrip(" \b") for drawn in err.text.replace("\n", "\r").split("\r") if drawn.strip(" \b")]


def test_time_left_of_a_budget_in_minutes() -> None:
    """From the first step on the bar and the time left are those of the clock, before and after the steps are known."""
    err, clock = Stream(True), Clock()
    view = RunView(Console(stderr=err, env={"NO_COLOR": "1", "COLUMNS": "100"}), clock, (clock.now - 6.0, clock.now + 54.0))
    for step in range(1, 40):
        view(StepDone(step, None if step < 20 else 200, NATS, 0.01, step * 1000))
        clock.now += 1.0
        if step == 20:
            view(Planned(20, 200))
    drawings = lines_of(err)

    assert "10%  1  " in drawings[0]
    assert drawings[0].endswith("0:54 left")
    assert "60%  31/200" in drawings[30]
    assert drawings[30].endswith("0:24 left")


@pytest.mark.parametrize("doing", ["validating", "scoring the best model", "saving"])
def test_what_is_done_instead_of_steps_is_shown(doing: str) -> None:
    """Where no step is taken for a while the line says what is done; the next step takes it away. A log has no word of it."""
    for terminal in (True, False):
        err, clock = Stream(terminal), Clock()
        view = RunView(Console(stderr=err, env={"NO_COLOR": "1", "COLUMNS": "100"}), clock)
        for step in (1, 2, 3):
            clock.now += 1.0
            view(StepDone(step, 10, NATS, 0.01, step * 1000))
            if step == 2:
                view(Busy(doing))
        drawings = lines_of(err)

        assert [doing in drawn for drawn in drawings] == ([False, False, True, False] if terminal else [])


@pytest.mark.parametrize("width", [40, 55, 80, 120, 200])
def test_words_are_never_broken(width: int) -> None:
    """At every width messages and samples break between words, and what is to be typed stays in one line."""
    err = Stream(True)
    console = Console(stderr=err, env={"NO_COLOR": "1", "COLUMNS": str(width)})
    text = "some words that go on until they do not fit into one line of a narrow terminal any more, and then some " * 2
    command = "  lstmlm train corpus-with-a-long-name.txt --out runs/another-long-name --resume"
    console.say(text + "\n" + command)
    console.warn(text)
    RunView(console, Clock())(Sampled(3, text))
    lines = err.text.splitlines()
    words = {*text.split(), *command.split(), "warning:", "step", "3", "..."}

    assert {word for line in lines for word in line.split()} <= words
    assert command in lines
    assert all(len(line) < width for line in lines if line != command)
