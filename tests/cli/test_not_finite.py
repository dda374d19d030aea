"""A model whose weights are finite and whose probabilities are not: every command says so, and no check passes."""

from pathlib import Path

import pytest

from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Blob, Checkpoint
from tests.cli.conftest import Lstmlm
from tests.cli.trained import TEXT, make_run

LARGEST = b"\xff\xff\x7f\x7f"  # float32


@pytest.fixture(name="huge", params=["all", "one"])
def _huge(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Make a model with the largest weights that there are, all of its readout or those of one unit; its hash is right."""
    folder = make_run(tmp_path / "huge", text=TEXT * 20)
    path = folder / "best.safetensors"
    saved = checkpoint.read(path)
    readout = saved.tensors["model.readout.weight"]
    count = len(readout.data) // 4
    every = count if request.param == "all" else 3
    data = LARGEST * every + bytes(readout.data)[4 * every :]
    weights = {**saved.tensors, "model.readout.weight": Blob(readout.dtype, readout.shape, data)}
    weights["model.norms.1.bias"] = Blob("float32", (6,), b"\x00\x00\x80\x40" * 6)  # 4: what the readout gets is not near 0
    checkpoint.write(path, Checkpoint(saved.kind, saved.meta, weights))
    Path("text.txt").write_text(TEXT * 20)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "eval text.txt --max-bpc 2.0",
        "eval text.txt --json",
        "eval text.txt --protocol cold",
        "eval text.txt --dynamic",
        "eval text.txt --lines",
        "eval text.txt --lines --state carried --json",
        "eval text.txt --chars",
        "eval --files-from list --max-bpc 2.0",
        "sample --length 5",
        "sample --length 5 --json -n 2",
        "sample --length 5 --greedy --exact",
        "fill ____ob --choice B --choice D",
        "fill ____ob --choice B --choice D --json",
        "inspect Bob",
        "inspect Bob --json",
        "inspect Bob --html page.html",
        "inspect Bob --svg page.svg",
        "inspect --file text.txt --at .",
        "inspect --file text.txt --find capital --json",
        "inspect --file text.txt --reach --json",
    ],
)
@pytest.mark.parametrize("kernel", ["eager", "native"])
def test_no_number_stands_for_a_score(
    lstmlm: Lstmlm, huge: Path, monkeypatch: pytest.MonkeyPatch, line: str, kernel: str
) -> None:
    """Exit 4 with a sentence: no traceback, no nan, no text made of the last symbol, and no check that passes."""
    monkeypatch.setenv("LSTMLM_KERNEL", kernel)
    Path("list").write_text("text.txt\n")
    result = lstmlm(*line.split(), "-m", huge)

    assert result.code == 4, result.err
    assert "found values that are not finite" in result.err
    assert "nan" not in result.out
    assert not list(Path().glob("page.*"))
