"""Several networks from the command line: trained side by side, read as one, and what cannot be meant is refused."""

import json
from functools import partial
from pathlib import Path

import pytest

from lstmlm import machine
from lstmlm.training import dynamic
from tests.cli.conftest import TINY, Lstmlm

MEMBERS = (*TINY, "--members", "3", "--lr", "0.05", "--seed", "5")


@pytest.fixture
def ensemble(lstmlm: Lstmlm, text: Path) -> str:
    """Train three members; return their run."""
    result = lstmlm("train", text, *MEMBERS, "--out", "runs/three")
    assert result.code == 0, result.err
    assert "3 members of 1,704 parameters" in result.err
    return "runs/three"


def test_every_command_takes_them(lstmlm: Lstmlm, text: Path, ensemble: str) -> None:
    """Scores, lines, samples, blanks, gates and facts of an ensemble come as they do of one network."""
    told = lstmlm("eval", text, "-m", ensemble, "--json").json
    cold = lstmlm("eval", text, "-m", ensemble, "--protocol", "cold", "--window", "20", "--json")
    lines = lstmlm("eval", text, "-m", ensemble, "--lines", "--state", "carried", "--json")
    sample = lstmlm("sample", "-m", ensemble, "--length", "20", "-n", "2", "--seed", "3", "--json")
    filled = lstmlm("fill", "____ est là.", "-m", ensemble, "--choice", "Bob", "--choice", "Ann", "--forget-at", ".", "--json")
    info = lstmlm("info", ensemble)

    assert told["chars"] == len(text.read_text(encoding="utf-8"))
    assert cold.code == 0
    each = [json.loads(line) for line in lines.out.splitlines()]
    assert sum(line["bits"] for line in each if "bits" in line) == pytest.approx(told["bits_per_char"] * told["chars"], rel=1e-5)
    assert [len(json.loads(line)["text"]) for line in sample.out.splitlines()] == [20, 20]
    assert sum(answer["probability"] for answer in filled.json["answers"]) == pytest.approx(1.0)
    assert "5,112 (3 members of 1,704)" in info.out
    assert "model.members         3" in info.out


@pytest.mark.slow
def test_dynamic(lstmlm: Lstmlm, text: Path, ensemble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval --dynamic` lets each member learn from the text, and says what they take together."""
    monkeypatch.setattr(dynamic, "DynamicEvaluator", partial(dynamic.DynamicEvaluator, own_chars=256))
    told = lstmlm("eval", text, "-m", ensemble, "--dynamic", "--json").json

    assert told["dynamic"]["bits_per_char"] < told["bits_per_char"]


def test_a_sample_is_drawn_again(lstmlm: Lstmlm, ensemble: str) -> None:
    """The same seed draws the same text, alone and among others."""
    one = lstmlm("sample", "-m", ensemble, "--length", "30", "--seed", "4", "--json").json
    two = lstmlm("sample", "-m", ensemble, "--length", "30", "--seed", "3", "-n", "2", "--json")

    assert json.loads(two.out.splitlines()[1])["text"] == one["text"]


def test_inspect_looks_into_one(lstmlm: Lstmlm, text: Path, ensemble: str) -> None:
    """The gates shown are those of one member: the first, or the one that --member names, which its own run has too."""
    alone = lstmlm("train", text, *TINY, "--lr", "0.05", "--seed", "6", "--out", "runs/alone")
    shown = {m: lstmlm("inspect", "Bob est là.", "-m", ensemble, "--member", m, "--json").json["layers"] for m in ("1", "2")}
    first = lstmlm("inspect", "Bob est là.", "-m", ensemble, "--json")

    assert alone.code == 0
    assert first.json["layers"] == shown["1"] != shown["2"]
    assert "member 1 of 3" in first.err
    assert shown["2"] == lstmlm("inspect", "Bob est là.", "-m", "runs/alone", "--json").json["layers"]
    for flags in (("--at", "."), ("--reach",), ("--find", "line")):
        found = lstmlm("inspect", "-m", ensemble, "--file", text, "--member", "3", "--json", *flags)
        assert found.code == 0, found.err


def test_no_such_member(lstmlm: Lstmlm, ensemble: str, run: Path) -> None:
    """A member that is not there is refused with the number of those that are."""
    results = [lstmlm("inspect", "Bob", "-m", model, "--member", "4") for model in (ensemble, str(run))]

    assert [r.code for r in results] == [2, 2]
    assert "--member: expected a number from 1 to 3, as the model has so many, found 4." in results[0].err
    assert "--member: expected 1, as the model is one network, found 4." in results[1].err


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1000000", "many", ""])
def test_no_such_number(lstmlm: Lstmlm, text: Path, value: str) -> None:
    """A number of members that cannot be is refused with the range, and nothing is made."""
    result = lstmlm("train", text, f"--members={value}")

    assert result.code == 2
    assert "model.members (--members): expected a whole number from 1 to 64" in result.err
    assert not Path("runs").exists()


def test_too_many_layers(lstmlm: Lstmlm, text: Path) -> None:
    """Members and layers that a checkpoint cannot hold are refused together."""
    result = lstmlm("train", text, "--members", "64", "--layers", "6")

    assert result.code == 2
    assert "at most 320 layers in all members together, found 64 x 6" in result.err


def test_more_than_the_machine_holds(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs more memory than there is is refused before a folder is made; one member of it would have fitted."""
    monkeypatch.setattr("lstmlm.machine.memory", lambda: 14_500_000)
    monkeypatch.setattr("lstmlm.machine.memory_used", lambda: (0, 0))
    fits, result = (lstmlm("train", text, *TINY, "--members", count, "--out", f"runs/{count}") for count in ("1", "60"))

    assert fits.code == 0, fits.err
    assert result.code == 5
    assert "Take fewer --members, a smaller --hidden or --batch." in result.err
    assert not Path("runs/60").exists()


def test_a_run_keeps_its_members(lstmlm: Lstmlm, text: Path, ensemble: str) -> None:
    """Neither --resume nor --from changes how many there are; what is fine-tuned has the same number, and starts from each."""
    resumed = lstmlm("train", text, "--resume", "--out", ensemble, "--members", "2")
    other = lstmlm("train", text, "--from", ensemble, "--members", "2", "--out", "runs/two")
    again = lstmlm("train", text, *TINY[:2], "--from", ensemble, "--lr", "0", "--set", "train.weight_decay=0", "--out", "runs/on")

    assert (resumed.code, other.code) == (2, 2)
    assert "model.members is 3 in this run, and 2 was asked for" in resumed.err
    assert "model.members is 3 in the model of --from, and 2 was asked for" in other.err
    assert again.code == 0, again.err
    scores = [lstmlm("eval", text, "-m", model, "--json").json["nats_per_char"] for model in (ensemble, "runs/on")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_configured(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file sets them too, and the plan counts them."""
    monkeypatch.setattr(machine, "memory_used", lambda: (0, 0))  # that of the tests before would be most of it
    Path("three.yaml").write_text("model:\n  members: 3\n")
    one, three = (
        lstmlm("train", text, "--steps", "9", "--dry-run", "--json", *flags) for flags in ((), ("--config", "three.yaml"))
    )

    assert three.json["members"] == 3
    assert three.json["parameters"] == 3 * one.json["parameters"]
    assert one.json["memory_bytes"] < three.json["memory_bytes"] < 3 * one.json["memory_bytes"]  # they are read in turn
    assert "3 members of 1 x 128 units" in three.err
