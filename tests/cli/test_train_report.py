import pytest

from lstmlm.cli.train_report import Reading
from lstmlm.display.console import Console


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
