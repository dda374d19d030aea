"""A run as it is watched: a live line on a terminal, a plain line every ten seconds elsewhere.

`train` hands a `RunView` to the trainer, which calls it with every event.
"""

import textwrap
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from lstmlm.display.console import Console, unicode_allowed
from lstmlm.errors import printable
from lstmlm.training.events import Busy, Event, Planned, Sampled, Saved, Scored, StepDone, SteppedBack, Validated
from lstmlm.units import bits, count, duration

LIVE_SECONDS = 0.2  # between two drawings of the live line
PLAIN_SECONDS = 10.0  # between two plain lines
SPEED_SECONDS = 5.0  # over which characters per second are averaged
SAMPLE_SECONDS = 4.0  # at least, between two samples on a terminal
SAMPLE_LINES = 5
SMOOTHING = 0.95  # of the shown training score: a step weighs half as much as the one 13 steps later


class RunView:
    """Show the records of one run; call it with each.

    A step costs a clock reading and a handful of additions; nothing is formatted between two drawings.

    Args:
        console: Where to show; its `quiet` shows nothing, its `verbose` shows samples off the terminal too.
        clock: Seconds, never going back.
        span: When the command began, and when its budget in minutes ends, on that clock; None: the budget is a number of steps.
    """

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, span: tuple[float, float] | None = None
    ) -> None:
        self.console = console
        self.clock = clock
        self.span = span
        self.live = console.live
        self.best_nats: float | None = None
        self._unicode = unicode_allowed(console.stderr)
        self._latest: StepDone | None = None
        self._busy = ""  # what is done meanwhile
        self._first = (0.0, 0)  # time and step when watching began
        self._sum = self._weight = 0.0
        self._speed: deque[tuple[float, int]] = deque()  # time, characters
        self._rate = 0.0  # characters per second, as last measured
        self._tick = self._line_due = self._sample_due = 0.0
        self._announced = -1  # the step that the last line about a validation named

    def __call__(self, record: Event) -> None:
        """Take one record of the trainer."""
        if self.console.quiet:
            return
        match record:
            case StepDone():
                self._step(record)
            case Planned():
                self._planned(record)
            case Busy():
                self._show_busy(record)
            case Validated():
                self._validated(record)
            case Scored():
                self._scored(record)
            case Sampled():
                self._sampled(record)
            case SteppedBack():
                self._stepped_back(record)
            case Saved():
                self._busy = ""
            case _:
                assert_never(record)  # a type checker sees that no event is left out

    def close(self) -> None:
        """Take the live line away: what follows are the last words."""
        if self.live:
            self.console.overwrite()

    def _step(self, record: StepDone) -> None:
        self._sum = SMOOTHING * self._sum + record.nats_per_char
        self._weight = SMOOTHING * self._weight + 1.0
        now = self.clock()
        if self._latest is None:
            # The first step also pays for what happens once; the speed is measured from its end.
            self._first = (now, record.step)
            self._line_due = now + (0.0 if self.live else PLAIN_SECONDS)
        self._latest, self._busy = record, ""
        ends = record.step == record.steps
        if now < self._tick and not ends:
            return
        self._tick = now + LIVE_SECONDS
        speed = self._speed
        speed.append((now, record.chars))
        while len(speed) > 2 and now - speed[1][0] >= SPEED_SECONDS:
            speed.popleft()
        if now < self._line_due and not ends:
            return
        if self.live:
            self._draw(now)
        else:
            self._line_due = now + PLAIN_SECONDS
            self.console.say("  ".join(text for _, text in self._parts(now)))

    def _draw(self, now: float) -> None:
        latest, done = self._latest, None
        if self.span is not None:
            done = min(1.0, (now - self.span[0]) / (self.span[1] - self.span[0]))
        elif latest is not None and latest.steps:
            done = latest.step / latest.steps
        self.console.overwrite(*live_line(self._parts(now), done, self.console.width, self._unicode))

    def _parts(self, now: float) -> list[tuple[str, str]]:
        """Return what a line says, as (name, text), in the order of a line."""
        latest = self._latest
        assert latest is not None
        parts = [("step", ("" if self.live else "step ") + _of(latest.step, latest.steps))]
        parts.append(("loss", f"loss {bits(self._sum / self._weight):.2f} bits/char"))
        if self.best_nats is not None:
            parts.append(("val", f"val {bits(self.best_nats):.2f}"))
        (then, before), (_, chars) = self._speed[0], self._speed[-1]
        if now - then > LIVE_SECONDS:
            self._rate = (chars - before) / (now - then)
        if self._rate:
            parts.append(("speed", f"{count(self._rate)} chars/s"))
        began, first = self._first
        left = None
        if self.span is not None:
            left = max(0.0, self.span[1] - now)
        elif latest.steps and latest.step > first:
            left = (now - began) / (latest.step - first) * (latest.steps - latest.step)
        if left is not None:
            parts.append(("left", f"{duration(left)} left"))
        if self._busy:
            parts.append(("busy", self._busy))
        return parts

    def _planned(self, record: Planned) -> None:
        if self._latest is not None:
            self._latest = replace(self._latest, steps=record.steps)

    def _show_busy(self, record: Busy) -> None:
        self._busy = record.doing
        if self.live and self._latest is not None and self._speed:
            self._draw(self.clock())

    def _scored(self, record: Scored) -> None:
        steps = self._latest.steps if self._latest is not None else None
        self.console.say(f"step {_of(record.step, steps)}  validation {bits(record.nats_per_char):.4f} bits/char, exactly")

    def _validated(self, record: Validated) -> None:
        if record.best:
            self.best_nats, note = record.nats_per_char, "the best so far" if record.step else "the model of --from"
        else:
            note = f"best {bits(self.best_nats):.4f}" if self.best_nats is not None else ""
        steps = self._latest.steps if self._latest is not None else None
        each = [bits(nats) for nats in record.members]
        alone = f"members alone {min(each):.4f} to {max(each):.4f}" if each else ""
        about = "" if record.exact else "about "
        when = f"step {_of(record.step, steps)}" if record.step else "before step 1"
        words = [when, f"validation {about}{bits(record.nats_per_char):.4f} bits/char", alone, note]
        self.console.say("  ".join(word for word in words if word))
        self._announced = record.step
        self._tick = 0.0  # the line comes back with the next step
        # What validating took is no part of the speed of training.
        self._speed.clear()

    def _sampled(self, record: Sampled) -> None:
        now = self.clock()
        if not (self.live and now >= self._sample_due) and not self.console.verbose:
            return
        self._sample_due = now + SAMPLE_SECONDS
        width = max(10, self.console.width - 3)
        lines = [piece for line in record.text.split("\n") for piece in _pieces(printable(line), width)]
        cut = lines[:SAMPLE_LINES] + (["..."] if len(lines) > SAMPLE_LINES else [])
        if self._announced != record.step:
            self.console.say(f"step {record.step}")
        self.console.say("\n".join("  " + line for line in cut), "dim")

    def _stepped_back(self, record: SteppedBack) -> None:
        self.console.warn(
            f"step {record.step}: the {record.what} {record.why}; back to step {record.to}, "
            f"from there with {record.rate_scale:g} of the rate"
        )
        # Steps will be counted a second time: nothing that was measured on them holds.
        self._latest, self._sum, self._weight = None, 0.0, 0.0
        self._speed.clear()


def _of(step: int, steps: int | None) -> str:
    return f"{step}/{steps}" if steps else f"{step}"


def _pieces(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, drop_whitespace=False, break_on_hyphens=False) or [""]


def live_line(parts: list[tuple[str, str]], done: float | None, width: int, unicode: bool) -> list[tuple[str, str]]:
    """Fit the parts of a line into a width: the least wanted go first, and a bar takes what columns are left.

    Args:
        parts: As (name, text).
        done: Share of the run that is done, 0 to 1; None where it is not known.
        width: Columns of the terminal, of which the last stays empty.
        unicode: Whether the bar is drawn with line characters.

    Returns:
        Pieces of the line, as (text, style).
    """
    texts = dict(parts)
    if done is not None:
        texts = {"done": f"{int(100 * done):3}%", **texts}
    line = ""
    for unwanted in ("", "speed", "done", "val", "left", "loss"):
        texts.pop(unwanted, None)
        line = "  ".join(texts.values())
        if len(line) < width:
            break
    space = min(24, width - len(line) - 3)
    if done is None or space < 6:
        return [(line[: width - 1], "")]
    filled = int(space * done)
    full, rest = ("━", "─") if unicode else ("#", "-")
    return [(full * filled, "cyan"), (rest * (space - filled) + "  ", "dim"), (line, "")]
