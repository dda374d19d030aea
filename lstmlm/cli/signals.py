"""INT, TERM and HUP: the first one asks for a checkpoint after the current step, the second one leaves at once."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from lstmlm.display.console import Console


@contextlib.contextmanager
def caught(console: Console) -> Iterator[Callable[[], int | None]]:
    """Catch the three signals while the block runs.

    Yields:
        A function that returns the number of the signal that came, or None.
    """
    came: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + number)  # the last committed checkpoint is whole; there is nothing to clean up
        came.append(number)
        console.say_from_signal(f"{signal.Signals(number).name}: saving after this step; once more leaves at once")

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup has asked for HUP to be ignored
            signal.signal(number, handler)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: a handler that was not Python's
