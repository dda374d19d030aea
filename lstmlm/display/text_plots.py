"""What is drawn with characters: tables and curves.

`table` and `curve` return text, which the commands hand to the console.
"""

import itertools
import math
import unicodedata
from collections.abc import Sequence

from lstmlm.errors import printable


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(rows: Sequence[Sequence[str | int | float]], headers: Sequence[str] = ()) -> str:
    """Return rows as aligned plain text: words to the left, numbers to the right, floats with four decimals.

    Args:
        rows: Of equal length; text in them has its control characters escaped.
        headers: One for each column, or none.

    Returns:
        Lines without the last newline.
    """
    body = [cells_of(row) for row in rows]
    lines = [[printable(header) for header in headers], *body] if headers else body
    if not lines:
        return ""
    widths = [max(cells(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [numeric(rows, i) for i in range(len(widths))]
    return "\n".join("  ".join(_padded(c, w, r) for c, w, r in zip(line, widths, right, strict=True)).rstrip() for line in lines)


def cells_of(row: Sequence[str | int | float]) -> list[str]:
    """Return what stands in the cells of a row: floats with four decimals, text with its control characters escaped."""
    return [f"{cell:.4f}" if isinstance(cell, float) else printable(str(cell)) for cell in row]


def numeric(rows: Sequence[Sequence[str | int | float]], column: int) -> bool:
    """Say whether a column holds numbers alone, which stand at its right."""
    return bool(rows) and all(isinstance(row[column], int | float) for row in rows)


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cells(text))
    return space + text if right else text + space


def curve(points: Sequence[tuple[float, float]], width: int = 60, height: int = 8, unicode: bool = True, title: str = "") -> str:
    """Return a curve drawn with braille dots, or with ASCII points.

    What is higher than the curve after its first twentieth is cut off at the top, so that the fall of the first steps
    does not press the rest flat.

    Args:
        points: As (x, y), x rising; values that are not finite are left out.
        width: Columns of all, the scale at the left included.
        height: Lines of the curve; a line with the scale of x stands below it.
        unicode: Braille (2 x 4 dots in a character) or ASCII (1 x 2).
        title: What y is, in the first line.

    Returns:
        Lines without the last newline; empty where there are fewer than two points.
    """
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return ""
    low, high = y_range(points)
    labels = [f"{high - (high - low) * row / max(1, height - 1):.2f}" for row in range(height)]
    margin = max(map(len, labels)) + 2
    across, down = (2, 4) if unicode else (1, 2)
    columns, rows = max(4, width - margin), max(2, height)
    lit = _dots(points, columns * across, rows * down, low, high)
    lines = [title] if title else []
    for row in range(rows):
        picture = "".join(_character(lit, column * across, row * down, unicode) for column in range(columns))
        label = labels[row] if row in (0, rows // 2, rows - 1) else ""
        lines.append(f"{label:>{margin - 2}}{'┤' if unicode and label else '│' if unicode else '|'} {picture}".rstrip())
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    lines.append(" " * margin + first + " " * max(1, columns - len(first) - len(last)) + last)
    return "\n".join(lines)


def y_range(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the lowest value, and the highest after the first twentieth of x; never an empty range."""
    begin, end = points[0][0], points[-1][0]
    later = [y for x, y in points if x >= begin + (end - begin) / 20] or [y for _, y in points]
    low, high = min(y for _, y in points), max(later)
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def _dots(points: Sequence[tuple[float, float]], across: int, down: int, low: float, high: float) -> set[tuple[int, int]]:
    """Return the dots of the line through all points: for each column those between its lowest and its highest."""
    begin, end = points[0][0], points[-1][0]
    spots = [((x - begin) / (end - begin) * (across - 1), (high - y) / (high - low) * (down - 1)) for x, y in points]
    spans: dict[int, tuple[float, float]] = {}
    for (x1, y1), (x2, y2) in itertools.pairwise(spots):
        for column in range(round(x1), round(x2) + 1):
            share = (column - x1) / (x2 - x1) if x2 > x1 else 0.0
            y = y1 + (y2 - y1) * min(1.0, max(0.0, share))
            top, bottom = spans.get(column, (y, y))
            spans[column] = (min(top, y), max(bottom, y))
    lit = set()
    previous: tuple[float, float] | None = None
    for column in sorted(spans):
        top, bottom = spans[column]
        if previous is not None:  # steep parts stay connected
            top, bottom = min(top, previous[1]), max(bottom, previous[0])
        previous = spans[column]
        lit |= {(column, row) for row in range(max(0, round(top)), min(down - 1, round(bottom)) + 1)}
    return lit


def _character(lit: set[tuple[int, int]], x: int, y: int, unicode: bool) -> str:
    if not unicode:
        return {(False, False): " ", (True, False): "'", (False, True): ".", (True, True): ":"}[
            ((x, y) in lit, (x, y + 1) in lit)
        ]
    order = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # of the bits of a braille code point
    code = sum(1 << bit for bit, (dx, dy) in enumerate(order) if (x + dx, y + dy) in lit)
    return chr(0x2800 + code) if code else " "
