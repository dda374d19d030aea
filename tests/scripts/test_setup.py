"""scripts/setup.sh: it installs what is pinned, once, and again when the pins have changed or gone back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout of the setup's own files, with a `.venv` whose Python writes down what it is asked to install."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "lstmlm"):
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/installs\n')
        path.chmod(0o755)
    return tmp_path


def installs(checkout: Path, pins: str, *extra: str) -> int:
    """Set up with these pins; return how often something has been installed so far."""
    (checkout / "scripts" / "constraints.txt").write_text(pins)
    command = ["bash", "scripts/setup.sh", *extra]
    subprocess.run(command, cwd=checkout, env=os.environ | {"PYTHON": sys.executable}, check=True, capture_output=True)
    return len((checkout / "installs").read_text().splitlines())


def test_what_is_installed_is_not_installed_again(checkout: Path) -> None:
    """With the same pins each extra is installed once, in whatever order they are asked for."""
    counts = [installs(checkout, "a==1", *extra) for extra in ((), ("dev",), (), ("dev",), ())]

    assert counts == [1, 2, 2, 2, 2]


def test_pins_that_go_back_are_installed_again(checkout: Path) -> None:
    """Each change of the pins installs, back to earlier ones too, and also where another extra brought the change."""
    counts = [installs(checkout, pins) for pins in ("a==1", "a==2", "a==1", "a==1")]
    other = [installs(checkout, "a==2", "dev"), installs(checkout, "a==1"), installs(checkout, "a==1", "dev")]

    assert counts == [1, 2, 3, 3]
    assert other == [4, 5, 6]
