"""Documents from the command line: parted in training, and by a model that knows it from there on; what cannot be is refused."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, Lstmlm

SEPARATOR = "<|end|>"
DOCUMENTS = SEPARATOR.join(["Où est Bob?", "Ann le voit.\n", "Bob est là;\nAnn is there."] * 20)


@pytest.fixture
def parted(lstmlm: Lstmlm) -> str:
    """Train on documents; return the run."""
    Path("documents.txt").write_text(DOCUMENTS, encoding="utf-8")
    result = lstmlm("train", "documents.txt", *TINY, "--document-separator", SEPARATOR, "--out", "runs/parted")
    assert result.code == 0, result.err
    assert "document separators: 53 in the training text, 5 in the validation text" in result.err
    return "runs/parted"


@pytest.mark.slow
def test_every_command_knows_it(lstmlm: Lstmlm, parted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a document are the same whatever stands before it, in C and in torch, and by line too."""
    costs = []
    for index, before in enumerate(("Bob", "Ann is there.\n" * 9)):
        for kernel in ("native", "eager"):
            monkeypatch.setenv("LSTMLM_KERNEL", kernel)
            Path(f"before{index}.txt").write_text(before + SEPARATOR, encoding="utf-8")
            Path("text.txt").write_text("Bob est là;\nOù est Ann?", encoding="utf-8")
            how = ("text.txt", "-m", parted, "--after-file", f"before{index}.txt", "--json")
            told = lstmlm("eval", *how)
            lines = [json.loads(line) for line in lstmlm("eval", *how, "--lines", "--state", "carried").out.splitlines()]
            assert sum(one.get("bits", 0) for one in lines) == pytest.approx(told.json["bits_per_char"] * 23, rel=1e-5)
            costs.append(told.json["bits_per_char"])
    monkeypatch.delenv("LSTMLM_KERNEL")

    assert costs == pytest.approx([costs[0]] * 4, rel=1e-6)
    assert costs[0] == costs[2]
    assert lstmlm("eval", "text.txt", "-m", parted, "--json").json["bits_per_char"] != costs[0]  # its first character
    assert f"model.document_separator  {SEPARATOR}" in lstmlm("info", parted).out
    sample = ("sample", "-m", parted, "--seed", "3", "--length", "30")
    assert lstmlm(*sample).out == lstmlm(*sample, "--prompt", "Bob" + SEPARATOR).out.removeprefix("Bob" + SEPARATOR)


@pytest.mark.slow
def test_a_run_and_a_fine_tuned_model_keep_it(lstmlm: Lstmlm, parted: str) -> None:
    """Going on and starting from it need not name it, and cannot change it; a model without one may be given one."""
    assert lstmlm("train", "--resume", parted, "--steps", "14").code == 0
    assert lstmlm("train", "documents.txt", "--from", parted, "--steps", "2", "--out", "runs/two").code == 0
    assert SEPARATOR in lstmlm("info", "runs/two").out
    for way in (("--resume", parted), ("documents.txt", "--from", parted, "--out", "runs/three")):
        other = lstmlm("train", *way, "--document-separator", "Ann")
        assert other.code == 2
        assert "model.document_separator" in other.err
    assert lstmlm("train", "documents.txt", *TINY, "--out", "runs/plain").code == 0
    again = ("train", "documents.txt", "--from", "runs/plain", "--steps", "2", "--out", "runs/four")
    assert lstmlm(*again, "--document-separator", SEPARATOR).code == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "found nothing"),
        ("<|eot|>", "found it nowhere"),
        ("\\n", "Did you mean a line end, --document-separator $'\\n'?"),
        ("%%", "found '%' U+0025"),
        ("Bob Ann", "found it nowhere in documents"),
        ("\x1b[2J", "expected a text, or null"),
    ],
)
def test_what_parts_nothing_is_refused(lstmlm: Lstmlm, given: str, said: str) -> None:
    """A separator that is empty, has other characters than the text or stands nowhere in it is exit 2, with what to do."""
    Path("documents.txt").write_text(DOCUMENTS, encoding="utf-8")
    result = lstmlm("train", "documents.txt", *TINY, "--document-separator", given)

    assert result.code == 2
    assert said in result.err
    assert not Path("runs").exists()


def test_bytes_and_lines_part_too(lstmlm: Lstmlm) -> None:
    """A line end parts lines, and of a model of bytes the separator is its UTF-8; --dry-run says how many there are."""
    Path("lines.txt").write_text("Où est Bob?\nAnn le voit.\n" * 30, encoding="utf-8")
    planned = lstmlm("train", "lines.txt", "--document-separator", "\n", "--dry-run")
    trained = lstmlm("train", "lines.txt", *TINY, "--document-separator", "ù", "--tokenizer", "byte", "--out", "runs/bytes")

    assert "document separators: 54 in the training text, 6 in the validation text" in planned.err
    assert "document separators: 27 in the training text, 3 in the validation text" in trained.err
    assert lstmlm("eval", "lines.txt", "-m", "runs/bytes").code == 0


def test_export_says_that_it_does_not_empty_the_state(lstmlm: Lstmlm, parted: str) -> None:
    """What is written has the separator in its description, and a warning says what a reader has to do."""
    result = lstmlm("export", parted, "--to", "torch")

    assert result.code == 0
    assert "begin each document with the empty state" in result.err
    assert b'"separator":[' in Path("parted.safetensors").read_bytes()[:4000].replace(b"\\", b"")
