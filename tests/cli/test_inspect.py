"""The command `lstmlm inspect`: what it shows is what it computed."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner, Result

import lstmlm
from lstmlm.analysis.boundaries import ForgetGateShift
from lstmlm.cli import inspect as command
from lstmlm.cli import inspect_boundaries, inspect_probes
from lstmlm.cli.app import app
from lstmlm.data.corpus import open_corpus
from lstmlm.errors import SystemProblem, TextError, UsageError
from tests.cli.trained import make_run

TEXT = "Bob is a baker.\nDan ran home."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run folder."""
    return make_run(tmp_path / "runs" / "one")


def inspect(*arguments: str, stdin: str | None = None) -> Result:
    """Call the command."""
    return CliRunner().invoke(app, ["inspect", "--threads", "1", *arguments], input=stdin)


def as_json(*arguments: str) -> Any:
    """Call the command, and read the one object on stdout."""
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_json_gives_every_value_with_its_shape(run: Path) -> None:
    """Six quantities of both layers, T x S each, that obey C_t = f C + i N and H_t = o tanh C; and a surprise for each."""
    found = as_json("-m", str(run), TEXT)
    assert (found["schema"], found["command"], found["text"]) == (1, "inspect", TEXT)
    assert "".join(found["characters"]) == TEXT
    assert found["surprise"]["shape"] == [len(TEXT)]
    for number, layer in enumerate(found["layers"], start=1):
        assert layer["layer"] == number
        t = {name: torch.tensor(layer[name]["values"]) for name in command.SHOWS[:-1]}
        assert all(layer[name]["shape"] == list(t[name].shape) == [len(TEXT), 6] for name in t)
        cell = t["forget"][1:] * t["cell"][:-1] + t["input"][1:] * t["new"][1:]
        assert torch.allclose(t["cell"][1:], cell, atol=1e-6)
        assert torch.allclose(t["hidden"], t["output"] * torch.tanh(t["cell"]), atol=1e-6)


def test_surprise_is_what_eval_would_charge(run: Path) -> None:
    """The bits of all characters after the first sum to the score of the text behind a line end."""
    found = as_json("-m", str(run), TEXT)
    model = lstmlm.load(str(run))
    score = model.score("\n" + TEXT)
    first = model.score("\n")

    assert sum(found["surprise"]["values"]) == pytest.approx((score.nats - first.nats) / 0.6931471805599453, abs=1e-3)


def test_a_byte_model_is_looked_into_byte_by_byte(tmp_path: Path) -> None:
    """A column for each byte, whatever the text is."""
    run = make_run(tmp_path / "bytes", byte=True)

    assert as_json("-m", str(run), "é!")["surprise"]["shape"] == [3]
    assert inspect("-m", str(run), "é!").exit_code == 0


def test_likeliest_are_ordered_chances(run: Path) -> None:
    """Five characters after each, the likeliest first."""
    for row in as_json("-m", str(run), TEXT)["likeliest"]:
        chances = [chance for _, chance in row]
        assert len(row) == 5
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1


def test_the_windows_of_a_long_text_leave_no_seam(run: Path) -> None:
    """A text longer than a window starts as its beginning alone does."""
    long, short = as_json("-m", str(run), TEXT * 40), as_json("-m", str(run), TEXT)

    assert long["surprise"]["shape"] == [len(TEXT) * 40]
    one, other = (torch.tensor(found["layers"][1]["cell"]["values"]) for found in (long, short))
    assert torch.allclose(one[: len(TEXT)], other, atol=1e-6)


def test_the_view_has_a_row_for_each_layer_and_quantity(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows asked for, in order, under the text; no ESC byte in a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = inspect("-m", str(run), TEXT, "--show", "input,cell", "--show", "surprise").stdout.splitlines()

    assert lines[0].strip() == TEXT.replace("\n", "↵").partition("↵")[0] + "↵"
    assert [line[:8].strip() for line in lines[1:6]] == ["input 1", "input 2", "cell 1", "cell 2", "surprise"]
    assert not any("\x1b" in line for line in lines)


def test_units_are_followed_and_chosen(run: Path) -> None:
    """--units takes what it names, --top the N with the largest variance; the rows are named layer:unit."""
    named = inspect("-m", str(run), TEXT, "--show", "forget", "--units", "2:3,1:6").stdout
    top = inspect("-m", str(run), TEXT, "--show", "cell", "--top", "2").stdout
    cells = [torch.tensor(layer["cell"]["values"]) for layer in as_json("-m", str(run), TEXT)["layers"]]
    variance = {(n, u): float(c[:, u - 1].var()) for n, c in enumerate(cells, 1) for u in range(1, 7)}
    best = sorted(variance, key=lambda unit: -variance[unit])[:2]

    assert "forget 2:3" in named
    assert "forget 1:6" in named
    assert [line.split()[1] for line in top.splitlines() if line.startswith("cell ") and "[" not in line][:2] == [
        f"{layer}:{unit}" for layer, unit in best
    ]


def test_pictures_are_written(run: Path, tmp_path: Path) -> None:
    """--svg and --html write whole files, and nothing on stdout."""
    result = inspect("-m", str(run), TEXT, "--svg", "a.svg", "--html", "a.html")

    assert (result.exit_code, result.stdout) == (0, "")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert "</html>\n" in (tmp_path / "a.html").read_text()
    assert isinstance(inspect("-m", str(run), TEXT, "--svg", "no/such/folder.svg").exception, SystemProblem)


def page(path: str) -> Any:
    """Return what a page holds."""
    text = Path(path).read_text(encoding="utf-8").partition('id="data">')[2]
    return json.loads(text[: text.index("</script>")])


def test_a_page_begins_with_what_was_asked_for(run: Path) -> None:
    """The first of --show colours the text; with surprise alone the units have their cell state."""
    for show, start, quantities in (
        ("cell,surprise", "cell", ["cell", "surprise"]),
        ("surprise", "surprise", ["cell", "surprise"]),
    ):
        assert inspect("-m", str(run), TEXT, "--html", "a.html", "--show", show).exit_code == 0
        held = page("a.html")
        assert (held["start"], [quantity["name"] for quantity in held["quantities"]]) == (start, quantities)
        assert (held["widths"], len(held["texts"])) == ([6, 6], 1)


def test_a_page_can_hold_two_texts(run: Path) -> None:
    """--against puts a second text beside the first; one that the model does not know is exit 3."""
    assert inspect("-m", str(run), TEXT, "--html", "a.html", "--against", "Dan ran.").exit_code == 0
    assert ["".join(text["glyphs"]) for text in page("a.html")["texts"]] == [TEXT.replace("\n", "↵"), "Dan ran."]
    for other in ("", "€"):
        assert isinstance(inspect("-m", str(run), TEXT, "--html", "b.html", "--against", other).exception, TextError)


def test_a_page_names_units_that_tell_a_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --find says of the run's own validation part stands on the page; where that part is gone, nothing does."""
    monkeypatch.setattr("lstmlm.cli.inspect_probes.LEAST", 0.0)
    (tmp_path / "corpus.txt").write_text(TEXT * 100)
    corpus = open_corpus(["corpus.txt"], val=None, val_fraction=0.1, cache_dir=tmp_path / "cache")
    known = {"name": "corpus", "fingerprint": corpus.fingerprint, "chars": corpus.chars, "sources": ["corpus.txt"], "val": None}
    run = make_run(tmp_path / "runs" / "own", text=TEXT, corpus=known)
    best = as_json("-m", str(run), "--find", "capital", "--top", "1")["units"][0]
    assert inspect("-m", str(run), TEXT, "--html", "a.html").exit_code == 0
    (tmp_path / "corpus.txt").unlink()
    assert inspect("-m", str(run), TEXT, "--html", "b.html").exit_code == 0
    named = [unit for unit in page("a.html")["units"] if "right after a capital letter" in unit["words"]]

    assert [(unit["layer"] + 1, unit["unit"] + 1) for unit in named] == [(best["layer"], best["unit"])]
    assert f"{best['area']:.0%} of pairs" in named[0]["words"]
    assert page("b.html")["units"] == []


def test_a_picture_and_its_rows_can_be_named(run: Path) -> None:
    """--title stands over the SVG, --names at its rows, however long, and at those of the terminal."""
    names = ("a row with a very long name", "surprise of the reader")
    shown = ["--show", "cell,surprise", "--units", "1:2", "--names", ",".join(names)]
    assert inspect("-m", str(run), TEXT, *shown, "--svg", "a.svg", "--title", "Two men").exit_code == 0
    texts = {
        node.text: float(node.get("x", 0)) for node in ElementTree.parse("a.svg").getroot().iter() if node.tag.endswith("text")
    }

    assert {"Two men", *names} <= set(texts)
    assert texts[names[0]] > 6 * len(names[0])
    assert "surprise of the reader" in inspect("-m", str(run), TEXT, *shown).stdout


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (-0.3, (-0.4, -0.2), "layer 1 forgets at '.'"),
        (-0.034, (-0.04, -0.03), "a small effect at '.', below the 0.05"),
        (0.034, (0.03, 0.04), "a small effect at '.', below the 0.05"),
        (-0.3, (-0.7, 0.1), "no effect at '.' that can be told from none"),
        (0.2, (0.1, 0.3), "layer 1 holds on at '.'"),
    ],
)
def test_at_says_how_large_an_effect_is(difference: float, interval: tuple[float, float], said: str) -> None:
    """A change that is sure and small is called small, with the threshold; one that may be none is called none."""
    elsewhere = torch.full((4,), 0.5)
    layer = ForgetGateShift(elsewhere + difference, elsewhere, elsewhere, 9, interval)

    assert said in inspect_boundaries.sentence(1, layer, ".")


def test_too_much_is_refused_unless_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--json above the stated size says how large it would be; --show makes it smaller, --all lets it through."""
    monkeypatch.setattr(command, "VALUES", len(TEXT) * 13)
    refused = inspect("-m", str(run), TEXT, "--json")

    assert isinstance(refused.exception, UsageError)
    assert "--all" in str(refused.exception)
    assert list(as_json("-m", str(run), TEXT, "--show", "cell")["layers"][0]) == ["layer", "cell"]
    assert "forget" in as_json("-m", str(run), TEXT, "--all")["layers"][0]


@pytest.mark.parametrize("picture", [[], ["--svg", "a.svg"]])
def test_too_large_a_picture_is_refused_unless_told(picture: list[str], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view or picture of more cells than stated says how many; showing less makes it smaller, --all lets it through."""
    monkeypatch.setattr(command, "CELLS", len(TEXT) * 2)
    refused = inspect("-m", str(run), TEXT, *picture)

    assert isinstance(refused.exception, UsageError)
    assert f"found {len(TEXT) * 4:,} " in str(refused.exception)
    assert inspect("-m", str(run), TEXT, "--show", "cell", *picture).exit_code == 0
    assert inspect("-m", str(run), TEXT, "--all", *picture).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [TEXT, "--file", "x"],
        [TEXT, "--show", "forgot"],
        [TEXT, "--units", "3:1"],
        [TEXT, "--units", "1:7"],
        [TEXT, "--units", "1:0"],
        [TEXT, "--units", "nine"],
        [TEXT, "--on-unknown", "maybe"],
        [TEXT, "--against", "Dan ran home."],
        [TEXT, "--title", "Two men"],
        [TEXT, "--names", "one,two", "--show", "cell,surprise"],
    ],
)
def test_contradictions_are_usage_errors(arguments: list[str], run: Path) -> None:
    """Exit 2 for what does not exist or contradicts itself."""
    assert isinstance(inspect("-m", str(run), *arguments).exception, UsageError)


def test_texts_that_cannot_be_read_are_text_errors(run: Path) -> None:
    """Nothing to read, no such file, a character that the model lacks; which may be skipped."""
    assert isinstance(inspect("-m", str(run), "").exception, TextError)
    assert isinstance(inspect("-m", str(run), "--file", "none").exception, TextError)
    assert isinstance(inspect("-m", str(run), "Bob €").exception, TextError)
    assert inspect("-m", str(run), "Bob €", "--on-unknown", "skip").exit_code == 0
    assert "model knows, found 'é'" in str(inspect("-m", str(run), TEXT, "--at", "é", "--on-unknown", "skip").exception)
    for way in ([], ["--json"], ["--svg", "x.svg"], ["--html", "x.html"], ["--find", "quote"], ["--reach"], ["--at", "."]):
        nothing_left = inspect("-m", str(run), "€é", "--on-unknown", "skip", *way)
        assert isinstance(nothing_left.exception, TextError), way
    assert inspect("-m", str(run), "--file", "-", stdin="Bob is").stdout.lstrip().startswith("Bob is")


def test_a_dash_is_stdin(run: Path) -> None:
    """As a text, as it is of other commands and of --file."""
    piped = inspect("-m", str(run), "-", stdin="Bob is")
    assert piped.stdout == inspect("-m", str(run), "Bob is").stdout


MARKED = "Bob is a baker. Dan ran home. Bob ate bread. " * 12


def test_at_measures_a_mark(run: Path) -> None:
    """Numbers for each layer, a plain sentence, what the memory is worth four ways, and the same in plain text."""
    found = as_json("-m", str(run), MARKED, "--at", ".", "--swap", "Bob,Dan", "--top", "3")
    shown = inspect("-m", str(run), MARKED, "--at", ".", "--swap", "Bob,Dan", "--top", "3").stdout

    assert (found["at"], found["marks"], found["chars"]) == (".", 36, len(MARKED))
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    assert all(len(layer["drops"]) == 3 for layer in found["layers"])
    assert set(found["worth"]["states"]) == {"carried", "C zeroed", "H zeroed", "both zeroed"}
    assert len(found["worth"]["states"]["carried"]["bits_by_distance"]) == found["worth"]["chars_after"]
    assert found["swap"]["places"][0] >= found["swap"]["places"][-1] >= 1
    assert all(layer["sentence"] in shown for layer in found["layers"])


def test_one_mark_is_no_evidence(run: Path) -> None:
    """Of one mark no certainty is claimed, and what stands behind a last mark is nothing, not a gate at zero."""
    found = as_json("-m", str(run), "Bob ran home.", "--at", ".")
    shown = inspect("-m", str(run), "Bob ran home.", "--at", ".").stdout

    assert found["marks"] == 1
    assert all(layer["forget_after"] is None and not layer["is_significant_drop"] for layer in found["layers"])
    assert "one mark cannot tell an effect from chance" in shown
    assert "95 %" not in shown
    assert "nan" not in shown


def test_at_counts_over_a_bounded_text_unless_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer text than stated is counted over to there, and that is said; --all counts over the whole of it."""
    monkeypatch.setattr("lstmlm.cli.inspect_boundaries.CHARS", 200)
    result = inspect("-m", str(run), MARKED, "--at", ".")

    assert "in 200 characters" in result.stdout
    assert "first 200 characters; --all" in result.stderr
    assert as_json("-m", str(run), MARKED, "--at", ".", "--all")["chars"] == len(MARKED)


def test_at_counts_over_the_validation_part(tmp_path: Path) -> None:
    """Without a text, --at takes the run's own validation part."""
    (tmp_path / "corpus.txt").write_text(TEXT * 100)
    corpus = open_corpus(["corpus.txt"], val=None, val_fraction=0.1, cache_dir=tmp_path / "cache")
    known = {"name": "corpus", "fingerprint": corpus.fingerprint, "chars": corpus.chars, "sources": ["corpus.txt"], "val": None}
    run = make_run(tmp_path / "runs" / "own", text=TEXT, corpus=known)

    assert as_json("-m", str(run), "--at", ".")["chars"] == len(corpus.val)


@pytest.mark.parametrize(
    "arguments",
    [["--at", ""], ["--at", "ab"], ["--at", ".", "--swap", "Bob"], ["--swap", "Bob,Dan"], ["--at", ".", "--svg", "x"]],
)
def test_a_mark_is_one_character(arguments: list[str], run: Path) -> None:
    """None, two, a swap of one name, a swap without a mark, or a picture of a number: exit 2."""
    assert isinstance(inspect("-m", str(run), MARKED, *arguments).exception, UsageError)


def test_a_mark_or_name_that_is_not_there_is_said(run: Path) -> None:
    """Nothing to count is exit 3, not a table of nothing."""
    assert isinstance(inspect("-m", str(run), "Bob is a baker", "--at", ".").exception, TextError)
    assert isinstance(inspect("-m", str(run), MARKED, "--at", ".", "--swap", "Max,Tom").exception, TextError)


def test_find_ranks_units(run: Path) -> None:
    """The best units for a feature, counted from 1, with areas between 0 and 1, in the JSON as in the table."""
    found = as_json("-m", str(run), MARKED, "--find", "word", "--top", "3")
    shown = inspect("-m", str(run), MARKED, "--find", "word", "--top", "3").stdout

    assert (found["find"], found["show"], len(found["units"])) == ("word", "cell", 3)
    assert all(1 <= u["layer"] <= 2 and 1 <= u["unit"] <= 6 and 0 <= u["area"] <= 1 for u in found["units"])
    assert all(f"{u['layer']}:{u['unit']} " in shown for u in found["units"])
    assert as_json("-m", str(run), MARKED, "--find", "re:[A-Z]", "--show", "output")["show"] == "output"


def test_reach_gives_norms_by_distance(run: Path) -> None:
    """A line for C and H of each layer and one for x; a text that is too short is said."""
    found = as_json("-m", str(run), MARKED, "--reach")
    shown = inspect("-m", str(run), MARKED, "--reach").stdout

    assert [line["of"] for line in found["reach"]] == ["C of layer 1", "C of layer 2", "H of layer 1", "H of layer 2", "x"]
    assert all(len(line["norms"]) == 200 for line in found["reach"])
    assert all(line["of"] in shown for line in found["reach"])
    assert isinstance(inspect("-m", str(run), TEXT, "--reach").exception, TextError)


def test_reach_fits_a_narrow_terminal(run: Path) -> None:
    """The table has a row for each distance, so that with two layers it is no wider than 80 columns."""
    lines = inspect("-m", str(run), MARKED, "--reach").stdout.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("k "))
    last = next(index for index, line in enumerate(lines) if line.startswith("below 1/100 at "))

    assert [line.split()[0] for line in lines[head + 1 : last]] == list(map(str, inspect_probes.ROWS))
    assert all(len(line) <= 80 for line in lines[head : last + 1])


def test_reach_reads_a_bounded_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stated number of characters is read, however long the text."""
    monkeypatch.setattr("lstmlm.cli.inspect_probes.REACH_CHARS", 250)

    assert as_json("-m", str(run), MARKED, "--reach")["chars"] == 250


@pytest.mark.parametrize(
    "arguments", [["--find", "nothing"], ["--find", "word", "--show", "surprise"], ["--find", "word", "--reach"]]
)
def test_one_question_at_a_time(arguments: list[str], run: Path) -> None:
    """No such feature, a quantity that no unit has, or two questions: exit 2."""
    assert isinstance(inspect("-m", str(run), MARKED, *arguments).exception, UsageError)


@pytest.mark.parametrize(("flags", "most", "threads"), [([], 6, 1), ([], 5, 3), (["--threads", "2"], 6, 2)])
def test_counting_with_a_small_network_takes_one_thread(
    run: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], most: int, threads: int
) -> None:
    """Where the user says nothing, threads that would only wait for each other are left out."""
    monkeypatch.setattr("lstmlm.cli.inspect.ALONE", most)
    monkeypatch.setattr("lstmlm.machine.cpus", lambda: 3)
    result = CliRunner().invoke(app, ["inspect", "-m", str(run), MARKED, "--at", ".", *flags])

    assert result.exit_code == 0, result.exception
    assert torch.get_num_threads() == threads


def test_bytes_that_are_no_text_are_looked_into(tmp_path: Path) -> None:
    """A model of bytes reads every byte of a file as it is; a model of characters refuses what is no UTF-8."""
    byte, char = make_run(tmp_path / "runs" / "bytes", byte=True), make_run(tmp_path / "runs" / "chars")
    Path("bad").write_bytes(b"Bob \xd0.")
    told = as_json("-m", str(byte), "--file", "bad", "--show", "surprise")

    assert told["text"] == "Bob \ufffd."
    assert len(told["characters"]) == 6
    assert inspect("-m", str(byte), "--file", "bad").exit_code == 0
    assert isinstance(inspect("-m", str(char), "--file", "bad").exception, TextError)
