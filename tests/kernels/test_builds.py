"""The C as other CPUs build it."""

import platform
import subprocess
from pathlib import Path

import pytest

from lstmlm.kernels import build

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux" or not (ROOT / "scripts").is_dir(), reason="a script of the checkout, for Linux")
def test_every_build_writes_the_same_text() -> None:
    """With AVX-512, with AVX2, with neither and for aarch64 the C computes rightly, and writes the same text to the last bit."""
    try:
        next(build.compilers())
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    run = subprocess.run(["bash", "scripts/dev/check_builds.sh", "-O1"], cwd=ROOT, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout + run.stderr
    assert "the same text" in run.stdout
