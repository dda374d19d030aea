"""scripts/demo.sh: it trains where there is no run, goes on where one was stopped, and replaces none."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("there", "trained"),
    [
        ((), ["train stories --out runs/stories --minutes 1"]),
        (("config.yaml",), ["train --resume runs/stories"]),
        (("config.yaml", "last.safetensors"), ["train --resume runs/stories"]),
        (("config.yaml", "last.safetensors", "best.safetensors"), []),
    ],
)
def test_no_run_is_replaced(tmp_path: Path, there: tuple[str, ...], trained: list[str]) -> None:
    """runs/stories is where a user's own run lies too: a run that was stopped goes on, and one with a model stays as it is."""
    for folder in ("scripts", ".venv/bin", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "demo.sh", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text("")
    program = tmp_path / ".venv" / "bin" / "lstmlm"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    for name in there:
        (tmp_path / "runs" / "stories").mkdir(exist_ok=True)
        (tmp_path / "runs" / "stories" / name).touch()
    subprocess.run(["bash", "scripts/demo.sh"], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=True, capture_output=True)
    calls = (tmp_path / "calls").read_text().splitlines()

    assert [call for call in calls if call.startswith("train")] == trained
    assert {"sample", "eval", "info"} < {call.split()[0] for call in calls} | {"train"}
