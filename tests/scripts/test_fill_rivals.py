"""The script that answers the blanks four ways: its counts count, and it ends with its tables."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmlm import cli
from lstmlm.evaluation.cloze import Asked, Question

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "experiments"


@pytest.fixture
def fill_rivals(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script, which lies outside the package, beside the one that it imports."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("fill_rivals", SCRIPTS / "fill_rivals.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_predict_from_five_characters(fill_rivals: Any) -> None:
    """After five characters seen three times, once with another successor, the cost is that of the smoothed counts."""
    counts = fill_rivals.Counts("abcdeX.abcdeX.abcdeY.")

    assert counts.nats("abcdeX") == pytest.approx(-math.log(2.01 / (3 + 0.01 * 8)))
    assert counts.nats("vwxyzX") == pytest.approx(math.log(8))


def test_counts_that_cannot_tell_share_the_answer(fill_rivals: Any) -> None:
    """Candidates that are equally likely are right in equal parts; one that is seen in its place is right."""
    counts = fill_rivals.Counts("\nNow it is Bob.\nNow it is Bob.\nNow it is Dan.\n")

    assert counts.right(Asked(Question("Now it is ____.", ("Bob", "Dan")), ("Bob",))) == 1.0
    assert counts.right(Asked(Question("Ruth met ____.", ("Eve", "Sue")), ("Eve",))) == 0.5


@pytest.mark.slow
def test_the_script_prints_its_tables(
    fill_rivals: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A run on the stories is set beside the other three, for every kind and distance."""
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    sizes = ["--epochs", "0.00003", "--hidden", "5", "--batch", "3", "--window", "9", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["lstmlm", "train", "stories", "--config", "stories", *sizes, "-q"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    fill_rivals.main(["runs/stories", "--rnn-hidden", "6", "--epochs", "0.00001", "--every", "20", "--threads", "1"])
    told = capsys.readouterr().out

    for words in ("name_one (guessing: 16.7%)", "name_two (guessing: 16.7%)", "fact (guessing: 12.5%)", "350-399", "RNN, h "):
        assert words in told
