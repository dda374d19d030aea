"""The command line as a function, and a small trained run to point it at."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TEXT = "Où est Bob? Bob est là; Ann le voit.\nAnn is there, and Bob is not.\n" * 12
TINY = ("--steps", "12", "--hidden", "7", "--layers", "2", "--dropout", "0.2", "--batch", "3", "--window", "5", "--threads", "1")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and the bytes of both streams."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        """What went to stdout, as text."""
        return self.stdout.decode()

    @property
    def err(self) -> str:
        """What went to stderr, as text."""
        return self.stderr.decode()

    @property
    def json(self) -> Any:
        """The object on stdout, which holds nothing else."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])


Lstmlm = Callable[..., Result]


def call(*args: object, stdin: bytes = b"") -> Result:
    """Run `lstmlm args` in this process, with streams of its own that are no terminals."""
    from lstmlm.cli import main

    streams = {
        name: io.TextIOWrapper(io.BytesIO(data), "utf-8") for name, data in (("stdin", stdin), ("stdout", b""), ("stderr", b""))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lstmlm", *map(str, args)])
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as left:
            main()
    written = []
    for name in ("stdout", "stderr"):
        streams[name].flush()
        buffer = streams[name].buffer
        assert isinstance(buffer, io.BytesIO)
        written.append(buffer.getvalue())
    assert isinstance(left.value.code, int)
    return Result(left.value.code, *written)


@pytest.fixture
def lstmlm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lstmlm:
    """Return the command line as a function, on one thread and with an empty cache."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("lstmlm.training.validation.SAMPLE_LENGTH", 5)
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LSTMLM_KERNEL", "eager")
    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write a text with accents and line ends; it lies where commands run."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LSTMLM_CACHE", str(folder / "cache"))
        patch.setenv("LSTMLM_KERNEL", "eager")
        patch.setattr("lstmlm.training.validation.SAMPLE_LENGTH", 5)
        (folder / "text.txt").write_text(TEXT, encoding="utf-8")
        result = call("train", "text.txt", *TINY, "--lr", "0.05", "-q")
    assert result.code == 0, result.err
    return folder / "runs" / "text"


@pytest.fixture
def run(_trained: Path, tmp_path: Path) -> Path:
    """Copy a run of twelve steps to runs/text, to be used or damaged."""
    folder = tmp_path / "runs" / "text"
    shutil.copytree(_trained, folder)
    return folder
