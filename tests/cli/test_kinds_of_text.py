"""Texts as people have them: each is learnt, tuned on, gone on with, scored and sampled from."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Lstmlm

SMALL = ("--hidden", "5", "--layers", "1", "--batch", "3", "--window", "7", "--threads", "1")
WORDS = ("the", "old", "river", "runs", "past", "a", "small", "stone", "mill", "over", "the", "green", "hill")


def lines(count: int, seed: int) -> list[str]:
    """Draw some sentences."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=7)).capitalize() + "." for _ in range(count)]


def markdown(place: Path, seed: int) -> list[str]:
    """Write a folder of Markdown with pictures, one of them written as text."""
    for number in range(4):
        (place / "docs").mkdir(parents=True, exist_ok=True)
        (place / f"docs/{number}.md").write_text("# Mill\n\n![logo](logo.svg)\n\n" + "\n".join(lines(12, seed + number)))
    (place / "docs/logo.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>')
    (place / "docs/photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    return ["docs"]


def novel(place: Path, seed: int) -> list[str]:
    """Write a text in GBK, of which many characters are rare."""
    source = random.Random(seed)
    text = "".join("山上有水，水边有一座小石桥。" + chr(source.randrange(0x4E00, 0x9000)) + "\n" for _ in range(60))
    (place / "novel.txt").write_bytes(text.encode("gb18030"))
    return ["novel.txt", "--encoding", "gb18030", "--min-count", "3"]


def mailbox(place: Path, seed: int) -> list[str]:
    """Write a mailbox, with a byte that is no UTF-8 in it."""
    mails = "".join(f"From bob\nSubject: {line}\n\n{line}\nYours, Bob\n\n" for line in lines(30, seed))
    (place / "all.mbox").write_bytes(mails.encode() + b"Caf\xe9\n")
    return ["all.mbox", "--tokenizer", "byte"]


def chat(place: Path, seed: int) -> list[str]:
    """Write a chat, a record a line."""
    records = [{"messages": [{"role": "user", "content": line}, {"role": "bot", "content": None}]} for line in lines(40, seed)]
    (place / "chat.jsonl").write_text("\n".join(map(json.dumps, records)))
    return ["chat.jsonl", "--field", "messages.content"]


def names(place: Path, seed: int) -> list[str]:
    """Write names, sorted, one a line."""
    source = random.Random(seed)
    (place / "names.txt").write_text("\n".join(sorted("".join(source.choices("abdeilmnor", k=6)) for _ in range(200))))
    return ["names.txt", "--split", "lines"]


def fasta(place: Path, seed: int) -> list[str]:
    """Write sequences with their headers."""
    source = random.Random(seed)
    (place / "all.fa").write_text("".join(f">seq{i}\n{''.join(source.choices('ACGT', k=60))}\n" for i in range(20)))
    return ["all.fa"]


def log(place: Path, seed: int) -> list[str]:
    """Write a log, which has grown where the seed is larger."""
    rows = [f"2026-01-{i // 40 + 1:02} {i % 24:02}:00:00 INFO {line}\n" for i, line in enumerate(lines(100 + 40 * seed, 1))]
    (place / "app.log").write_text("".join(rows))
    return ["app.log"]


def subtitles(place: Path, seed: int) -> list[str]:
    """Write subtitles in CRLF with a byte order mark."""
    rows = [f"{i}\r\n00:00:{i:02},000 --> 00:00:{i + 1:02},000\r\n{line}\r\n\r\n" for i, line in enumerate(lines(40, seed), 1)]
    (place / "film.srt").write_bytes(b"\xef\xbb\xbf" + "".join(rows).encode())
    return ["film.srt"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [markdown, novel, mailbox, chat, names, fasta, log, subtitles], ids=lambda kind: kind.__name__)
def test_a_text_as_people_have_it(
    lstmlm: Lstmlm, kind: Callable[[Path, int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is learnt, gone on with for more steps, scored as its validation was, sampled from, and a newer one tuned on it."""
    text, *flags = kind(tmp_path, 0)
    begun = lstmlm("train", text, *flags, *SMALL, "--steps", "4", "--out", "run", "--json")
    further = lstmlm("train", "--resume", "run", "--steps", "6", "--json")
    scored = lstmlm("eval", "-m", "run", "--no-baselines", "--threads", "1", "--json")
    drawn = lstmlm("sample", "-m", "run", "-n", "2", "--length", "30", "--seed", "1", "--threads", "1")
    (tmp_path / "newer").mkdir()
    kind(tmp_path / "newer", 1)
    monkeypatch.chdir(tmp_path / "newer")
    kept = [word for word in flags if word not in ("--tokenizer", "byte", "--min-count", "3")]
    tuned = lstmlm(
        "train", text, "--from", "../run", *kept, "--on-unknown", "grow", "--steps", "3", "--threads", "1", "--out", "tuned"
    )  # fmt: skip

    for result in (begun, further, scored, drawn, tuned):
        assert result.code == 0, result.err
        assert "Traceback" not in result.err
    assert further.json["steps"] == 6
    if further.json["best"]["exact"]:
        assert scored.json["bits_per_char"] == pytest.approx(further.json["best"]["bits_per_char"], abs=1e-5)
    assert b"svg" not in drawn.stdout
    assert lstmlm("eval", text, "-m", "tuned", "--threads", "1", "-q").code == 0
