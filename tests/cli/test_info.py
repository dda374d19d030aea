import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lstmlm.storage import checkpoint
from tests.cli.conftest import TEXT, TINY, Lstmlm


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def test_json(lstmlm: Lstmlm, run: Path) -> None:
    """--json tells configuration, vocabulary, parameters, step, scores, corpus, versions and command."""
    told = lstmlm("info", run, "--json").json

    assert told["schema"] == 1
    assert told["config"]["model"]["hidden"] == 7
    assert told["vocabulary"] == "".join(sorted(set(TEXT)))
    assert told["vocabulary_size"] == len(set(TEXT))
    assert told["parameters"] > 0
    assert told["corpus"]["chars"] == len(TEXT)
    assert len(told["corpus"]["fingerprint"]) == 64
    assert set(told["scores"]) == {"validation_nats_per_char", "validation_bits_per_char", "step", "exact"}
    assert told["command_line"][:2] == ["lstmlm", "train"]


@pytest.mark.parametrize("form", [(), ("runs/text",), ("-m", "runs/text"), ("runs/text/last.safetensors",)])
def test_text(lstmlm: Lstmlm, run: Path, form: tuple[str, ...]) -> None:
    """A person reads the same on one screen, whichever way the model is named."""
    result = lstmlm("info", *form)

    assert result.code == 0
    assert all(word in result.out for word in ("parameters", "vocabulary", "corpus", "command", "train.lr"))
    assert ("model runs/text" in result.err) == (not form)


@pytest.mark.parametrize(
    ("exact", "shown"), [(True, "0.7213 bits/char"), (False, "about 0.7213 bits/char"), (None, "0.7213 bits/char")]
)
def test_an_estimate_is_said_to_be_one(lstmlm: Lstmlm, run: Path, exact: bool | None, shown: str) -> None:
    """The score of a model is `about` so many bits where the run had no time for an exact one; earlier versions do not say."""
    path = Path("runs/text/best.safetensors")
    saved = checkpoint.read(path)
    scores = {"validation_nats_per_char": 0.5, "step": 3} | ({} if exact is None else {"exact": exact})
    checkpoint.write(path, replace(saved, meta=saved.meta | {"scores": scores}))
    lines = dict(line.split(maxsplit=1) for line in lstmlm("info", "runs/text").out.splitlines())

    assert lines["validation"] == f"{shown} at step 3, the best so far"


def test_text_can_be_typed_again(lstmlm: Lstmlm, text: Path) -> None:
    """The command stands there as a shell reads it, and counts have their commas."""
    Path("two words.txt").write_text("Bob is here. " * 100)
    assert lstmlm("train", "two words.txt", *TINY, "--out", "new").code == 0
    lines = dict(line.split(maxsplit=1) for line in lstmlm("info", "new").out.splitlines())

    assert shlex.split(lines["command"])[:3] == ["lstmlm", "train", "two words.txt"]
    assert "1,300 characters" in lines["corpus"]


def test_two_models(lstmlm: Lstmlm, run: Path) -> None:
    """Two different models are one too many."""
    assert lstmlm("info", "runs/text", "-m", "runs/other").code == 2


def test_verify(lstmlm: Lstmlm, run: Path) -> None:
    """--verify checks every checkpoint of a run and names each."""
    assert lstmlm("info", run, "--verify").out.count("whole") == 2
    assert len(lstmlm("info", run, "--verify", "--json").json["verified"]) == 2


def test_verify_goes_on_behind_what_is_damaged(lstmlm: Lstmlm, run: Path) -> None:
    """--verify says of every file of weights whether it is whole, also of those that --keep and --distill leave; then exit 4."""
    for name in ("step-3", "teacher"):
        shutil.copy(run / "best.safetensors", run / f"{name}.safetensors")
    for name in ("best", "step-3"):
        flip(run / f"{name}.safetensors", -1)
    shown, told = lstmlm("info", run, "--verify"), lstmlm("info", run, "--verify", "--json")
    states = {Path(path).stem: state for path, state in (line.split(": ") for line in shown.out.splitlines())}

    assert (shown.code, told.code) == (4, 4)
    assert states == {"teacher": "whole", "best": "damaged", "last": "whole", "step-3": "damaged"}
    assert [Path(path).stem for path in told.json["damaged"]] == ["best", "step-3"]
    assert "best.safetensors" in shown.err


def test_a_picture_beside_other_answers(lstmlm: Lstmlm, run: Path) -> None:
    """--svg draws whatever else is asked for, and --json and --verify answer as they do without it."""
    for flags in (["--json"], ["--verify"], ["--verify", "--json"]):
        told = lstmlm("info", run, "--svg", "run.svg", "--title", "Two men", *flags, "-q")

        assert (told.code, told.err) == (0, "")
        assert told.out == lstmlm("info", run, *flags).out != ""
        assert Path("run.svg").read_text(encoding="utf-8").startswith("<svg ")
        assert ">Two men<" in Path("run.svg").read_text(encoding="utf-8")
        Path("run.svg").unlink()


@pytest.mark.parametrize("kind", ["best", "last"])
@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_flipped(lstmlm: Lstmlm, run: Path, kind: str, place: int) -> None:
    """--verify finds a flipped bit in either checkpoint: exit 4, with the file's name."""
    flip(run / f"{kind}.safetensors", place)
    result = lstmlm("info", run, "--verify")

    assert result.code == 4
    assert f"{kind}.safetensors" in result.err


def test_truncated(lstmlm: Lstmlm, run: Path) -> None:
    """A checkpoint that lost its end is exit 4; without --verify the other one is shown, with a warning."""
    path = run / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = lstmlm("info", run)

    assert lstmlm("info", path).code == 4
    assert result.code == 0
    assert "warning:" in result.err
    assert "last.safetensors" in result.out


def test_hostile_strings(lstmlm: Lstmlm, run: Path) -> None:
    """Escape sequences in a checkpoint's strings reach no terminal."""
    path = run / "best.safetensors"
    saved = checkpoint.read(path)
    saved.meta["corpus"]["name"] = "\x1b[2J\x1b]0;owned\x07"
    saved.meta["command"] = ["\x1b[31m", "\u202e"]
    saved.meta["versions"] = {"\x1b[5m": "\x9b1m"}
    checkpoint.write(path, saved)
    for result in (lstmlm("info", path), lstmlm("info", path, "--json")):
        assert result.code == 0
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(result.out + result.err)


@pytest.mark.parametrize("config", [{}, {"model": {"hidden": -1}}, {"model": 3}, {"other": {}}, {"train": {"lr": "x" * 99}}])
def test_hostile_config(lstmlm: Lstmlm, run: Path, config: dict[str, object]) -> None:
    """A configuration that makes no sense is a refused checkpoint, exit 4, and never a traceback."""
    path = run / "best.safetensors"
    saved = checkpoint.read(path)
    saved.meta["config"] = config
    checkpoint.write(path, saved)
    codes = [lstmlm(command, "-m", path).code for command in ("info", "sample")]

    assert codes == [0 if not config else 4, 4]


@pytest.mark.parametrize("symbols", [5, None, ["a"], "ba", ""])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_hostile_vocabulary(lstmlm: Lstmlm, run: Path, symbols: object, form: tuple[str, ...]) -> None:
    """A vocabulary that makes no sense is a refused checkpoint, exit 4, in a message that names the file."""
    path = run / "best.safetensors"
    saved = checkpoint.read(path)
    saved.meta["tokenizer"]["symbols"] = symbols
    checkpoint.write(path, saved)
    result = lstmlm("info", path, *form)

    assert result.code == 4
    assert str(path) in result.err


def test_info_reads_no_tensors(lstmlm: Lstmlm, run: Path) -> None:
    """What a model is, is told from the header alone, however large the file; --verify reads the rest."""
    path = run / "best.safetensors"
    flip(path, -1)

    assert lstmlm("info", path).code == 0
    assert lstmlm("info", path, "--verify").code == 4


def test_not_a_model(lstmlm: Lstmlm) -> None:
    """A file that is no checkpoint is exit 4 and says what it looks like."""
    Path("model.safetensors").write_text("hello")

    assert lstmlm("info", "model.safetensors").code == 4
    assert lstmlm("info").code == 4


def test_a_picture_beside_something_else(lstmlm: Lstmlm, run: Path) -> None:
    """--svg draws whatever else is asked for, and what else is asked for is printed."""
    told = lstmlm("info", run, "--svg", "a.svg", "--json")
    verified = lstmlm("info", run, "--verify", "--svg", "b.svg")
    both = lstmlm("info", run, "--verify", "--svg", "c.svg", "--json")

    assert told.json["step"] == 12
    assert verified.out.count(": whole") == 2
    assert len(both.json["verified"]) == 2
    assert all(Path(name).read_text().startswith("<svg ") for name in ("a.svg", "b.svg", "c.svg"))


def test_cache(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--cache shows the ids that are kept, --clear-cache removes them; beside a model either is exit 2."""
    monkeypatch.setattr("lstmlm.data.cache.MEMORY_LIMIT", 0)
    assert lstmlm("train", text, *TINY, "-q").code == 0
    told = lstmlm("info", "--cache", "--json").json
    shown = lstmlm("info", "--cache")
    cleared = lstmlm("info", "--clear-cache")

    assert [Path(one["text"]).name for one in told["files"]] == ["text.txt"]
    assert "text.txt" in shown.out
    assert "0 days ago" in shown.out
    assert "1 file" in cleared.out
    assert lstmlm("info", "--cache", "--json").json["files"] == []
    assert lstmlm("info", "runs/text", "--cache").code == 2


def test_many_files_are_counted(lstmlm: Lstmlm) -> None:
    """A run on many files says how many: three thousand on a command line make no large model and no long line."""
    Path("many").mkdir()
    for number in range(300):
        Path(f"many/{'a' * 20}{number:04}.txt").write_text("Bob is here.\n")
    assert lstmlm("train", *sorted(Path("many").iterdir()), *TINY, "--out", "run", "-q").code == 0
    shown = lstmlm("info", "run").out

    assert "0000 and 299 more, 3,900 characters" in " ".join(shown.split())
    assert Path("run/best.safetensors").stat().st_size < 20_000
