"""The pictures of a run, from what it wrote."""

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from lstmlm.cli.app import app
from lstmlm.cli.run_plots import say_curve, write
from lstmlm.display.console import Console
from lstmlm.errors import CheckpointError, SystemProblem
from tests.cli.trained import make_run

RECORDS = [{"step": s, "nats_per_char": 3 / s, "rate": 1e-3, "chars": s} for s in (10, 20, 30)]
RECORDS += [{"step": 20, "validation_nats_per_char": 0.6}, {"step": 30, "validation_nats_per_char": 0.5}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run folder with records, the last of which is cut short."""
    folder = make_run(tmp_path / "runs" / "one")
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, RECORDS)) + '\n{"step": 40, "nats_per')
    (folder / "samples.txt").write_text("--- step 10\nfirst\n--- step 20\nsecond <b>\n--- step 30\nlast --- step 9\n")
    return folder


def test_info_draws_the_run(run: Path, tmp_path: Path) -> None:
    """Curves with the best marked, and the samples at three steps; valid XML."""
    result = CliRunner().invoke(app, ["info", str(run), "--svg", "a.svg"])
    words = " ".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())

    assert result.exit_code == 0, result.exception
    assert "best 0.7213 bits/char at step 30" in words
    assert all(text in words for text in ("first", "second <b>", "last --- step 9"))


def test_an_exact_score_takes_the_place_of_its_estimate(run: Path, tmp_path: Path) -> None:
    """The best model's score, which is written last, is drawn at the model's step; the curve never goes back."""
    scores = [(10, 0.7), (20, 0.4), (30, 0.5)]
    for name, records in (("a", [*scores, (20, 0.42)]), ("b", [(10, 0.7), (20, 0.42), (30, 0.5)])):
        lines = [json.dumps({"step": step, "validation_nats_per_char": nats}) for step, nats in records]
        (run / "metrics.jsonl").write_text("\n".join(lines))
        write(run, f"{name}.svg")

    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_a_run_without_records_is_refused(tmp_path: Path) -> None:
    """No metrics: an error that says so, and no empty picture."""
    with pytest.raises(CheckpointError, match="metrics"):
        write(make_run(tmp_path / "runs" / "two"), "a.svg")

    assert not (tmp_path / "a.svg").exists()


def test_a_picture_that_cannot_be_written_is_a_problem_of_the_system(run: Path) -> None:
    """Exit 5, naming the file."""
    with pytest.raises(SystemProblem, match=r"no/a\.svg"):
        write(run, "no/a.svg")


CLOCK = '{"step": 0, "seconds": 0}\n{"step": 30, "seconds": 60.5}\n'


@pytest.mark.parametrize(("clock", "shown"), [(CLOCK, True), ("\0", False)], ids=["whole", "damaged"])
def test_times_are_a_second_scale(run: Path, tmp_path: Path, clock: str, shown: bool) -> None:
    """What clock.jsonl says stands over the curves; a damaged one leaves them without."""
    (run / "clock.jsonl").write_text(clock)
    write(run, "a.svg")

    assert ("1:00" in list(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())) == shown


class Terminal(io.StringIO):
    """A stream behind which a person sits."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize(
    ("terminal", "quiet", "verbose", "shown"),
    [(True, False, False, True), (False, False, True, True), (False, False, False, False), (True, True, True, False)],
    ids=["terminal", "pipe, verbose", "pipe", "quiet"],
)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_curve_is_for_people(run: Path, terminal: bool, quiet: bool, verbose: bool, shown: bool, width: int) -> None:
    """On a terminal or with -v the steps are drawn where validations are few, within the width; otherwise not one byte."""
    stream = Terminal() if terminal else io.StringIO()
    say_curve(Console(quiet, verbose, stderr=stream, env={"COLUMNS": str(width)}), run)
    lines = stream.getvalue().splitlines()

    assert bool(lines) == shown
    assert not shown or "training, bits/char" in lines[0]
    assert all(len(line) < width for line in lines)


def test_no_curve_of_no_records(tmp_path: Path) -> None:
    """A run that has not come to its first record shows nothing."""
    told = io.StringIO()
    say_curve(Console(verbose=True, stderr=told), tmp_path)

    assert told.getvalue() == ""
