"""Draw a run from its records: `info RUN --svg FILE`, and the curve after training."""

import re
from pathlib import Path

from lstmlm.cli import safe_output
from lstmlm.display.console import Console, is_terminal, unicode_allowed
from lstmlm.display.run_svg import run_svg
from lstmlm.display.text_plots import curve
from lstmlm.errors import CheckpointError, printable
from lstmlm.storage import atomic
from lstmlm.storage.header import parse_json
from lstmlm.training import clock_log
from lstmlm.units import bits

SAMPLE = re.compile(r"^--- step (\d{1,18})$", re.MULTILINE)
MAX_BYTES = 256 << 20  # of metrics.jsonl: some ten million steps
FEW = 4  # fewer validations are no curve
CURVE_COLUMNS, CURVE_LINES = 72, 7


def write(folder: Path, out: str, title: str | None = None) -> None:
    """Draw the curves and three samples of a run, from what it has written until now; a last line cut short is left out.

    Raises:
        CheckpointError: There are no records in the folder.
        UsageError: A file of another kind is in the way.
        SystemProblem: The picture cannot be written.
    """
    train, validation, rate = _points(folder)
    if not (train or validation):
        raise CheckpointError(
            f"run {printable(str(folder))}: expected scores in metrics.jsonl, found none. Name the folder of a run."
        )
    picture = run_svg(train, validation, rate, _samples(folder / "samples.txt"), title or str(folder), clock_log.read(folder))
    safe_output.write("--svg", out, picture)


def say_curve(console: Console, folder: Path) -> None:
    """Show how a run has come down, on a terminal or when asked to say more: its validations, or its steps if those are few."""
    if console.quiet or not (console.verbose or is_terminal(console.stderr)):
        return
    train, validation, _ = _points(folder)
    what, points = ("validation", validation) if len(validation) >= FEW else ("training", train)
    width = min(CURVE_COLUMNS, console.width - 1)
    drawn = curve(
        [(step, bits(nats)) for step, nats in points], width, CURVE_LINES, unicode_allowed(console.stderr),
        f"{what}, bits/char over steps",
    )  # fmt: skip
    if drawn:
        console.say(drawn)


def _points(folder: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
    """Return training and validation in nats per character, and the rate, each over steps."""
    train: list[tuple[float, float]] = []
    validation: dict[float, float] = {}
    rate: list[tuple[float, float]] = []
    for record in _records(folder / "metrics.jsonl"):
        step = record.get("step")
        if not isinstance(step, int):
            continue
        for name, points in (("nats_per_char", train), ("rate", rate)):
            value = record.get(name)
            if isinstance(value, int | float):
                points.append((float(step), float(value)))
        score = record.get("validation_nats_per_char")
        if isinstance(score, int | float):
            validation[float(step)] = float(score)  # the exact score at the end takes the place of that step's estimate
    return train, list(validation.items()), rate


def _records(path: Path) -> list[dict[str, object]]:
    found = []
    for line in _text(path).splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue  # a line that is being written
        if isinstance(record, dict):
            found.append(record)
    return found


def _samples(path: Path) -> list[tuple[int, str]]:
    parts = SAMPLE.split(_text(path))
    return [(int(step), text.strip("\n")) for step, text in zip(parts[1::2], parts[2::2], strict=True)]


def _text(path: Path) -> str:
    try:
        return atomic.read_regular(path, MAX_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):  # nothing there, or no plain file
        return ""
