import gzip
import json
import math
from pathlib import Path

import pytest

from lstmlm.storage import checkpoint
from tests.cli.conftest import TEXT, Lstmlm


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


def test_every_batch(lstmlm: Lstmlm, run: Path, held_out: Path) -> None:
    """A warm score is the same whatever --batch and --window say."""
    scores = [
        lstmlm("eval", held_out, "--batch", batch, "--window", window, "--json").json["nats_per_char"]
        for batch, window in ((1, 1), (2, 7), (64, 256), (500, 3))
    ]

    assert scores == pytest.approx([scores[0]] * 4, abs=1e-6)


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
    Path("a").write_bytes(data[:101])
    Path("b").write_bytes(data[101:])
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
    assert "Leave out --baselines" in refused.err
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
    assert "2 of them unknown" in lstmlm("eval", "odd").out


def test_what_is_unknown_is_named(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Which characters the model lacks is said on stderr, the commonest first: CRLF is found out."""
    Path("odd").write_bytes(b"Bob est l\r\n" * 9 + "ĦĦ#%&*@".encode())
    result = lstmlm("eval", "odd", "-m", "runs/text")

    assert result.err.startswith("not known to the model, 20.09 bits each: U+000D (carriage return) 9 times, 'Ħ' U+0126 (")
    assert result.err.endswith(
        ") 2 times, '#' U+0023 (number sign) 1 time, '%' U+0025 (percent sign) 1 time, '&' U+0026 (ampersand) 1 time and 2 more\n"
    )
    assert lstmlm("eval", "odd", "-q").err == ""
    assert lstmlm("eval", "text.txt", "-m", "runs/text").err == ""


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
        (("held-out.txt", "--lines", "--dynamic"), 2, "--dynamic"),
        (("held-out.txt", "--chars", "--baselines"), 2, "--baselines"),
        (("--files-from", "held-out.txt", "--dynamic"), 2, "--dynamic"),
        (("held-out.txt", "--window", "0"), 2, "--window"),
        (("held-out.txt", "--batch", "0"), 2, "--batch"),
        (("held-out.txt", "--max-bpc", "nan"), 2, "--max-bpc"),
        (("held-out.txt", "--max-bpc", "low"), 2, "--max-bpc"),
        (("held-out.txt", "--encoding", "utf-80"), 2, "utf-80"),
        (("held-out.txt", "-m", "nowhere"), 4, "runs/text"),
        (("-", "-"), 2, "twice"),
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
    """--files-from gives a line for each file of a list, each what that file alone gets, up to one that cannot be read."""
    other = tmp_path / "other one.txt"
    other.write_text("Bob voit Ann.\n", encoding="utf-8")
    listed = tmp_path / "list"
    listed.write_text(f"{held_out}\n\n{other}\r\n", encoding="utf-8")
    alone = [lstmlm("eval", file, "--json").json for file in (held_out, other)]

    told = [json.loads(line) for line in lstmlm("eval", "--files-from", listed, "--json").out.splitlines()]
    plain = lstmlm("eval", "--files-from", listed).out.splitlines()
    strict = lstmlm("eval", "--files-from", listed, "--max-bpc", "0.1")
    listed.write_text(f"{other}\n{tmp_path / 'missing'}\n", encoding="utf-8")
    broken = lstmlm("eval", "--files-from", listed, "--json")

    assert [one.pop("file") for one in told] == [str(held_out), str(other)]
    assert told == alone
    assert plain == [
        f"{one['bits_per_char']:.4f}\t{one['chars']}\t{file}" for one, file in zip(alone, (held_out, other), strict=True)
    ]
    assert (strict.code, len(strict.out.splitlines())) == (1, 2)
    assert f"found more in {held_out} and 1 more" in strict.err
    assert (broken.code, len(broken.out.splitlines())) == (3, 1)


def test_files_from_alone(lstmlm: Lstmlm, run: Path, held_out: Path, tmp_path: Path) -> None:
    """--files-from goes with no other text, and a list that is missing is named."""
    assert lstmlm("eval", held_out, "--files-from", held_out).code == 2
    missing = lstmlm("eval", "--files-from", tmp_path / "none")

    assert missing.code == 3
    assert "expected a list to read" in missing.err


def test_files_from_nothing(lstmlm: Lstmlm, run: Path) -> None:
    """A list without a name is exit 3: a check that looked at nothing has not passed."""
    result = lstmlm("eval", "--files-from", "-", "--max-bpc", "9", stdin=b"\n\n")

    assert (result.code, result.out) == (3, "")
    assert "expected the name of a file, found none" in result.err
