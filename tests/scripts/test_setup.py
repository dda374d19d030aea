import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts" / "setup.sh"


@pytest.mark.skipif(os.name == "nt", reason="there is no bash on this system")
def test_it_installs_again_when_the_pins_go_back(tmp_path: Path) -> None:
    """A second call does nothing; other pins, the pins of before, and another extra are each installed once."""
    for folder in ("scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SETUP, tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("")
    for name, text in (("python", 'echo "$@" >> log'), ("lstmlm", "exit 9")):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    installed = []
    for pins, *extra in (
        ("one",),
        ("one",),
        ("two",),
        ("one",),
        ("one", "dev"),
        ("one",),
        ("two", "dev"),
        ("one",),
        ("one", "dev"),
    ):
        (tmp_path / "scripts" / "constraints.txt").write_text(pins)
        (tmp_path / "log").write_text("")
        command = ["bash", "scripts/setup.sh", *extra]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, check=True, capture_output=True)
        installed.append((tmp_path / "log").read_text().count("install"))

    assert installed == [1, 0, 1, 1, 1, 0, 1, 1, 1]
