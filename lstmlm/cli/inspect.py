"""The command `lstmlm inspect`: what the gates do along a text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lstmlm.cli import safe_output
from lstmlm.cli.text_input import known_ids, one_of, read_text, unknown_rule
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.errors import TextError, UsageError, printable
from lstmlm.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.analysis.activations import Trace
    from lstmlm.api import LanguageModel
    from lstmlm.display.gate_plots import Row

SHOWS = ("forget", "input", "output", "new", "cell", "hidden", "surprise")
NAMES = {"forget": "forget gate", "input": "input gate", "output": "output gate", "new": "new information"}
NAMES |= {"cell": "cell state", "hidden": "hidden state", "surprise": "surprise, bits"}
VALUES = 5_000_000  # numbers in one --json or --html: 100 MB of text
CELLS = 1_000_000  # of a picture or of the view in the terminal: an SVG of 75 MB
LIKELIEST = 5
ALONE = 384  # units of the widest layer: up to there threads that meet at every step of one text cost more than they bring


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    text: str | None
    file: str | None
    model: str | None
    show: list[str]
    units: str | None
    top: int
    svg: str | None
    html: str | None
    member: int
    at: str | None
    swap: str | None
    find: str | None
    reach: bool
    everything: bool
    on_unknown: str
    threads: int
    json: bool
    quiet: bool


def run(request: Request) -> None:
    """Run a text, and show what the gates did at each of its characters.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    console = Console(quiet=request.quiet)
    on_unknown = unknown_rule(request.on_unknown)
    shows = _shows(request.show)
    units = _units(request.units)
    statistics = [
        flag
        for flag, on in (("--at", request.at), ("--find", request.find), ("--reach", request.reach))
        if on is not None and on is not False
    ]
    if request.text is not None and request.file is not None:
        raise UsageError("inspect: expected a TEXT or --file, found both.")
    if request.text is None and request.file is None and not statistics:
        raise UsageError("inspect: expected a TEXT, or --file with one, found none.")
    if request.swap is not None and request.at is None:
        raise UsageError("--swap: expected --at with the mark after the name, found none.")
    if len(statistics) > 1:
        raise UsageError(f"inspect: expected one of --at, --find and --reach, found {' and '.join(statistics)}.")
    if statistics and (request.svg or request.html):
        raise UsageError(f"{statistics[0]}: expected no picture, found --svg or --html. Leave it out; --json gives the numbers.")
    if request.html and shows == ["surprise"]:
        raise UsageError(
            "--html: expected a quantity of units in --show, found surprise alone, which the page always has. Leave it out."
        )
    safe_output.refuse_other("--svg", request.svg)
    safe_output.refuse_other("--html", request.html)
    text = request.text if request.file is None else read_text("--file", request.file)
    if text == "":
        raise TextError("text to inspect: expected at least one character, found none.")

    from lstmlm.api import LanguageModel

    model = LanguageModel.open(request.model, threads=request.threads, device="cpu", report=console.warn).member(request.member)
    if statistics and not request.threads and max(layer.width for layer in model.alone.stack()) <= ALONE:
        import torch

        torch.set_num_threads(1)
    if request.model is None:
        console.say(f"model {printable(str(model.path))}")
    if (count := model.config.model.members) > 1:
        console.say(f"member {request.member} of {count}; --member looks into another one")
    if request.at is not None:
        from lstmlm.cli import inspect_boundaries

        inspect_boundaries.run(
            console, model, text, request.at, request.swap, request.top or 8,
            everything=request.everything, on_unknown=on_unknown, json=request.json,
        )  # fmt: skip
        return
    if request.find is not None:
        from lstmlm.cli import inspect_probes

        quantity = shows[0] if request.show else "cell"
        if quantity == "surprise":
            raise UsageError("--find: expected a quantity of units in --show, found surprise.")
        inspect_probes.find(
            console, model, text, request.find, quantity, request.top or 8, on_unknown=on_unknown, json=request.json
        )
        return
    if request.reach:
        from lstmlm.cli import inspect_probes

        inspect_probes.reach(console, model, text, on_unknown=on_unknown, json=request.json)
        return
    assert text is not None
    ids = known_ids(model, text, on_unknown)
    widths = [layer.width for layer in model.alone.stack()]
    for layer, unit in units:
        if not (1 <= layer <= len(widths) and 1 <= unit <= widths[layer - 1]):
            sizes = f"{counted(len(widths), 'layer')} of {', '.join(map(str, widths))} units"
            raise UsageError(f"--units {layer}:{unit}: expected LAYER:UNIT counted from 1, in {sizes}.")
    if request.json or request.html:
        kept = [name for name in shows if name != "surprise"] if request.show else list(SHOWS[:-1])
        size = len(ids) * (sum(widths) * len(kept) + 1)
        if size > VALUES and not request.everything:
            raise UsageError(
                f"inspect: expected at most {VALUES:,} numbers, found {size:,} ({len(ids):,} characters). "
                "Take a shorter text, choose one quantity with --show, or say --all."
            )
        whole = collect(model, ids, kept)
        if request.json:
            console.as_json({"schema": 1, "command": "inspect", "model": str(model.path), "text": text, **as_lists(whole)})
        if request.html:
            from lstmlm.display.gate_page import page

            safe_output.write("--html", request.html, page(as_lists(whole), str(model.path)))
            console.say(f"wrote {printable(request.html)}")
    rows: list[Row] = []
    if request.svg or not (request.json or request.html):
        cells = len(ids) * len(shows) * max(len(widths), len(units) + request.top)
        if cells > CELLS and not request.everything:
            raise UsageError(
                f"inspect: expected at most {CELLS:,} cells to draw, found {cells:,} ({len(ids):,} characters). "
                "Take a shorter text, show less of it, or say --all."
            )
        rows = rows_of(model, ids, shows, units, request.top)
    if request.svg:
        from lstmlm.display.gate_plots import gates_svg

        safe_output.write("--svg", request.svg, gates_svg(characters(model, ids), rows, "What the gates do"))
        console.say(f"wrote {printable(request.svg)}")
    if not (request.json or request.html or request.svg):
        from lstmlm.display.gate_plots import view

        out = console.stdout
        colour, width = colour_allowed(out, console.env), columns(out, console.env)
        console.result(view(characters(model, ids), rows, width, colour, unicode_allowed(out)))


def characters(model: "LanguageModel", ids: list[int]) -> list[str]:
    """Return what each id stands for; a byte that is no ASCII character is U+FFFD."""
    return [model.tokenizer.decode([symbol]) for symbol in ids]


def steps(model: "LanguageModel", ids: list[int]) -> "Iterator[tuple[int, Trace, Tensor]]":
    """Run a text after a line end, if the model knows one, and drop what belongs to that line end.

    Yields:
        The position of each piece, what happened at its characters (B = 1), and the bits that each of them cost.
    """
    import torch

    from lstmlm.analysis.activations import WINDOW, trace, windows
    from lstmlm.evaluation.scoring import first_char
    from lstmlm.model.char_lm import nats
    from lstmlm.units import bits

    newline = model.tokenizer.encode("\n", on_unknown="skip")
    state, guess = None, None
    if newline:
        before = trace(model.alone, torch.tensor(newline[:1])[:, None])
        state, guess = before.state, before.logits
    text = torch.tensor(ids)
    for start, found in windows(model.alone, text, state, WINDOW):
        goals = text[start : start + len(found.logits), None]
        if guess is None:
            costs = torch.cat([torch.tensor([[first_char(model.counts, ids[0])]]), nats(found.logits[:-1], goals[1:])])
        else:
            costs = nats(torch.cat([guess, found.logits[:-1]]), goals)
        guess = found.logits[-1:]
        yield start, found, costs[:, 0] * bits(1.0)


def collect(model: "LanguageModel", ids: list[int], quantities: list[str]) -> dict[str, Any]:
    """Run a text and keep all values of some quantities, as tensors (T, S)."""
    import torch

    layers: list[dict[str, list[Tensor]]] = [{name: [] for name in quantities} for _ in model.alone.layers]
    surprise, likeliest = [], []
    for _, found, costs in steps(model, ids):
        for layer, activity in zip(layers, found.layers, strict=True):
            for name in quantities:
                layer[name].append(getattr(activity, name)[:, 0].clone())
        surprise.append(costs)
        best = torch.softmax(found.logits[:, 0], -1).topk(min(LIKELIEST, found.logits.shape[-1]))
        for chances, symbols in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            likeliest.append([[c, p] for c, p in zip(characters(model, symbols), chances, strict=True)])
    return {
        "characters": characters(model, ids),
        "layers": [{name: torch.cat(parts) for name, parts in layer.items()} for layer in layers],
        "surprise": torch.cat(surprise),
        "likeliest": likeliest,
    }


def as_lists(whole: dict[str, Any]) -> dict[str, Any]:
    """Return what `collect` gave with shapes and plain numbers. Layers and units are counted from 1, in order."""

    def one(tensor: "Tensor") -> dict[str, Any]:
        return {"shape": list(tensor.shape), "values": tensor.tolist()}

    layers = [
        {"layer": number, **{name: one(tensor) for name, tensor in layer.items()}}
        for number, layer in enumerate(whole["layers"], start=1)
    ]
    return {**whole, "layers": layers, "surprise": one(whole["surprise"])}


def rows_of(model: "LanguageModel", ids: list[int], shows: list[str], units: list[tuple[int, int]], top: int) -> "list[Row]":
    """Return a row for each quantity and layer, and for each unit asked for; memory grows with the rows, not the units."""
    import torch

    from lstmlm.analysis.activations import SIGNED
    from lstmlm.display.gate_plots import Row, Scale, fitted

    gates = [name for name in shows if name != "surprise"]
    followed = gates if gates else ["cell"]
    if top:
        units = units + [u for u in busiest(model, ids, followed[0], top) if u not in units]
    means: dict[tuple[str, int], list[Tensor]] = {}
    singles: dict[tuple[str, int, int], list[Tensor]] = {}
    surprise = []
    for _, found, costs in steps(model, ids):
        surprise.append(costs)
        for number, activity in enumerate(found.layers, start=1):
            for name in followed:
                values = getattr(activity, name)[:, 0]
                if not units:
                    size = values.abs() if name in SIGNED else values
                    means.setdefault((name, number), []).append(size.mean(-1))
                for layer, unit in units:
                    if layer == number:
                        singles.setdefault((name, layer, unit), []).append(values[:, unit - 1].clone())
    rows = []
    for name in gates:
        found_means = {n: torch.cat(p).tolist() for (key, n), p in means.items() if key == name}
        what = f"{NAMES[name]}, mean of the {'sizes of the ' if name in SIGNED else ''}layer's units"
        scale = fitted(what, list(found_means.values()))
        rows += [Row(f"{name} {number}", values, scale) for number, values in found_means.items()]
    for name in followed if units else []:
        found_units = {(la, u): torch.cat(singles[name, la, u]).tolist() for la, u in units}
        what = f"{NAMES[name]} of single units (layer:unit)"
        scale = fitted(what, list(found_units.values()), True) if name in SIGNED else Scale(what, 0.0, 1.0)
        rows += [Row(f"{name} {la}:{u}", values, scale) for (la, u), values in found_units.items()]
    if "surprise" in shows:
        values = torch.cat(surprise).tolist()
        rows.append(Row("surprise", values, fitted(NAMES["surprise"], [values], low=0.0)))
    return rows


def busiest(model: "LanguageModel", ids: list[int], name: str, count: int) -> list[tuple[int, int]]:
    """Return the units whose quantity varies most along a text, as (layer, unit) counted from 1."""
    import torch

    sums = [torch.zeros(3, layer.width, dtype=torch.float64) for layer in model.alone.stack()]
    for _, found, _ in steps(model, ids):
        for total, activity in zip(sums, found.layers, strict=True):
            values = getattr(activity, name)[:, 0].double()
            total += torch.stack([torch.ones_like(values).sum(0), values.sum(0), values.square().sum(0)])
    variance = [(t[2] / t[0] - (t[1] / t[0]).square()).tolist() for t in sums]
    ranked = sorted((-v, layer, unit) for layer, row in enumerate(variance, start=1) for unit, v in enumerate(row, start=1))
    return [(layer, unit) for _, layer, unit in ranked[:count]]


def _shows(given: list[str]) -> list[str]:
    names = [name.strip() for value in given for name in value.split(",")] or ["forget", "surprise"]
    return list(dict.fromkeys(one_of("--show", name, SHOWS) for name in names))


def _units(given: str | None) -> list[tuple[int, int]]:
    found = []
    for part in given.split(",") if given else []:
        layer, colon, unit = part.strip().partition(":")
        if not (colon and layer.isascii() and layer.isdigit() and unit.isascii() and unit.isdigit()):
            raise UsageError(f"--units: expected LAYER:UNIT,... such as 2:17,2:40, found {printable(part[:40])}.")
        found.append((int(layer[:9]), int(unit[:9])))
    return list(dict.fromkeys(found))
