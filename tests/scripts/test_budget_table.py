"""The script that measures what a budget promises: it trains, scores and prints rows that a README takes."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "experiments"


@pytest.fixture
def budget_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script, which lies outside the package, beside the one that it imports."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "budget_table", raising=False)
    import budget_table

    return budget_table


def told(command: str, folder: Path, scores: dict[float, float]) -> dict[str, Any]:
    """Return what a command says of a run whose time its folder's name tells."""
    minutes = float(folder.name.partition("-")[0])
    if command == "eval":
        return {"bits_per_char": scores[minutes]}
    return {"steps": int(1000 * minutes), "parameters": 5, "stopped_early": minutes == 3}


def test_rows_say_where_more_time_was_worse(budget_table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row for each time, the shortest first, whatever order they are made in; the last cell compares with the best before."""
    scores = {0.1: 2.0, 0.3: 1.5, 1.0: 1.75, 3.0: 1.25}

    def ran(*words: object) -> tuple[dict[str, Any], float, int]:
        out = Path(str(words[words.index("-m" if words[0] == "eval" else "--out") + 1]))
        return told(str(words[0]), out, scores), 6.06, 1

    monkeypatch.setattr(budget_table, "run", ran)
    given = tmp_path / "given.txt"
    given.write_text("one line\n" * 20)
    asked = argparse.Namespace(text=[str(given)], minutes=[3.0, 0.1, 1.0, 0.3], only=["given", "two"], seeds=1, together=2)
    rows = list(budget_table.texts(asked, tmp_path))

    assert [(row[0], row[2]) for row in rows] == [(name, time) for name in ("two", "given") for time in ("0.1", "0.3", "1", "3")]
    assert [row[-2:] for row in rows[4:]] == [["2.0000", ""], ["1.5000", ""], ["1.7500", "0.2500"], ["1.2500", ""]]
    assert rows[4][4:8] == ["6.1", "+1.0%", "100", "5"]
    assert rows[7][5] == "stopped early"
    assert (tmp_path / "given" / "held.txt").read_text() == "one line\n"


def test_texts_are_eight(budget_table: Any) -> None:
    """With the one that is given there are eight texts."""
    assert len(budget_table.UNLIKE) == 7
    assert set(budget_table.UNLIKE) <= budget_table.TEXTS.keys()


@pytest.mark.slow
def test_a_run_is_measured(budget_table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process is timed, and its memory is that of a process with torch in it."""
    monkeypatch.setenv("LSTMLM_CACHE", os.environ.get("LSTMLM_CACHE", str(tmp_path / "cache")))
    (tmp_path / "text.txt").write_text("one line\n" * 99)
    (tmp_path / "held.txt").write_text("one line\n" * 9)
    cells = budget_table.trained(tmp_path, 0.08, 0, 1)

    assert float(cells[0]) > 1
    assert 0 < cells[-1] < 3
