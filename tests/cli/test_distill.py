"""`train --distill`: a model as teacher, from the command line, to the end and after a stop."""

import shutil
from pathlib import Path

import pytest

from lstmlm import train
from lstmlm.errors import SystemProblem, UsageError
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
    assert "--on-unknown skip" in other.err
    assert "--on-unknown grow" not in other.err
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


def test_planned(lstmlm: Lstmlm, text: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan counts the memory that a teacher takes."""
    monkeypatch.setattr("lstmlm.machine.memory_used", lambda: (0, 0))  # not the most that this process has had
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


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--distill", "--from"])
@pytest.mark.parametrize("job", [None, "7"])
def test_stopped_before_its_first_checkpoint(
    lstmlm: Lstmlm, text: Path, teacher: str, monkeypatch: pytest.MonkeyPatch, flag: str, job: str | None
) -> None:
    """What a run leaves that was killed, or met a full disk, before its first checkpoint is none: the same command begins it."""
    monkeypatch.setattr("lstmlm.training.distributed.job", lambda: job)
    command = ("train", text, "--steps", "3", "--threads", "1", flag, teacher, "--out", "runs/taught")
    for error in (KeyboardInterrupt, SystemProblem("the disk is full")):

        def stopped(*_: object, error: type[BaseException] | BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("lstmlm.training.run_files.RunFiles.write_last", stopped)
            assert lstmlm(*command).code in (130, 5)
        Path("runs/taught/.last.safetensors.12ab.tmp").write_bytes(b"half")  # as after a kill
    left = {path.name for path in Path("runs/taught").iterdir()} - {".lock", ".last.safetensors.12ab.tmp"}
    resumed = lstmlm("train", "--resume", "--out", "runs/taught", text)
    other = lstmlm("train", text, "--out", "runs/taught").code if flag == "--distill" else 2
    again = lstmlm(*command)

    assert left >= {"metrics.jsonl", "samples.txt", "clock.jsonl"}
    assert ("teacher.safetensors" in left, ".job" in left) == (flag == "--distill", job is not None)
    assert resumed.code == 4
    assert "begin it again: --overwrite, not --resume" in resumed.err
    assert other == 2  # a model that no run of its own has put there is kept
    assert again.code == 0, again.err


def test_somebody_elses_files_are_no_empty_folder(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """A folder with another model called teacher, or with samples in it, is refused, and keeps them."""
    for name, data in (("teacher.safetensors", Path(teacher, "last.safetensors").read_bytes()), ("samples.txt", b"mine\n")):
        path = Path(f"runs/of-{name}", name)
        path.parent.mkdir()
        path.write_bytes(data)
        result = lstmlm("train", text, *TINY, "--distill", teacher, "--out", path.parent)

        assert result.code == 2
        assert f"expected an empty or new folder, found {name}." in result.err
        assert path.read_bytes() == data


def test_a_separator_that_stands_nowhere(lstmlm: Lstmlm, text: Path, teacher: str) -> None:
    """A run with a teacher begins a model: what is to part its documents has to stand in its text."""
    refused = lstmlm("train", text, *TINY, "--distill", teacher, "--document-separator", "Bob Bob", "--out", "runs/no")
    taken = lstmlm("train", text, *TINY, "--distill", teacher, "--document-separator", "Bob", "--out", "runs/yes")

    assert (refused.code, taken.code) == (2, 0), taken.err
    assert "found it nowhere in text" in refused.err
