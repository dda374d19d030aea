"""The page: what a person reads in a browser is what --json gives."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from lstmlm.display.gate_page import page

CHARS = list("Bob </script><b>\nran & é日.")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def found() -> dict[str, Any]:
    """Make values that tell character, layer, quantity and unit."""
    n = len(CHARS)

    def values(width: int, offset: float) -> dict[str, Any]:
        return {"shape": [n, width], "values": [[offset + t + unit / 8 for unit in range(width)] for t in range(n)]}

    return {
        "characters": CHARS,
        "layers": [
            {"layer": 1, "forget": values(3, 0.0), "cell": values(3, -100.0)},
            {"layer": 2, "forget": values(2, 50.0), "cell": values(2, -9.0)},
        ],
        "surprise": {"shape": [n], "values": [t / 16 for t in range(n)]},
        "likeliest": [[["a", 0.5], ["\n", 0.25]]] * n,
    }


def test_the_page_needs_nothing_but_itself() -> None:
    """No address, no second script file, no style sheet; and the text cannot end the element it lies in."""
    text = page(found(), "runs/<x>", ["cell"])
    data = text[text.index('id="data">') + 10 :]

    assert not re.search(r"https?://|src=|@import|<link", text)
    assert json.loads(data[: data.index("</script>")])["chars"] == CHARS
    assert "runs/&lt;x&gt;" in text


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_browser_shows_the_numbers(tmp_path: Path) -> None:
    """Layer 2, cell, unit 2, the fifth character: the page says what the values say, and scripts of the text do not run."""
    pick = """<script>
for (const [id, value] of [["layer", 1], ["what", "cell"], ["unit", 2]]) {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("change"));
}
document.querySelector('[data-i="4"]').dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
</script></body>"""
    (tmp_path / "page.html").write_text(page(found(), "a model", ["cell"]).replace("</body>", pick), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(BROWSER), *flags, f"file://{tmp_path / 'page.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    cells = [unescape(cell) for cell in re.findall(r"<td>([^<]*)</td>", shown[shown.index('<table id="numbers">') :])]
    told = dict(zip(cells[::2], cells[1::2], strict=False))

    assert float(told["cell"]) == found()["layers"][1]["cell"]["values"][4][1]
    assert float(told["forget"]) == found()["layers"][1]["forget"]["values"][4][1]
    assert float(told["surprise, bits"]) == found()["surprise"]["values"][4]
    assert told["layer 2"] == "unit 2"
    assert 'id="place">character 5 of' in shown
