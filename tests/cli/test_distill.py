"""`train --distill`: a model as teacher, from the command line, to the end and after a stop."""

import shutil
from pathlib import Path

import pytest

from lstmlm import train
from lstmlm.errors import UsageError
from lstmlm.storage import checkpoint
from tests.cli.conftest import TEXT, TINY, Lstmlm
from tests.cli.test_train import digest


@pytest.fixture
def teacher(lstmlm: Lstmlm, text: Path) -> str:
    """Train two networks of another size to learn from."""
    assert lstmlm("train", text, *TINY, "--hidden", "9", "--members", "2", "--seed", "3", "--out", "runs/teacher").code == 0
    return "runs/teacher"


def test_taught(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """A run says by what it is taught, learns other things than alone, and goes on to the same bits once the teacher is gone."""
    flags = (*TINY, "--set", "train.warmup=1")
    whole = lstmlm("train", text, *flags, "--steps", "20", "--distill", teacher, "--out", "runs/whole")
    lstmlm("train", text, *flags, "--distill", teacher, "--out", "runs/half")
    alone = lstmlm("train", text, *flags, "--steps", "20", "--out", "runs/alone")
    shutil.rmtree(teacher)
    further = lstmlm("train", "--resume", "runs/half", "--steps", "20")

    assert (whole.code, alone.code, further.code) == (0, 0, 0), whole.err + further.err
    assert "taught by a model of" in whole.err
    assert "taught by" not in alone.err
    weights = [checkpoint.read(Path(f"runs/{run}/last.safetensors")).tensors for run in ("whole", "half", "alone")]
    assert weights[0] == weights[1]
    assert weights[0]["model.layers.0.U"] != weights[2]["model.layers.0.U"]


def test_a_chain(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """What was taught teaches the next one, in a run that starts from a model too; its folder and the teacher's stay apart."""
    first = lstmlm("train", text, *TINY, "--distill", teacher, "--out", "runs/first")
    second = lstmlm("train", text, "--steps", "5", "--from", "runs/first", "--distill", "runs/first", "--out", "runs/second")

    assert (first.code, second.code) == (0, 0), second.err
    assert lstmlm("info", "runs/second").code == 0


def test_a_part_of_its_text(lstmlm: Lstmlm, teacher: str) -> None:
    """A text with fewer characters is read with the teacher's vocabulary, bytes with a teacher of bytes."""
    Path("less.txt").write_text(TEXT.replace("é", "e").replace("Ann", "Tim").replace("Tim", "Bob"), encoding="utf-8")
    taught = lstmlm("train", "less.txt", *TINY, "--distill", teacher)
    lstmlm("train", "less.txt", *TINY, "--tokenizer", "byte", "--out", "runs/bytes")
    of_bytes = lstmlm("train", "less.txt", *TINY, "--distill", "runs/bytes", "--out", "runs/bytes-2")

    assert (taught.code, of_bytes.code) == (0, 0), taught.err + of_bytes.err


def test_refused(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """Other characters, other symbols, no model, no name, the folder to be replaced: each is refused, and nothing is made."""
    Path("other.txt").write_text("Żółw\n" * 200, encoding="utf-8")
    other = lstmlm("train", "other.txt", *TINY, "--distill", teacher, "--out", "runs/no")
    grown = lstmlm("train", "other.txt", *TINY, "--distill", teacher, "--on-unknown", "grow", "--out", "runs/no")
    of_bytes = lstmlm("train", text, *TINY, "--distill", teacher, "--tokenizer", "byte", "--out", "runs/no")
    missing, nameless = (lstmlm("train", text, *TINY, "--distill", name, "--out", "runs/no") for name in ("runs/none", ""))
    own = lstmlm("train", text, *TINY, "--distill", teacher, "--out", teacher, "--overwrite")

    assert [result.code for result in (other, grown, of_bytes, missing, nameless, own)] == [3, 2, 2, 4, 2, 2]
    assert "--distill: expected a model with the vocabulary of this run" in grown.err
    assert "(256 bytes)" in of_bytes.err
    assert "holds the model of --distill" in own.err
    assert not Path("runs/no").exists()


def test_its_copy_is_needed(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """A run whose teacher is gone or another one says so, changes nothing, and goes on once the copy is back."""
    lstmlm("train", text, *TINY, "--distill", teacher, "--out", "runs/taught")
    copy, before = Path("runs/taught/teacher.safetensors"), digest(Path("runs/taught"))
    kept = copy.read_bytes()
    copy.unlink()
    gone = lstmlm("train", "--resume", "runs/taught", "--steps", "15")
    shutil.copy("runs/taught/best.safetensors", copy)
    changed = lstmlm("train", "--resume", "runs/taught", "--steps", "15")
    copy.write_bytes(kept)

    assert (gone.code, changed.code) == (4, 4)
    assert "learnt from so far, found none." in gone.err
    assert "learnt from so far, found another one." in changed.err
    assert digest(Path("runs/taught")) == before
    assert lstmlm("train", "--resume", "runs/taught", "--steps", "15").code == 0
    assert lstmlm("train", "--resume", "runs/taught", "--distill", teacher).code == 2


def test_replaced(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """A new run without a teacher leaves no copy of the old one's behind."""
    lstmlm("train", text, *TINY, "--distill", teacher, "--out", "runs/taught")
    lstmlm("train", text, *TINY, "--out", "runs/taught", "--overwrite")

    assert not Path("runs/taught/teacher.safetensors").exists()


def test_planned(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """The plan counts the memory that a teacher takes."""
    alone, taught = (
        lstmlm("train", text, *TINY, "--batch", "64", "--window", "64", "--dry-run", "--json", *flags).json["memory_bytes"]
        for flags in ((), ("--distill", teacher))
    )

    assert alone < taught


def test_in_python(text: Path, teacher: str) -> None:
    """`distill` is the same in Python, and what is wrong with it is said of the argument."""
    model = train(str(text), out="runs/taught", distill=teacher, steps=3, hidden=7, threads=1)

    assert "teacher" in model.meta["corpus"]
    assert Path("runs/taught/teacher.safetensors").is_file()
    with pytest.raises(UsageError, match=r"^distill: expected a model with the vocabulary of this run"):
        train(str(text), out="runs/no", distill=teacher, steps=3, tokenizer="byte")
