"""When a run reached its steps: `clock.jsonl`, kept apart from the records that are the same bit for bit after a resume.

The trainer writes it, and `info --svg` reads it for the axis of time. Nothing here ever stops a run: a file that is missing,
damaged or cannot be written means that there are no times, or fewer of them.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from lstmlm.errors import LstmlmError
from lstmlm.storage import atomic
from lstmlm.storage.header import parse_json
from lstmlm.storage.journal import Journal

NAME = "clock.jsonl"
MAX_BYTES = 256 << 20  # of the file: some ten million records


class Times:
    """The seconds of training at which steps were reached, written as they pass.

    Args:
        folder: The run's.
        clock: Seconds, never going back.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path = folder / NAME
        self._clock = clock
        self._began = clock()
        self._before = 0.0  # seconds of the processes that trained earlier
        self._journal: Journal | None = None

    def begin(self, step: int) -> None:
        """Start the clock at a step: a new one at 0, a later one where the records up to there end."""
        kept = [(end, seconds) for reached, seconds, end in _records(self._path) if reached <= step] if step else []
        end, self._before = kept[-1] if kept else (0, 0.0)
        self._began = self._clock()
        self._open(end)

    def step_back(self, step: int) -> None:
        """Take away the records after a step; the time that they took has passed all the same."""
        kept = [end for reached, _, end in _records(self._path) if reached <= step]
        self._open(kept[-1] if kept else 0)

    def reached(self, step: int) -> None:
        """Write down that so many steps are done now."""
        if self._journal is not None:
            seconds = round(self._before + self._clock() - self._began, 3)
            try:
                self._journal.append({"step": step, "seconds": seconds})
            except LstmlmError:
                self._journal = None  # what is missing from here on is no more than a scale

    def close(self) -> None:
        """Close the file."""
        old, self._journal = self._journal, None
        with contextlib.suppress(LstmlmError, OSError):
            if old is not None:
                old.close()

    def _open(self, size: int) -> None:
        self.close()
        with contextlib.suppress(LstmlmError, OSError):
            self._journal = Journal.open(self._path, size)


def read(folder: Path) -> list[tuple[float, float]]:
    """Return the steps of a run and the seconds at which they were reached, both rising; empty where nothing is known."""
    return [(float(step), seconds) for step, seconds, _ in _records(folder / NAME)]


def _records(path: Path) -> list[tuple[int, float, int]]:
    """Return step, seconds and end in bytes of each record, until the first that is none or goes back."""
    try:
        data = atomic.read_regular(path, MAX_BYTES)
    except (OSError, ValueError):
        return []
    found: list[tuple[int, float, int]] = []
    end, step, seconds = 0, 0, 0.0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            record = parse_json(line.decode()) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        now, passed = record.get("step"), record.get("seconds")
        if type(now) is not int or not isinstance(passed, int | float) or now < step or not seconds <= passed < 1e10:
            break
        step, seconds = now, float(passed)
        found.append((step, seconds, end))
    return found
