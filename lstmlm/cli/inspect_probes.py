"""The commands `lstmlm inspect --find` and `--reach`: which unit carries what, and how far back the network looks."""

import math
from typing import TYPE_CHECKING

from lstmlm.cli.inspect import NAMES, characters, steps
from lstmlm.cli.text_input import known_ids, statistics_text
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.display.text_plots import curve
from lstmlm.errors import LstmlmError, TextError

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.api import LanguageModel
    from lstmlm.data.tokenizer import OnUnknown
    from lstmlm.display.gate_page import Noted

CHARS = 20_000  # characters on which units are compared: 60 MB for 768 units
SHOWN = 240  # characters along which the best unit is drawn
LENGTH, PREDICTIONS = 200, 64  # steps back, and predictions in the mean
REACH_CHARS = 200_000  # characters over which the predictions are spread; all before them has to be read
PAGE_CHARS = 5_000  # for the page, which should be there in a second or two
LEAST = 0.7  # area under the curve from which a unit is worth a look
ROWS = (0, 1, 2, 5, 10, 20, 50, 100, 150, 199)


def find(
    console: Console,
    model: "LanguageModel",
    text: str | None,
    name: str,
    quantity: str,
    top: int,
    *,
    on_unknown: "OnUnknown",
    json: bool,
) -> None:
    """Rank the units by how well they tell a feature, and show the best one along the text.

    Raises:
        LstmlmError: There is no such feature or text, or too little of it.
    """
    from lstmlm.analysis.activations import SIGNED
    from lstmlm.analysis.probes import feature
    from lstmlm.analysis.probes import find as rank
    from lstmlm.display.gate_plots import Row, Scale, fitted, view

    ids = known_ids(model, statistics_text(model, text, CHARS), on_unknown)[:CHARS]
    chars = characters(model, ids)
    true, meaning = feature(name, "".join(chars))
    values = _values(model, ids, quantity)
    found = rank(values, true, top)
    widths = [layer.width for layer in model.alone.stack()]
    named = {carrier.unit: _place(carrier.unit, widths) for carrier in found.carriers}
    if json:
        console.as_json(
            {
                "schema": 1,
                "command": "inspect",
                "model": str(model.path),
                "find": name,
                "meaning": meaning,
                "show": quantity,
                "chars": len(ids),
                "true": found.true,
                "chance": found.chance,
                "units": [
                    {
                        "layer": named[c.unit][0],
                        "unit": named[c.unit][1],
                        "area": c.area,
                        "area_chosen_by": c.chosen,
                        "high_where_true": c.sign > 0,
                    }
                    for c in found.carriers
                ],
            }
        )
        return
    console.headline(f"{meaning}: {found.true:.1%} of {len(ids):,} characters; units by their {NAMES[quantity]}")
    console.result("")
    rows = [(f"{named[c.unit][0]}:{named[c.unit][1]}", c.area, c.chosen, "high" if c.sign > 0 else "low") for c in found.carriers]
    console.table(rows, ("unit", "area, second half", "first half", "where true"))
    console.result(f"\nbest of {values.shape[1]:,} units for a feature shifted along the text: {found.chance:.4f}\n")
    half = len(ids) // 2
    seen = slice(half, half + SHOWN)
    best = found.carriers[0].unit
    line = values[seen, best].tolist()
    what = f"{NAMES[quantity]} of unit {rows[0][0]} (layer:unit)"
    scale = fitted(what, [line], True) if quantity in SIGNED else Scale(what, 0.0, 1.0)
    drawn = [Row("feature", true[seen].double().tolist(), Scale("feature", 0.0, 1.0)), Row(rows[0][0], line, scale)]
    out = console.stdout
    console.result(view(chars[seen], drawn, columns(out, console.env), colour_allowed(out, console.env), unicode_allowed(out)))


def noted(model: "LanguageModel") -> "list[Noted]":
    """Return for each feature the unit whose cell state tells it best, where it does so better than chance.

    It reads the run's validation part; where that is gone, or a feature hardly occurs in it, there is nothing to say.
    """
    from lstmlm.analysis.probes import FEATURES, feature
    from lstmlm.analysis.probes import find as rank
    from lstmlm.display.gate_page import Noted

    try:
        ids = known_ids(model, statistics_text(model, None, PAGE_CHARS), "skip")[:PAGE_CHARS]
    except LstmlmError:
        return []
    text, widths, found = "".join(characters(model, ids)), [layer.width for layer in model.alone.stack()], []
    values = _values(model, ids, "cell")
    for name in FEATURES:
        try:
            true, meaning = feature(name, text)
        except TextError:
            continue
        ranked = rank(values, true, 1)
        best = ranked.carriers[0]
        if best.area > max(ranked.chance, LEAST):
            layer, unit = _place(best.unit, widths)
            high = "high" if best.sign > 0 else "low"
            found.append((best.area, Noted(layer, unit, f"C is {high} {meaning}: right in {best.area:.0%} of pairs")))
    return [unit for _, unit in sorted(found, key=lambda row: -row[0])]


def _values(model: "LanguageModel", ids: list[int], quantity: str) -> "Tensor":
    """Return a quantity of every unit at every character, (n, units), the first layer's first."""
    import torch

    parts = [[getattr(layer, quantity)[:, 0] for layer in found.layers] for found, _ in steps(model, ids)]
    return torch.cat([torch.cat(layers, dim=1) for layers in parts])


def reach(console: Console, model: "LanguageModel", text: str | None, *, on_unknown: "OnUnknown", json: bool) -> None:
    """Show how much a prediction depends on what was k characters before it.

    Raises:
        LstmlmError: There is no such text, or too little of it.
    """
    import torch

    from lstmlm.analysis.gradient_reach import fades
    from lstmlm.analysis.gradient_reach import reach as measure

    ids = torch.tensor(model.tokenizer.encode(statistics_text(model, text, REACH_CHARS), on_unknown))
    if len(ids) < LENGTH + 2:
        raise TextError(f"--reach: expected {LENGTH + 2} characters or more, found {len(ids)}. Take a longer text.")
    found = measure(model.alone, ids, LENGTH, PREDICTIONS)
    lines = {f"C of layer {n}": norms for n, norms in enumerate(found.cell, start=1)}
    lines |= {f"H of layer {n}": norms for n, norms in enumerate(found.hidden, start=1)}
    lines["x"] = found.input
    if json:
        console.as_json(
            {
                "schema": 1,
                "command": "inspect",
                "model": str(model.path),
                "chars": len(ids),
                "predictions": found.count,
                "reach": [{"of": name, "norms": norms, "hundredth_at": fades(norms)} for name, norms in lines.items()],
            }
        )
        return
    console.headline(
        f"gradient of the nats of a character with respect to what was k characters before: mean norm of {found.count} "
        f"predictions in {len(ids):,} characters"
    )
    console.result("")
    cells = [(str(k), *(f"{norms[k]:.1e}" for norms in lines.values())) for k in ROWS]
    cells.append(("below 1/100 at", *(_fading(fades(norms)) for norms in lines.values())))
    console.table(cells, ("k", *lines))
    top = lines[f"C of layer {len(found.cell)}"]
    points = [(float(k), math.log10(norm)) for k, norm in enumerate(top) if norm > 0]
    out = console.stdout
    title = f"log10 of the norm for C of layer {len(found.cell)}, against k"
    console.result("\n" + curve(points, min(100, columns(out, console.env)), 10, unicode_allowed(out), title))


def _fading(distance: int | None) -> str:
    return str(distance) if distance is not None else f"over {LENGTH - 1}"


def _place(unit: int, widths: list[int]) -> tuple[int, int]:
    """Return layer and unit, counted from 1, of a unit counted through all layers from 0."""
    for layer, width in enumerate(widths, start=1):
        if unit < width:
            return layer, unit + 1
        unit -= width
    raise IndexError(unit)
