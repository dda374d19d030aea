"""Fixtures: small, named by noun, all sizes different and none equal to 4."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give every test the same seed, one thread, an empty folder, and nothing of the caller's environment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(20)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LSTMLM_KERNEL", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)
