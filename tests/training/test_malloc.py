"""What the commands do about memory and imports before torch is there."""

import sys
import threading

import pytest

from lstmlm.training import malloc


def imported() -> None:
    """Begin to import torch, and wait for it."""
    malloc.import_torch_meanwhile()
    for thread in threading.enumerate():
        if thread.name == "import torch":
            thread.join()


def test_torch_is_there_afterwards() -> None:
    """What was imported meanwhile is what an import then finds."""
    imported()

    assert "torch" in sys.modules


@pytest.mark.filterwarnings("error")
def test_a_failure_is_left_to_whoever_needs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails meanwhile says nothing, and fails again where torch is needed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    imported()

    with pytest.raises(ImportError):
        import torch  # noqa: F401 - it cannot be had
