"""Rows for frequent pairs of characters, from a run to all that reads its model."""

import random
from pathlib import Path

import pytest

from lstmlm.model.weights import PAIRS
from lstmlm.storage import checkpoint
from tests.cli.conftest import Lstmlm

SETTINGS = ("--hidden", "8", "--steps", "12", "--set", "train.eval_every=6")


@pytest.fixture(name="text")
def _text(tmp_path: Path) -> Path:
    """Write a text of words, some hundred times each."""
    drawn = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(drawn.choice(("and", "under", "the", "end", "hen")) for _ in range(3000)), encoding="utf-8")
    return path


def pairs_of(run: Path, kind: str = "best") -> list[list[float]]:
    """Return the pairs that lie with a model's weights."""
    tensors = checkpoint.to_tensors(checkpoint.read(run / f"{kind}.safetensors").tensors)
    found = tensors.get(f"model.{PAIRS}")
    return [] if found is None else found.tolist()


def test_a_run_in_two_parts_ends_in_the_same_bits(lstmlm: Lstmlm, text: Path) -> None:
    """Stopped after half of its steps and resumed by the same line, it is the run that was never stopped."""
    whole, parted = Path("whole"), Path("parted")
    line = ["--hidden", "8", "--lr", "0.01", "--dropout", "0.1"]
    for setting in ("model.pairs=500", "model.weight_dropout=0.1", "train.warmup=0", "train.eval_every=6"):
        line += ["--set", setting]
    assert lstmlm("train", text, *line, "--steps", "12", "--out", whole).code == 0
    assert lstmlm("train", text, *line, "--steps", "6", "--out", parted).code == 0
    again = lstmlm("train", text, "--resume", *line, "--steps", "12", "--out", parted)

    assert again.code == 0, again.err
    assert 5 < len(pairs_of(whole)) < 500  # the text has no more that are frequent
    tensors = [checkpoint.read(run / "last.safetensors").tensors for run in (whole, parted)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(bytes(blob.data) == bytes(tensors[1][name].data) for name, blob in tensors[0].items())


def test_fewer_pairs_than_a_run_has_are_refused(lstmlm: Lstmlm, text: Path) -> None:
    """A run that goes on keeps its network: exit 2."""
    assert lstmlm("train", text, *SETTINGS, "--out", "run").code == 0
    refused = lstmlm("train", text, "--resume", "--set", "model.pairs=2", "--out", "run")

    assert refused.code == 2
    assert "model.pairs is" in refused.err


def test_what_reads_a_model(lstmlm: Lstmlm, text: Path) -> None:
    """A run is scored, learnt from as it is scored, taken on by another text with new characters, and taught from."""
    assert lstmlm("train", text, *SETTINGS, "--out", "run").code == 0
    other = Path("other.txt")
    other.write_text(text.read_text(encoding="utf-8")[:4000] + " é ☃", encoding="utf-8")
    child = lstmlm("train", other, "--from", "run", "--on-unknown", "grow", "--steps", "3", "--out", "child")
    taught = lstmlm("train", text, "--distill", "run", *SETTINGS, "--out", "taught")

    assert (child.code, taught.code) == (0, 0), child.err + taught.err
    assert len(pairs_of(Path("child"))) == len(pairs_of(Path("run"))) > 5
    for line in (["eval"], ["eval", "--dynamic"], ["sample", "--length", "20"], ["inspect", "the end", "--show", "forget"]):
        done = lstmlm(*line, "-m", "child")
        assert done.code == 0, done.err


def test_none_where_they_are_not_wanted(lstmlm: Lstmlm, text: Path) -> None:
    """By setting, in many passes, and where the readout is direct there are none."""
    for number, more in enumerate((("--set", "model.pairs=0"), ("--epochs", "30"), ("--set", "model.readout=direct"))):
        budget = () if "--epochs" in more else ("--steps", "2")
        assert lstmlm("train", text, "--hidden", "8", *budget, *more, "--out", f"run{number}").code == 0
        assert pairs_of(Path(f"run{number}")) == []
