"""The commands on a device that is not the CPU: the same results, and what is said of a device that does not work."""

from functools import partial
from pathlib import Path

import pytest
import torch

from lstmlm.evaluation import sampling
from lstmlm.model import devices
from lstmlm.training import dynamic
from tests import pretend
from tests.cli.conftest import TINY, Lstmlm
from tests.cli.test_train import digest

COMMANDS = [
    ("sample", "--prompt", "Bob", "--length", "30", "--seed", "3"),
    ("sample", "-n", "5", "--length", "9", "--seed", "3", "--top-p", "0.9", "--json"),
    ("eval", "--json"),
    ("eval", "text.txt", "--protocol", "cold", "--window", "9", "--json", "--dynamic"),
    ("eval", "text.txt", "--lines"),
    ("fill", "Bob ____ l", "--choice", "est", "--choice", "is", "--json", "--forget-at", "."),
]


@pytest.mark.slow
def test_every_command_there_and_here(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, stopped, resumed and used on a device, a model is the CPU's, and each can be used where the other was made."""
    for kind in ("cpu", pretend.DEVICE.type):  # as many at a time: the bits of torch's products depend on the number of rows
        monkeypatch.setitem(sampling.DRAWN_TOGETHER, kind, 2)
    monkeypatch.setattr(dynamic, "DynamicEvaluator", partial(dynamic.DynamicEvaluator, own_chars=256))
    assert lstmlm("train", text, *TINY, "--out", "here").code == 0
    expected = [lstmlm(*command, "-m", "here") for command in COMMANDS]
    monkeypatch.setattr(devices, "choose", lambda *_: pretend.DEVICE)
    monkeypatch.setattr(devices, "name", lambda _: "a card")
    with pretend.device():
        trained = lstmlm("train", text, *TINY, "--out", "there")
        found = [[lstmlm(*command, "-m", run) for command in COMMANDS] for run in ("here", "there")]
        again = lstmlm("train", text, "--resume", "--out", "here")

    assert trained.code == 0, trained.err
    assert digest(Path("there")) == digest(Path("here"))
    for results in found:
        assert [result.out.replace("there/", "here/") for result in results] == [result.out for result in expected]
        assert {result.code for result in results} == {0}
    assert "device cpu then, a card now" in again.err


@pytest.mark.parametrize("flags", [(), ("-q",)])
def test_a_broken_gpu_is_left_alone(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]) -> None:
    """The CPU goes on where a GPU is there and does not work; why is said to all who did not ask for quiet."""
    monkeypatch.setattr(devices, "missing", lambda places=1: "")
    monkeypatch.setattr(devices, "broken", lambda device: "no kernel image is available for execution on the device")
    result = lstmlm("train", text, *TINY, "--out", "new", *flags)

    assert result.code == 0
    assert ("device cpu: there is a CUDA device, but no kernel image" in result.err) != bool(flags)
    assert lstmlm("sample", "-m", "new", "--device", "cuda").code == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_and_samples(lstmlm: Lstmlm, text: Path) -> None:
    """On a GPU a run resumes to the bits of one that was not stopped, and the CPU reads what it made."""
    for out, steps in (("whole", ()), ("parted", ("--set", "train.save_every=3"))):
        assert lstmlm("train", text, *TINY, "--device", "cuda", "--out", out, *steps).code == 0
    scores = [lstmlm("eval", "-m", "whole", "--device", device, "--json").json["bits_per_char"] for device in ("cpu", "cuda")]

    assert digest(Path("whole"), all_files=False) == digest(Path("parted"), all_files=False)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
