"""The Triton kernel for tests: on a CUDA device where there is one, else in Triton's interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lstmlm
from lstmlm.kernels import persistent
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_tiles import Chip, Tiles

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when it is imported, whoever does that first, and again when it is used


@pytest.fixture(scope="module")
def loaded() -> dict[str, PersistentKernel]:
    """Return the kernel in both precisions."""
    persistent.load.cache_clear()
    kernels = {precision: persistent.load(precision) for precision in ("float32", "bfloat16")}
    persistent.load.cache_clear()
    return kernels


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes all passes be cut up in a way that is asked for."""

    def ask(**requested: Any) -> None:
        def chosen(B: int, S: int, K: int, size: int, chip: Chip, count: int) -> Tiles:
            cut = Tiles(16, 1, 16, 16, 2, 0, 0, True, False)._replace(**requested)
            chunks = -(-K // (cut.depth * cut.warps))
            return cut._replace(chunks=chunks, ahead=min(cut.ahead, chunks - 1))

        monkeypatch.setattr(persistent, "tiles", chosen)

    return ask


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Return what compiles a module's launches for an H200, in a process that does not interpret, and says what came of it."""

    def ask(module: str) -> list[dict[str, Any]]:
        environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(lstmlm.__file__).parents[1])}
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, "-W", "ignore", "-m", f"tests.kernels.{module}"]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
        found: list[dict[str, Any]] = json.loads(run.stdout)
        return found

    return ask
