"""One HTML page in which a person looks through every gate and unit along a text: no library, no network.

`page` is the entry point, for `inspect --html`.
"""

import base64
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lstmlm.display.gate_plots import PAPER, PAPER_TWO_SIDED, glyph
from lstmlm.errors import printable

SIGNED = ("new", "cell", "hidden")


def page(found: Mapping[str, Any], model: str) -> str:
    """Return the page.

    Args:
        found: `characters`, `layers` (each a mapping from a quantity to `shape` and `values`), `surprise` and
            `likeliest`, as `lstmlm inspect --json` gives them.
        model: Its name, shown at the top.
    """
    quantities = [name for name in found["layers"][0] if name != "layer"]
    data = {
        "chars": list(found["characters"]),
        "glyphs": [glyph(char) for char in found["characters"]],
        "quantities": quantities,
        "signed": [name for name in quantities if name in SIGNED],
        "widths": [layer[quantities[0]]["shape"][1] for layer in found["layers"]],
        "layers": [{name: _packed(layer[name]["values"]) for name in quantities} for layer in found["layers"]],
        "surprise": found["surprise"]["values"],
        "likeliest": [[[glyph(char), chance] for char, chance in row] for row in found["likeliest"]],
        "ramp": PAPER,
        "two_sided": PAPER_TWO_SIDED,
    }
    # `<` could end the script element; as an escape it means the same to JSON.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return _PAGE.replace("%MODEL%", escape(printable(model))).replace("%DATA%", text)


def _packed(rows: Sequence[Sequence[float]]) -> str:
    """Return the values as base64 of 32-bit floats, little end first, row by row."""
    values = array("f", (value for row in rows for value in row))
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Inside %MODEL%</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --paper: #fff; --edge: #d1d9e0; --mark: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --faint: #99a3ad; --paper: #15181c; --edge: #3a414a; --mark: #ff7b72; }
}
* { box-sizing: border-box; }
body { margin: 0; height: 100vh; display: flex; flex-direction: column; font: 14px system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
header { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; padding: 10px 16px;
  border-bottom: 1px solid var(--edge); }
h1 { font-size: 15px; margin: 0 8px 0 0; }
label { color: var(--faint); }
select, input { font: inherit; margin-left: 4px; }
input { width: 5.5em; }
main { flex: 1; display: flex; min-height: 0; }
#text { flex: 1; overflow: auto; padding: 12px 16px; font: 15px/1.65 ui-monospace, monospace; outline-offset: -2px; }
#text div { white-space: pre-wrap; overflow-wrap: anywhere; content-visibility: auto; contain-intrinsic-size: auto 50px; }
#text span { padding: 2px 0; cursor: crosshair; }
#text span.here { outline: 2px solid var(--mark); outline-offset: -1px; }
aside { width: 310px; overflow: auto; padding: 12px 16px; border-left: 1px solid var(--edge); }
table { border-collapse: collapse; width: 100%; margin: 6px 0 14px; }
td, th { padding: 2px 0; text-align: right; font-variant-numeric: tabular-nums; font-weight: normal; }
td:first-child, th:first-child { text-align: left; }
th, .faint { color: var(--faint); }
#char { font: 600 22px ui-monospace, monospace; }
.bar { display: inline-block; height: 9px; background: #5ec962; vertical-align: middle; }
canvas { width: 100%; height: 110px; border: 1px solid var(--edge); }
#scale { display: inline-block; width: 120px; height: 12px; margin: 0 6px; vertical-align: middle; }
@media (max-width: 700px) { main { flex-direction: column; } aside { width: auto; max-height: 50%; border-left: 0;
  border-top: 1px solid var(--edge); } }
</style>
</head>
<body>
<header>
<h1>Inside %MODEL%</h1>
<label>layer<select id="layer"></select></label>
<label>what<select id="what"></select></label>
<label>unit<input id="unit" type="number" min="0" value="0" title="0: the mean of the layer"></label>
<span class="faint">0 is the mean of the layer</span>
<span><span id="low"></span><span id="scale"></span><span id="high"></span></span>
</header>
<main>
<div id="text" tabindex="0" aria-label="the text; arrow keys move"></div>
<aside aria-live="polite">
<div><span id="char"></span> <span class="faint" id="place"></span></div>
<table id="numbers"></table>
<div class="faint" id="along"></div>
<canvas id="curve" width="556" height="220"></canvas>
<p class="faint">likeliest next</p>
<table id="next"></table>
</aside>
</main>
<script type="application/json" id="data">%DATA%</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const n = data.chars.length;
const layers = data.layers.map((layer) => Object.fromEntries(Object.entries(layer).map(([name, packed]) => {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return [name, values];
})));
const signed = (name) => data.signed.includes(name);
const shown = (value) => value.toPrecision(6);
let here = 0, values = new Float32Array(n), low = 0, high = 1, version = 0;

function mix(share, ramp) {
  const place = Math.min(1, Math.max(0, share)) * (ramp.length - 1), left = Math.min(ramp.length - 2, Math.floor(place));
  const part = (hex, k) => parseInt(hex.slice(k, k + 2), 16);
  const away = place - left;
  const rgb = [1, 3, 5].map((k) => Math.round(part(ramp[left], k) * (1 - away) + part(ramp[left + 1], k) * away));
  const bright = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
  return ["rgb(" + rgb + ")", bright > 135 ? "#000" : "#fff"];
}

// One line of the text is one element; a line that is not in sight is neither laid out nor coloured.
const spans = [], lines = [];
for (let start = 0; start < n;) {
  let stop = data.chars.indexOf("\\n", start) + 1;
  if (stop === 0 || stop > start + 500) stop = Math.min(n, start + 500);
  const line = document.createElement("div");
  for (let i = start; i < stop; i++) {
    const span = document.createElement("span");
    span.textContent = data.glyphs[i];
    span.dataset.i = i;
    spans.push(span);
    line.append(span);
  }
  line.start = start; line.stop = stop; line.version = -1; line.seen = false;
  lines.push(line);
  start = stop;
}
$("text").append(...lines);

function paint(line) {
  if (line.version === version) return;
  line.version = version;
  const ramp = signed($("what").value) ? data.two_sided : data.ramp;
  for (let i = line.start; i < line.stop; i++) {
    const [ground, ink] = mix(high > low ? (values[i] - low) / (high - low) : 0.5, ramp);
    spans[i].style.background = ground;
    spans[i].style.color = ink;
  }
}
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.seen = entry.isIntersecting;
    if (entry.isIntersecting) paint(entry.target);
  }
}, { root: $("text"), rootMargin: "400px" });
lines.forEach((line) => watch.observe(line));

function of(layer, name, unit, i) {
  const width = data.widths[layer], row = layers[layer][name];
  if (unit > 0) return row[i * width + unit - 1];
  let sum = 0;
  for (let u = 0; u < width; u++) sum += row[i * width + u];
  return sum / width;
}

function choose() {
  const layer = Number($("layer").value), name = $("what").value;
  $("unit").max = data.widths[layer];
  const unit = Math.max(0, Math.min(data.widths[layer], Math.floor(Number($("unit").value) || 0)));
  $("unit").value = unit;
  low = Infinity; high = -Infinity;
  for (let i = 0; i < n; i++) {
    values[i] = of(layer, name, unit, i);
    low = Math.min(low, values[i]); high = Math.max(high, values[i]);
  }
  if (signed(name)) { high = Math.max(Math.abs(low), Math.abs(high)); low = -high; }
  $("low").textContent = low.toPrecision(3);
  $("high").textContent = high.toPrecision(3);
  const ramp = signed(name) ? data.two_sided : data.ramp;
  $("scale").style.background = "linear-gradient(to right," + ramp.join(",") + ")";
  version++;
  lines.filter((line) => line.seen).forEach(paint);
  point(here);
}

function table(id, rows) {
  $(id).replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => {
      const td = document.createElement("td");
      if (cell instanceof Node) td.append(cell); else td.textContent = cell;
      return td;
    }));
    return row;
  }));
}

function point(i) {
  spans[here].classList.remove("here");
  here = i;
  spans[i].classList.add("here");
  const layer = Number($("layer").value), unit = Number($("unit").value);
  $("char").textContent = data.glyphs[i];
  $("place").textContent = "character " + (i + 1) + " of " + n;
  const who = unit ? "unit " + unit : "mean of " + data.widths[layer];
  table("numbers", [["layer " + (layer + 1), who],
    ...data.quantities.map((name) => [name, shown(of(layer, name, unit, i))]),
    ["surprise, bits", shown(data.surprise[i])]]);
  table("next", data.likeliest[i].map(([char, chance]) => {
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = Math.round(chance * 120) + "px";
    return [char, bar, (100 * chance).toFixed(1) + " %"];
  }));
  curve();
}

function curve() {
  const canvas = $("curve"), pen = canvas.getContext("2d"), half = 40;
  const first = Math.max(0, Math.min(here - half, n - 2 * half)), last = Math.min(n, first + 2 * half);
  const x = (i) => (i - first + 0.5) / Math.max(1, last - first) * canvas.width;
  const y = (v) => high > low ? 200 - (v - low) / (high - low) * 180 : 110;
  $("along").textContent = $("what").value + ", characters " + (first + 1) + " to " + last;
  const style = getComputedStyle(document.body);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = 3; pen.lineJoin = "round"; pen.strokeStyle = style.color;
  pen.beginPath();
  for (let i = first; i < last; i++) pen.lineTo(x(i), y(values[i]));
  pen.stroke();
  pen.fillStyle = style.getPropertyValue("--mark");
  pen.beginPath(); pen.arc(x(here), y(values[here]), 7, 0, 7); pen.fill();
}

data.widths.forEach((width, i) => $("layer").append(new Option((i + 1) + " (" + width + " units)", i)));
data.quantities.forEach((name) => $("what").append(new Option(name, name)));
for (const id of ["layer", "what", "unit"]) $(id).addEventListener("change", choose);
$("text").addEventListener("mouseover", (event) => { if (event.target.dataset.i) point(Number(event.target.dataset.i)); });
$("text").addEventListener("click", (event) => { if (event.target.dataset.i) point(Number(event.target.dataset.i)); });
$("text").addEventListener("keydown", (event) => {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (move === undefined || here + move < 0 || here + move >= n) return;
  event.preventDefault();
  point(here + move);
  spans[here].scrollIntoView({ block: "nearest" });
});
choose();
</script>
</body>
</html>
"""
