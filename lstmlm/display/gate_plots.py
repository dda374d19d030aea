"""What the gates do along a text, drawn: characters as columns, a row for each layer or unit; on a terminal and as SVG.

`view` draws for a terminal and `gates_svg` for a file, for `inspect`; `painted` colours the text of `eval --chars`.
"""

import itertools
import math
import operator
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from lstmlm.display.console import styled
from lstmlm.display.svg import document, label
from lstmlm.display.text_plots import cells

# From little to much. Each cell carries its own ground and its own ink, so that neither a dark nor a light terminal hides
# it; the order is also one of brightness, for people who see no red or no green.
RAMP = ((54, 15), (61, 15), (31, 15), (30, 15), (36, 0), (71, 0), (77, 0), (149, 0), (185, 0), (227, 0))
# From below zero over zero to above it.
TWO_SIDED = ((20, 15), (26, 15), (32, 15), (74, 0), (152, 0), (255, 0), (223, 0), (216, 0), (209, 0), (202, 0), (160, 15))
STYLE = "on color({}) color({})"
SHADES = " ░▒▓█"
ASCII_SHADES = " .:-=+*#%@"
STAND_INS = {"\n": "↵", "\t": "→", "\r": "←"}
ASCII_STAND_INS = {"\n": "$", "\t": ">", "\r": "<"}

CELL, LINE, GAP, EDGE, LABEL = 9.0, 17.0, 14.0, 24.0, 92.0  # of the SVG, in its units; LABEL at least
PER_LINE = 90  # characters of a line of the SVG
# The same two ramps for paper, from the same thought: brightness alone tells the order.
PAPER = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
PAPER_TWO_SIDED = ("#0b3c8c", "#2f6fbf", "#74a9d8", "#c0d8ec", "#f4f4f4", "#f8d3b0", "#f0a160", "#d8621f", "#94340a")


@dataclass(frozen=True)
class Scale:
    """What the colours mean.

    name: Of the quantity, as in the legend.
    low: Value of the first colour.
    high: Value of the last one.
    signed: Whether zero lies in the middle.
    """

    name: str
    low: float
    high: float
    signed: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between the two ends, 0 to 1."""
        if self.high <= self.low:
            return 0.5
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Row:
    """One row of the picture.

    label: A few characters at its left.
    values: One for each character.
    scale: What its colours mean.
    """

    label: str
    values: Sequence[float]
    scale: Scale


def fitted(name: str, rows: Sequence[Sequence[float]], signed: bool = False, low: float | None = None) -> Scale:
    """Return a scale that fits all values of some rows: symmetric if signed, from `low` or from their lowest value."""
    values = [value for row in rows for value in row if math.isfinite(value)] or [0.0]
    if signed:
        most = max(abs(min(values)), abs(max(values))) or 1.0
        return Scale(name, -most, most, True)
    return Scale(name, min(values) if low is None else low, max(values))


def glyph(char: str, unicode: bool = True) -> str:
    """Return a character that can be shown in a column of its own, one or two wide."""
    stand_ins = STAND_INS if unicode else ASCII_STAND_INS
    if char in stand_ins:
        return stand_ins[char]
    if not char.isprintable() or unicodedata.combining(char):
        return "·" if unicode else "?"
    return char if unicode or char.isascii() else "?"


def view(
    chars: Sequence[str],
    rows: Sequence[Row],
    width: int = 80,
    colour: bool = False,
    unicode: bool = True,
    legend: bool = True,
) -> str:
    """Return the text with its rows, wrapped to a width, and a legend.

    Args:
        chars: One character each.
        rows: With as many values as there are characters.
        width: Columns.
        colour: The characters on coloured ground in every row (ESC sequences), or shades of grey without any.
        unicode: Blocks, or ASCII only.
        legend: Whether to end with what the colours mean.

    Returns:
        Lines without the last newline.
    """
    shown = [glyph(char, unicode) for char in chars]
    margin = min(max(len(row.label) for row in rows), max(4, width // 3)) + 1
    lines: list[str] = []
    for start, stop in _wrapped(chars, shown, max(2, width - margin)):
        piece = shown[start:stop]
        lines.append(" " * margin + "".join(piece).rstrip())
        for row in rows:
            shares = [row.scale.share(value) for value in row.values[start:stop]]
            label = row.label[: margin - 1].ljust(margin)
            if colour:
                lines.append(label + _coloured(piece, shares, row.scale.signed))
            else:
                lines.append((label + _shaded(piece, shares, unicode)).rstrip())
        lines.append("")
    return "\n".join([*lines, *_legend(rows, colour, unicode)] if legend else lines)


def painted(text: str, values: Sequence[float], scale: Scale) -> str:
    """Return a text as it is, each character on coloured ground (ESC sequences); line ends stay line ends."""
    lines, start = [], 0
    for line in text.split("\n"):
        shares = [scale.share(value) for value in values[start : start + len(line)]]
        start += len(line) + 1
        lines.append(_coloured([glyph(char) for char in line], shares, scale.signed))
    return "\n".join(lines)


def _wrapped(chars: Sequence[str], shown: Sequence[str], columns: int) -> list[tuple[int, int]]:
    """Cut characters into lines: full ones, or up to and with a line end."""
    cuts, start, used = [], 0, 0
    for index, char in enumerate(shown):
        wide = max(1, cells(char))
        if used + wide > columns or (index and chars[index - 1] == "\n"):
            cuts.append((start, index))
            start, used = index, 0
        used += wide
    return [*cuts, (start, len(shown))]


def _coloured(piece: Sequence[str], shares: Sequence[float], signed: bool) -> str:
    """Return characters on the grounds that their shares ask for, one sequence for a stretch of equal colour."""
    ramp = TWO_SIDED if signed else RAMP
    levels = (_level(share, len(ramp)) for share in shares)
    stretches = itertools.groupby(zip(levels, piece, strict=True), key=operator.itemgetter(0))
    return "".join(styled("".join(char for _, char in stretch), STYLE.format(*ramp[level])) for level, stretch in stretches)


def _shaded(piece: Sequence[str], shares: Sequence[float], unicode: bool) -> str:
    shades = SHADES if unicode else ASCII_SHADES
    return "".join(shades[_level(s, len(shades))] * max(1, cells(c)) for c, s in zip(piece, shares, strict=True))


def _level(share: float, levels: int) -> int:
    return 0 if math.isnan(share) else min(levels - 1, int(share * levels))


def _legend(rows: Sequence[Row], colour: bool, unicode: bool) -> list[str]:
    lines = []
    for scale in dict.fromkeys(row.scale for row in rows):
        if colour:
            ramp = TWO_SIDED if scale.signed else RAMP
            bar = "".join(styled(" ", STYLE.format(*colours)) for colours in ramp)
        else:
            bar = f"[{SHADES if unicode else ASCII_SHADES}]"
        lines.append(f"{scale.name}: {scale.low:.3g} {bar} {scale.high:.3g}")
    return lines


def gates_svg(chars: Sequence[str], rows: Sequence[Row], title: str) -> str:
    """Return the same picture as one SVG document, for a paper or a README.

    Args:
        chars: One character each.
        rows: With as many values as there are characters.
        title: Over it.
    """
    shown = [glyph(char) for char in chars]
    lines = _wrapped(chars, shown, PER_LINE)
    columns = max(sum(max(1, cells(c)) for c in shown[start:stop]) for start, stop in lines)
    names = max(LABEL, 8 + 6.6 * max(cells(row.label) for row in rows))
    width = EDGE * 2 + names + max(columns * CELL, 420.0)
    parts, y = [label(EDGE, EDGE + 8, title, "title")], EDGE + 34.0
    for start, stop in lines:
        x = EDGE + names
        for char in shown[start:stop]:
            wide = max(1, cells(char)) * CELL
            if char != " ":
                parts.append(label(x + wide / 2, y, char, "char", "middle"))
            x += wide
        y += 5
        for row in rows:
            parts.append(label(EDGE + names - 8, y + 10.5, row.label, "label", "end"))
            x = EDGE + names
            for char, value in zip(shown[start:stop], row.values[start:stop], strict=True):
                wide = max(1, cells(char)) * CELL
                fill = _paper(row.scale.share(value), row.scale.signed)
                parts.append(f'<rect x="{x:g}" y="{y:g}" width="{wide + 0.3:g}" height="{LINE - 3:g}" fill="{fill}"/>')
                x += wide
            y += LINE - 3
        y += GAP + 12
    for scale in dict.fromkeys(row.scale for row in rows):
        parts.append(label(EDGE + names + 158, y, f"{scale.low:.3g} to {scale.high:.3g}: {scale.name}", "label"))
        parts += [
            f'<rect x="{EDGE + names + step * 3:g}" y="{y - 10:g}" width="3.3" height="12" '
            f'fill="{_paper(step / 49, scale.signed)}"/>'
            for step in range(50)
        ]
        y += LINE + 3
    height = y + EDGE - 10
    style = (
        ".paper { fill: #ffffff; } text { font: 12px system-ui, sans-serif; fill: #1f2328; } "
        ".title { font-size: 15px; font-weight: 600; } .char { font-family: ui-monospace, monospace; font-size: 13px; } "
        ".label { fill: #57606a; font-size: 11px; } @media (prefers-color-scheme: dark) { .paper { fill: #15181c; } "
        "text { fill: #e6e9ec; } .label { fill: #99a3ad; } }"
    )
    return document(width, height, title, style, parts)


def _paper(share: float, signed: bool) -> str:
    """Return a colour between two neighbours of the ramp."""
    ramp = PAPER_TWO_SIDED if signed else PAPER
    if math.isnan(share):
        return "none"
    place = share * (len(ramp) - 1)
    left = min(len(ramp) - 2, int(place))
    mixed = [
        round(int(ramp[left][k : k + 2], 16) * (left + 1 - place) + int(ramp[left + 1][k : k + 2], 16) * (place - left))
        for k in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in mixed)
