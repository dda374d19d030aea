"""Which device is chosen, and what is said where it cannot be had."""

import os

import pytest
import torch

from lstmlm.errors import SystemProblem, UsageError
from lstmlm.model import devices

CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the environment as it was."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.skipif(CUDA, reason="there is a CUDA device here")
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    """Without CUDA nothing is said: the CPU is what is expected."""
    said: list[str] = []

    assert devices.choose("auto", said.append) == devices.choose("cpu") == torch.device("cpu")
    assert said == []


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_auto_is_cuda_where_it_works() -> None:
    """A device that multiplies is taken, and cuBLAS has been told to add in a fixed order."""
    assert devices.choose("auto").type == devices.choose("cuda").type == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built with CUDA")
def test_cuda_is_refused_with_what_was_found() -> None:
    """A device that cannot be had names the version of torch that cannot."""
    with pytest.raises(UsageError, match=r"expected a working CUDA device, found: torch .*, built without CUDA\. Leave it out"):
        devices.choose("cuda")


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CUDA without a driver, and fewer devices than processes, are told apart."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no device or driver" in devices.missing()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.missing(2) == ""
    assert devices.missing(3) == "2 for 3 processes on this machine"


def test_a_broken_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is requested it says in a line what is wrong and takes the CPU; cuda is refused with the same words."""
    monkeypatch.setattr(devices, "missing", lambda places=1: "")
    monkeypatch.setattr(devices, "broken", lambda device: f"{device} has no kernel image")
    said: list[str] = []

    assert devices.choose("auto", said.append, place=1, places=2) == torch.device("cpu")
    assert said == ["device cpu: there is a CUDA device, but cuda:1 has no kernel image"]
    with pytest.raises(UsageError, match="cuda:0 has no kernel image"):
        devices.choose("cuda")


def test_too_few_devices_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more processes than devices share a machine, the CPU is not taken without a word."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said: list[str] = []

    assert devices.choose("auto", said.append, place=1, places=3) == torch.device("cpu")
    assert said == ["device cpu: there is a CUDA device, but 2 for 3 processes on this machine"]


def test_a_device_is_tried_by_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes is right; one that fails, and one that gives another number, are not."""
    assert devices.broken(torch.device("cpu")) == ""
    assert devices.broken(torch.device("meta"))

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: 2 * ones(*shape))
    assert devices.broken(torch.device("cpu")) == "8 x 8 ones times themselves sum to 2048, not 512"


def test_an_unknown_device_is_refused() -> None:
    """From Python, where no setting has checked it."""
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        devices.choose("gpu")


def test_only_a_full_device_is_short_of_memory() -> None:
    """An error of torch's own becomes one with an exit code and a next step; any other error stays what it is."""
    found = devices.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))

    assert isinstance(found, SystemProblem)
    assert "--batch" in str(found)
    assert "Close other programs" in str(devices.out_of_memory(MemoryError()))
    assert devices.out_of_memory(RuntimeError("shapes differ")) is None


def test_a_name_for_checkpoints() -> None:
    """The CPU is called by its type."""
    assert devices.name(torch.device("cpu")) == "cpu"
