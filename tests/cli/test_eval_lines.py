"""The command `lstmlm eval --lines` and `--chars`."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import lstmlm
from lstmlm.cli.app import app
from lstmlm.errors import TextError, UsageError
from tests.cli.trained import TEXT, make_run

LINES = TEXT + "\nran €\tx"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run folder, and a file to score."""
    (tmp_path / "text").write_text(LINES)
    return make_run(tmp_path / "runs" / "one")


def evaluate(run: Path, *arguments: str, stdin: str | bytes | None = None) -> Result:
    """Call the command."""
    return CliRunner().invoke(app, ["eval", "--threads", "1", "-m", str(run), *arguments], input=stdin)


def test_lines_are_the_same_from_a_file_a_pipe_and_as_json(run: Path) -> None:
    """TSV under a header, JSON lines with the same numbers, and what comes through a pipe."""
    tsv = evaluate(run, "--lines", "text").stdout.splitlines()
    piped = evaluate(run, "--lines", "-", stdin=LINES).stdout.splitlines()
    found = [json.loads(line) for line in evaluate(run, "--lines", "text", "--json").stdout.splitlines()]

    assert tsv == piped
    assert tsv[0].split("\t") == ["line", "chars", "unknown", "bits", "bits_per_char", "text"]
    assert [line.split("\t")[0] for line in tsv[1:]] == ["1", "2", "3", "4"]
    for line, one in zip(tsv[1:], found, strict=True):
        assert line.split("\t")[:5] == [
            str(one["line"]), str(one["chars"]), str(one["unknown"]), f"{one['bits']:.3f}", f"{one['bits_per_char']:.4f}",
        ]  # fmt: skip
        assert (one["schema"], one["command"], one["state"]) == (1, "eval", "reset")
    assert found[3]["unknown"] == 3
    assert found[3]["text"] == "ran €\tx"
    assert tsv[4].endswith("\tran €\\tx")


def test_the_most_surprising_line_comes_first_when_asked(run: Path) -> None:
    """--sort surprise: falling bits/char, every line still there with its own number."""
    found = [json.loads(line) for line in evaluate(run, "--lines", "text", "--json", "--sort", "surprise").stdout.splitlines()]
    rates = [line["bits_per_char"] for line in found]

    assert rates == sorted(rates, reverse=True)
    assert sorted(line["line"] for line in found) == [1, 2, 3, 4]


def test_empty_lines_come_last_when_sorted(run: Path) -> None:
    """Lines without anything to read do not hide the surprising ones, however surprising their line end is."""
    Path("gaps").write_text("Bob\n\nAnn ran\n \n\nDan\n")
    found = evaluate(run, "--lines", "gaps", "--json", "--sort", "surprise").stdout.splitlines()

    assert [bool(json.loads(line)["text"].strip()) for line in found] == [True] * 3 + [False] * 3


def test_carried_lines_sum_to_the_score(run: Path) -> None:
    """--state carried: the lines sum to what eval says of the file, and the state is stated."""
    result = evaluate(run, "--lines", "text", "--json", "--state", "carried")
    found = [json.loads(line) for line in result.stdout.splitlines()]

    assert sum(line["bits"] for line in found) == pytest.approx(
        lstmlm.load(str(run)).score(LINES).nats / 0.6931471805599453, abs=1e-3
    )
    assert found[0]["state"] == "carried"
    assert "carried" in result.stderr


def test_chars_without_colour_are_shades(run: Path) -> None:
    """Every line of the text with a row of shades under it, a legend, and no ESC byte in a pipe."""
    shown = evaluate(run, "--chars", "text").stdout

    assert "Dan ran home." in shown
    assert "surprise, bits: 0" in shown.splitlines()[-1]
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lines", "--chars"],
        ["--lines", "--state", "other"],
        ["--lines", "--sort", "length"],
        ["--sort", "surprise"],
        ["--lines", "--max-bpc", "2"],
        ["--lines", "--protocol", "cold"],
        ["--chars", "--json"],
    ],
)
def test_contradictions_are_usage_errors(arguments: list[str], run: Path) -> None:
    """Exit 2 for what contradicts itself."""
    assert isinstance(evaluate(run, "text", *arguments).exception, UsageError)


def test_no_text_and_no_utf8_are_text_errors(run: Path) -> None:
    """An empty pipe, and bytes that are no text, named by their place, once the lines before them are scored."""
    assert isinstance(evaluate(run, "--lines", "-", stdin="").exception, TextError)
    bad = evaluate(run, "--lines", "-", stdin=b"Bob\n\xff\n")
    assert isinstance(bad.exception, TextError)
    assert "standard input at byte 4" in str(bad.exception)
    assert [line.split("\t")[5:] for line in bad.stdout.splitlines()] == [["text"], ["Bob"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_pipe_is_read_in_its_encoding(run: Path, encoding: str) -> None:
    """Lines of a pipe score as those of the same file, whatever they are written in; a byte order mark is no character."""
    data = LINES.replace("€", "é").encode(encoding)
    Path("file").write_bytes(data)
    named = ("--encoding", "utf-8" if encoding == "utf-8-sig" else encoding)
    file = evaluate(run, "--lines", "file", *named)
    pipe = evaluate(run, "--lines", "-", *named, stdin=data)

    assert pipe.stdout == file.stdout == evaluate(run, "--lines", "-", stdin=LINES.replace("€", "é")).stdout


def test_a_line_of_many_pieces_is_joined_once(run: Path) -> None:
    """A text without line ends is one line, put together in a time that grows as the text does."""
    from lstmlm.cli.eval_lines import _lines

    began = time.process_time()
    (group,) = _lines("x" * 100 for _ in range(40_000))
    took = time.process_time() - began

    assert list(map(len, group)) == [4_000_000]
    assert took < 1.0, "joined again with each piece it is 80 GB of copying"
