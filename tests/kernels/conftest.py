"""The Triton kernel for tests: on a CUDA device where there is one, else in Triton's interpreter."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

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

    def ask(**wish: Any) -> None:
        def chosen(B: int, S: int, K: int, size: int, chip: Chip, count: int) -> Tiles:
            cut = Tiles(16, 1, 16, 16, 2, 0, 0, True, False)._replace(**wish)
            chunks = -(-K // (cut.depth * cut.warps))
            return cut._replace(chunks=chunks, ahead=min(cut.ahead, chunks - 1))

        monkeypatch.setattr(persistent, "tiles", chosen)

    return ask
