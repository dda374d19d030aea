"""The command `lstmlm eval --lines` and `--chars`."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import lstmlm
from lstmlm.cli.app import app
from lstmlm.data.decoding import at_borders
from lstmlm.data.tokenizer import in_form
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
        ["--chars", "-m", "other"],
        ["--chars", "--no-line-ends"],
    ],
)
def test_contradictions_are_usage_errors(arguments: list[str], run: Path) -> None:
    """Exit 2 for what contradicts itself."""
    assert isinstance(evaluate(run, "text", *arguments).exception, UsageError)


def test_no_text_is_a_text_error(run: Path) -> None:
    """An empty pipe is exit 3."""
    assert isinstance(evaluate(run, "--lines", "-", stdin="").exception, TextError)


def test_a_bad_byte_is_an_unknown_character(run: Path) -> None:
    """It is counted, said once, and the lines after it are scored, from a pipe and from a file."""
    data = b"Bob\nB\xffb \xfe\nDan\n\xff\n"
    Path("bad").write_bytes(data)
    piped, file = evaluate(run, "--lines", "-", stdin=data), evaluate(run, "--lines", "bad")
    told = [json.loads(line) for line in evaluate(run, "--lines", "bad", "--json").stdout.splitlines()]

    assert piped.stdout == file.stdout
    assert [line.split("\t")[2] for line in piped.stdout.splitlines()[1:]] == ["0", "2", "0", "1"]
    assert piped.stdout.splitlines()[2].endswith("\tB\\xffb \\xfe")
    assert piped.stderr.count("warning") == 1
    assert "line 2: byte 0xff is not UTF-8" in piped.stderr
    assert told[1]["text"] == "B\ufffdb \ufffd"


def test_bytes_stay_bytes(tmp_path: Path) -> None:
    """A model of bytes scores every byte as it is, by line and as a whole; --chars shows characters, not bytes."""
    own = make_run(tmp_path / "runs" / "bytes", byte=True)
    data = "Bob voit é.\n".encode() + b"\xff\xfe\n"
    Path("bad").write_bytes(data)
    piped = evaluate(own, "--lines", "-", "--json", "--state", "carried", stdin=data)
    whole = json.loads(evaluate(own, "bad", "--json").stdout)
    found = [json.loads(line) for line in piped.stdout.splitlines()]
    shown = evaluate(own, "--chars", "bad").stdout.splitlines()

    assert evaluate(own, "--lines", "bad", "--json", "--state", "carried").stdout == piped.stdout
    assert [line["chars"] for line in found] == [13, 3]
    assert sum(line["unknown"] for line in found) == 0
    assert sum(line["bits"] for line in found) == pytest.approx(whole["bits_per_char"] * 16, abs=1e-3)
    assert piped.stderr.count("warning") == 0
    assert shown[0] == " Bob voit é."
    assert len(shown[1].rstrip()) <= len(shown[0])


def test_lines_without_line_ends(run: Path) -> None:
    """--no-line-ends leaves their cost out and nothing else; CRLF and CR alone end lines as LF does."""
    Path("crlf").write_bytes(b"Bob\r\nAnn ran\r\n")
    Path("cr").write_bytes(b"Bob\rAnn ran\r")
    Path("lf").write_bytes(b"Bob\nAnn ran\n")
    lf, crlf, cr, bare = (
        [json.loads(line) for line in evaluate(run, "--lines", "--json", *args).stdout.splitlines()]
        for args in (("lf",), ("crlf",), ("cr",), ("lf", "--no-line-ends"))
    )

    assert lf == crlf
    assert [(line["text"], line["chars"]) for line in cr] == [(line["text"], line["chars"]) for line in bare]
    assert [(line["text"], line["chars"], line["words"]) for line in bare] == [("Bob", 3, 1), ("Ann ran", 7, 2)]
    assert all(one["bits"] < other["bits"] for one, other in zip(bare, lf, strict=True))


def test_lines_by_several_models(run: Path, tmp_path: Path) -> None:
    """A column a model with its own bits, and the likeliest named; --after is read before every line."""
    other = make_run(tmp_path / "runs" / "two", byte=True)
    flags = ("--lines", "text", "-m", str(other), "--after", "Dan ")
    rows = [line.split("\t") for line in evaluate(run, *flags).stdout.splitlines()]
    told = [json.loads(line) for line in evaluate(run, *flags, "--json").stdout.splitlines()]
    alone = [
        [json.loads(line)["bits"] for line in evaluate(model, "--lines", "text", "--json", "--after", "Dan ").stdout.splitlines()]
        for model in (run, other)
    ]

    assert rows[0] == ["line", "chars", str(run), str(other), "likeliest", "text"]
    for number, (row, one) in enumerate(zip(rows[1:], told, strict=True)):
        expected = [bits[number] for bits in alone]
        assert [entry["bits"] for entry in one["models"]] == pytest.approx(expected, abs=1e-4)
        assert row[2:5] == [*(f"{entry['bits']:.3f}" for entry in one["models"]), one["likeliest"]]
        assert one["likeliest"] == str((run, other)[expected[1] < expected[0]])


def test_models_of_unlike_forms(tmp_path: Path) -> None:
    """Models of composed and decomposed characters, of text as it is and of bytes each score as alone, in any order of -m."""
    text = in_form("Bob voit l'é à côté.Ħ\n\n", "nfc") + in_form("Déjà vu ñ\n", "nfd")
    Path("mixed").write_text(text, encoding="utf-8")
    known = text + in_form(text, "nfc")
    bare = text.replace("Ħ", "")
    models = [make_run(tmp_path / "runs" / form, in_form(bare, form), form=form) for form in ("nfd", "nfc")]
    models += [make_run(tmp_path / "runs" / "none", known), make_run(tmp_path / "runs" / "bytes", byte=True)]
    alone = {str(m): [json.loads(line) for line in evaluate(m, "--lines", "mixed", "--json").stdout.splitlines()] for m in models}
    whole = {str(m): json.loads(evaluate(m, "mixed", "--json").stdout)["nats_per_char"] for m in models}
    for first, *others in (models, models[::-1], models[2:] + models[:2]):
        named = [word for other in others for word in ("-m", str(other))]
        lines = [json.loads(line) for line in evaluate(first, *named, "--lines", "mixed", "--json").stdout.splitlines()]
        rows = [line.split("\t") for line in evaluate(first, *named, "--lines", "mixed").stdout.splitlines()[1:]]
        scores = json.loads(evaluate(first, *named, "mixed", "--json").stdout)["models"]

        counts = next(str(m) for m in (first, *others) if m.name != "bytes")
        assert [row[1] for row in rows] == [str(line["chars"]) for line in alone[counts]]
        assert {one["model"]: one["nats_per_char"] for one in scores} == pytest.approx(whole, rel=1e-6)
        for number, line in enumerate(lines):
            for one in line["models"]:
                expected = {key: alone[one["model"]][number][key] for key in ("chars", "unknown", "bits", "bits_per_char")}
                assert {key: one[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert [line["unknown"] for line in alone[str(models[0])]] == [1, 0, 0]


def test_lines_of_a_pipe_are_shown_as_they_come(tmp_path: Path) -> None:
    """A line that is whole is not held back until the next one, though a mark that joins its last character may follow others."""
    arriving, seen = iter(["Bob\n", "e", "\u0301\n"]), []
    for piece in at_borders(arriving):
        seen.append(piece)
        if "\n" in piece:
            break

    assert "".join(seen) == "Bob\n"
    assert list(at_borders(["e", "\u0301\n"])) == ["", "e\u0301\n", ""]


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
    from lstmlm.data.lines import whole_lines

    began = time.process_time()
    (group,) = whole_lines("x" * 100 for _ in range(40_000))
    took = time.process_time() - began

    assert list(map(len, group)) == [4_000_000]
    assert took < 1.0, "joined again with each piece it is 80 GB of copying"
