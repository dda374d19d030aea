"""What stands for a signal before and after the block that catches it."""

import io
import os
import signal

import pytest

from lstmlm.cli import signals
from lstmlm.display.console import Console

TERM = signal.SIGTERM


def test_a_signal_asks_once_and_its_handler_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that came is told, and afterwards what stood before stands again."""
    before = signal.getsignal(TERM)
    with signals.caught(Console(stderr=io.StringIO())) as came:
        assert came() is None
        os.kill(os.getpid(), TERM)
        assert came() == TERM

    assert signal.getsignal(TERM) == before


def test_a_handler_that_is_not_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another language has put a handler, which Python cannot put back, the system's own takes its place."""
    before = signal.getsignal(TERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == TERM else signal.default_int_handler)
    try:
        with signals.caught(Console(stderr=io.StringIO())):
            pass
        monkeypatch.undo()

        assert signal.getsignal(TERM) == signal.SIG_DFL
    finally:
        signal.signal(TERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
