"""One HTML page in which a person looks through every gate and unit along a text: no library, no network.

`page` is the entry point, for `inspect --html`; `gate_page.html` beside it is the page without the values.
"""

import base64
import json
import sys
from array import array
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from lstmlm.display.gate_plots import PAPER, PAPER_TWO_SIDED, glyph
from lstmlm.errors import printable


def page(found: Mapping[str, Any], model: str, signed: Collection[str]) -> str:
    """Return the page.

    Args:
        found: `characters`, `layers` (each a mapping from a quantity to `shape` and `values`), `surprise` and
            `likeliest`, as `lstmlm inspect --json` gives them.
        model: Its name, shown at the top.
        signed: The quantities that may be negative.
    """
    quantities = [name for name in found["layers"][0] if name != "layer"]
    data = {
        "chars": list(found["characters"]),
        "glyphs": [glyph(char) for char in found["characters"]],
        "quantities": quantities,
        "signed": [name for name in quantities if name in signed],
        "widths": [layer[quantities[0]]["shape"][1] for layer in found["layers"]],
        "layers": [{name: _packed(layer[name]["values"]) for name in quantities} for layer in found["layers"]],
        "surprise": found["surprise"]["values"],
        "likeliest": [[[glyph(char), chance] for char, chance in row] for row in found["likeliest"]],
        "ramp": PAPER,
        "two_sided": PAPER_TWO_SIDED,
    }
    # `<` could end the script element; as an escape it means the same to JSON.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    empty = resources.files(__package__).joinpath("gate_page.html").read_text(encoding="utf-8")
    return empty.replace("%MODEL%", escape(printable(model))).replace("%DATA%", text)


def _packed(rows: Sequence[Sequence[float]]) -> str:
    """Return the values as base64 of 32-bit floats, little end first, row by row."""
    values = array("f", (value for row in rows for value in row))
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
