"""The command `lstmlm export`: which files it writes, and which it leaves alone."""

import importlib
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.cli.conftest import Lstmlm
from tests.cli.trained import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run folder."""
    return make_run(tmp_path / "runs" / "tale")


def test_torch_is_weights_and_a_loader(lstmlm: Lstmlm, run: Path) -> None:
    """Both bear the run's name, lie where the command runs, and are said; --json names them."""
    told = lstmlm("export", "--to", "torch")
    again = lstmlm("export", run, "--to", "torch", "--json", "-q")

    assert (told.code, told.out) == (0, "")
    assert "wrote tale.safetensors and tale.py" in told.err
    assert again.json["files"] == ["tale.safetensors", "tale.py"]
    with safe_open("tale.safetensors", "pt") as file:
        assert "members.0.lstms.1.weight_hh_l0" in file.keys()  # noqa: SIM118  # it is no dictionary
    compile(Path("tale.py").read_text(encoding="utf-8"), "tale.py", "exec")


def test_onnx_is_one_file(lstmlm: Lstmlm, run: Path) -> None:
    """It goes where --out says, and again over itself."""
    pytest.importorskip("onnx")
    for _ in range(2):
        assert lstmlm("export", run, "--to", "onnx", "--out", "it.onnx").code == 0

    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["it.onnx"]


def test_without_the_extra_the_way_to_it_is_said(lstmlm: Lstmlm, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--to onnx without the package is exit 2 and a sentence that installs it."""
    importlib.import_module("lstmlm.export.to_onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = lstmlm("export", run, "--to", "onnx")

    assert result.code == 2
    assert "Install it (pip install 'lstmlm[onnx]')" in result.err
    assert not Path("tale.onnx").exists()


@pytest.mark.parametrize("name", ["code", "random", "torch"])
def test_the_loader_takes_no_modules_name(lstmlm: Lstmlm, run: Path, name: str) -> None:
    """A loader called like a module would be imported in its place, by torch too: exit 2, and nothing is written."""
    run.rename(run.with_name(name))
    result = lstmlm("export", "--to", "torch")

    assert result.code == 2
    assert f"{name}.safetensors: expected a name that no module of Python or torch has" in result.err
    assert not list(Path().glob("*.*"))


@pytest.mark.parametrize("name", ["tale.safetensors", "tale.py"])
def test_a_file_of_somebody_else_stays(lstmlm: Lstmlm, run: Path, name: str) -> None:
    """A checkpoint or a script that lies where a file would go is exit 2, and neither file is written."""
    mine = (run / "best.safetensors").read_bytes() if name.endswith("safetensors") else b"print(1)\n"
    Path(name).write_bytes(mine)
    result = lstmlm("export", run, "--to", "torch")

    assert result.code == 2
    assert f"{name}: expected a new name or an earlier result, found" in result.err
    assert Path(name).read_bytes() == mine
    assert [path.name for path in Path().iterdir() if path.is_file()] == [name]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "expected --to torch or --to onnx"),
        ("--to torhc", "Did you mean torch?"),
        ("--to torch --out tale.onnx", "expected a name that ends in .safetensors"),
        ("--to torch --out tale", "expected a name that ends in .safetensors"),
        ("--to torch -m other", "expected one model, found two"),
    ],
)
def test_contradictions_are_usage_errors(lstmlm: Lstmlm, run: Path, line: str, said: str) -> None:
    """Exit 2 with what is right, and nothing is written."""
    result = lstmlm("export", run, *line.split())

    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert [path for path in Path().iterdir() if path.is_file()] == []


def test_a_checkpoint_is_never_overwritten(lstmlm: Lstmlm, run: Path) -> None:
    """--out that names the model itself is refused."""
    before = (run / "best.safetensors").read_bytes()

    assert lstmlm("export", run, "--to", "torch", "--out", run / "best.safetensors").code == 2
    assert (run / "best.safetensors").read_bytes() == before
