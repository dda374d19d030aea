"""One HTML page in which a person looks through every gate and unit along a text, or two: no library, no network.

`page` is the entry point, for `inspect --html`; `gate_page.html` beside it is the page without the values.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from lstmlm.display.gate_plots import PAPER, PAPER_TWO_SIDED, glyph
from lstmlm.errors import printable

QUANTITIES = {
    "forget": ("forget gate", "How much of its long memory C a unit keeps at this character: 0 forgets all of it, 1 nothing."),
    "input": ("input gate", "How much of the new information a unit writes into its long memory: 0 nothing, 1 all of it."),
    "output": ("output gate", "How much of its long memory a unit shows in its short memory H: 0 hides it, 1 shows it."),
    "new": ("new information", "What a unit would write into its long memory, if its input gate lets it: from \u22121 to 1."),
    "cell": ("cell state C", "The long memory: what was kept of it by the forget gate, and what was written into it."),
    "hidden": ("hidden state H", "The short memory: what the next step and the prediction are made from, between \u22121 and 1."),
    "surprise": (
        "surprise",
        "What the character cost, in bits: little where the network had expected it, much where it had not.",
    ),
}
"""name -> title, and what it is in a sentence."""

LEAST = 0.0005  # probability of a next character: below it would be shown as nothing
LEVELS = 4095  # above the lowest value of a layer: two digits of base 64 for each
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PAIRS = [a + b for a in DIGITS for b in DIGITS]


@dataclass(frozen=True)
class Noted:
    """A unit that is worth a look.

    layer: Counted from 1.
    unit: Likewise.
    words: Why, in a few words.
    """

    layer: int
    unit: int
    words: str


def page(texts: Sequence[Mapping[str, Any]], model: str, signed: Collection[str], start: str, units: Sequence[Noted] = ()) -> str:
    """Return the page.

    Args:
        texts: One, or two to be compared: each with `characters`, `layers` (each a mapping from a quantity to `shape` and
            `values`), `surprise` and `likeliest`, as `lstmlm inspect --json` gives them.
        model: Its name, shown at the top.
        signed: The quantities that may be negative.
        start: The quantity that colours the text at first.
        units: Listed beside those that vary most.
    """
    names = [name for name in QUANTITIES if name in texts[0]["layers"][0] or name == "surprise"]
    data = {
        "quantities": [
            {"name": name, "title": QUANTITIES[name][0], "sentence": QUANTITIES[name][1], "signed": name in signed}
            for name in names
        ],
        "start": start,
        "widths": [layer[names[0]]["shape"][1] for layer in texts[0]["layers"]],
        "texts": [_text(found, names) for found in texts],
        "units": [{"layer": noted.layer - 1, "unit": noted.unit - 1, "words": noted.words} for noted in units],
        "ramp": PAPER,
        "two_sided": PAPER_TWO_SIDED,
    }
    # `<` could end the script element; as an escape it means the same to JSON.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    lines = resources.files(__package__).joinpath("gate_page.html").read_text(encoding="utf-8").splitlines()
    empty = "".join(f"{line}\n" for line in map(str.strip, lines) if not line.startswith("//"))
    return empty.replace("%MODEL%", escape(printable(model))).replace("%DATA%", text)


def _text(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return what the page holds of one text; H, which is o tanh C, is left out where o and C are there."""
    kept = [name for name in names if name != "surprise" and not (name == "hidden" and {"output", "cell"} <= set(names))]
    return {
        "glyphs": [glyph(char) for char in found["characters"]],
        "layers": [{name: _packed(layer[name]["values"]) for name in kept} for layer in found["layers"]],
        "surprise": [round(value, 4) for value in found["surprise"]["values"]],
        "likeliest": [
            [[glyph(char), round(chance, 3)] for char, chance in row if chance >= LEAST or char == row[0][0]]
            for row in found["likeliest"]
        ],
    }


def _packed(rows: Sequence[Sequence[float]]) -> tuple[float, float, str]:
    """Return the lowest value, the highest, and all of them between the two, row by row, by two digits each."""
    low = math.floor(min(map(min, rows)) * 1000) / 1000
    high = math.ceil(max(map(max, rows)) * 1000) / 1000
    scale = LEVELS / (high - low or 1.0)
    return low, high, "".join([PAIRS[round((value - low) * scale)] for row in rows for value in row])
