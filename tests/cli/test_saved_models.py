"""A run that an earlier version saved is looked into, sampled, scored and trained on: `tests/saved/` holds one of each."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lstmlm.storage import checkpoint
from tests.cli.conftest import Lstmlm

SAVED = sorted((Path(__file__).parents[1] / "saved").iterdir())


def change(path: Path, part: str, **values: Any) -> None:
    """Put values into a part of a checkpoint's description; `config` means its settings of training."""
    saved = checkpoint.read(path)
    (saved.meta["config"]["train"] if part == "config" else saved.meta[part]).update(values)
    checkpoint.write(path, saved)


@pytest.fixture(name="run", params=SAVED, ids=lambda path: path.name)
def _run(request: pytest.FixtureRequest) -> Path:
    """Copy a run, stopped half-way, into the current folder, with its text."""
    return Path(shutil.copytree(request.param, "run"))


def test_its_training_goes_on(lstmlm: Lstmlm, run: Path) -> None:
    """A run that was stopped half-way is resumed and comes to its end."""
    before = checkpoint.read_header(run / "last.safetensors").meta
    assert lstmlm("train", run / "text.txt", "--out", run, "--resume").code == 0
    after = checkpoint.read_header(run / "last.safetensors").meta

    assert after["step"] == 2 * before["step"] == before["training"]["steps"]
    assert after["training"]["validated"] == after["step"]
    assert after["training"]["look_chars"] > 0


def test_another_run_begins_with_it(lstmlm: Lstmlm, run: Path) -> None:
    """It is fine-tuned as the kind of network that it is; to ask for another kind is exit 2."""
    line = ("train", run / "text.txt", "--from", run, "--out", "child", "--steps", "2")
    refused = lstmlm(*line, "--set", "model.multiplicative=true")
    done = lstmlm(*line)

    assert refused.code == 2
    assert "model.multiplicative is false in the model of --from" in refused.err
    assert done.code == 0, done.err
    assert checkpoint.read_header(Path("child/best.safetensors")).meta["config"]["model"]["multiplicative"] is False


def test_info_tells_of_it(lstmlm: Lstmlm, run: Path) -> None:
    """It is described without a warning."""
    result = lstmlm("info", run)

    assert (result.code, result.err) == (0, "")


def test_settings_of_a_later_version_do_not_lock_a_model_away(lstmlm: Lstmlm, run: Path) -> None:
    """A setting of training that is not known here is named with its file and left out, unless that training is to go on."""
    for kind in ("best", "last"):
        change(run / f"{kind}.safetensors", "config", warp=9)
        change(run / f"{kind}.safetensors", "versions", lstmlm="9.9.9")
    text = run / "text.txt"
    for line in (["info", run], ["sample", "-m", run, "--length", "3"], ["eval", text, "-m", run]):
        result = lstmlm(*line)
        assert result.code == 0
        assert all(word in result.err for word in ("best.safetensors", "train.warp", "9.9.9"))

    result = lstmlm("train", text, "--out", run, "--resume")
    assert result.code == 4
    assert all(word in result.err for word in ("last.safetensors", "train.warp", "9.9.9"))


@pytest.mark.parametrize("section", ["model", "data"])
def test_what_may_change_the_meaning_of_weights_is_refused(lstmlm: Lstmlm, run: Path, section: str) -> None:
    """An unknown setting of the model or of the text is exit 4, with the file, the setting and the version that wrote it."""
    path = run / "best.safetensors"
    saved = checkpoint.read(path)
    saved.meta["config"][section]["gates"] = 4
    checkpoint.write(path, saved)

    for command in ("info", "sample"):
        result = lstmlm(command, "-m", path)
        assert result.code == 4
        assert all(word in result.err for word in (str(path), f"{section}.gates", "0.1.0"))
