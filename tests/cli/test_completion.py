"""What a shell is offered where only some words are right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Lstmlm
from tests.cli.test_main import IMPORTS, ROOT


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("export --to ", "torch onnx"),
        ("eval --device c", "cpu cuda"),
        ("sample --on-unknown r", "replace"),
        ("train --split l", "lines"),
        ("train x --precision f", "float32"),
        ("train --config c", "ci coffee class.yaml"),
        ("train s", "stories sonnets.txt"),
        ("train son", ""),  # the shell's own: files
        ("inspect X --show cell,f", "cell,forget"),
        ("sample -m r", "runs/text"),
        ("info runs/", "runs/text"),
        ("train --from runs/", "runs/text"),
        ("sample --prompt ", ""),
    ],
)
def test_offers_what_is_right(lstmlm: Lstmlm, run: Path, monkeypatch: pytest.MonkeyPatch, typed: str, offered: str) -> None:
    """An option with a few right values offers them, a model the runs, a corpus what comes along and the files beside it."""
    for name in ("class.yaml", "sonnets.txt"):
        Path(name).touch()
    words = f"lstmlm {typed}"
    monkeypatch.setenv("_LSTMLM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - (not words.endswith(" "))))
    result = lstmlm()
    assert (result.code, sorted(result.out.split()), result.err) == (0, sorted(offered.split()), "")


@pytest.mark.slow
def test_waits_for_no_torch(run: Path) -> None:
    """A key was pressed: nothing slow is imported for what is offered."""
    complete = {"_LSTMLM_COMPLETE": "complete_bash", "COMP_WORDS": "lstmlm inspect --show ", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **complete}
    )
    assert "forget" in done.stdout
    assert done.stderr.split("imported:")[-1].strip() == ""
