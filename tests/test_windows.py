"""The package as Windows would run it, as far as that can be tried elsewhere; see `windows.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import windows
from tests.cli.trained import TEXT
from tests.test_architecture import MODULES, each_module, imported, runs_on_import, tree

SCRIPT = Path(__file__).parent / "windows.py"


@each_module
def test_nothing_of_posix_is_imported_at_once(path: Path) -> None:
    """Modules that only POSIX has are imported where they are used, if at all."""
    names = {name.split(".")[0] for name in imported(runs_on_import(tree(path)), path)}

    assert not names & set(windows.MODULES)


def test_there_are_modules() -> None:
    """The test above has something to look at."""
    assert len(MODULES) > 50


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it asks /proc which files are open")
def test_training_and_sampling_without_posix(tmp_path: Path) -> None:
    """Without what POSIX alone has, and where an open file can be neither renamed nor removed, runs begin, go on and are read."""
    corpus, run = tmp_path / "text.txt", tmp_path / "run"
    corpus.write_text(TEXT * 20)
    small = "--hidden", "32", "--layers", "1", "--steps", "4", "-q"
    commands = (
        ("train", str(corpus), "--out", str(run), *small),
        ("train", "--resume", str(run), "--steps", "6", "-q"),
        ("train", str(corpus), "--out", str(run), "--overwrite", *small),
        ("sample", "-m", str(run), "--prompt", "B", "--length", "5"),
        ("eval", "-m", str(run), str(corpus)),
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *command], capture_output=True, text=True, env=os.environ, cwd=tmp_path
        )

        assert done.returncode == 0, (command, done.stderr)
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
