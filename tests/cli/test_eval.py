import gzip
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from lstmlm.storage import checkpoint
from tests.cli.conftest import TEXT, Lstmlm
from tests.cli.trained import make_run


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Write a text in the model's alphabet that it has not seen."""
    path = tmp_path / "held-out.txt"
    path.write_text("Ann voit Bob, and Bob is there.\nis Ann là?\n" * 20, encoding="utf-8")
    return path


def test_json(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """--json prints one object with the fields and types that scripts rely on, each equal to what it says."""
    told = lstmlm("eval", held_out, "--json").json
    text = held_out.read_text(encoding="utf-8")

    fields = {
        "schema": int, "command": str, "protocol": str, "chars": int, "bytes": int, "unknown": int, "nats_per_char": float,
        "bits_per_char": float, "bits_per_byte": float, "perplexity": float, "accuracy": float,
    }  # fmt: skip
    assert {key: type(told[key]) for key in fields} == fields
    assert (told["schema"], told["command"], told["protocol"], told["unknown"]) == (1, "eval", "warm", 0)
    assert (told["chars"], told["bytes"]) == (len(text), len(text.encode()))
    assert told["bits_per_char"] == pytest.approx(told["nats_per_char"] / math.log(2))
    assert told["bits_per_byte"] == pytest.approx(told["bits_per_char"] * told["chars"] / told["bytes"])
    assert told["perplexity"] == pytest.approx(math.exp(told["nats_per_char"]))


def test_text(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """The result alone is on stdout, and says its unit and protocol."""
    result = lstmlm("eval", held_out, "-m", run)

    assert result.code == 0
    assert result.err == ""
    assert "bits/char" in result.out
    assert "warm" in result.out


def test_cold(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """A cold score depends on the window and not on the batch; a window longer than the text is a warm one."""

    def score(*flags: object) -> float:
        return float(lstmlm("eval", held_out, "--json", *flags).json["nats_per_char"])

    cold = ("--protocol", "cold", "--window")

    assert score(*cold, 5, "--batch", 1) == pytest.approx(score(*cold, 5), abs=1e-6)
    assert abs(score(*cold, 5) - score(*cold, 50)) > 1e-4
    assert score(*cold, 100_000) == pytest.approx(score(), abs=1e-6)


def test_sources(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """Several files are one text; a compressed file, a folder and stdin score as the file itself."""
    data = held_out.read_bytes()
    first = data.index(b"\n") + 1
    Path("a").write_bytes(data[:first])
    Path("b").write_bytes(data[first:])
    Path("c.gz").write_bytes(gzip.compress(data))
    plain = pytest.approx(lstmlm("eval", held_out, "--json").json)

    assert lstmlm("eval", "a", "b", "--json").json == plain
    assert lstmlm("eval", "c.gz", "--json").json == plain
    assert lstmlm("eval", "-", "--json", stdin=data).json == plain


def test_own_validation(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Without TEXT the run's own validation part is scored: the score that training reported."""
    saved = checkpoint.read(run / "best.safetensors").meta
    saved["corpus"]["sources"] = [str(text)]
    checkpoint.write(
        run / "best.safetensors", checkpoint.Checkpoint("best", saved, checkpoint.read(run / "best.safetensors").tensors)
    )
    told = lstmlm("eval", "--json").json

    assert told["chars"] == len(TEXT) // 10
    assert told["nats_per_char"] == pytest.approx(saved["scores"]["validation_nats_per_char"], abs=1e-6)
    text.write_text(TEXT + "B", encoding="utf-8")
    changed = lstmlm("eval")
    text.unlink()
    gone = lstmlm("eval")
    assert (changed.code, gone.code) == (3, 3)
    assert "has changed" in changed.err
    assert "text.txt" in gone.err


@pytest.mark.slow
def test_mix(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """--mix adds a field of its own beside the dynamic one, which stays as it is, and says which texts its counts are of."""
    plain, told = (lstmlm("eval", held_out, "--json", flag).json for flag in ("--dynamic", "--mix"))
    shown = lstmlm("eval", held_out, "--mix").out

    assert plain["mixed"] is None
    assert {**told, "mixed": None} == plain
    assert set(told["mixed"]) == {"nats_per_char", "bits_per_char", "contexts_from"}
    assert told["mixed"]["bits_per_char"] == pytest.approx(told["mixed"]["nats_per_char"] / math.log(2))
    assert told["mixed"]["bits_per_char"] < told["dynamic"]["bits_per_char"]
    assert told["mixed"]["contexts_from"].startswith("training text") == (told["dynamic"]["rates_from"] == "training text")
    assert f"{told['mixed']['bits_per_char']:.4f}" in shown


@pytest.mark.slow
def test_dynamic(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """--dynamic adds a field beside the warm score, the same for every number of threads, and leaves the file as it is."""
    before = (run / "best.safetensors").read_bytes()
    plain = lstmlm("eval", held_out, "--json").json
    told, again = (lstmlm("eval", held_out, "--json", "--dynamic", "--threads", threads).json for threads in (1, 2))
    shown = lstmlm("eval", held_out, "--dynamic").out

    assert plain["dynamic"] is None
    assert {**told, "dynamic": None} == pytest.approx(plain)
    assert again["dynamic"] == told["dynamic"]
    assert told["dynamic"]["bits_per_char"] == pytest.approx(told["dynamic"]["nats_per_char"] / math.log(2))
    assert told["dynamic"]["bits_per_char"] < told["bits_per_char"]
    assert set(told["dynamic"]["rates"]) == {"rate", "decay", "floor"}
    assert f"{told['dynamic']['bits_per_char']:.4f}" in shown
    assert "% less" in shown
    assert (run / "best.safetensors").read_bytes() == before


@pytest.mark.slow
def test_dynamic_scores_first(lstmlm: Lstmlm, run: Path) -> None:
    """A text no longer than a segment leaves nothing to learn from: its dynamic score is the warm one."""
    Path("short").write_text("Bob est là; Ann le voit.", encoding="utf-8")
    told = lstmlm("eval", "short", "--json", "--dynamic").json

    assert told["dynamic"]["nats_per_char"] == pytest.approx(told["nats_per_char"])


@pytest.fixture
def at_home(run: Path, text: Path) -> Path:
    """Return a run that knows where its text lies."""
    saved = checkpoint.read(run / "best.safetensors")
    saved.meta["corpus"]["sources"] = [str(text)]
    checkpoint.write(run / "best.safetensors", saved)
    return run


def test_baselines(lstmlm: Lstmlm, at_home: Path, held_out: Path) -> None:
    """What plainer means take stands beside the run's own validation part by itself, and beside other texts if asked for."""
    own, none = (lstmlm("eval", "--json", *flags).json for flags in ((), ("--no-baselines",)))
    other, asked = (lstmlm("eval", held_out, "--json", *flags).json for flags in ((), ("--baselines",)))

    assert list(own["baselines_bits_per_char"]) == ["order0", "order3", "bzip2", "xz"]
    assert own["baselines_bits_per_char"]["order0"] == pytest.approx(own["order0_bits_per_char"])
    assert 0 < own["baselines_bits_per_char"]["order3"] < 1 < own["order0_bits_per_char"]
    assert none["baselines_bits_per_char"] is None
    assert other["baselines_bits_per_char"] is None
    assert all(0 < value < 20 for value in asked["baselines_bits_per_char"].values())
    assert "bzip2 after the training text" in lstmlm("eval").out


def test_baselines_of_unknown(lstmlm: Lstmlm, at_home: Path) -> None:
    """Unknown characters cost plainer means what they cost the network."""
    Path("plain").write_text("Bob est là", encoding="utf-8")
    Path("odd").write_text("BobĦ est 漢là", encoding="utf-8")
    plain, odd = (lstmlm("eval", name, "--baselines", "--json").json["baselines_bits_per_char"] for name in ("plain", "odd"))

    assert {name: value * 12 for name, value in odd.items()} == pytest.approx(
        {name: value * 10 + 2 * math.log2(1_114_112) for name, value in plain.items()}
    )


def test_baselines_need_the_training_text(lstmlm: Lstmlm, at_home: Path, held_out: Path, text: Path) -> None:
    """Without the training text they are refused where they were asked for, and only there."""
    text.unlink()

    assert lstmlm("eval", held_out).code == 0
    refused = lstmlm("eval", held_out, "--baselines")
    assert refused.code == 3
    assert "leave out --baselines" in refused.err
    assert refused.out == ""


def test_max_bpc(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """--max-bpc above the score passes; below it is exit 1, and the result is printed all the same."""
    good, bad = lstmlm("eval", held_out, "--max-bpc", "20"), lstmlm("eval", held_out, "--max-bpc", "0.5", "--json")

    assert (good.code, bad.code) == (0, 1)
    assert bad.json["bits_per_char"] > 0.5
    assert "at most 0.5 bits/char" in bad.err


def test_unknown(lstmlm: Lstmlm, run: Path) -> None:
    """Unknown characters are counted, charged 20.09 bits each, and fed to nobody."""
    Path("plain").write_text("Bob est là", encoding="utf-8")
    Path("odd").write_text("BobĦ est 漢là", encoding="utf-8")
    plain, odd = (lstmlm("eval", name, "--json").json for name in ("plain", "odd"))

    assert (odd["unknown"], odd["chars"], odd["bytes"]) == (2, 12, 16)
    assert odd["bits_per_char"] * 12 == pytest.approx(plain["bits_per_char"] * 10 + 2 * math.log2(1_114_112), abs=1e-4)
    assert odd["known_bits_per_char"] == pytest.approx(plain["bits_per_char"], abs=1e-4)
    assert f"2 of them unknown (without: {plain['bits_per_char']:.4f} bits/char)" in lstmlm("eval", "odd").out


def test_what_is_unknown_is_named(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Which characters the model lacks is said on stderr, the commonest first; of line ends it says how to make them alike."""
    Path("odd").write_bytes(b"Bob est l\r\n" * 9 + "ĦĦ#%&*@".encode())
    result = lstmlm("eval", "odd", "-m", "runs/text")

    assert result.err.startswith("not known to the model, 20.09 bits each: U+000D (carriage return) 9 times, 'Ħ' U+0126 (")
    assert result.err.endswith(
        ") 2 times, '#' U+0023 (number sign) 1 time, '%' U+0025 (percent sign) 1 time, '&' U+0026 (ampersand) 1 time and 2 more. "
        "Its line ends are CRLF, the model's LF: tr -d '\\r' makes them alike\n"
    )
    assert lstmlm("eval", "odd", "-q").err == ""
    Path("plain").write_text("Bob est", encoding="utf-8")
    assert lstmlm("eval", "plain", "-m", "runs/text").err == ""


def test_one_character(lstmlm: Lstmlm, run: Path) -> None:
    """A single character is scored too, by its frequency in the training text."""
    Path("one").write_text("B")
    counts, symbols = (checkpoint.read(run / "best.safetensors").meta[key] for key in ("counts", "tokenizer"))
    expected = -math.log((counts[symbols["symbols"].index("B")] + 1) / (sum(counts) + len(counts)))

    assert lstmlm("eval", "one", "--json").json["nats_per_char"] == pytest.approx(expected)
    assert "\n1 character, " in lstmlm("eval", "one").out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("missing.txt",), 3, "missing.txt"),
        (("empty",), 3, "at least one character"),
        (("broken",), 3, "2"),
        (("held-out.txt", "--protocol", "hot"), 2, "warm or cold"),
        (("held-out.txt", "--lines", "--mix"), 2, "--lines: expected no --mix beside it, found both"),
        (("held-out.txt", "--chars", "--max-bpc", "9"), 2, "--chars: expected no --max-bpc beside it"),
        (("--files-from", "held-out.txt", "--dynamic"), 2, "--files-from: expected no --dynamic beside it"),
        (("held-out.txt", "--files-from", "x", "--lines"), 2, "--files-from: expected no TEXT and --lines beside it"),
        (("held-out.txt", "--window", "0"), 2, "--window"),
        (("held-out.txt", "--batch", "0"), 2, "--batch"),
        (("held-out.txt", "--batch", "8"), 2, "expected --protocol cold too"),
        (("held-out.txt", "--window", "8"), 2, "expected --protocol cold too"),
        (("held-out.txt", "--state", "carried"), 2, "expected --lines or --chars too"),
        (("held-out.txt", "--max-bpc", "nan"), 2, "--max-bpc"),
        (("held-out.txt", "--max-bpc", "low"), 2, "--max-bpc"),
        (("held-out.txt", "--encoding", "utf-80"), 2, "utf-80"),
        (("held-out.txt", "-m", "nowhere"), 4, "runs/text"),
        (("-", "-"), 2, "twice"),
        (("-", "--after-file", "-"), 2, "twice"),
        (("held-out.txt", "--after", ""), 2, "or leave --after out"),
        (("held-out.txt", "--after", "Bob", "--after-file", "held-out.txt"), 2, "one of them"),
        (("held-out.txt", "--after", "Bob", "--protocol", "cold"), 2, "--protocol cold"),
        (("held-out.txt", "--after", "Ħ"), 3, "--after"),
        (("--after", "Bob"), 2, "a text to score"),
        (("held-out.txt", "--no-line-ends"), 2, "--lines"),
        (("-m", "runs/text", "-m", "runs/text"), 2, "a text to score"),
        (("held-out.txt", "-m", "runs/text", "-m", "runs/text", "--max-bpc", "9"), 2, "--max-bpc"),
        (("held-out.txt", "-m", "runs/text", "--encoding", "latin-15"), 2, "--encoding: expected a text encoding"),
    ],
)
def test_refused(lstmlm: Lstmlm, run: Path, held_out: Path, args: tuple[str, ...], code: int, words: str) -> None:
    """What cannot be scored is refused with its exit code, nothing on stdout, and a way on."""
    Path("empty").write_bytes(b"")
    Path("broken").write_bytes(b"ab\xff")
    result = lstmlm("eval", *args, stdin=b"Bob")

    assert result.code == code
    assert words in result.err
    assert result.out == ""


def test_encoding(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """A text in another encoding scores as the same text in UTF-8."""
    Path("latin").write_bytes(held_out.read_text(encoding="utf-8").encode("latin-1"))

    assert lstmlm("eval", "latin", "--encoding", "latin-1", "--json").json == pytest.approx(
        lstmlm("eval", held_out, "--json").json
    )


def test_files_from(lstmlm: Lstmlm, run: Path, held_out: Path, tmp_path: Path) -> None:
    """--files-from gives a line for each file of a list, each what that file alone gets."""
    other = tmp_path / "other one.txt"
    other.write_text("Bob voit Ann.\n", encoding="utf-8")
    listed = tmp_path / "list"
    listed.write_text(f"{held_out}\n\n{other}\r\n", encoding="utf-8")
    alone = [lstmlm("eval", file, "--json").json for file in (held_out, other)]

    told = [json.loads(line) for line in lstmlm("eval", "--files-from", listed, "--json").out.splitlines()]
    plain = lstmlm("eval", "--files-from", listed).out.splitlines()
    strict = lstmlm("eval", "--files-from", listed, "--max-bpc", "0.1")

    assert [one.pop("file") for one in told] == [str(held_out), str(other)]
    assert told == alone
    assert plain == [
        f"{one['bits_per_char']:.4f}\t{one['chars']}\t{file}" for one, file in zip(alone, (held_out, other), strict=True)
    ]
    assert (strict.code, len(strict.out.splitlines())) == (1, 2)
    assert f"found more in {held_out} and 1 more" in strict.err


def test_files_from_alone(lstmlm: Lstmlm, run: Path, held_out: Path, tmp_path: Path) -> None:
    """--files-from goes with no other text, and a list that is missing is named."""
    assert lstmlm("eval", held_out, "--files-from", held_out).code == 2
    missing = lstmlm("eval", "--files-from", tmp_path / "none")

    assert missing.code == 3
    assert "expected a file to read" in missing.err


def test_files_from_nothing(lstmlm: Lstmlm, run: Path) -> None:
    """A list without a name is exit 3: a check that looked at nothing has not passed."""
    result = lstmlm("eval", "--files-from", "-", "--max-bpc", "9", stdin=b"\n\n")

    assert (result.code, result.out) == (3, "")
    assert "expected the name of a file, found none" in result.err


def test_files_from_goes_on(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """A file that is missing, empty or no text gets an error record, others their score, and the end is exit 3 with a count."""
    Path("empty").write_bytes(b"")
    Path("broken").write_bytes(b"ab\xff")
    names = ["empty", str(held_out), "broken", "missing", str(held_out)]
    listed = "\n".join(names).encode()

    told = lstmlm("eval", "--files-from", "-", "--json", stdin=listed)
    plain = lstmlm("eval", "--files-from", "-", "--max-bpc", "0.1", stdin=listed)
    records = [json.loads(line) for line in told.out.splitlines()]

    assert [record["file"] for record in records] == names
    assert ["error" in record for record in records] == [True, False, True, True, False]
    assert records[1] == records[4]
    assert [line.split("\t")[0] == "error" for line in plain.out.splitlines()] == [True, False, True, True, False]
    assert (told.code, plain.code) == (3, 3)
    assert "expected a score for 5 files, found 3 that have none" in told.err
    assert "broken at byte 2" in told.err


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Write a run of bytes beside the trained one."""
    return make_run(tmp_path / "runs" / "bytes", byte=True)


def test_several_models(lstmlm: Lstmlm, run: Path, other: Path, held_out: Path) -> None:
    """Every model has the score that it has alone, the likeliest is the one with the fewest bits, from a pipe and by file too."""
    both = ("-m", run, "-m", other)
    alone = {str(model): lstmlm("eval", held_out, "-m", model, "--json").json for model in (run, other)}
    told = lstmlm("eval", "-", *both, "--json", stdin=held_out.read_bytes()).json
    shown = lstmlm("eval", held_out, *both)
    files = lstmlm("eval", "--files-from", "-", *both, stdin=f"{held_out}\nmissing\n".encode())

    facts = {one.pop("model"): one for one in told["models"]}
    assert facts == {name: {k: v for k, v in one.items() if k not in ("schema", "command")} for name, one in alone.items()}
    assert told["likeliest"] == str(run)
    assert (shown.code, shown.out.splitlines()[-1]) == (0, f"likeliest: {run}")
    bits = [one["bits_per_byte"] * one["bytes"] for one in alone.values()]
    assert [line.split("\t") for line in files.out.splitlines()] == [
        [str(run), str(other), "chars", "likeliest", "file"],
        [*(f"{each:.3f}" for each in bits), str(told["models"][0]["chars"]), str(run), str(held_out)],
        ["error", "error", "0", "error", "missing"],
    ]


def test_no_model_is_likelier(lstmlm: Lstmlm, run: Path) -> None:
    """A text that costs several models alike, of characters that none knows, is said to be nobody's."""
    shutil.copytree(run, "runs/same")
    Path("odd").write_text("ĦĦ", encoding="utf-8")
    both = ("odd", "-m", run, "-m", "runs/same")

    assert lstmlm("eval", *both, "--json").json["likeliest"] is None
    assert lstmlm("eval", *both).out.splitlines()[-1] == "likeliest: none, it costs several alike"
    assert lstmlm("eval", "--lines", *both).out.splitlines()[1].split("\t")[4] == "-"


def test_after(lstmlm: Lstmlm, run: Path) -> None:
    """--after and --after-file give a text's score behind another: what both take less what the first takes."""
    for name, text in (("a", "Bob est\n"), ("b", "là; Ann"), ("ab", "Bob est\nlà; Ann")):
        Path(name).write_text(text, encoding="utf-8")

    def bits(*args: object) -> float:
        told = lstmlm("eval", *args, "--json").json
        return float(told["bits_per_char"] * told["chars"])

    given = bits("b", "--after", "Bob est\n")

    assert given == pytest.approx(bits("ab") - bits("a"), abs=1e-4)
    assert bits("b", "--after-file", "a") == given
    assert "--after: 1 character" in lstmlm("eval", "b", "--after", "BobĦ").err


def test_words(lstmlm: Lstmlm, run: Path) -> None:
    """Words, bits and perplexity for each stand beside the characters'; a text of white space has none."""
    Path("few").write_text("  Bob est\nlà; Ann  le\n", encoding="utf-8")
    Path("blank").write_text("\n \n")
    told, blank = (lstmlm("eval", name, "--json").json for name in ("few", "blank"))
    bits = told["bits_per_char"] * told["chars"]

    assert told["words"] == 5
    assert told["bits_per_word"] == pytest.approx(bits / 5)
    assert told["perplexity_per_word"] == pytest.approx(2 ** (bits / 5))
    assert "5 words, " in lstmlm("eval", "few").out
    assert (blank["words"], blank["bits_per_word"]) == (0, None)


def test_the_perplexity_of_a_word_that_is_a_line(lstmlm: Lstmlm, run: Path) -> None:
    """Of a text without spaces it has hundreds of digits, and is shown by its exponent."""
    shown = lstmlm("eval", "-", "-m", run, stdin=b"BobAnn" * 60).out

    assert re.search(r"1 word, .* perplexity \d\.\de\+\d+ per word", shown)
    unknown = lstmlm("eval", "-", "-m", run, stdin="漢".encode() * 600).out
    assert re.search(r"12052\.4777 bits/word, perplexity 1\.4e\+3628 per word", unknown)


def test_nothing_known(lstmlm: Lstmlm, run: Path) -> None:
    """Of a text that has no character of the model's it says no score of known ones, rather than 0."""
    told = lstmlm("eval", "-", "-m", run, stdin="漢字".encode())
    facts = lstmlm("eval", "-", "-m", run, "--json", stdin="漢字".encode()).json

    assert "2 characters, 2 of them unknown, 6.6958 bits/byte" in told.out
    assert (facts["unknown"], facts["known_bits_per_char"]) == (2, None)


def test_trained_on(lstmlm: Lstmlm, run: Path, text: Path, held_out: Path) -> None:
    """A text that the model was trained on is said to be one, under any name; other texts are not."""
    told = lstmlm("eval", "-", "-m", run, "--json", stdin=text.read_bytes())

    assert "was trained on" in lstmlm("eval", text, "-m", run).err
    assert "was trained on" in told.err
    assert (told.json["trained_on"], lstmlm("eval", held_out, "--json").json["trained_on"]) == (True, False)


def test_trained_on_with_a_validation_file(lstmlm: Lstmlm, at_home: Path, text: Path, held_out: Path) -> None:
    """With a validation text of its own, a run is known by the file that it was trained on; other names of a file are one."""
    saved = checkpoint.read(at_home / "best.safetensors")
    saved.meta["corpus"].update(fingerprint="of two texts", val=str(held_out))
    checkpoint.write(at_home / "best.safetensors", saved)
    Path("link").symlink_to(text)

    assert lstmlm("eval", "link", "--json").json["trained_on"]
    assert not lstmlm("eval", held_out, "--json").json["trained_on"]


def test_a_model_reads_as_it_was_taught(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """Without --encoding a text is read in the encoding of the model's own text, by line too."""
    saved = checkpoint.read(run / "best.safetensors")
    saved.meta["config"]["data"]["encoding"] = "latin-1"
    checkpoint.write(run / "best.safetensors", saved)
    Path("latin").write_bytes(held_out.read_text(encoding="utf-8").encode("latin-1"))
    own, utf8 = lstmlm("eval", "latin", "--json").json, lstmlm("eval", held_out, "--json", "--encoding", "utf-8").json
    lines = [lstmlm("eval", "--lines", *args).out for args in (("latin",), (held_out, "--encoding", "utf-8"))]

    assert own == pytest.approx(utf8)
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_dynamic_says_where_its_rate_is_from(lstmlm: Lstmlm, at_home: Path, text: Path) -> None:
    """--json says whether the rate was chosen on the training text; where that is gone, stderr says so too."""
    Path("short").write_text("Bob est", encoding="utf-8")
    here = lstmlm("eval", "short", "--dynamic", "--json").json
    text.unlink()
    gone = lstmlm("eval", "short", "--dynamic")

    assert here["dynamic"]["rates_from"] == "training text"
    assert lstmlm("eval", "short", "--dynamic", "--json").json["dynamic"]["rates_from"] == "default"
    assert "--dynamic takes its usual rate" in gone.err
