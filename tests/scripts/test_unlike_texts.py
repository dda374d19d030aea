"""the automatic choices on unlike texts: each trains without a word from the user, and soon beats frequencies."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import call


def load() -> Any:
    """Import the script, which lies outside the package."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "experiments" / "unlike_texts.py"
    spec = importlib.util.spec_from_file_location("unlike_texts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


unlike_texts: Any = load()
CHARS = 12_000  # of each text: enough for eleven windows of every stream


@pytest.mark.slow
@pytest.mark.usefixtures("short_samples")
@pytest.mark.parametrize("name", list(unlike_texts.TEXTS))
def test_beats_frequencies(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Within 60 steps every kind of text is predicted better than by the frequencies of its characters."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    text = unlike_texts.TEXTS[name]()[:CHARS]
    Path("text.txt").write_text(text, encoding="utf-8", newline="")
    trained = call("train", "text.txt", "--steps", 60, "--threads", 1, "-q", "--json")
    scored = call("eval", "--no-baselines", "--threads", 1, "--json")

    assert trained.code == 0, trained.err
    assert scored.code == 0, scored.err
    assert scored.json["bits_per_char"] < scored.json["order0_bits_per_char"]


def test_texts_are_unlike() -> None:
    """The texts are the same twice, differ in their symbols from two to thousands, and fill what they are cut to."""
    texts = {name: make() for name, make in unlike_texts.TEXTS.items()}

    assert all(unlike_texts.TEXTS[name]() == text for name, text in texts.items())
    assert len(set(texts["two"])) == 2
    assert len(set(texts["many"])) > 1500
    assert len(texts["short"]) == 2000
    assert all(len(text) > 80_000 for name, text in texts.items() if name != "short")
    assert max(map(ord, texts["greek"])) > 0x370
