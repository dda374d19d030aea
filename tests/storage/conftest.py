from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a path for a checkpoint, in the current folder."""
    return tmp_path / "best.safetensors"
