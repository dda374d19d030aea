"""The text that an earlier run was trained on: found again, or missed with advice that fits the command."""

import unicodedata
from pathlib import Path

import pytest

from tests.cli.conftest import TEXT, TINY, Lstmlm

ADVICE = [
    (("eval",), "Name a text to score."),
    (("eval", "--lines"), "Name a text to score."),
    (("inspect", "--at", "."), "Give a TEXT or --file."),
    (("fill", "____ is there.", "--words", "3"), "Give the candidates with --choice instead of --words."),
]


@pytest.mark.parametrize("way", ["standard input", "has changed", "that the model knows", "no file"])
def test_advice(lstmlm: Lstmlm, way: str, tmp_path: Path) -> None:
    """A run's own text that cannot be had again is exit 3, one line with why and what this very command can be given."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert lstmlm("train", "-" if way == "standard input" else text, *TINY, "--out", "runs/a", stdin=TEXT.encode()).code == 0
    if way == "no file":
        text.unlink()
    elif way != "standard input":
        text.write_text(TEXT + ("B" if way == "has changed" else "%"))
    for command, advice in ADVICE:
        result = lstmlm(*command, "-q")

        assert result.code == 3, result.err
        assert way in result.err or way == "no file"
        assert result.err.rstrip().lower().endswith(advice.lower())
        assert len(result.err.splitlines()) == 1
        assert not any(f"{name}:" in result.err for name in ("eval", "inspect", "fill"))


def test_a_list_names_the_texts(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """--files-from takes names from a file or a pipe, beside those on the command line; a list of names alone is asked about."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(TEXT)
    (tmp_path / "list").write_text("a.txt\n\nb.txt\n")
    one, two, piped = (
        lstmlm("train", *words, *TINY, "--dry-run", "--json", stdin=b"a.txt\nb.txt\n").json["training_chars"]
        for words in (("a.txt",), ("--files-from", "list"), ("--files-from", "-"))
    )

    assert piped == two > 1.9 * one
    for names in (b"./a.txt\n./b.txt\n", b"./a.txt\n"):
        asked = lstmlm("train", "-", *TINY, "--dry-run", stdin=names)
        assert asked.code == 2
        assert "--files-from -" in asked.err
    for wrong in (("--files-from", "nowhere"), ("--files-from", "-")):
        assert lstmlm("train", *wrong, *TINY).code == 3
    assert lstmlm("train", *TINY).code == 2


def test_the_text_is_looked_at_before_the_folder(lstmlm: Lstmlm, run: Path) -> None:
    """A text that is not there is the first thing to be said; of a folder that is in use, which text its run is of."""
    (Path("runs") / "missing").mkdir()
    (Path("runs") / "missing" / "x").touch()
    missing, used = lstmlm("train", "missing.txt", *TINY), lstmlm("train", "stories", *TINY, "--out", run)

    assert (missing.code, used.code) == (3, 2)
    assert "found nothing there" in missing.err
    assert "found the run of" in used.err
    assert "text.txt. Use --overwrite" in used.err  # what is to go on is another text


def test_settings_choose_and_split(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """What is read of a folder and what is held out is written down: a run goes on with it, and `eval` finds its part again."""
    for i in range(25):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / f"{i}.md").write_text(TEXT[: 60 + i])
    (tmp_path / "f" / "bad.md").write_bytes(b"\xff\xff")
    (tmp_path / "f" / "x.csv").write_text("no\n")
    chosen = ("--include", "*.md, *.rst", "--exclude", "3.md", "--on-bad-file", "skip")
    trained = lstmlm("train", "f", *TINY, *chosen)

    assert trained.code == 0, trained.err
    assert "bad.md" in trained.err
    assert "of 24 files, drawn by the seed" in trained.err
    assert 'include: "*.md, *.rst"' in Path("runs/f/config.yaml").read_text()
    assert "split: files" in Path("runs/f/config.yaml").read_text()
    assert lstmlm("train", "f", "--resume").code == 0
    assert lstmlm("eval", "--json").json["chars"] > 0


def test_unlike_parts_are_warned_of(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """An end in another language, and lines in alphabetical order, are said, with the way out; an even text is not."""
    other = "der alte fluss zieht sich durch den grünen wald und über die wiese hin\n"
    (tmp_path / "ends.txt").write_text(TEXT * 15 + other * 18)
    (tmp_path / "even.txt").write_text(TEXT * 15)
    (tmp_path / "names.txt").write_text("".join(f"{a}{b}\n" for a in "abcdefghijkl" for b in "abcdefghijklmn"))
    records = "".join(f'{{"name": "{name}"}}\n' for name in (tmp_path / "names.txt").read_text().split())
    (tmp_path / "names.jsonl").write_text(records)
    tried = (("ends.txt",), ("even.txt",), ("ends.txt", "--split", "lines"), ("names.txt",), ("names.jsonl", "--field", "name"))
    ends, even, drawn, names, fields = (lstmlm("train", *words, *TINY, "--dry-run").err for words in tried)

    assert "the validation part is unlike the training part" in ends
    assert "--split lines" in ends
    assert "only in the validation part, and so never learnt: 'c' U+0063" in ends
    assert "unlike" not in even + drawn
    assert "alphabetical order" in names
    assert "alphabetical order" not in even
    assert "shuf FILE" in names
    assert "alphabetical order" in fields
    assert "shuf" not in fields  # standard input is not read as records


def test_unknown_characters_cost_the_same_in_train_and_eval(lstmlm: Lstmlm, text: Path, tmp_path: Path) -> None:
    """What a validation file has and the training text has not is charged while training as `eval` charges it."""
    (tmp_path / "val.txt").write_text("Ann is there, and Bob is € not.\n" * 4)
    found = lstmlm("train", text, *TINY, "--val", "val.txt", "--json")

    assert "4 validation characters that training does not have, 20.09 bits each" in found.err
    scored = lstmlm("eval", "val.txt", "--json").json
    assert scored["unknown"] == 4
    assert found.json["best"]["bits_per_char"] == pytest.approx(scored["bits_per_char"], abs=1e-5)


def test_a_model_reads_in_its_own_encoding(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """A model that learnt text in another encoding, a field or a Unicode form reads other texts so too, if nothing is said."""
    (tmp_path / "latin.txt").write_bytes(TEXT.encode("latin-1"))
    (tmp_path / "d.jsonl").write_text("".join(f'{{"t": "{line} e\u0301"}}\n' for line in TEXT.splitlines()))
    assert lstmlm("train", "latin.txt", *TINY, "--encoding", "latin-1", "-q").code == 0
    assert lstmlm("train", "d.jsonl", *TINY, "--field", "t", "--normalize", "nfc", "-q").code == 0

    assert lstmlm("eval", "latin.txt", "-m", "runs/latin", "--json").json["unknown"] == 0
    assert lstmlm("eval", "latin.txt", "-m", "runs/latin", "--lines").code == 0
    found = lstmlm("eval", "d.jsonl", "-m", "runs/d", "--json").json
    assert (found["unknown"], found["chars"]) == (0, len(TEXT) + 2 * TEXT.count("\n") - 1)
    assert lstmlm("sample", "-m", "runs/d", "--prompt", "e\u0301", "--length", "3").code == 0


def test_a_text_that_is_like_the_learnt_one_but_for_its_form_is_told_so(lstmlm: Lstmlm, run: Path, tmp_path: Path) -> None:
    """`eval` says where line ends or the form of accents differ from the training text's; `sample` and `fill` the form."""
    for name, text in (
        ("crlf", TEXT.replace("\n", "\r\n")),
        ("nfd", unicodedata.normalize("NFD", TEXT)),
        ("c1", TEXT + "\x92"),
        ("same", TEXT),
    ):
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    crlf, nfd, c1, same = (lstmlm("eval", f"{name}.txt").err for name in ("crlf", "nfd", "c1", "same"))

    assert "Its line ends are CRLF, the model's LF" in crlf
    assert "tr -d '\\r'" in crlf
    assert "the Unicode form NFC" in nfd
    assert "--normalize nfc" in nfd
    assert "cp1252" in c1
    assert not any(word in same for word in ("line ends", "Unicode", "control"))
    assert "In the Unicode form NFC it is known" in lstmlm("sample", "--prompt", "Ou\u0300").err
    assert "NFC" in lstmlm("fill", "Ou\u0300 est ____?", "--choice", "Bob", "--choice", "Ann").err
    assert lstmlm("train", "crlf.txt", *TINY, "--overwrite", "-q", "--out", run).code == 0
    assert "LF here, CRLF in the training text" in lstmlm("eval", "same.txt").err


def test_a_tuned_model_keeps_the_unicode_form(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """A model that is fine-tuned reads in the Unicode form of the one that it starts from."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "nfd.txt").write_text(unicodedata.normalize("NFD", TEXT))
    assert lstmlm("train", "text.txt", *TINY, "--normalize", "nfc", "-q").code == 0
    tuned = lstmlm("train", "nfd.txt", "--from", "runs/text", "--steps", "2", "--batch", "3", "--window", "5", "--threads", "1")

    assert tuned.code == 0, tuned.err
    assert "normalize: nfc" in Path("runs/nfd/config.yaml").read_text()


def test_a_text_that_was_moved(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """With --corpus a text is found where it is now, itself or by its folder; another text there is refused."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    assert lstmlm("train", text, *TINY, "--out", "runs/a", "-q").code == 0
    Path("moved").mkdir()
    text.rename("moved/text.txt")
    Path("moved/other.txt").write_text("Bob")
    for command, _ in ADVICE:
        gone = lstmlm(*command, "-q")
        assert gone.code == 3
        assert "--corpus" in gone.err
        for place in ("moved", "moved/text.txt"):
            assert lstmlm(*command, "--corpus", place, "-q").code == 0
        assert lstmlm(*command, "--corpus", "moved/other.txt", "-q").code == 3
    lent = Path("lent.safetensors")
    lent.write_bytes(Path("runs/a/best.safetensors").read_bytes())

    assert lstmlm("eval", "-m", lent, "--corpus", "moved", "-q").code == 0
    assert lstmlm("eval", "-m", lent, "-q").code == 3


def test_advice_for_a_text_that_is_gone(lstmlm: Lstmlm, tmp_path: Path) -> None:
    """What to do is one sentence, and names no corpora that have nothing to do with it."""
    text = tmp_path / "text.txt"
    text.write_text("Bob is here.\n" * 40)
    assert lstmlm("train", text, *TINY, "-q").code == 0
    text.unlink()
    found = lstmlm("eval", "-m", "runs/text", "-q")

    assert found.code == 3
    assert "say with --corpus where it is; else name a text to score." in found.err
    assert "come along" not in found.err


def test_what_to_do_about_unknown_characters(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Only a model that is fine-tuned may learn or leave out characters; whoever goes on, or reads its own text, may not."""
    text.write_text(TEXT + "Żółw\n")
    resumed, scored = lstmlm("train", text, "--resume"), lstmlm("eval", "-m", run, "--corpus", text, "--dynamic")
    tuned = lstmlm("train", text, "--from", run, "--out", "runs/tuned")

    assert (resumed.code, scored.code, tuned.code) == (3, 3, 3), scored.err
    assert "--on-unknown" not in resumed.err + scored.err
    assert "--from runs/text --out runs/text-2." in resumed.err
    assert "--on-unknown grow" in tuned.err


def test_models_of_unlike_forms_count_their_own_characters(lstmlm: Lstmlm, text: Path) -> None:
    """A text that is scored by models of unlike Unicode forms has for each the characters of its own form, all of them known."""
    for form in ("nfc", "nfd"):
        assert lstmlm("train", text, *TINY, "--normalize", form, "--out", f"runs/{form}", "-q").code == 0
    both = lstmlm("eval", text, "-m", "runs/nfc", "-m", "runs/nfd", "--json").json["models"]
    alone = [lstmlm("eval", text, "-m", f"runs/{form}", "--json").json for form in ("nfc", "nfd")]

    assert [(one["chars"], one["unknown"]) for one in both] == [(len(TEXT), 0), (len(unicodedata.normalize("NFD", TEXT)), 0)]
    assert [one["bits_per_char"] for one in both] == [one["bits_per_char"] for one in alone]
