"""The command `lstmlm inspect --at`: what happens at a mark, over a whole text."""

import math
import re
from typing import TYPE_CHECKING, Any

from lstmlm.cli.text_input import one_symbol, statistics_text
from lstmlm.display.console import Console
from lstmlm.errors import TextError, UsageError, printable
from lstmlm.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lstmlm.analysis.boundaries import ForgetGateShift, MemoryAblation, Swapped
    from lstmlm.api import LanguageModel
    from lstmlm.data.tokenizer import OnUnknown

CHARS = 2_000_000  # characters of a text that are counted over, unless told: a minute or two
LENGTH = 100  # characters after a mark that are scored
MARKS = 512  # marks whose text is scored again, evenly spread
PAIRS = 200  # places where a name is swapped
CONTEXT = 400  # characters before the mark, or from the last line end on
EDGES = (1, 2, 5, 10, 20, 50, 100)  # characters after the mark, in the tables


def run(
    console: Console,
    model: "LanguageModel",
    text: str | None,
    mark: str,
    names: str | None,
    top: int,
    *,
    everything: bool,
    on_unknown: "OnUnknown",
    json: bool,
) -> None:
    """Measure what the network forgets at a mark, and what its memory is worth there.

    Raises:
        LstmlmError: There is no such mark in the text, or no such text.
    """
    import torch

    from lstmlm.analysis.boundaries import ablate_memory, forget_gates_at, swap

    pair = _names(names)
    symbol = one_symbol("--at", mark, model)
    written = statistics_text(model, text, None if everything else CHARS + 1)
    if len(written) > CHARS and not everything:
        console.say(f"counting over the first {CHARS:,} characters; --all takes them all")
        written = written[:CHARS]
    ids = torch.tensor(model.tokenizer.encode(written, on_unknown))
    if not bool((ids == symbol).any()):
        raise TextError(f"text to inspect: expected '{printable(mark)}' in it, found none in {len(ids):,} characters.")
    layers = forget_gates_at(model.alone, ids, symbol)
    count, costs = ablate_memory(model.alone, ids, symbol, LENGTH, MARKS)
    swapped = None
    if pair:
        places = list(_swaps(model, written, mark, pair, on_unknown))
        if not places:
            raise TextError(f"--swap {printable(pair[0])},{printable(pair[1])}: expected one of them before a mark, found none.")
        swapped = swap(model.alone, places, LENGTH)
    if json:
        console.as_json(_as_dict(model, mark, len(ids), layers, count, costs, swapped, pair, top))
        return
    console.headline(f"{counted(layers[0].marks, 'mark')} '{printable(mark)}' in {len(ids):,} characters")
    console.result("")
    _show_shifts(console, layers, mark, top)
    if costs:
        _show_worth(console, costs, count)
    if swapped is not None and pair is not None:
        _show_swapped(console, swapped, pair)


def sentence(number: int, layer: "ForgetGateShift", mark: str) -> str:
    """Say in one plain sentence what a layer does at the mark."""
    from lstmlm.analysis.boundaries import EFFECT

    low, high = layer.interval
    closed = f"{layer.closed_units} of {len(layer.at)} units fall below 0.1"
    if layer.marks == 1:
        verb = f"layer {number}: one mark cannot tell an effect from chance, so take a text with more"
        return f"{verb}: its mean forget gate changes by {layer.difference:+.3f}, {closed}"
    if low <= 0 <= high:
        verb = f"layer {number}: no effect at '{mark}' that can be told from none"
    elif abs(layer.difference) < EFFECT:
        verb = f"layer {number}: a small effect at '{mark}', below the {EFFECT} from which it is said to forget or hold on"
    elif layer.is_significant_drop:
        verb = f"layer {number} forgets at '{mark}'"
    else:
        verb, closed = f"layer {number} holds on at '{mark}'", f"{closed} all the same"
    return f"{verb}: its mean forget gate changes by {layer.difference:+.3f} (95 %: {low:+.3f} to {high:+.3f}), {closed}"


def _show_shifts(console: Console, layers: "list[ForgetGateShift]", mark: str, top: int) -> None:
    rows: list[list[str | int | float]] = [
        [
            str(n),
            f"{la.elsewhere.mean():.3f}",
            f"{la.at.mean():.3f}",
            f"{after:.3f}" if math.isfinite(after := float(la.after.mean())) else "-",
            f"{la.closed_units} of {len(la.at)}",
        ]
        for n, la in enumerate(layers, start=1)
    ]
    console.table(rows, ("layer", "mean forget gate", "at the mark", "one step later", "fall below 0.1"))
    lines = ["", *(sentence(number, layer, printable(mark)) for number, layer in enumerate(layers, start=1))]
    lines += ["", "units that drop most (mean forget gate elsewhere -> at the mark):"]
    for number, layer in enumerate(layers, start=1):
        units = ", ".join(f"{number}:{unit} {was:.2f} -> {now:.2f}" for unit, now, was in layer.drops(top))
        lines.append(f"  {units}")
    console.prose("\n".join([*lines, ""]))


def _show_worth(console: Console, costs: "dict[str, MemoryAblation]", count: int) -> None:
    carried = costs["carried"]
    rows: list[list[str | int | float]] = []
    for name, worth in costs.items():
        low, high = worth.interval
        sure = f" ({low:+.2f} to {high:+.2f})" if count > 1 else ""  # one mark, drawn again, is always itself
        extra = "" if worth is carried else f"{worth.total - carried.total:+.2f}{sure}"
        parts = [f"{sum(worth.bits[a:b]) / (b - a):.3f}" for a, b in zip((0, *EDGES[3:-1]), EDGES[3:], strict=True)]
        rows.append([name, f"{worth.total:.2f}", extra, *parts])
    heads = [f"{a + 1}-{b}" for a, b in zip((0, *EDGES[3:-1]), EDGES[3:], strict=True)]
    console.headline(
        f"what the memory is worth: bits of {LENGTH} characters after the mark, mean of {counted(count, 'mark')}; "
        "then bits/char by distance"
    )
    console.table(rows, ("state", "bits", "more than carried (95 %)", *heads))
    console.result("")


def _show_swapped(console: Console, swapped: "Swapped", pair: tuple[str, str]) -> None:
    rows: list[list[str | int | float]] = []
    low = 0
    for high in EDGES:
        part = slice(low, min(high, len(swapped.count)))
        weights = swapped.count[part]
        if weights:
            means = [
                sum(v * w for v, w in zip(values[part], weights, strict=True)) / sum(weights)
                for values in (swapped.divergence, swapped.changed)
            ]
            rows.append([f"{low + 1}-{high}" if high > low + 1 else str(high), f"{means[0]:.4f}", f"{means[1]:.1%}", weights[0]])
        low = high
    console.headline(
        f"does it still know who: {printable(pair[0])} swapped for {printable(pair[1])} before the mark; how far the predictions "
        "differ after it"
    )
    console.prose("(Jensen-Shannon divergence, 0 to 1 bit; until the text itself says either name)")
    console.table(rows, ("characters after", "bits", "another first guess", "places"))
    console.result("")


def _names(given: str | None) -> tuple[str, str] | None:
    if given is None:
        return None
    one, comma, other = given.partition(",")
    if not (comma and one.strip() and other.strip() and one.strip() != other.strip()):
        raise UsageError(f"--swap: expected two names such as Bob,Dan, found {printable(given[:40]) or 'none'}.")
    return one.strip(), other.strip()


def _swaps(
    model: "LanguageModel", text: str, mark: str, names: tuple[str, str], on_unknown: "OnUnknown"
) -> "Iterator[tuple[list[int], list[int], list[int]]]":
    """Give places where one of two names is said before a mark and the other is not: as it is, swapped, what follows."""
    either = re.compile(rf"\b(?:{re.escape(names[0])}|{re.escape(names[1])})\b")
    positions = [found.start() for found in re.finditer(re.escape(mark), text)]
    fit = []
    for position in positions:
        begin = max(text.rfind("\n", 0, position) + 1, position - CONTEXT)
        said = set(either.findall(text, begin, position))
        if len(said) == 1 and position + 2 < len(text):
            fit.append((begin, position, said.pop()))
    step = max(1, -(-len(fit) // PAIRS))
    start = model.opening
    for begin, position, name in fit[::step]:
        other = names[1] if name == names[0] else names[0]
        before = text[begin : position + 1]
        after = text[position + 1 : position + 1 + LENGTH]
        again = either.search(after)
        after = after[: again.start()] if again else after
        if after:
            one, two = (start + model.tokenizer.encode(version, on_unknown) for version in (before, either.sub(other, before)))
            yield one, two, model.tokenizer.encode(after, on_unknown)


def _as_dict(
    model: "LanguageModel",
    mark: str,
    chars: int,
    layers: "list[ForgetGateShift]",
    count: int,
    costs: "dict[str, MemoryAblation]",
    swapped: "Swapped | None",
    pair: tuple[str, str] | None,
    top: int,
) -> dict[str, Any]:
    return {
        "schema": 1,
        "command": "inspect",
        "model": str(model.path),
        "at": mark,
        "chars": chars,
        "marks": layers[0].marks,
        "layers": [
            {
                "layer": number,
                "units": len(layer.at),
                "forget_elsewhere": float(layer.elsewhere.mean()),
                "forget_at": float(layer.at.mean()),
                "forget_after": after if math.isfinite(after := float(layer.after.mean())) else None,
                "difference": layer.difference,
                "interval": list(layer.interval),
                "is_significant_drop": layer.is_significant_drop,
                "fall_below_0.1": layer.closed_units,
                "drops": [{"unit": unit, "at": now, "elsewhere": was} for unit, now, was in layer.drops(top)],
                "sentence": sentence(number, layer, mark),
            }
            for number, layer in enumerate(layers, start=1)
        ],
        "worth": {
            "marks": count,
            "chars_after": LENGTH,
            "states": {
                name: {"bits": worth.total, "more_interval": list(worth.interval), "bits_by_distance": worth.bits}
                for name, worth in costs.items()
            },
        },
        "swap": pair
        and swapped
        and {
            "names": list(pair),
            "divergence_bits": swapped.divergence,
            "another_first_guess": swapped.changed,
            "places": swapped.count,
        },
    }
