"""What an earlier version saved is read: `saved/` holds a run of each, stopped half-way."""

import shutil
from pathlib import Path

import pytest

from lstmlm.api import LanguageModel
from lstmlm.config import schema
from lstmlm.config.run_config import from_dict
from lstmlm.data import saved_model
from lstmlm.data.saved_model import with_few_names
from lstmlm.errors import CheckpointError
from lstmlm.training import events
from lstmlm.training.events import TrainState

SAVED = sorted((Path(__file__).parents[1] / "saved").iterdir())


@pytest.fixture(name="run", params=SAVED, ids=lambda path: path.name)
def _run(request: pytest.FixtureRequest) -> Path:
    """Copy a run, stopped half-way, into the current folder, with its text."""
    return Path(shutil.copytree(request.param, "run"))


def test_it_scores_as_it_did(run: Path) -> None:
    """The best model still gives its validation text the number that was saved with it."""
    model = LanguageModel.open(run)
    text = (run / "text.txt").read_text(encoding="utf-8")
    validation = text[len(text) - int(0.1 * len(text)) :]
    config, _ = saved_model.parts(model.meta)

    assert not config.model.multiplicative  # which no setting of that version could say
    assert config.model.pairs == 0  # likewise
    assert config.train.rename == 0  # likewise: it read its text as it was
    assert model.score(validation).nats_per_char == pytest.approx(model.meta["scores"]["validation_nats_per_char"], abs=0.05)


def test_a_setting_that_was_renamed_or_removed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table of former settings is all that it takes."""
    monkeypatch.setattr(schema, "FORMER", schema.FORMER)
    monkeypatch.setitem(schema.FORMER, "train.speed", "train.lr")
    config = from_dict({"train": {"speed": 0.5, "sample_every": 3}})

    assert config.train.lr == 0.5
    assert all(now is None or now in schema.KEYS for now in schema.FORMER.values())
    assert not set(schema.FORMER) & set(schema.KEYS)


def test_a_field_of_training_that_was_renamed_or_removed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a field of the training state; one that is neither is refused by its name."""
    saved = TrainState(step=7, best_nats=2.5).to_meta()
    saved["failures"] = saved.pop("retries")
    saved["luck"] = 1
    with pytest.raises(CheckpointError, match=r"training\.failures: .* does not know"):
        TrainState.from_meta(saved)
    monkeypatch.setitem(events.FORMER, "failures", "retries")
    monkeypatch.setitem(events.FORMER, "luck", None)

    assert TrainState.from_meta(saved) == TrainState(step=7, best_nats=2.5)
    del saved["failures"]
    assert TrainState.from_meta(saved) == TrainState(step=7, best_nats=2.5)  # a version that did not count them yet
    del saved["step"]
    with pytest.raises(CheckpointError, match=r"training\.step: .* found none"):
        TrainState.from_meta(saved)


def test_thousands_of_names_are_kept_short() -> None:
    """A model names a few of many texts, with their number and a digest; of a few it names all."""
    few = {"corpus": {"sources": ["a", "b"]}, "command": ["lstmlm", "train", "a", "b"], "step": 1}
    many = {"corpus": {"sources": [f"{i}.txt" for i in range(3000)], "name": "0"}, "command": ["lstmlm"] * 3000, "step": 1}
    short = with_few_names(many)

    assert with_few_names(few) is few
    assert short["corpus"]["sources"] == ["0.txt", "1.txt", "2.txt"]
    assert (short["corpus"]["count"], short["corpus"]["name"], short["step"]) == (3000, "0", 1)
    assert short["corpus"]["digest"] != with_few_names({**many, "corpus": {"sources": ["x" * 9000]}})["corpus"]["digest"]
    assert len(str(short)) < 500


def test_no_folder_is_given_away() -> None:
    """Of what a run says of itself a model keeps the names of its texts, and of its command the last part of every path."""
    identity = {
        "corpus": {"name": "a", "sources": ["/home/me/a.txt", "stories", "-"], "val": "/home/me/v.txt", "fingerprint": "f"},
        "command": ["lstmlm", "train", "/home/me/a.txt", "--out=/srv/runs/a", "--val", "/home/me/", "-q", "a/b.txt"],
        "versions": {"python": "3"},
    }
    told = saved_model.without_places(identity)

    assert told["corpus"] == {"name": "a", "sources": ["a.txt", "stories", "-"], "val": "v.txt", "fingerprint": "f"}
    assert told["command"] == ["lstmlm", "train", "a.txt", "--out=a", "--val", "me", "-q", "a/b.txt"]
    assert told["versions"] == identity["versions"]
    assert identity["corpus"] != told["corpus"]
