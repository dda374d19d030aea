"""The page: what a person reads in a browser is what --json gives."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lstmlm.display.gate_page import DIGITS, LEVELS, QUANTITIES, Noted, page

CHARS = "Bob </script><b>\nran & é日."
SIGNED = ("new", "cell", "hidden")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def found(chars: str = CHARS, names: Sequence[str] = tuple(QUANTITIES)[:-1]) -> dict[str, Any]:
    """Make values that tell text, character, layer, quantity and unit."""
    n = len(chars)

    def values(layer: int, width: int, name: str) -> dict[str, Any]:
        phase = 10 * layer + sum(map(ord, name + chars)) % 7
        waves = [[math.sin(phase + t / 3 + unit) for unit in range(width)] for t in range(n)]
        if name == "hidden":
            gate, cell = (values(layer, width, other)["values"] for other in ("output", "cell"))
            waves = [[o * math.tanh(c) for o, c in zip(*rows, strict=True)] for rows in zip(gate, cell, strict=True)]
        elif name not in SIGNED:
            waves = [[(1 + wave) / 2 for wave in row] for row in waves]
        return {"shape": [n, width], "values": waves}

    return {
        "characters": list(chars),
        "layers": [
            {"layer": number, **{name: values(number, width, name) for name in names}} for number, width in ((1, 3), (2, 4))
        ],
        "surprise": {"shape": [n], "values": [t / 16 for t in range(n)]},
        "likeliest": [[[" ", 0.5], ["\n", 0.25], ["é", 0.0001]]] * n,
    }


def data(text: str) -> Any:
    """Return what a page holds."""
    text = text[text.index('id="data">') + 10 :]
    return json.loads(text[: text.index("</script>")])


def test_the_page_needs_nothing_but_itself() -> None:
    """No address, no second script file, no style sheet; and the text cannot end the element it lies in."""
    text = page([found()], "runs/<x>", SIGNED, "cell")

    assert not re.search(r"https?://|src=|@import|<link|url\(", text)
    assert "".join(data(text)["texts"][0]["glyphs"]) == CHARS.replace("\n", "↵")
    assert "runs/&lt;x&gt;" in text


def test_values_are_kept_to_a_4095th_of_their_range() -> None:
    """Two digits for each value give it back; H, which follows from o and C, is left out, and kept where they are."""
    (text,), (alone,) = (
        data(page([found(names=names)], "m", SIGNED, names[0]))["texts"] for names in (tuple(QUANTITIES)[:-1], ("hidden",))
    )
    low, high, digits = text["layers"][1]["cell"]
    codes = [64 * DIGITS.index(a) + DIGITS.index(b) for a, b in zip(digits[::2], digits[1::2], strict=True)]
    kept = [low + (high - low) * code / LEVELS for code in codes]
    exact = [value for row in found()["layers"][1]["cell"]["values"] for value in row]

    assert kept == pytest.approx(exact, abs=(high - low) / LEVELS)
    assert set(text["layers"][0]) == {"forget", "input", "output", "new", "cell"}
    assert set(alone["layers"][0]) == {"hidden"}


def test_flat_values_have_a_place() -> None:
    """A quantity that is the same everywhere is no division by zero."""
    flat = found("ab", ("cell",))
    for layer in flat["layers"]:
        layer["cell"]["values"] = [[0.0] * len(row) for row in layer["cell"]["values"]]
    low, high, digits = data(page([flat], "m", SIGNED, "cell"))["texts"][0]["layers"][0]["cell"]

    assert (low, high, digits) == (0, 0, "A" * 12)


def test_a_short_text_is_a_small_page() -> None:
    """29 characters in 256 units with every quantity stay below 100 kB, with the page around them."""
    text = found("x" * 29)
    for layer in text["layers"][:1]:
        for name in tuple(QUANTITIES)[:-1]:
            layer[name] = {"shape": [29, 256], "values": [[math.sin(t * unit) for unit in range(256)] for t in range(29)]}
    text["layers"] = text["layers"][:1]

    assert len(page([text], "m", SIGNED, "cell").encode()) < 100_000


SEE = """<script>
{
const told = [], errors = [];
for (const line of document.querySelectorAll(".text div")) line.style.contentVisibility = "visible";  // laid out
addEventListener("error", (event) => errors.push(event.message));
const press = (name) => document.querySelector(`[data-name=${name}]`).click();
const set = (id, value) => { const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event("change")); };
const touch = (e, x, y, ...kinds) => { const box = e.getBoundingClientRect(), at = { bubbles: true,
  clientX: box.left + x, clientY: box.top + y }; for (const kind of kinds) e.dispatchEvent(new PointerEvent(kind, at)); };
const key = (e, name) => e.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const table = (id) => [...document.querySelectorAll(`#${id} tr`)].map((row) => [...row.cells].map((cell) => cell.textContent));
const words = (id) => document.getElementById(id).textContent;
const tell = () => told.push({ numbers: table("numbers"), next: table("next"), place: words("place"), meaning: words("meaning"),
  unit: document.getElementById("unit").value, char: words("char"), cell: words("cell"),
  here: [...document.querySelectorAll(".here")].map((e) => e.dataset.t + ":" + e.dataset.i),
  bars: [...document.querySelectorAll("#next i")].map((e) => e.style.width),
  units: [...document.querySelectorAll(".units button")].map((e) => e.dataset.unit + e.querySelector("span")?.textContent),
  pressed: [...document.querySelectorAll("button[aria-pressed=true]")].map((e) => e.dataset.name || e.dataset.unit),
  wide: document.documentElement.scrollWidth <= innerWidth });
%ACTS%
document.body.innerHTML = "";
document.body.append(JSON.stringify({ told, errors }));
}
</script></body>"""


def browse(page: str, acts: str, folder: Path, width: int = 1200) -> list[Any]:
    """Open a page in a browser, act on it, and return what `tell()` saw each time; an error of its script fails."""
    (folder / "page.html").write_text(page.replace("</body>", SEE.replace("%ACTS%", acts)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [str(BROWSER), *flags, f"--window-size={width},900", f"file://{folder / 'page.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(unescape(shown[shown.index("<body>") + 6 : shown.rindex("</body>")]))
    assert seen["errors"] == []
    return list(seen["told"])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_browser_shows_the_numbers(tmp_path: Path) -> None:
    """Colour, layer, unit, character by pointer and key, map and list: the page says what the values say."""
    acts = """
tell();
set("layer", 1); press("cell"); set("unit", 2);
touch(document.querySelector('[data-i="4"]'), 3, 6, "pointerdown"); tell();
key(document.querySelector(".text"), "ArrowRight"); tell();
set("order", "number");
touch(document.querySelector(".map"), 9 * columns[0].wide + 3, TOP + 2 * tall() + 2, "pointermove", "click"); tell();
key(document.querySelector(".map"), "ArrowDown"); tell();
document.querySelector('.units button[data-unit="1:3"]').click(); tell();
press("surprise"); tell();
"""
    exact = found()
    first, cell, right, mapped, down, listed, surprise = browse(
        page([exact], "a model", SIGNED, "forget", [Noted(1, 3, "C is high in <b>")]), acts, tmp_path
    )

    def values(layer: int, name: str, unit: int, at: int) -> str:
        return f"{exact['layers'][layer][name]['values'][at][unit - 1]:.3f}".replace("-", "\u2212")

    assert first["place"] == f"character {len(CHARS)} of {len(CHARS)}"
    assert first["numbers"][0] == ["layer 1", "mean of 3 units"]
    assert dict(cell["numbers"][1:]) == {
        title: values(1, name, 2, 4) for name, (title, _) in QUANTITIES.items() if name != "surprise"
    }
    assert (cell["numbers"][0], cell["place"]) == (["layer 2", "unit 2:2"], f"character 5 of {len(CHARS)}")
    assert cell["char"] == "<cost 0.250 bits"
    assert cell["next"] == [["␣", "50.0 %", ""], ["↵", "25.0 %", ""]]
    assert cell["bars"] == ["50%", "25%"]
    assert cell["meaning"] == QUANTITIES["cell"][1] + " Coloured by unit 2:2."
    assert (right["place"], right["here"]) == (f"character 6 of {len(CHARS)}", ["0:5"])
    assert (mapped["unit"], mapped["here"]) == ("3", ["0:9"])
    assert mapped["cell"].startswith(f"unit 2:3 at {CHARS[9]}: ")
    assert down["unit"] == "4"
    assert "1:3C is high in <b>" in listed["units"]
    assert (listed["numbers"][0], set(listed["pressed"])) == (["layer 1", "unit 1:3"], {"cell", "1:3"})
    assert "surprise" in surprise["pressed"]
    assert surprise["meaning"] == QUANTITIES["surprise"][1]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_browser_shows_two_texts_side_by_side(tmp_path: Path) -> None:
    """One place in both, a value of each, the units that differ most; nothing wider than a telephone."""
    texts = [found("Bob ran."), found("Dan ran home.")]
    one, end = browse(
        page(texts, "m", SIGNED, "cell"),
        """
set("unit", 1); touch(document.querySelectorAll('[data-i="2"]')[1], 3, 6, "pointerdown"); tell();
for (let i = 0; i < 9; i++) key(document.querySelectorAll(".text")[1], "ArrowRight");
tell();
""",
        tmp_path,
        500,
    )
    assert (one["here"], end["here"]) == (["0:2", "1:2"], ["0:7", "1:11"])
    both = next(row[1:] for row in one["numbers"] if row[0] == QUANTITIES["cell"][0])

    exact = [text["layers"][0]["cell"]["values"][2][0] for text in texts]
    assert [float(value.replace("\u2212", "-")) for value in both] == pytest.approx(exact, abs=0.001)
    assert len(one["next"]) == 4
    assert any(re.match(r"\d:\dby \d\.\d{3} in the mean", unit) for unit in one["units"])
    assert one["wide"]
