from pathlib import Path

import pytest

from lstmlm.api import LanguageModel
from tests.cli.conftest import Lstmlm
from tests.corpora import ACCEPTED, REFUSED

FLAGS = ("--hidden", "3", "--layers", "1", "--batch", "2", "--window", "5", "--threads", "1", "--set", "train.save_every=1")
LARGE = (
    30_000  # bytes, from where on a text takes longer than its promise is worth here; tests/data/test_corpus.py reads it whole
)


def trained(lstmlm: Lstmlm, data: bytes, *flags: str) -> None:
    """Take a text through train, resume, eval and sample."""
    Path("text").write_bytes(data)
    for line in (("--steps", "2"), ("--resume",), ("--steps", "1", "--overwrite", "--from", "kept", "--out", "tuned")):
        if "--from" in line and not Path("kept").exists():
            Path("runs/text").rename("kept")
        result = lstmlm("train", "text", *FLAGS[: None if "--from" not in line else 0], *flags, *line)
        assert result.code == 0, result.err
        assert "\x1b" not in result.err
    scored = lstmlm("eval", "text", "-m", "kept", "--threads", "1", "--json", *flags[2:]).json
    drawn = lstmlm("sample", "-m", "kept", "--length", "9", "--seed", "1", "--threads", "1", "--json")

    assert scored["bits_per_char"] >= 0  # of one symbol alone nothing is left to say
    assert drawn.code == 0
    assert len(drawn.json["text"]) <= 9
    tokenizer = LanguageModel.open("kept", threads=1).tokenizer
    assert tokenizer.decode(tokenizer.encode(drawn.json["text"])) == drawn.json["text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, data in ACCEPTED.items() if len(data) < LARGE])
def test_any_text_goes_all_the_way(lstmlm: Lstmlm, name: str) -> None:
    """An accepted text is trained on, resumed, tuned on, scored and sampled from; nothing of it reaches a message as it is."""
    trained(lstmlm, ACCEPTED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (data, _) in REFUSED.items() if len(data) > 1 and len(data) < LARGE])
def test_the_way_out_works(lstmlm: Lstmlm, name: str) -> None:
    """A refused text is exit 3 for train and leaves no run; as bytes, which is the way out, it goes all the way."""
    Path("text").write_bytes(REFUSED[name][0])
    refused = lstmlm("train", "text", *FLAGS, "--steps", "2")

    assert refused.code == 3, refused.err
    assert "Traceback" not in refused.err
    assert len(refused.err.splitlines()) <= 6
    assert not Path("runs").exists()
    if "compressed" not in refused.err and "expected at least 2" not in refused.err:
        trained(lstmlm, REFUSED[name][0], "--tokenizer", "byte")


def test_unseen_characters_in_the_validation_text(lstmlm: Lstmlm) -> None:
    """Characters that only the validation text has are said, left out, and no trouble on any later command."""
    Path("text").write_text("plain text\n" * 20)
    Path("val").write_text("plain text, and ünseen\n" * 3)
    result = lstmlm("train", "text", *FLAGS, "--steps", "2", "--val", "val")

    assert result.code == 0, result.err
    assert lstmlm("train", "text", "--resume", "--val", "val").code == 0
    assert lstmlm("eval", "val", "-m", "runs/text", "--threads", "1").code == 0


@pytest.mark.parametrize("name", ["-text", "a\nb", "ü \t", "\x1b[2J", "--resume", "a'b\"c $(x)"])
def test_odd_names(lstmlm: Lstmlm, name: str) -> None:
    """A file of any name is a corpus, behind -- or a folder where it begins with a dash, and its controls reach no message."""
    Path(name).write_text("some text\n" * 9)
    result = lstmlm("train", *FLAGS, "--steps", "1", "--out", "run", "--", name)

    assert result.code == 0, result.err
    assert lstmlm("eval", "-m", "run", "--threads", "1", "--", f"./{name}").code == 0
    shown = lstmlm("info", "run")
    assert shown.code == 0
    assert not [c for c in result.err + shown.out if not c.isprintable() and c != "\n"]


def test_rare_characters_all_the_way(lstmlm: Lstmlm) -> None:
    """With --min-count a run goes on, is tuned, scores as its validation did, and reads prompts with characters that it lacks."""
    Path("text").write_text("".join(f"the mill {chr(0x4E00 + i)}\n" for i in range(40)))
    begun = lstmlm("train", "text", *FLAGS, "--steps", "3", "--min-count", "2", "--json")
    more = Path("more")
    more.write_text("the mill é\n" * 30)

    assert begun.code == 0, begun.err
    assert "rare characters, read as one symbol, U+FFFD: 36 of" in begun.err
    assert lstmlm("train", "--resume", "--steps", "4").code == 0
    assert lstmlm("train", "more", "--from", "runs/text", "--steps", "2", "--out", "tuned").code == 0
    assert "new to the model, and learnt: 1 character, " in lstmlm(
        "train", "more", "--from", "runs/text", "--steps", "2", "--out", "grown", "--on-unknown", "grow"
    ).err  # fmt: skip
    assert "data.min_count is 2 in the model" in lstmlm("train", "more", "--from", "tuned", "--min-count", "3", "--out", "x").err
    scored = lstmlm("eval", "-m", "runs/text", "--threads", "1", "--json", "--no-baselines").json
    assert scored["unknown"] == 4
    assert lstmlm("info", "runs/text", "--json").json["scores"]["validation_bits_per_char"] == pytest.approx(
        scored["bits_per_char"], abs=1e-5
    )
    drawn = lstmlm("sample", "-m", "tuned", "--prompt", "the 水", "--length", "40", "--seed", "1", "--threads", "1")
    assert drawn.code == 0
    assert "prompt: 1 character read as the model's symbol for rare ones, U+FFFD" in drawn.err
    filled = lstmlm("fill", "-m", "tuned", "the ____", "--choice", "mill", "--choice", "水", "--json").json
    assert filled["answers"][0]["words"] == ["mill"]
