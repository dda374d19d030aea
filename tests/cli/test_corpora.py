"""The text that an earlier run was trained on: found again, or missed with advice that fits the command."""

from pathlib import Path

import pytest

from tests.cli.conftest import TEXT, TINY, Lstmlm

ADVICE = [
    (("eval",), "Name a text to score."),
    (("eval", "--lines"), "Name a text to score."),
    (("inspect", "--at", "."), "Give a TEXT or --file."),
    (("fill", "____ is there.", "--words", "3"), "Give the candidates with --choice instead of --words."),
]


@pytest.mark.parametrize("way", ["standard input", "has changed", "that the model knows", "no file"])
def test_advice(lstmlm: Lstmlm, way: str, tmp_path: Path) -> None:
    """A run's own text that cannot be had again is exit 3, one line with why and what this very command can be given."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert lstmlm("train", "-" if way == "standard input" else text, *TINY, "--out", "runs/a", stdin=TEXT.encode()).code == 0
    if way == "no file":
        text.unlink()
    elif way != "standard input":
        text.write_text(TEXT + ("B" if way == "has changed" else "%"))
    for command, advice in ADVICE:
        result = lstmlm(*command, "-q")

        assert result.code == 3, result.err
        assert way in result.err or way == "no file"
        assert result.err.rstrip().endswith(advice)
        assert len(result.err.splitlines()) == 1
        assert not any(f"{name}:" in result.err for name in ("eval", "inspect", "fill"))
