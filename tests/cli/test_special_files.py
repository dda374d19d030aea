"""A run folder or a model of somebody else's that names what is no plain file: nothing waits, nothing is read without end."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Lstmlm
from tests.cli.trained import TEXT, make_run

KINDS = ["FIFO", "/dev/zero", "/dev/urandom", "/proc/kmsg", "/proc/self/pagemap"]


def put(path: Path, kind: str) -> None:
    """Make a FIFO, or a link to something below /dev or /proc."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif Path(kind).exists():
        path.symlink_to(kind)
    else:
        pytest.skip(f"no {kind}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("line", ["eval", "eval ok.txt --dynamic", "fill ____ob --choice B --words 3", "inspect --at ."])
@pytest.mark.parametrize("what", ["sources", "val"])
def test_a_model_names_its_text(lstmlm: Lstmlm, monkeypatch: pytest.MonkeyPatch, what: str, line: str, kind: str) -> None:
    """Exit 3 with the way out (or, with --dynamic, the usual rates), at once."""
    monkeypatch.setattr("lstmlm.data.sources.MADE_UP", 1 << 20)
    Path("ok.txt").write_text(TEXT)
    put(Path("odd.txt"), kind)
    named = {"sources": ["ok.txt"], "val": None, what: ["odd.txt"] if what == "sources" else "odd.txt"}
    make_run(Path("run"), corpus={"name": "odd", "fingerprint": "0", "chars": 9, **named})
    result = lstmlm(*line.split(), "-m", "run")

    assert result.code == (0 if "--dynamic" in line else 3), result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt", "clock.jsonl"])
def test_a_run_is_drawn(lstmlm: Lstmlm, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """The picture leaves out what cannot be read, or is refused where that is all there is."""
    for module in ("cli.run_plots", "training.clock_log"):
        monkeypatch.setattr(f"lstmlm.{module}.MAX_BYTES", 1 << 20)
    (run / name).unlink()
    put(run / name, kind)
    result = lstmlm("info", run, "--svg", "a.svg")

    assert result.code == (4 if name == "metrics.jsonl" else 0), result.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_resumed_from_its_configuration(lstmlm: Lstmlm, text: Path, kind: str) -> None:
    """A config.yaml that is no file is refused with exit 2, or 4 where there is nothing else."""
    Path("run").mkdir()
    put(Path("run/config.yaml"), kind)
    result = lstmlm("train", text, "--out", "run", "--resume", "--steps", "1", "--hidden", "5")

    assert result.code in (2, 4), result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
@pytest.mark.parametrize(
    "line",
    ["sample --prompt-file", "sample --prompts", "eval --files-from", "fill --file", "fill ____ob --choices", "inspect --file"],
)
def test_what_a_flag_reads_is_no_device(lstmlm: Lstmlm, line: str, device: str) -> None:
    """Exit 3 before a byte is read of what has no end."""
    make_run(Path("run"))
    result = lstmlm(*line.split(), device, "-m", "run")

    assert result.code == 3, result.err
    assert "expected a file or a pipe, found a device" in result.err
