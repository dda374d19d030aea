"""That the campaign of failing calls runs, and that its library strikes where it says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lstmlm

CAMPAIGNS = Path(lstmlm.__file__).resolve().parents[1] / "scripts" / "campaigns"
PROGRAM = """
import os, sys
fd = os.open(sys.argv[1] + "/file", os.O_WRONLY | os.O_CREAT)
print(os.write(fd, b"12345678"))
os.fsync(fd)
os.close(fd)
os.replace(sys.argv[1] + "/file", sys.argv[1] + "/other")
"""
needs_compiler = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")


@needs_compiler
@pytest.mark.parametrize(
    ("at", "action", "code", "said"),
    [(2, "cut", 0, "4"), (2, "refuse", 1, "Errno 5"), (3, "broken", 1, "Errno 5"), (4, "kill", -9, ""), (6, "kill", 0, "8")],
)
def test_the_library_strikes_at_a_call(tmp_path: Path, at: int, action: str, code: int, said: str) -> None:
    """Open, write, fsync, close and rename are calls 1 to 5; one of them is cut, refused, or the last thing that is done."""
    library = tmp_path / "shim.so"
    source = str(CAMPAIGNS / "disk_shim.c")
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", source, "-o", str(library), "-ldl"], check=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    shim = {"LD_PRELOAD": str(library), "SHIM_FOLDER": str(folder), "SHIM_AT": str(at), "SHIM_ACTION": action}
    shim["SHIM_LOG"] = str(tmp_path / "log")
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **shim})

    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert int.from_bytes((tmp_path / "log").read_bytes()[:8], sys.byteorder) >= min(at, 5)


@pytest.mark.slow
@needs_compiler
def test_disturbed_runs_and_races() -> None:
    """One disturbed run of each kind, and two trainings begun at once: nothing is lost, and no bit differs."""
    script = str(CAMPAIGNS / "disk_faults.py")
    done = subprocess.run([sys.executable, script, "--cases", "5", "--races", "2", "--seed", "7"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
