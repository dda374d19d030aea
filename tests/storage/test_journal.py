"""A journal holds whole records, as many as its checkpoint says, whatever the disk does."""

import os
from pathlib import Path

import pytest

from lstmlm.errors import CheckpointError, SystemProblem
from lstmlm.storage import atomic
from lstmlm.storage.journal import Journal
from tests.storage.test_atomic import ERRORS


@pytest.mark.parametrize("error", ERRORS)
def test_a_failing_journal_keeps_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """A record that could not be written is not there in part, and the journal goes on when the disk does."""
    path = tmp_path / "metrics.jsonl"
    with Journal.open(path) as journal:
        journal.append({"step": 1})
        monkeypatch.setattr(atomic, "calls", Half(error))
        with pytest.raises(SystemProblem):
            journal.append({"step": 2})
        monkeypatch.setattr(atomic, "calls", atomic.Disk())
        journal.append({"step": 3})

        assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
        assert journal.size == path.stat().st_size


class Half(atomic.Disk):
    """A disk that takes half a record, then fails once."""

    def __init__(self, error: int) -> None:
        self.error, self.count = error, 0

    def write(self, fd: int, data: atomic.Bytes) -> int:
        """Write half, then fail."""
        self.count += 1
        if self.count == 1:
            return super().write(fd, memoryview(data)[: len(data) // 2])
        raise OSError(self.error, os.strerror(self.error))


def test_a_journal_is_cut_back_to_the_length_a_checkpoint_stores(tmp_path: Path) -> None:
    """Records after the stored length, whole or half, are cut off; those before it are kept byte for byte."""
    path = tmp_path / "metrics.jsonl"
    with Journal.open(path) as journal:
        journal.append({"step": 1})
        size = journal.size
        journal.append({"step": 2})
    with path.open("a") as file:
        file.write('{"ste')
    with Journal.open(path, size) as journal:
        journal.append({"step": 2, "again": True})
        journal.append_text("{}\n")

    assert path.read_text() == '{"step": 1}\n{"step": 2, "again": true}\n{}\n'


def test_a_journal_that_lacks_records_is_refused(tmp_path: Path) -> None:
    """A journal shorter than the checkpoint says, missing, or with other lines is exit 4 and says what is missing."""
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(CheckpointError, match="the last 12 are missing"):
        Journal.open(path, 12)
    path.write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"expected at least 20 bytes.* found 12: the last 8 are missing"):
        Journal.open(path, 20)
    with pytest.raises(CheckpointError, match="the end of a line at byte 5"):
        Journal.open(path, 5)

    assert path.read_text() == '{"step": 1}\n'


def test_a_journal_takes_only_whole_lines_of_strict_json(tmp_path: Path) -> None:
    """NaN and text without a line end are errors of the caller, and nothing of them is written."""
    with Journal.open(tmp_path / "metrics.jsonl") as journal:
        with pytest.raises(ValueError, match="JSON"):
            journal.append({"loss": float("nan")})
        with pytest.raises(ValueError, match="line end"):
            journal.append_text("half")

        assert journal.size == 0
    journal.close()

    assert (tmp_path / "metrics.jsonl").read_text() == ""
