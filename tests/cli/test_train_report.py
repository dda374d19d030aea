import pytest

from lstmlm.cli.train_report import Reading, warn_of_few
from lstmlm.config.run_config import resolve
from lstmlm.display.console import Console
from lstmlm.training.events import Clock


def test_progress_of_a_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """While a large text is read a line comes every ten seconds: how far, how fast, and how long this pass will last."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reading = Reading(Console())
    for doing, seconds in (("reading", 30), ("encoding", 30)):
        for second in range(seconds):
            reading(doing, second << 20, 60 << 20)
            now[0] += 1

    lines = capsys.readouterr().err.splitlines()

    assert lines[0] == "reading: 10 MiB of 60 MiB, 1 MiB/s, 0:50 left"
    assert [line.split(":")[0] for line in lines] == ["reading", "reading", "encoding", "encoding", "encoding"]
    assert lines[3] == "encoding: 10 MiB of 60 MiB, 1 MiB/s, 0:50 left"


def test_progress_of_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What has no known size is told by what was read, without a guess."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reading = Reading(Console())
    now[0] = 11.0
    reading("reading", 5 << 20, 0)

    assert capsys.readouterr().err == "reading: 5 MiB\n"


def test_the_minutes_that_are_advised_are_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They hold 200 steps after what has gone by, also where timing has used up the budget and an estimate says 1 step."""
    monkeypatch.setattr(Clock, "seconds", lambda self: 9.0)
    config = resolve([("x", {"train.minutes": 0.1})]).config
    warn_of_few(Console(), config, 1, 0.03, Clock(0.0))
    advised = float(capsys.readouterr().err.split("--minutes ")[1].rstrip(".\n"))

    assert 60 * advised >= 9.0 + 200 * 0.03
    warn_of_few(Console(), config, 200, 0.03, Clock(0.0))
    assert capsys.readouterr().err == ""
