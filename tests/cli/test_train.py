import contextlib
import errno
import gzip
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lstmlm.cli import corpora
from lstmlm.config.run_config import load_preset
from lstmlm.storage import atomic, checkpoint, run_dir
from lstmlm.training import clock_log
from lstmlm.training.budget import Budget
from tests.cli.conftest import TEXT, TINY, Lstmlm


def digest(run: Path, *, all_files: bool = True) -> dict[str, str]:
    """Return digests of what a run leaves: tensors by kind, and the two journals."""
    found = {}
    for kind in ("best", "last"):
        whole = hashlib.sha256()
        for name, blob in sorted(checkpoint.read(run / f"{kind}.safetensors").tensors.items()):
            whole.update(name.encode() + bytes(blob.data))
        found[kind] = whole.hexdigest()
    if all_files:
        found |= {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("metrics.jsonl", "samples.txt")}
    return found


def test_leaves(lstmlm: Lstmlm, text: Path) -> None:
    """Training leaves its configuration, metrics, samples and two checkpoints, and says the next command."""
    result = lstmlm("train", text, *TINY)
    names = {path.name for path in Path("runs/text").iterdir()}

    assert result.code == 0
    journals = {"metrics.jsonl", "samples.txt", "clock.jsonl"}
    assert names == {".lock", "config.yaml", "best.safetensors", "last.safetensors", *journals}
    assert result.out == ""
    assert "lstmlm sample -m runs/text --prompt" in result.err.splitlines()[-1]
    assert load_preset("runs/text/config.yaml")[1]["train.steps"].value == 12


@pytest.mark.parametrize(
    ("out", "code", "words"),
    [
        ("text.txt/run", 2, "expected a folder or nothing, found a file, "),
        ("link", 2, "expected a folder or nothing, found a link to nothing, "),
        ("closed/a/run", 5, "cannot make the folder closed/a/run: permission denied"),
    ],
)
def test_a_place_without_a_folder_is_refused_before_reading(
    lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch, out: str, code: int, words: str
) -> None:
    """Where no run folder can be made that is said at once: a long text is not read first."""
    Path("link").symlink_to("nowhere")
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path).name != "closed")  # whoever runs the tests may be root
    monkeypatch.setattr(corpora, "open_named", None)
    result = lstmlm("train", text, *TINY, "--out", out)

    assert result.code == code
    assert words in result.err


def test_curve(lstmlm: Lstmlm, text: Path) -> None:
    """With -v the way down is drawn on stderr before the last words; in a pipe without it, or with -q, it is not."""
    often = "--set", "train.eval_every=2", "--overwrite"
    shown, plain, quiet = (lstmlm("train", text, *TINY, *often, flag).err for flag in ("-v", "--json", "-q"))

    assert "validation, bits/char over steps" in shown
    assert shown.index("bits/char over steps") < shown.index("saved runs/text")
    assert "over steps" not in plain + quiet
    assert quiet == ""


def test_times(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """clock.jsonl says when each validation was reached; --overwrite begins it again, and without it a run is resumed."""
    first = clock_log.read(run)
    assert {12.0, 10.0} <= {step for step, _ in first}
    (run / "clock.jsonl").unlink()

    assert lstmlm("train", text, *TINY, "--lr", "0.05", "--resume").code == 0
    assert lstmlm("train", text, *TINY, "--steps", "5", "--overwrite").code == 0
    assert max(step for step, _ in clock_log.read(run)) == 5


def test_json(lstmlm: Lstmlm, text: Path) -> None:
    """--json prints one object with the fields and types that scripts rely on, and nothing else on stdout."""
    told = lstmlm("train", text, *TINY, "--json").json
    score = {"step": int, "bits_per_char": float, "nats_per_char": float, "exact": bool}

    assert {key: type(value) for key, value in told.items()} == {
        "schema": int, "command": str, "run": str, "model": str, "steps": int, "stopped_early": bool, "chars_seen": int,
        "seconds": float, "train_seconds": float, "parameters": int, "best": dict, "final": dict,
        "worse_than_counting": bool,
    }  # fmt: skip
    assert told["schema"] == 1
    assert told["command"] == "train"
    assert told["steps"] == told["final"]["step"] == 12
    assert told["chars_seen"] == 12 * 3 * 5
    assert told["seconds"] > told["train_seconds"] > 0
    for part in ("best", "final"):
        assert {key: type(value) for key, value in told[part].items()} == score
    assert lstmlm("info", told["model"], "--json").json["parameters"] == told["parameters"]


def test_quiet(lstmlm: Lstmlm, text: Path) -> None:
    """-q says nothing at all where nothing is wrong."""
    result = lstmlm("train", text, *TINY, "-q")

    assert (result.code, result.out, result.err) == (0, "", "")


def test_how_it_is_shown(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither --json, -q, -v nor colours in the environment change a bit of what is learnt."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    ways: list[list[str]] = [[], ["--json"], ["-q"], ["-v"]]
    for index, way in enumerate(ways):
        assert lstmlm("train", text, *TINY, *way, "--out", f"r{index}").code == 0
    ends = [digest(Path(f"r{index}")) for index in range(len(ways))]

    assert all(end == ends[0] for end in ends)


@pytest.mark.parametrize(("limit", "code"), [("9", 0), ("0.5", 1), ("nan", 2), ("-1", 2)])
def test_max_bpc(lstmlm: Lstmlm, text: Path, limit: str, code: int) -> None:
    """--max-bpc: a model that takes more is exit 1, after it is saved and reported; what is no limit is exit 2."""
    result = lstmlm("train", text, *TINY, "--max-bpc", limit, "--json")

    assert result.code == code
    assert Path("runs/text/best.safetensors").exists() == (code < 2)
    if code < 2:
        assert (result.json["best"]["bits_per_char"] > float(limit)) == bool(code)
        assert ("error: train: expected at most 0.5 bits/char on the validation text, found" in result.err) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "worse"), [("1", True), ("300", False)])
def test_a_model_that_has_learnt_nothing_is_said_to_have(lstmlm: Lstmlm, text: Path, steps: str, worse: bool) -> None:
    """Worse than the counts of single characters is a warning, and a field of the JSON object."""
    result = lstmlm("train", text, *TINY, "--lr", "0.02", "--steps", steps, "--json")

    assert result.json["worse_than_counting"] is worse
    assert ("has learnt nothing: counting single characters takes" in result.err) is worse


def test_noise_asks_for_text_not_for_time(lstmlm: Lstmlm) -> None:
    """Where a run stopped by itself, having learnt nothing, more time is not what it is told to take."""
    noise = random.Random(3)  # whose validation part no chance makes easy
    Path("noise.txt").write_text("".join(noise.choices("ab\n" + "cdefghijkl" * 2, [40, 20, 20, *[1] * 20], k=900)))
    result = lstmlm("train", "noise.txt", *TINY, "--lr", "0.3", "--steps", "400", "--set", "train.patience=1")

    assert "stopped at step" in result.err
    assert "Give it more text, or a smaller rate (--lr)." in result.err


@pytest.mark.parametrize("source", ["gz", "folder", "two files", "stdin"])
def test_sources(lstmlm: Lstmlm, text: Path, source: str) -> None:
    """The same text from a file, a compressed file, a folder, two files or stdin gives the same model."""
    lstmlm("train", text, *TINY, "--out", "plain")
    data = text.read_bytes()
    if source == "gz":
        Path("text.gz").write_bytes(gzip.compress(data))
        given, stdin = ["text.gz"], b""
    elif source == "folder":
        Path("parts").mkdir()
        Path("parts/a").write_bytes(data[: data.index(b"\n") + 1])
        Path("parts/b").write_bytes(data[data.index(b"\n") + 1 :])
        given, stdin = ["parts"], b""
    elif source == "two files":
        Path("a").write_bytes(data[: data.index(b"\n") + 1])
        Path("b").write_bytes(data[data.index(b"\n") + 1 :])
        given, stdin = ["a", "b"], b""
    else:
        given, stdin = ["-"], data
    result = lstmlm("train", *given, *TINY, "--out", "other", stdin=stdin)

    assert result.code == 0, result.err
    assert digest(Path("other")) == digest(Path("plain"))


# A folder that is there


@pytest.mark.parametrize("flags", [(), ("--steps", "3"), ("--from", "runs/text")])
def test_never_overwritten(lstmlm: Lstmlm, run: Path, text: Path, flags: tuple[str, ...]) -> None:
    """An existing run is refused with exit 2, naming the three ways on, and stays as it is."""
    before = digest(run)
    result = lstmlm("train", text, *flags)

    assert result.code == 2
    assert all(way in result.err for way in ("--resume", "--overwrite", "--out"))
    assert digest(run) == before


def test_a_folder_of_others(lstmlm: Lstmlm, text: Path) -> None:
    """A folder with somebody's files in it is refused, and nothing is added to it, not even a lock."""
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    result = lstmlm("train", text, "--out", "mine")

    assert result.code == 2
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_two_begun_at_once(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two trainings begun in a folder that was not there, the second is refused once its text is read: busy, or used."""
    read, codes = corpora.open_named, []

    def slowly(*args: Any, **more: Any) -> Any:
        with monkeypatch.context() as once:
            once.setattr("lstmlm.cli.corpora.open_named", read)
            codes.append(lstmlm("train", text, *TINY, "-q", "--out", "new").code)
        return read(*args, **more)

    monkeypatch.setattr("lstmlm.cli.corpora.open_named", slowly)
    used = lstmlm("train", text, *TINY, "--hidden", "9", "-q", "--out", "new")
    before = digest(Path("new"))

    assert codes == [0]
    assert used.code == 2, used.err
    assert "Use --resume" in used.err

    def held(*args: Any, **more: Any) -> Any:
        Path("busy").mkdir()
        kept.enter_context(run_dir.lock(Path("busy")))
        return read(*args, **more)

    with contextlib.ExitStack() as kept:
        monkeypatch.setattr("lstmlm.cli.corpora.open_named", held)
        busy = lstmlm("train", text, *TINY, "-q", "--out", "busy")

    assert busy.code == 5
    assert "in use by process" in busy.err
    assert sorted(path.name for path in Path("busy").iterdir()) == [".lock"]
    assert digest(Path("new")) == before


def test_overwrite_keeps_the_pictures_of_the_old_run_too(
    lstmlm: Lstmlm, run: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's files of the old run go when the new one is committed, and not before."""
    old = run / "tensorboard" / "events.out.tfevents.1"
    old.parent.mkdir()
    old.write_text("events")
    (old.parent / "notes.txt").write_text("mine")
    with monkeypatch.context() as once:
        once.setattr("lstmlm.training.trainer.Trainer.begin", refused)
        assert lstmlm("train", text, *TINY, "--overwrite").code == 5

    assert old.read_text() == "events"
    assert lstmlm("train", text, *TINY, "--overwrite").code == 0
    assert [path.name for path in old.parent.iterdir()] == ["notes.txt"]


def refused(_: object) -> None:
    """Stand for a call that the system refuses."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def set_aside(run: Path, place: str) -> None:
    """Leave a run as a killed --overwrite does: what it had lies below it, and of the new run there is no checkpoint."""
    (run / place).mkdir()
    for name in ("config.yaml", "best.safetensors", "last.safetensors", "metrics.jsonl", "samples.txt"):
        os.replace(run / name, run / place / name)
    if place == ".old":  # of the new run, not yet committed
        (run / "metrics.jsonl").write_text("")
        (run / "config.yaml").write_text("train:\n  steps: 3\n")


@pytest.mark.parametrize("named", ["text.txt", "runs/text", ""])
@pytest.mark.parametrize("moved", [".old", ".old.moving"])
def test_a_run_that_was_set_aside_is_still_the_run(lstmlm: Lstmlm, run: Path, text: Path, moved: str, named: str) -> None:
    """Killed while --overwrite begins, the old run is what others read, and --resume, however it is named, puts it back."""
    before = digest(run)
    set_aside(run, moved)

    assert lstmlm("info").code == 0
    assert lstmlm("sample", "-m", run, "--length", "3").code == 0
    assert lstmlm("train", text).code == 2
    assert lstmlm("train", *[named] * bool(named), "--resume").code == 0
    assert digest(run) == before
    assert not (run / moved).exists()


def test_overwrite(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """--overwrite begins again; files that are no part of a run stay."""
    (run / "notes.txt").write_text("mine")
    result = lstmlm("train", text, *TINY, "--steps", "5", "--overwrite", "--json")

    assert result.code == 0
    assert checkpoint.read(run / "last.safetensors").meta["step"] == 5
    assert (run / "notes.txt").read_text() == "mine"


def refusing(at: int, error: int, for_ever: bool) -> Any:
    """Return a disk whose so many-th call is refused, and, for ever, whatever writes after it.

    To rename is not refused for ever: where nothing at all can be renamed, nothing is set aside.
    """

    class Refusing(atomic.Disk):
        left = at

        def __getattribute__(self, name: str) -> Any:
            call = super().__getattribute__(name)
            if name not in ("open", "write", "fsync", "replace", "mkdir"):
                return call
            self.left -= 1
            if self.left == 0 or (for_ever and self.left < 0 and name != "replace"):
                raise OSError(error, os.strerror(error))
            return call

    return Refusing()


@pytest.mark.slow
@pytest.mark.parametrize(("error", "for_ever"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_overwrite_on_a_bad_disk(
    lstmlm: Lstmlm, run: Path, text: Path, monkeypatch: pytest.MonkeyPatch, error: int, for_ever: bool
) -> None:
    """Whichever call of --overwrite the system refuses, the old run is there to the bit until the new one is committed."""
    before, config = digest(run), (run / "config.yaml").read_bytes()
    kept = shutil.copytree(run, "kept")
    failed, begun = 0, 0
    for at in [*range(1, 32), *range(32, 160, 25)]:
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        broken = refusing(at, error, for_ever)
        monkeypatch.setattr(atomic, "calls", broken)
        result = lstmlm("train", text, *TINY, "--steps", "1", "--overwrite", "-q")
        monkeypatch.setattr(atomic, "calls", atomic.Disk())
        if broken.left > 0:
            assert result.code == 0, result.err
            break
        assert result.code in (0, 5), f"call {at}: {result.err}"  # 0: only the times were refused
        assert len(result.err.splitlines()) <= 6, result.err
        if (run / "config.yaml").read_bytes() == config:
            assert digest(run) == before, f"call {at}"
            assert not list(run.glob(".*.tmp")), f"call {at}"
            failed += 1
        else:
            assert checkpoint.read(run / "last.safetensors").meta["step"] <= 1, f"call {at}"
            begun += 1

    assert failed > 10
    assert begun > 1


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("missing.txt", "--out", "runs/text"), 3),
        (("text.txt", "--hidden", "0"), 2),
        (("text.txt", "--from", "nowhere"), 4),
        (("text.txt", "--from", "runs/text"), 2),
        (("text.txt", "--tokenizer", "chars"), 2),
        (("text.txt", "--encoding", "utf-16"), 3),
    ],
)
def test_overwrite_in_vain(lstmlm: Lstmlm, run: Path, text: Path, flags: tuple[str, ...], code: int) -> None:
    """A command that cannot begin deletes nothing, though --overwrite was given."""
    before = digest(run)
    result = lstmlm("train", *flags, "--overwrite")

    assert result.code == code, result.err
    assert digest(run) == before


def test_two_at_once(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A second training in a folder is refused with exit 5, whichever way it was asked for."""
    with run_dir.lock(run):
        results = [lstmlm("train", text, *TINY, way) for way in ("--resume", "--overwrite")]

    assert [result.code for result in results] == [5, 5]
    assert all("in use by process" in result.err for result in results)
    assert lstmlm("train", text, *TINY, "--resume", "--lr", "0.05").code == 0  # the lock of one who left is free


# Going on


@pytest.mark.parametrize("val", ["stories", "val.txt", "-"])
def test_a_validation_text_is_found_again(lstmlm: Lstmlm, text: Path, val: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--val is remembered as what it was: one that comes along by its name, a file by its path, stdin as that."""
    Path("val.txt").write_text("Bob est là.\n" * 9, encoding="utf-8")
    stdin = Path("val.txt").read_bytes() if val == "-" else b""
    assert lstmlm("train", text, *TINY, "--steps", "1", "--val", val, "-q", stdin=stdin).code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    saved = checkpoint.read(Path("../runs/text/last.safetensors")).meta["corpus"]["val"]
    result = lstmlm("fill", "____ est", "--choice", "Bob", "--words", "2", "-m", "../runs/text")

    assert saved == (os.path.abspath("../val.txt") if val == "val.txt" else val)
    assert result.code == (3 if val == "-" else 0), result.err
    assert val != "-" or "it was standard input" in result.err


def test_resume_finished(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Resuming a run that has ended changes nothing and reports its end."""
    before = digest(run)
    told = lstmlm("train", text, "--resume", "--json").json

    assert told["steps"] == 12
    assert digest(run) == before


def test_resume_finished_says_how_to_go_further(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A run that has no steps left says so, and what goes further; one that goes on does not."""
    said = "it has taken all of its steps; to go further: a larger --steps, or --minutes M more"
    finished = lstmlm("train", text, "--resume")
    further = lstmlm("train", text, "--resume", "--steps", 100)

    assert (said in finished.err, said in further.err) == (True, False)
    assert (finished.code, further.code) == (0, 0)


def test_validation_on_the_training_text_is_said(lstmlm: Lstmlm, text: Path) -> None:
    """A file that is both trained on and validated on, by whatever name, is a warning; another one is none."""
    Path("folder").mkdir()
    Path("folder/link.txt").symlink_to(text)
    Path("other.txt").write_text(TEXT, encoding="utf-8")
    told = [lstmlm("train", "text.txt", "--val", val, *TINY, "--out", val[:3]).err for val in ("folder", "other.txt")]

    assert ["trained on too" in message for message in told] == [True, False]


@pytest.mark.parametrize("words", ["Bob is here. ", "0123456789\n"])
def test_what_is_offered_next_works(lstmlm: Lstmlm, words: str) -> None:
    """The last line is a command that works, whatever characters the text has."""
    Path("new.txt").write_text(words * 100)
    offered = lstmlm("train", "new.txt", *TINY).err.splitlines()[-1].strip().removeprefix("lstmlm ")

    assert ("Bob" in offered) == ("Bob" in words)
    assert lstmlm(*shlex.split(offered), "--length", "3").code == 0


def test_resume_same_flags(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """The command that began a run, with --resume added, goes on with it."""
    assert lstmlm("train", text, *TINY, "--lr", "0.05", "--resume").code == 0


def test_resume_epochs(lstmlm: Lstmlm, text: Path) -> None:
    """A budget in passes can be repeated when resuming."""
    flags = ("--epochs", "0.2", "--hidden", "7", "--batch", "3", "--window", "5")

    assert lstmlm("train", text, *flags).code == 0
    assert lstmlm("train", text, *flags, "--resume").code == 0


def test_resume_preset_and_budget(lstmlm: Lstmlm, text: Path) -> None:
    """A preset's budget that a flag replaced does not stand in the way of resuming."""
    flags = ("--config", "minute", "--steps", "2", "--hidden", "7")

    assert lstmlm("train", text, *flags).code == 0
    assert lstmlm("train", text, *flags, "--resume").code == 0


def test_resume_missing(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Resuming a run that is not there is exit 4, and names those that are."""
    result = lstmlm("train", text, "--resume", "--out", "runs/texd")

    assert result.code == 4
    assert "runs/text" in result.err
    assert not Path("runs/texd").exists()


def test_resume_edited(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """An edited text is exit 3: the end of the run would be another one."""
    text.write_text(TEXT.replace("Bob", "bob", 1), encoding="utf-8")
    before = digest(run)
    result = lstmlm("train", text, "--resume")

    assert result.code == 3
    assert "expected the text that the run in runs/text was trained on" in result.err
    assert digest(run) == before


def test_resume_other_validation(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Another validation text than the run had is exit 3; --val-fraction is exit 2."""
    Path("val.txt").write_text("Bob est là.", encoding="utf-8")
    given = lstmlm("train", text, "--resume", "--val", "val.txt")
    part = lstmlm("train", text, "--resume", "--val-fraction", "0.2")

    assert (given.code, part.code) == (3, 2)
    assert "val.txt" in given.err
    assert "data.val_fraction is 0.1 in this run, and 0.2 was asked for" in part.err


@pytest.mark.parametrize(
    ("flags", "key", "was", "asked"),
    [
        (("--hidden", "9"), "model.hidden", "7", "9"),
        (("--lr", "auto"), "train.lr", "0.05", "none"),
        (("--batch", "4"), "train.batch", "3", "4"),
        (("--set", "model.bias=false"), "model.bias", "true", "false"),
        (("--seed", "1"), "train.seed", "0", "1"),
        (("--tokenizer", "byte"), "data.tokenizer", "char", "byte"),
    ],
)
def test_resume_changed(lstmlm: Lstmlm, run: Path, text: Path, flags: tuple[str, ...], key: str, was: str, asked: str) -> None:
    """A changed setting that would make another run of it is exit 2, naming the key and both values."""
    result = lstmlm("train", text, "--resume", *flags)

    assert result.code == 2
    assert re.search(rf"{key} is {was}\b.* and {asked}\b", result.err, re.IGNORECASE), result.err


@pytest.mark.parametrize("named", ["the newest", "the folder", "--out"])
def test_resume_without_naming_the_corpus(lstmlm: Lstmlm, text: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run knows its text, wherever the command is given: it is named by its folder, by --out, or is the newest."""
    assert lstmlm("train", text, *TINY, "-q").code == 0
    Path("elsewhere").mkdir()
    if named != "the newest":
        monkeypatch.chdir("elsewhere")
    which = {"the newest": (), "the folder": ("../runs/text",), "--out": ("--out", "../runs/text")}[named]
    result = lstmlm("train", "--resume", *which, "--steps", "14")

    assert result.code == 0, result.err
    assert "from step 12 on: train.steps 14 (was 12)" in result.err


def test_the_run_in_the_way_is_named(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A folder that is taken is said to be, with the text of the run in it and a name that is free."""
    shutil.copytree(run, "runs/text-2")
    found = [lstmlm("train", text, *TINY, *out) for out in ((), ("--out", "runs/text-2"))]

    assert [result.code for result in found] == [2, 2]
    assert all("found the run of " in result.err for result in found)
    assert all("--out runs/text-3" in result.err for result in found)
    text.write_text(TEXT + TEXT, encoding="utf-8")
    longer = lstmlm("train", text, "--resume")
    assert longer.code == 3
    assert "--from runs/text --out runs/text-3" in longer.err


def test_what_is_offered_where_a_folder_is_taken_works(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """--resume is offered where it goes on: with the run's own text, further than one that has ended, from a whole file."""

    def offered(name: Path, out: Path) -> str:
        result = lstmlm("train", name, *TINY, "--lr", "0.05", "--out", out)
        assert (result.code, "--out" in result.err) == (2, True)
        return result.err.partition(". Use ")[2]

    Path("other.txt").write_text(TEXT, encoding="utf-8")
    for place in ("begun", "cut", "best", "aside", "notes"):
        shutil.copytree(run, place)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", "samples.txt"):
        Path("begun", name).unlink()
    os.truncate("cut/last.safetensors", 100)
    Path("best/last.safetensors").unlink()
    set_aside(Path("aside"), ".old")
    for path in Path("notes").iterdir():
        path.unlink()
    Path("notes/letter.md").write_text("dear")

    ended, unbegun, aside = offered(text, Path("runs/text")), offered(text, Path("begun")), offered(text, Path("aside"))
    assert ended.startswith("--resume with a larger --steps, or --minutes M more, to go on with it, --overwrite to begin again")
    assert aside.startswith("--resume with a larger --steps")
    assert unbegun.startswith("--resume to go on with it, --overwrite to begin again, or --out begun-2")
    for name in ("cut", "best"):
        assert offered(text, Path(name)).startswith(f"--overwrite to begin again, or --out {name}-2 ")
    assert offered(Path("other.txt"), Path("runs/text")).startswith("--overwrite to begin again, or --out runs/text-2 ")
    assert offered(text, Path("notes")).startswith("--out notes-2 for another folder.")
    for out, flags in ((run, ["--steps", "13"]), (Path("begun"), []), (Path("aside"), ["--steps", "13"])):
        assert lstmlm("train", text, "--resume", "--out", out, *flags).code == 0


def test_a_best_model_that_is_not_the_runs_is_refused(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A run goes on beside its own best model alone: it would score another as its own. The way that is offered works."""
    Path("other.txt").write_text("Another text, of other characters? 0123456789!\n" * 40, encoding="utf-8")
    assert lstmlm("train", "other.txt", *TINY).code == 0
    best = run / "best.safetensors"
    own = best.read_bytes()

    best.unlink()
    missing = lstmlm("train", text, "--resume", "--steps", "14")
    best.write_bytes(Path("runs/other/best.safetensors").read_bytes())
    other = lstmlm("train", text, "--resume", "--steps", "14")

    assert (missing.code, other.code) == (4, 4)
    assert "found none. Put it back" in missing.err
    assert "found one of another run. Put it back" in other.err
    assert lstmlm("train", text, "--from", run / "last.safetensors", "--out", "new", "--steps", "2").code == 0
    best.write_bytes(own)
    assert lstmlm("train", text, "--resume", "--steps", "14").code == 0


def test_nothing_to_train(lstmlm: Lstmlm, run: Path) -> None:
    """Without a text and without --resume it is exit 2; with --resume and no run exit 4."""
    assert lstmlm("train").code == 2
    shutil.rmtree("runs")
    assert lstmlm("train", "--resume").code == 4


def test_a_run_of_standard_input_is_given_it_again(lstmlm: Lstmlm) -> None:
    """A run on standard input that is resumed without it is exit 3 with the command that works."""
    assert lstmlm("train", "-", *TINY, "--out", "runs/a", "-q", stdin=TEXT.encode()).code == 0
    refused = lstmlm("train", "--resume", "runs/a", "--steps", "13")

    assert refused.code == 3
    assert "train TEXT --resume --out runs/a" in refused.err
    assert lstmlm("train", "--resume", "-", "--out", "runs/a", "--steps", "13", stdin=TEXT.encode()).code == 0


def test_a_corpus_that_was_moved(lstmlm: Lstmlm, text: Path) -> None:
    """A run goes on with its text from wherever it is now: named itself, or by the folder that it lies in with others."""
    Path("val.txt").write_text("Bob est là.\n" * 9, encoding="utf-8")
    assert lstmlm("train", text, *TINY, "--val", "val.txt", "-q").code == 0
    Path("moved").mkdir()
    for name in ("text.txt", "val.txt"):
        os.replace(name, f"moved/{name}")
    Path("moved/other.txt").write_text("Bob", encoding="utf-8")

    gone = lstmlm("train", "--resume", "runs/text")
    assert gone.code == 3
    assert "lstmlm train PLACE --resume --out runs/text" in gone.err
    for place, steps in ((("moved",), 13), (("moved/text.txt", "--val", "moved/val.txt"), 14), ((), 15)):
        result = lstmlm("train", *place, "--resume", "--out", "runs/text", "--steps", steps)
        assert result.code == 0, result.err


def test_further_in_minutes(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A run that has ended goes on for as many minutes as are asked for, and its record says what was changed."""
    result = lstmlm("train", text, "--resume", "--minutes", "0.02")

    assert result.code == 0, result.err
    assert "from step 12 on: 0.02 minutes more" in result.err
    assert checkpoint.read_header(run / "last.safetensors").meta["step"] > 12
    changed = {"train.minutes": [None, 0.02], "train.steps": [12, None]}
    assert f'"changed": {json.dumps(changed)}' in (run / "metrics.jsonl").read_text()
    assert load_preset(str(run / "config.yaml"))[1]["train.minutes"].value == 0.02


def test_where_the_rate_falls_going_further_is_said(lstmlm: Lstmlm, text: Path) -> None:
    """A run whose rate fell to its end is said to have a larger one again when it goes on, and that it is not the same."""
    assert lstmlm("train", text, *TINY, "--lr", "0.05", "--set", "train.final_lr=0", "-q").code == 0
    result = lstmlm("train", "--resume", "runs/text", "--steps", "24")

    assert result.code == 0, result.err
    assert "of 12 steps it had come to 0 here, now it is 0.02" in result.err


def test_a_run_that_is_not_ended_keeps_its_minutes(lstmlm: Lstmlm, text: Path) -> None:
    """The command of a run in minutes, typed again with --resume, asks for nothing new until the run has ended."""
    assert lstmlm("train", text, *TINY[2:], "--minutes", "0.02", "-q").code == 0
    ended = checkpoint.read(Path("runs/text/last.safetensors"))
    ended.meta["training"] |= {"steps": ended.meta["step"] + 3, "exact_step": -1}
    checkpoint.write(Path("runs/text/last.safetensors"), ended)
    result = lstmlm("train", text, "--minutes", "0.02", "--resume")

    assert result.code == 0, result.err
    assert " more" not in result.err
    assert checkpoint.read(Path("runs/text/last.safetensors")).meta["step"] == ended.meta["step"] + 3


def test_a_model_does_not_say_where_its_text_lies(lstmlm: Lstmlm, text: Path) -> None:
    """best.safetensors names no folder, unless asked for; the run's own file does."""
    assert lstmlm("train", text, *TINY, "--out", Path("runs/a").resolve(), "-q").code == 0
    assert lstmlm("train", text, *TINY, "--out", "runs/b", "--set", "data.paths=true", "-q").code == 0
    folder = str(text.parent).encode()
    holds = {
        f"{run}/{kind}": folder in Path(f"runs/{run}/{kind}.safetensors").read_bytes()
        for run in "ab"
        for kind in ("best", "last")
    }

    assert holds == {"a/best": False, "a/last": True, "b/best": True, "b/last": True}
    assert lstmlm("eval", "-m", "runs/a").code == 0


def test_resume_other_conditions(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """What differs from when the run was saved, and is sound, is said: kernel, threads, versions."""
    path = run / "last.safetensors"
    saved = checkpoint.read(path)
    saved.meta["versions"] |= {"torch": "1.0\x1b[2J", "kernel": "abacus", "threads": "3"}
    checkpoint.write(path, saved)
    result = lstmlm("train", text, "--resume", "--threads", "1")

    assert result.code == 0
    assert "kernel abacus then, eager now" in result.err
    assert "threads 3 then, 1 now" in result.err
    assert "torch 1.0" in result.err
    assert b"\x1b" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_one_is_refused_at_once(lstmlm: Lstmlm, text: Path) -> None:
    """--device cuda where there is none is exit 2, before the text is read or anything is chosen; nothing is made."""
    result = lstmlm("train", text, "--device", "cuda", "--out", "new")

    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "expected a working CUDA device, found: torch" in result.err
    assert not Path("new").exists()


def test_a_full_device_is_said_in_a_line(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch raises for a device without memory is exit 5 with a next step, and no traceback."""

    def full(self: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("lstmlm.training.trainer.Trainer.run", full)
    result = lstmlm("train", text, *TINY, "--out", "new")

    assert result.code == 5
    assert "device memory: expected enough" in result.err
    assert "Traceback" not in result.err


def test_resume_before_the_first_checkpoint(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A run killed between its configuration and its first checkpoint is resumed with the settings it was begun with."""
    before = digest(run)
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", "samples.txt"):
        (run / name).unlink()

    assert lstmlm("train", text, "--resume").code == 0
    assert digest(run) == before


@pytest.mark.parametrize(
    ("gone", "advice"),
    [(("last",), "--from runs/text"), (("last", "best"), "--overwrite")],
)
def test_resume_never_begins_again(lstmlm: Lstmlm, run: Path, text: Path, gone: tuple[str, ...], advice: str) -> None:
    """Without `last`, --resume of a run that has trained is exit 4 with the way on, and what is there stays."""
    for kind in gone:
        (run / f"{kind}.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != run_dir.LOCK}
    result = lstmlm("train", text, "--resume")

    assert result.code == 4
    assert advice in result.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != run_dir.LOCK} == before


@pytest.mark.parametrize("change", ["renamed", "of another type"])
def test_resume_names_the_file(lstmlm: Lstmlm, run: Path, text: Path, change: str) -> None:
    """Training state of another version is exit 4 with the file and the field, before the text is read."""
    path = run / "last.safetensors"
    saved = checkpoint.read(path)
    value = saved.meta["training"].pop("worse")
    saved.meta["training"]["worse" if change == "of another type" else "worst"] = str(value)
    checkpoint.write(path, saved)
    text.unlink()
    result = lstmlm("train", text, "--resume")

    assert result.code == 4
    assert "last.safetensors: training.wors" in result.err


def test_resume_writes_a_configuration_that_is_missing(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A run from another model that was killed between its first checkpoint and its config.yaml gets the file later."""
    kept = (run / "config.yaml").read_bytes()
    (run / "config.yaml").unlink()

    assert lstmlm("train", text, "--resume").code == 0
    assert (run / "config.yaml").read_bytes() == kept


@pytest.mark.parametrize("flags", [("--overwrite",), ("--from", "runs/text")])
def test_resume_contradicted(lstmlm: Lstmlm, run: Path, text: Path, flags: tuple[str, ...]) -> None:
    """--resume beside a flag that begins anew is exit 2."""
    assert lstmlm("train", text, "--resume", *flags).code == 2


def test_resume_damaged(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A damaged last checkpoint is exit 4: training does not go on from something else in silence."""
    path = run / "last.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    result = lstmlm("train", text, "--resume")

    assert result.code == 4
    assert "last.safetensors" in result.err
    assert path.read_bytes() == bytes(data)


# Starting from a model


@pytest.mark.parametrize("moved", ["", ".old", ".old.moving"])
def test_a_model_is_not_overwritten_by_what_starts_from_it(lstmlm: Lstmlm, run: Path, text: Path, moved: str) -> None:
    """--from a run that --overwrite would delete is exit 2, also where a killed command has set it aside."""
    (run / moved).mkdir(exist_ok=True)
    for path in run.glob("*.*"):
        if path.is_file():
            os.replace(path, run / moved / path.name)
    before = digest(run / moved)
    result = lstmlm("train", text, "--from", run, "--out", run, "--overwrite", *TINY)

    assert result.code == 2
    assert "holds the model" in result.err
    assert digest(run / moved) == before


def test_from(lstmlm: Lstmlm, run: Path) -> None:
    """A fine-tuned model inherits vocabulary and shape, though the new text has fewer characters."""
    Path("new.txt").write_text("Bob est là. " * 30, encoding="utf-8")
    result = lstmlm("train", "new.txt", "--from", "runs/text", "--steps", "3", "--batch", "2", "--window", "6")
    parent, child = lstmlm("info", run, "--json").json, lstmlm("info", "runs/new", "--json").json

    assert result.code == 0, result.err
    assert child["vocabulary"] == parent["vocabulary"]
    dropped = ("dropout", "weight_dropout")
    assert {k: v for k, v in child["config"]["model"].items() if k not in dropped} == {
        k: v for k, v in parent["config"]["model"].items() if k not in dropped
    }


def test_from_starts_there(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """A fine-tuned run starts from the model's weights, to the bit."""
    lstmlm("train", text, "--from", "runs/text", "--steps", "1", "--lr", "0", "--set", "train.weight_decay=0", "--out", "child")
    child, parent = (checkpoint.read(folder / "best.safetensors").tensors for folder in (Path("child"), run))

    assert {name: bytes(b.data) for name, b in child.items()} == {name: bytes(b.data) for name, b in parent.items()}


def test_from_unknown(lstmlm: Lstmlm, run: Path) -> None:
    """A character that the model has no symbol for is exit 3, named with its code point, and no folder is left."""
    Path("new.txt").write_text("Bob est là. Ħ " * 9, encoding="utf-8")
    result = lstmlm("train", "new.txt", "--from", "runs/text")

    assert result.code == 3
    assert "new.txt at character 12" in result.err
    assert "U+0126" in result.err
    assert not Path("runs/new").exists()


@pytest.mark.parametrize(
    "flags",
    [
        *(("--hidden", "9"), ("--layers", "1"), ("--tokenizer", "byte"), ("--config", "article")),
        *(("--set", "model.layer_norm=false"), ("--set", "model.multiplicative=false")),
    ],
)
def test_from_other_shape(lstmlm: Lstmlm, run: Path, text: Path, flags: tuple[str, ...]) -> None:
    """Another shape than the model's is exit 2, naming the key, before anything is made."""
    result = lstmlm("train", text, "--from", "runs/text", "--out", "child", *flags)

    assert result.code == 2
    assert "in the model of --from" in result.err
    assert not Path("child").exists()


def test_from_says_what_the_model_takes(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """The parent is scored on the new validation part before step 1, and is said to be kept where nothing is better."""
    wiped = ("--set", "train.weight_decay=100", "--lr", "0.01", "--set", "train.warmup=0", "--steps", "3")
    result = lstmlm("train", text, "--from", "runs/text", "--out", "child", *wiped)
    own = lstmlm("eval", "-m", "runs/text", text, "--json").json

    assert result.code == 0, result.err
    assert "before step 1  validation" in result.err
    assert "the model of --from: it is kept" in result.err
    assert lstmlm("eval", "-m", "child", text, "--json").json["nats_per_char"] == own["nats_per_char"]


def test_from_takes_its_dropout_from_the_text(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """How much is dropped is chosen for the new text and its passes, not taken from the parent."""
    assert (
        lstmlm("train", text, "--from", "runs/text", "--out", "child", "--steps", "2", "--batch", "3", "--window", "5").code == 0
    )
    parent, child = (lstmlm("info", name, "--json").json["config"]["model"] for name in ("runs/text", "child"))

    assert (parent["dropout"], child["dropout"]) == (0.2, 0.0)


@pytest.mark.parametrize("rule", ["skip", "replace", "grow"])
@pytest.mark.parametrize("members", [1, 2])
def test_from_with_new_characters(lstmlm: Lstmlm, text: Path, rule: str, members: int) -> None:
    """Characters that the parent does not know are left out, replaced or learnt, as asked, and the run goes on like that."""
    assert lstmlm("train", text, *TINY, "--members", members, "-q").code == 0
    Path("new.txt").write_text("Bob est là. Ħé \u201cBob\u201d " * 30, encoding="utf-8")
    small = ("--steps", "3", "--batch", "2", "--window", "6")
    result = lstmlm("train", "new.txt", "--from", "runs/text", "--on-unknown", rule, *small)
    again = lstmlm("train", "--resume", "runs/new", "--steps", "5")
    known = lstmlm("info", "runs/text", "--json").json["vocabulary"]

    assert (result.code, again.code) == (0, 0), result.err + again.err
    assert set(lstmlm("info", "runs/new", "--json").json["vocabulary"]) == set(known) | (
        set("Ħé\u201c\u201d") if rule == "grow" else set()
    )
    said = {"skip": "left out", "replace": "replaced", "grow": "new to the model, and learnt: 4 characters"}
    assert said[rule] in result.err


def test_a_readout_that_is_the_last_layer_cannot_grow(lstmlm: Lstmlm, text: Path) -> None:
    """Where the last layer is as wide as the vocabulary, new characters are exit 2 with what can be done."""
    assert lstmlm("train", text, "--config", "article", "--steps", "2", "--batch", "2", "--window", "5", "-q").code == 0
    Path("new.txt").write_text("Bob est là. Ħ " * 9, encoding="utf-8")
    result = lstmlm("train", "new.txt", "--from", "runs/text", "--on-unknown", "grow", "--steps", "2")

    assert result.code == 2
    assert "--on-unknown skip" in result.err
    assert not Path("runs/new/config.yaml").exists()


def test_from_the_same_shape(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Repeating the model's own sizes, or giving another dropout, is no conflict."""
    flags = ("--hidden", "7", "--layers", "2", "--dropout", "0.4", "--steps", "2")

    assert lstmlm("train", text, "--from", "runs/text", "--out", "child", *flags).code == 0


@pytest.mark.slow
def test_a_smaller_network_where_the_machine_becomes_slow(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose machine becomes slow soon begins again with a network that fits, within the same minutes, and can go on."""
    cost, asked = [1e-8], []

    def slower(budget: Budget, steps: int, expected: int) -> bool:
        asked.append(expected)
        cost[0] = 3e-6
        return len(asked) == 2

    monkeypatch.setattr("lstmlm.cli.train_run.STARTED", time.perf_counter())
    monkeypatch.setattr("lstmlm.training.step_timing.timer", lambda *_: lambda config: cost[0] * config.model.hidden**2)
    monkeypatch.setattr(Budget, "slower", slower)
    done = lstmlm("train", text, "--minutes", "0.04", "--set", "train.patience=0")
    metrics = [json.loads(line) for line in Path("runs/text/metrics.jsonl").read_text().splitlines()]
    chosen = yaml.safe_load(Path("runs/text/config.yaml").read_text())

    assert done.code == 0, done.err
    assert "1 x 128 units" in done.err
    assert "the run begins again with a smaller network\n1 x 32 units" in done.err
    assert len(asked) == 2
    assert chosen["model"]["hidden"] == lstmlm("info", "runs/text", "--json").json["config"]["model"]["hidden"] == 32
    assert metrics == sorted(metrics, key=lambda record: record["step"])  # those of the first network are gone
    assert lstmlm("train", text, "--resume").code == 0


# Without training


def test_dry_run(lstmlm: Lstmlm, text: Path) -> None:
    """--dry-run shows sizes, memory and steps on stdout and makes no folder."""
    shown = lstmlm("train", text, *TINY, "--dry-run")
    told = lstmlm("train", text, *TINY, "--dry-run", "--json").json

    assert shown.code == 0
    assert all(word in shown.out for word in ("parameters", "memory", "steps", "warning"))
    assert told["steps"] == 12
    assert told["memory_bytes"] > 100_000_000  # torch alone
    assert not Path("runs").exists()


def test_dry_run_where_there_is_a_run(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """--dry-run shows the plan, and says that without it the folder would be refused; with --overwrite it would not."""
    shown = lstmlm("train", text, "--out", run, *TINY, "--dry-run")
    over = lstmlm("train", text, "--out", run, *TINY, "--dry-run", "--overwrite")

    assert (shown.code, over.code) == (0, 0)
    assert "without --dry-run this is refused: run" in shown.err
    assert "--overwrite to begin again" in shown.err
    assert "refused" not in over.err
    assert "parameters" in shown.out


@pytest.mark.parametrize("moved", ["", ".old", ".old.moving"])
def test_dry_run_of_a_run_that_goes_on(lstmlm: Lstmlm, run: Path, text: Path, moved: str) -> None:
    """--resume with --dry-run or --print-config shows the run that would go on, also a set-aside one, and changes nothing."""
    if moved:
        set_aside(run, moved)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shown = lstmlm("train", "--resume", "--dry-run")
    further = lstmlm("train", "--resume", run, "--dry-run", "--steps", "30", "--json")
    fewer = lstmlm("train", "--resume", run, "--dry-run", "--steps", "5")
    settings = lstmlm("train", "--resume", run, "--print-config", "--json").json["config"]

    assert (shown.code, further.code) == (0, 0), shown.err + further.err
    assert "it has taken all of its steps" in shown.err
    assert "resumes at step" in shown.out
    assert "all of its steps" not in further.err
    assert (further.json["steps"], further.json["resumes_at_step"]) == (30, 12)
    assert settings["train"]["steps"] == 12
    assert (fewer.code, "at least the 12 steps that the run has taken, found 5" in fewer.err) == (2, True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert lstmlm("train", "--resume", run, "--steps", "5").err == fewer.err


def test_print_config(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--print-config shows each value and where it came from; what it prints is a configuration file."""
    monkeypatch.setenv("LSTMLM_TRAIN_CLIP", "0.5")
    Path("mine.yaml").write_text("train:\n  lr: 3e-3\n  seed: 5\n")
    result = lstmlm("train", text, "--config", "mine.yaml", "--set", "train.seed=7", "--hidden", "9", "--print-config")
    lines = {line.split(":")[0].strip(): line for line in result.out.splitlines()}

    assert result.code == 0
    assert "mine.yaml" in lines["lr"]
    assert "LSTMLM_TRAIN_CLIP" in lines["clip"]
    assert "--set" in lines["seed"]
    assert "--hidden" in lines["hidden"]
    assert "default" in lines["beta1"]
    Path("printed.yaml").write_text(result.out)
    assert load_preset("printed.yaml")[1]["train.seed"].value == 7
    assert not Path("runs").exists()


def test_print_config_json(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """--print-config --resume --json shows the settings of the run, as one object."""
    told = lstmlm("train", text, "--resume", "--print-config", "--json").json

    assert told["config"]["model"]["hidden"] == 7
    assert told["sources"]["model.hidden"] == "checkpoint"


def test_precedence(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later file wins over an earlier one, the environment over files, and a flag over all."""
    Path("a.yaml").write_text("train: {lr: 0.001, seed: 1, batch: 2, window: 9}\n".replace("{", "{ "))
    Path("b.yaml").write_text("train:\n  seed: 2\n  batch: 3\n  window: 8\n")
    monkeypatch.setenv("LSTMLM_TRAIN_BATCH", "5")
    monkeypatch.setenv("LSTMLM_TRAIN_WINDOW", "6")
    result = lstmlm("train", text, "--config", "a.yaml", "--config", "b.yaml", "--window", "7", "--print-config", "--json")
    train = result.json["config"]["train"]

    assert (train["lr"], train["seed"], train["batch"], train["window"]) == (0.001, 2, 5, 7)


def test_identity(lstmlm: Lstmlm, run: Path) -> None:
    """A checkpoint says where it came from: the text, the command, the versions."""
    meta = checkpoint.read(run / "last.safetensors").meta

    assert meta["corpus"]["name"] == "text"
    assert meta["corpus"]["chars"] == len(TEXT)
    assert meta["command"][:3] == ["lstmlm", "train", "text.txt"]
    assert {"lstmlm", "torch", "python", "kernel", "threads"} <= set(meta["versions"])
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 12


@pytest.mark.slow
def test_stops_when_it_is_over(lstmlm: Lstmlm, text: Path) -> None:
    """A text that is soon known by heart ends the run; the message names the step that is kept, and so does --json."""
    text.write_text("Bob est là; Ann le voit.\n" * 30 + "Zoé? Qui est Zoé? Max & Léo, ça.\n" * 3, encoding="utf-8")
    vocabulary = "".join(sorted(set(text.read_text(encoding="utf-8"))))
    text.write_text(vocabulary + text.read_text(encoding="utf-8"), encoding="utf-8")
    flags = ("--steps", "400", "--hidden", "17", "--lr", "0.05", "--dropout", "0", "--batch", "3", "--threads", "1")
    ended = lstmlm("train", text, *flags, "--json")
    whole = lstmlm("train", text, *flags, "--json", "--set", "train.patience=0", "--out", "runs/whole")

    assert ended.code == whole.code == 0
    assert ended.json["stopped_early"] is True
    assert ended.json["steps"] < 400
    assert "The best model is kept" in ended.err
    assert f"at step {ended.json['best']['step']:,}\n" in ended.err
    assert f"stopped at step {ended.json['steps']} of 400" in ended.err
    assert (whole.json["stopped_early"], whole.json["steps"]) == (False, 400)
    assert whole.json["best"] == ended.json["best"]
    assert "stopped at" not in whole.err
