"""The command `lstmlm inspect`: what the gates do along a text."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lstmlm.cli import safe_output
from lstmlm.cli.options import MACHINE, MODEL, OUTPUT, Json, Model, OnUnknown, Quiet, TextPlace, Threads
from lstmlm.cli.text_input import known_ids, one_of, one_text, open_model, read_text
from lstmlm.data.tokenizer import readable
from lstmlm.display.console import Console, colour_allowed, columns, unicode_allowed
from lstmlm.errors import TextError, UsageError, printable
from lstmlm.storage import run_dir
from lstmlm.storage.header import KINDS
from lstmlm.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.analysis.activations import Trace
    from lstmlm.api import LanguageModel
    from lstmlm.data.tokenizer import OnUnknown as Rule
    from lstmlm.display.gate_plots import Row

SHOWS = ("forget", "input", "output", "new", "cell", "hidden", "surprise")
NAMES = {"forget": "forget gate", "input": "input gate", "output": "output gate", "new": "new information"}
NAMES |= {"cell": "cell state", "hidden": "hidden state", "surprise": "surprise, bits"}
VALUES = 5_000_000  # numbers in one --json or --html: 100 MB of text
CELLS = 1_000_000  # of a picture or of the view in the terminal: an SVG of 75 MB
LIKELIEST = 5
ALONE = 384  # units of the widest layer: up to there threads that meet at every step of one text cost more than they bring


ALONG, OVER = "Along a text", "Over a whole text"
GROUPS = {
    ALONG: "'Bob is a baker.' --show cell --top 8",
    OVER: "--at . --swap Bob,Dan",
    MODEL: "-m runs/stories --member 2",
    OUTPUT: "--json -q",
    MACHINE: "--threads 2",
}

RULES = """\
The state starts empty and a line end is read first, if the model knows one. A row belongs to the character that is read in
its column: what its gates did then, and how many bits the character cost. --json gives every value with its shape; --html shows
them all, beside another text with --against, and names units that tell a feature (--find) in the run's own validation part.

--at counts over a whole text (TEXT, --file, or the run's validation part; its first 2,000,000 characters, or --all): the mean
forget gate at the mark, one step later and elsewhere, the units that drop most (--top), how sure that is (95 % interval,
marks drawn again in blocks), and what the memory is worth: the bits of 100 characters after the mark with the state carried,
C zeroed, H zeroed, both zeroed.

--find ranks units (by C, or --show) by the area under the curve with which their value tells a feature of the text, on 20,000
characters: chosen by the first half, measured on the second, beside the best of as many units for a shifted feature.

--reach gives the mean norm of the gradient of a prediction with respect to C, H and x, up to 200 characters back,
over the first 200,000 characters.
"""


def inspect(
    typed: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]", help="The text itself, or - for stdin.")] = None,
    file: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Read the text from a file or stdin.", rich_help_panel=ALONG)
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT,...", help=f"{', '.join(SHOWS)}.", show_default="forget,surprise", rich_help_panel=ALONG),
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="N", min=0, max=1000, help="Follow the N units that vary most.", rich_help_panel=ALONG)
    ] = 0,
    units: Annotated[
        str | None,
        typer.Option(metavar="LAYER:UNIT,...", help="Follow single units; both are counted from 1.", rich_help_panel=ALONG),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a page to explore all units in a browser.", rich_help_panel=ALONG),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="With --html: a second text beside the first, compared with it.", rich_help_panel=ALONG
        ),
    ] = None,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write the picture as SVG.", rich_help_panel=ALONG)] = None,
    title: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Over the picture.", show_default="What the gates do", rich_help_panel=ALONG),
    ] = None,
    names: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Name the rows, from the top.", rich_help_panel=ALONG)
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Is anything forgotten at this mark?", rich_help_panel=OVER)
    ] = None,
    swap: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="With --at: is it still known who, after the mark?", rich_help_panel=OVER),
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURE",
            help="Which unit carries line, quotes, brackets, depth, capital, word, stop, re:EXPRESSION?",
            rich_help_panel=OVER,
        ),
    ] = None,
    reach: Annotated[
        bool, typer.Option("--reach", help="How far back does it look? Gradients by distance.", rich_help_panel=OVER)
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="No limit on what is written or drawn, nor on the text of --at.", rich_help_panel=OVER),
    ] = False,
    model: Model = None,
    corpus: TextPlace = None,
    member: Annotated[
        int, typer.Option(metavar="M", min=1, help="Which network of several, counted from 1.", rich_help_panel=MODEL)
    ] = 1,
    on_unknown: OnUnknown = "error",
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what the gates do along a text: characters as columns, one row for each layer or unit.

    lstmlm inspect "Bob is a baker. Dan ran home." --show cell --top 8

    lstmlm inspect --at . --swap Bob,Dan

    lstmlm inspect --find quotes --file held-out.txt
    """
    text = one_text("inspect", typed or [])
    shows, followed = _shows(show or []), _units(units)
    modes = [flag for flag, on in (("--at", at is not None), ("--find", find is not None), ("--reach", reach)) if on]
    if text is not None and file is not None:
        raise UsageError("inspect: expected a TEXT or --file, found both.")
    if text == "-":
        text, file = None, "-"
    if text is None and file is None and not modes:
        raise UsageError("inspect: expected a TEXT, or --file with one, found none.")
    if swap is not None and at is None:
        raise UsageError("--swap: expected --at with the mark after the name, found none.")
    if len(modes) > 1:
        raise UsageError(f"inspect: expected one of --at, --find and --reach, found {' and '.join(modes)}.")
    if modes and (svg or html):
        raise UsageError(f"{modes[0]}: expected no picture, found --svg or --html. Leave it out; --json gives the numbers.")
    if against is not None and html is None:
        raise UsageError("--against: expected --html FILE, the page on which two texts stand side by side, found none.")
    quantity = shows[0] if show else "cell"
    if title is not None and svg is None:
        raise UsageError("--title: expected --svg with the picture that it stands over, found none.")
    if find is not None and quantity == "surprise":
        raise UsageError("--find: expected a quantity of units in --show, found surprise.")
    safe_output.refuse_other("--svg", svg)
    safe_output.refuse_other("--html", html)

    console, rule = Console(quiet=quiet), cast("Rule", on_unknown)
    opened = open_model(console, model, threads, "cpu").member(member)
    opened.text_place = corpus
    if file is not None:
        text = read_text("--file", file, opened.tokenizer.bad_bytes)
    if "" in (text, against):
        raise TextError("text to inspect: expected at least one character, found none.")
    if modes and not threads and max(layer.width for layer in opened.alone.stack()) <= ALONE:
        import torch

        torch.set_num_threads(1)
    if (count := opened.config.model.members) > 1:
        console.say(f"member {member} of {count}; --member looks into another one")
    if at is not None:
        from lstmlm.cli import inspect_boundaries

        inspect_boundaries.run(console, opened, text, at, swap, top or 8, everything=everything, on_unknown=rule, json=json)
    elif find is not None:
        from lstmlm.cli import inspect_probes

        inspect_probes.find(console, opened, text, find, quantity, top or 8, on_unknown=rule, json=json)
    elif reach:
        from lstmlm.cli import inspect_probes

        inspect_probes.reach(console, opened, text, on_unknown=rule, json=json)
    elif text is not None:
        ids = known_ids(opened, text, rule)
        _refuse_other_units(opened, followed)
        if json or html:
            other = known_ids(opened, against, rule) if against is not None else []
            _numbers(console, opened, text, [ids, other], shows if show else list(SHOWS), everything, json, html)
        if svg or not (json or html):
            _picture(console, opened, ids, shows, followed, top, everything, svg, title, names)


def _refuse_other_units(model: "LanguageModel", units: list[tuple[int, int]]) -> None:
    """Refuse units that the model does not have."""
    widths = [layer.width for layer in model.alone.stack()]
    for layer, unit in units:
        if not (1 <= layer <= len(widths) and 1 <= unit <= widths[layer - 1]):
            sizes = f"{counted(len(widths), 'layer')} of {', '.join(map(str, widths))} units"
            raise UsageError(f"--units {layer}:{unit}: expected LAYER:UNIT counted from 1, in {sizes}.")


def _numbers(
    console: Console,
    model: "LanguageModel",
    text: str,
    read: list[list[int]],
    shows: list[str],
    everything: bool,
    json: bool,
    html: str | None,
) -> None:
    """Write every value of some quantities: as JSON, as a page, or both; of a second text only on the page."""
    kept = [name for name in shows if name != "surprise"]
    if html and not kept:
        kept = ["cell"]  # a page without units would be the terminal's view
    ids = read[0]
    size = sum(map(len, read)) * (sum(layer.width for layer in model.alone.stack()) * len(kept) + 1)
    if size > VALUES and not everything:
        raise UsageError(
            f"inspect: expected at most {VALUES:,} numbers, found {size:,} ({sum(map(len, read)):,} characters). "
            "Take a shorter text, choose one quantity with --show, or say --all."
        )
    whole = as_lists(collect(model, ids, kept))
    if json:
        console.as_json({"schema": 1, "command": "inspect", "model": str(model.path), "text": readable(text), **whole})
    if html:
        from lstmlm.analysis.activations import SIGNED
        from lstmlm.cli.inspect_probes import noted
        from lstmlm.display.gate_page import page

        name = str(run_dir.folder_of(model.path) if model.path.stem in KINDS else model.path)
        texts = [whole, *(as_lists(collect(model, other, kept)) for other in read[1:] if other)]
        safe_output.write("--html", html, page(texts, name, SIGNED, shows[0], noted(model)))
        console.say(f"wrote {printable(html)}")


def _picture(
    console: Console,
    model: "LanguageModel",
    ids: list[int],
    shows: list[str],
    units: list[tuple[int, int]],
    top: int,
    everything: bool,
    svg: str | None,
    title: str | None,
    names: str | None,
) -> None:
    """Draw the characters with a row for each layer or unit: into a file, or on the terminal."""
    from lstmlm.display.gate_plots import gates_svg, view

    cells = len(ids) * len(shows) * max(len(model.alone.layers), len(units) + top)
    if cells > CELLS and not everything:
        raise UsageError(
            f"inspect: expected at most {CELLS:,} cells to draw, found {cells:,} ({len(ids):,} characters). "
            "Take a shorter text, show less of it, or say --all."
        )
    chars, rows = characters(model, ids), rows_of(model, ids, shows, units, top)
    if names is not None:
        given = [printable(name.strip()) for name in names.split(",")]
        if len(given) != len(rows):
            raise UsageError(f"--names: expected {counted(len(rows), 'name')}, one for each row, found {len(given)}.")
        rows = [replace(row, label=name) for row, name in zip(rows, given, strict=True)]
    if svg:
        safe_output.write("--svg", svg, gates_svg(chars, rows, title or "What the gates do"))
        console.say(f"wrote {printable(svg)}")
        return
    out = console.stdout
    console.result(view(chars, rows, columns(out, console.env), colour_allowed(out, console.env), unicode_allowed(out)))


def characters(model: "LanguageModel", ids: list[int]) -> list[str]:
    """Return what each id stands for; a byte that is no ASCII character is U+FFFD."""
    return [model.tokenizer.decode([symbol]) for symbol in ids]


def steps(model: "LanguageModel", ids: list[int]) -> "Iterator[tuple[Trace, Tensor]]":
    """Run a text after what stands before one, a line end for example; see `activations.steps`."""
    from lstmlm.analysis import activations

    return activations.steps(model.alone, ids, model.opening, model.counts)


def collect(model: "LanguageModel", ids: list[int], quantities: list[str]) -> dict[str, Any]:
    """Run a text and keep all values of some quantities, as tensors (T, S)."""
    import torch

    layers: list[dict[str, list[Tensor]]] = [{name: [] for name in quantities} for _ in model.alone.layers]
    surprise, likeliest = [], []
    for found, costs in steps(model, ids):
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
    for found, costs in steps(model, ids):
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
    for found, _ in steps(model, ids):
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
