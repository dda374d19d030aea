"""The command `lstmlm fill`: its flags, its table and its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lstmlm.cli.app import app
from lstmlm.data.corpus import open_corpus
from lstmlm.errors import TextError, UsageError
from tests.cli.trained import TEXT, make_run

SET = """text\tcandidates\tanswer\tkind\tdistance
Bob is a baker. ____ ran home.\tBob|Dan\tBob\tname\t10
Dan is a ____.\tbaker|farmer\tfarmer\tfact\t60
Bob is ____.\tBob|Dan\tDan\tname\t70
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run folder."""
    return make_run(tmp_path / "runs" / "one")


def fill(*arguments: str, stdin: str | None = None) -> Result:
    """Call the command."""
    return CliRunner().invoke(app, ["fill", "--threads", "1", *arguments], input=stdin)


def as_json(*arguments: str, stdin: str | None = None) -> Any:
    """Call the command, and read the one object on stdout."""
    result = fill(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_json_gives_every_answer(run: Path) -> None:
    """One object with all candidates, the best first, shares that sum to one, and the same order in the table."""
    found = as_json("-m", str(run), "Bob ate ____.", "--choice", "bread", "--choice", "Dan", "--choice", "home")
    plain = fill("-m", str(run), "Bob ate ____.", "--choice", "bread", "--choice", "Dan", "--choice", "home")

    assert (found["schema"], found["command"], found["count"]) == (1, "fill", 3)
    assert sum(a["probability"] for a in found["answers"]) == pytest.approx(1.0)
    assert [a["bits"] for a in found["answers"]] == sorted(a["bits"] for a in found["answers"])
    assert found["answers"][0]["text"] == f"Bob ate {found['answers'][0]['words'][0]}."
    assert [line.split()[0] for line in plain.stdout.splitlines()[1:]] == [a["words"][0] for a in found["answers"]]


def test_the_set_that_comes_along_has_a_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--file blanks is the bundled set wherever the command runs; a file of that name wins."""
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "blanks.tsv").write_text(SET)
    monkeypatch.setattr("lstmlm.config.run_config.resource_dir", lambda name: tmp_path / "bundled")
    bundled = as_json("-m", str(run), "--file", "blanks")
    (tmp_path / "blanks").write_text("".join(SET.splitlines(keepends=True)[:2]))

    assert (bundled["count"], as_json("-m", str(run), "--file", "blanks")["count"]) == (3, 1)
    assert isinstance(fill("-m", str(run), "--file", "blank").exception, TextError)


def test_choices_come_from_a_file_too(run: Path, tmp_path: Path) -> None:
    """Words in a file, or on standard input, are candidates beside those of --choice, each once."""
    (tmp_path / "names").write_text("Bob\nDan  bread\n")
    from_file = as_json("-m", str(run), "____ is a baker.", "--choices", "names", "--choice", "Bob")
    from_pipe = as_json("-m", str(run), "____ is a baker.", "--choices", "-", stdin="Bob Dan bread")

    assert {a["words"][0] for a in from_file["answers"]} == {"Bob", "Dan", "bread"}
    assert from_file["answers"] == from_pipe["answers"]


def test_words_are_those_of_the_training_text(tmp_path: Path) -> None:
    """--words N takes the N commonest words of the run's own corpus; equally common ones in order of spelling."""
    (tmp_path / "corpus.txt").write_text(TEXT)
    corpus = open_corpus(["corpus.txt"], val=None, val_fraction=0.1, cache_dir=tmp_path / "cache")
    known = {"name": "corpus", "fingerprint": corpus.fingerprint, "chars": corpus.chars, "sources": ["corpus.txt"], "val": None}
    run = make_run(tmp_path / "runs" / "words", corpus=known)
    found = as_json("-m", str(run), "____ is a baker.", "--words", "4")
    (tmp_path / "corpus.txt").write_text(TEXT + "More.")
    changed = fill("-m", str(run), "____ is a baker.", "--words", "4")

    assert {a["words"][0] for a in found["answers"]} == {"Bob", "Dan", "a", "is"}
    assert isinstance(changed.exception, TextError)
    assert "--choice" in str(changed.exception)


def test_a_set_gives_accuracy_by_kind_and_distance(run: Path, tmp_path: Path) -> None:
    """The counts of the JSON add up, and the table shows a column for each kind and a row for each distance."""
    (tmp_path / "set.tsv").write_text(SET)
    found = as_json("-m", str(run), "--file", "set.tsv")
    lines = fill("-m", str(run), "--file", "set.tsv").stdout.splitlines()

    assert (found["schema"], found["command"], found["count"], found["chance"]) == (1, "fill", 3, 0.5)
    assert found["accuracy"] == found["correct"] / 3
    assert [(row["from"], row["to"], row["count"]) for row in found["by_distance"]] == [(0, 50, 1), (50, 100, 2)]
    assert sum(row["correct"] for row in found["by_distance"]) == found["correct"]
    assert [(kind["kind"], kind["count"]) for kind in found["by_kind"]] == [("name", 2), ("fact", 1)]
    assert lines[0].startswith(f"{found['correct']} of 3 right")
    assert [line.split()[0] for line in lines[2:]] == ["0-49", "50-99", "all"]


@pytest.mark.parametrize("row", ["Bob is ____ \u00e9.\tBob|Dan\tDan", "Bob is ____.\tBob|D\u00e9n\tBob"])
def test_an_unknown_character_of_a_set_has_its_line(run: Path, tmp_path: Path, row: str) -> None:
    """What the model does not know, in a text or a candidate, is refused with the line of the set; or left out if asked."""
    (tmp_path / "set.tsv").write_text(f"text\tcandidates\tanswer\nBob is ____.\tBob|Dan\tDan\n{row}\n", encoding="utf-8")
    refused = fill("-m", str(run), "--file", "set.tsv")

    assert isinstance(refused.exception, TextError)
    assert str(refused.exception).startswith("--file set.tsv line 3: text at character ")
    assert as_json("-m", str(run), "--file", "set.tsv", "--on-unknown", "skip")["count"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a ____ b"],
        ["a ____ b", "--file", "set.tsv"],
        ["--file", "set.tsv", "--choice", "a"],
        ["a ____ b", "--choice", "a"],
    ],
)
def test_contradictions_are_usage_errors(arguments: list[str], run: Path, tmp_path: Path) -> None:
    """A text and a set, neither, a set with other candidates, or a blank with nothing to choose: exit 2."""
    (tmp_path / "set.tsv").write_text(SET)

    assert isinstance(fill("-m", str(run), *arguments).exception, UsageError)


def test_a_dash_is_stdin(run: Path) -> None:
    """As a text, without the line end of `echo`; the candidates cannot come from there too."""
    choices = ("--choice", "Bob", "--choice", "Dan")
    assert fill("-m", str(run), "-", *choices, stdin="____ is.\n").stdout == fill("-m", str(run), "____ is.", *choices).stdout
    assert isinstance(fill("-m", str(run), "-", "--choices", "-", stdin="Bob Dan").exception, UsageError)


def test_a_text_without_a_blank_and_unknown_characters_are_text_errors(run: Path) -> None:
    """Exit 3, saying what was expected, and naming the character."""
    no_blank = fill("-m", str(run), "Bob is.", "--choice", "a", "--choice", "b")
    unknown = fill("-m", str(run), "Bob is ____ €.", "--choice", "a", "--choice", "b")

    assert isinstance(no_blank.exception, TextError)
    assert isinstance(unknown.exception, TextError)
    assert "U+20AC" in str(unknown.exception)


def test_the_memory_can_be_taken_away(run: Path, tmp_path: Path) -> None:
    """--forget-at changes the bits of a text with such a character before the blank, and of no other; one character only."""
    (tmp_path / "set.tsv").write_text(SET)
    words = ("--choice", "Bob", "--choice", "Dan")
    with_mark, without = "Bob is a baker. ____ ran.", "Bob is a baker ____ ran"
    bits = {
        (text, flag): [a["bits"] for a in as_json("-m", str(run), text, *words, *flag)["answers"]]
        for text in (with_mark, without)
        for flag in ((), ("--forget-at", "."))
    }

    assert bits[with_mark, ()] != bits[with_mark, ("--forget-at", ".")]
    assert bits[without, ()] == pytest.approx(bits[without, ("--forget-at", ".")], abs=1e-4)
    assert as_json("-m", str(run), "--file", "set.tsv", "--forget-at", ".")["forget_at"] == "."
    assert isinstance(fill("-m", str(run), with_mark, *words, "--forget-at", "ab").exception, UsageError)
