"""Pictures of a run as SVG, written by hand: no library, no network, no script in them.

`run_svg` is the entry point, for `info RUN --svg`.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence

from lstmlm.display.svg import document, label
from lstmlm.errors import printable
from lstmlm.units import bits, count, duration

Points = Sequence[tuple[float, float]]

WIDTH, LEFT, RIGHT = 860, 64, 24
TOP, CURVES, GAP, RATES = 64, 300, 34, 70  # heights: title, curves, between, rate
SAMPLE_ROWS, SAMPLE_COLUMNS = 5, 104
TITLE_COLUMNS = 80
TIMES_APART = 44  # between two times above the curves
LINE = 15  # between two lines of a sample
BUCKETS = 400  # a longer curve is shown by means: no screen has more columns for it

# Colours that can be told apart by people who see no red or no green, on white and on black paper. Written out twice:
# converters such as librsvg know neither variables nor `color-scheme`.
COLOURS = """
.paper {{ fill: {paper}; }} text {{ fill: {ink}; }} .faint {{ fill: {faint}; }} .grid {{ stroke: {grid}; }}
.train {{ stroke: {train}; }} .validation {{ stroke: {validation}; }} .rate {{ stroke: {rate}; }}
.best {{ fill: {validation}; stroke: {paper}; }} .spot {{ fill: {validation}; }} .halo {{ fill: {paper}; stroke: {paper}; }}
"""
LIGHT = {"paper": "#ffffff", "ink": "#1f2328", "faint": "#626b75", "grid": "#e1e5ea"}
LIGHT |= {"train": "#9aa5b1", "validation": "#0b63c5", "rate": "#b4560a"}
DARK = {"paper": "#15181c", "ink": "#e6e9ec", "faint": "#99a3ad", "grid": "#2c323a"}
DARK |= {"train": "#7b8794", "validation": "#62a8ff", "rate": "#f0a35e"}
SHAPES = """
text { font: 12px system-ui, sans-serif; } .title { font-size: 17px; font-weight: 600; }
.sample { font: 12px ui-monospace, monospace; white-space: pre; } path { fill: none; stroke-linejoin: round; }
.train { stroke-width: 1.4; } .validation { stroke-width: 2.2; } .rate { stroke-width: 1.6; } .best { stroke-width: 2; }
.words { font-weight: 600; } .halo { stroke-width: 4px; font-weight: 600; }
"""
STYLE = SHAPES + COLOURS.format(**LIGHT) + "@media (prefers-color-scheme: dark) {" + COLOURS.format(**DARK) + "}\n"


def run_svg(
    train: Points,
    validation: Points,
    rate: Points,
    samples: Sequence[tuple[int, str]],
    title: str,
    seconds: Points = (),
) -> str:
    """Return a run as one SVG: its curves in bits/char over steps, its rate, and what it wrote at three moments.

    Args:
        train: As (step, nats per character).
        validation: As (step, nats per character); the lowest is marked.
        rate: As (step, learning rate).
        samples: As (step, text): the first, the middle and the last are shown.
        title: Over it all; what is too long is cut.
        seconds: As (step, seconds since the start): a second scale, above the curves; without any, steps alone.

    Returns:
        A complete SVG document for light and dark surroundings.
    """
    train, validation, rate, seconds = (_finite(points) for points in (train, validation, rate, seconds))
    train = [(x, bits(y)) for x, y in _downsampled(_last_whole(train))]
    validation = [(x, bits(y)) for x, y in validation]
    heading = printable(title)
    heading = heading if len(heading) <= TITLE_COLUMNS else heading[: TITLE_COLUMNS - 4] + " ..."
    parts = [label(LEFT, 28, heading, "title", "start")]
    bottom = TOP + CURVES
    if train or validation:
        last = max(x for x, _ in [*train, *validation, *rate])
        across = _Scale(0.0, max(last, 1.0), LEFT, WIDTH - RIGHT)
        upright = _Scale(*_score_range(train, validation), TOP + CURVES, TOP)
        parts += _frame(across, upright)
        parts += _time_scale(across, seconds)
        parts.append(_path(train, across, upright, "train"))
        parts.append(_path(validation, across, upright, "validation"))
        parts += _validations(validation, across, upright)
        parts += _legend(bool(train), len(validation))
        parts += _cut_note(train, across, upright)
        if rate:
            bottom += GAP + RATES
            parts += _rates(_downsampled(rate), across, bottom)
        parts += _step_scale(across, bottom)
    else:
        parts.append(label(LEFT, TOP + 24, "No scores yet.", "faint", "start"))
    below, height = _samples(_three(samples), bottom + 62)
    clip = f'<clipPath id="curves"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{CURVES}"/></clipPath>'
    return document(WIDTH, height, title, STYLE, [clip, *parts, *below])


class _Scale:
    """A straight line from values to places on the page."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers, 1, 2 or 5 times a power of ten apart, that lie in a range; `most` of them or fewer."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * k for k in (1, 2, 5, 10, 20) if (high - low) / (power * k) <= most - 1)
    first = math.ceil(low / apart - 1e-9)
    return [k * apart for k in range(first, math.floor(high / apart + 1e-9) + 1)]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _downsampled(points: Points) -> list[tuple[float, float]]:
    """Return at most BUCKETS points, each the mean of as many neighbours; the last one stands where the curve ends."""
    if len(points) <= BUCKETS:
        return list(points)
    ends = [len(points) * index // BUCKETS for index in range(BUCKETS + 1)]
    groups = [points[start:end] for start, end in itertools.pairwise(ends)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means[1:-1], (points[-1][0], means[-1][1])]


def _last_whole(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points, each the mean since the one before, the last two as one where the last is the mean of fewer steps."""
    if len(points) < 3:
        return points
    *rest, (x0, _), (x1, y1), (x2, y2) = points
    if x2 - x1 >= x1 - x0 or x1 <= x0:
        return points
    return [*rest, points[-3], (x2, (y1 * (x1 - x0) + y2 * (x2 - x1)) / (x2 - x0))]


def _score_range(train: Points, validation: Points) -> tuple[float, float]:
    """Return the bits/char shown: everything after the first steps, whose fall would press the rest flat."""
    values = [y for _, y in [*train, *validation]]
    last = max(x for x, _ in [*train, *validation])
    later = [y for x, y in train if x > last / 20] + [y for _, y in validation]
    low, high = min(values), max(later or values)
    space = max(0.05 * (high - low), 0.02)
    return max(0.0, low - space), high + space


def _frame(across: _Scale, upright: _Scale) -> list[str]:
    marks = ticks(upright.low, upright.high)
    digits = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 2
    parts = [label(LEFT - 8, TOP - 9, "bits/char", "faint", "end")]
    for value in marks:
        y = upright(value)
        parts.append(f'<line class="grid" x1="{across.start:g}" x2="{across.end:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(label(LEFT - 8, y + 4, f"{value:.{digits}f}", "faint", "end"))
    return parts


def _step_scale(across: _Scale, y: float) -> list[str]:
    parts = []
    for value in ticks(across.low, across.high, 9):
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{y:g}" y2="{y + 5:g}"/>')
        parts.append(label(x, y + 19, count(value), "faint", "middle"))
    return [*parts, label(across.end, y + 36, "steps", "faint", "end")]


def _time_scale(across: _Scale, seconds: Points) -> list[str]:
    """Return the times above the curves, each over the step that was reached then."""
    if len(seconds) < 2 or seconds[-1][1] <= 0:
        return []
    parts = [label(across.end, TOP - 25, "time since the start", "faint", "end")]
    last = across.start - TIMES_APART
    for value in _time_ticks(seconds[-1][1]):
        right = min(max(1, bisect_left([s for _, s in seconds], value)), len(seconds) - 1)
        (x1, s1), (x2, s2) = seconds[right - 1], seconds[right]
        x = across(x1 + (x2 - x1) * (value - s1) / (s2 - s1) if s2 > s1 else x2)
        if last + TIMES_APART <= x <= across.end:  # while it validates and saves, time goes by and no step does
            last = x
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 5}" y2="{TOP}"/>')
            parts.append(label(x, TOP - 9, duration(value), "faint", "middle"))
    return parts


def _time_ticks(end: float) -> list[float]:
    apart = next((s for s in (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400) if end / s <= 8), 86400)
    apart = max(apart, 86400 * math.ceil(end / 86400 / 8)) if apart == 86400 else apart
    return [float(apart * k) for k in range(1, int(end / apart) + 1)]


def _path(points: Points, across: _Scale, upright: _Scale, name: str) -> str:
    if len(points) < 2:
        return ""  # a point is no line
    places = " ".join(f"{across(x):.1f},{upright(y):.1f}" for x, y in points)
    return f'<path class="{name}" clip-path="url(#curves)" d="M{places}"/>'


def _validations(validation: Points, across: _Scale, upright: _Scale) -> list[str]:
    """Return a spot for each validation, if they are few, and the best with its number."""
    if not validation:
        return []
    parts = []
    if len(validation) <= 60:
        parts = [f'<circle class="spot" cx="{across(x):.1f}" cy="{upright(y):.1f}" r="2.6"/>' for x, y in validation]
    step, score = min(validation, key=lambda point: point[1])
    x, y = across(step), upright(score)
    anchor = "end" if x > WIDTH * 0.6 else "start"
    parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>')
    words = f"{'best' if len(validation) > 1 else 'validation'} {score:.4f} bits/char at step {step:,.0f}"
    at = (min(x + 6, across.end) if anchor == "end" else x - 6, max(y - 14, TOP + 14))
    return [*parts, *(label(*at, words, name, anchor) for name in ("halo", "words"))]  # converters know no `paint-order`


def _legend(train: bool, validations: int) -> list[str]:
    """Return what the curves are, inside the plot at its upper right, which falling curves leave free."""
    x, y, parts = WIDTH - RIGHT - 110.0, TOP + 16.0, []
    for shown, name, words in ((train, "train", "training"), (validations, "validation", "validation")):
        if shown:
            alone = name == "validation" and validations == 1
            dot, line = f'<circle class="spot" cx="{x + 11:g}" cy="{y:g}" r="4"/>', f'<path class="{name}" d="M{x:g},{y:g} h22"/>'
            parts += [dot if alone else line, label(x + 30, y + 4, words, "faint", "start")]
            y += 18
    return parts


def _cut_note(train: Points, across: _Scale, upright: _Scale) -> list[str]:
    """Return a note beside the place where the curve comes down into the picture, if it does."""
    above = [x for x, y in train if y > upright.high]
    return [label(across(above[-1]) + 14, TOP + 14, "earlier steps lie above", "faint", "start")] if above else []


def _rates(rate: Points, across: _Scale, bottom: float) -> list[str]:
    top = max(y for _, y in rate) or 1.0
    upright = _Scale(0.0, top, bottom, bottom - RATES)
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:g}" y2="{y:g}"/>' for y in (bottom, bottom - RATES)]
    places = " ".join(f"{across(x):.1f},{upright(y):.1f}" for x, y in rate)
    parts.append(f'<path class="rate" d="M{places}"/>')
    parts.append(label(LEFT - 8, bottom - RATES + 4, f"{top:.2g}", "faint", "end"))
    parts.append(label(LEFT - 8, bottom + 4, "0", "faint", "end"))
    return [*parts, label(WIDTH - RIGHT, bottom - RATES - 7, "learning rate", "faint", "end")]


def _three(samples: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the first, the middle and the last, or all where there are no more than three."""
    return list(samples) if len(samples) <= 3 else [samples[0], samples[len(samples) // 2], samples[-1]]


def _samples(samples: Sequence[tuple[int, str]], y: float) -> tuple[list[str], int]:
    """Return what the network wrote, each under its step, and where the page ends."""
    parts = []
    for step, text in samples:
        parts.append(label(LEFT, y, f"at step {step:,} it writes", "faint", "start"))
        # Empty lines would take the place of words.
        lines = [row for line in map(printable, text.split("\n")) if line.strip() for row in _rows(line)]
        if len(lines) > SAMPLE_ROWS:
            lines = [*lines[: SAMPLE_ROWS - 1], lines[SAMPLE_ROWS - 1][: SAMPLE_COLUMNS - 4] + " ..."]
        for line in lines:
            y += LINE
            parts.append(label(LEFT, y, line, "sample", "start"))
        y += 2 * LINE
    return parts, math.ceil(y)


def _rows(line: str) -> list[str]:
    """Cut a line into rows at its blanks, or anywhere if a row's last quarter has none."""
    rows = []
    while len(line) > SAMPLE_COLUMNS:
        blank = line.rfind(" ", SAMPLE_COLUMNS * 3 // 4, SAMPLE_COLUMNS + 1)
        end = blank if blank >= 0 else SAMPLE_COLUMNS
        rows.append(line[:end])
        line = line[end:].removeprefix(" ") if blank >= 0 else line[end:]
    return [*rows, line]
