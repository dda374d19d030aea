import random
from pathlib import Path

import pytest

from lstmlm.data import cache, sources, splits
from lstmlm.data.corpus import Corpus
from lstmlm.errors import TextError
from tests.corpora import Reader


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


def parts(read: Corpus) -> tuple[str, str]:
    """Return the text of both parts."""
    train, val = (read.tokenizer.decode(part.tensor(0, len(part)).tolist()) for part in (read.train, read.val))
    return train, val


LINES = [f"line {i} {'x' * (i % 7)}\n" for i in range(200)]
PARAGRAPHS = [f"par {i}\nhas lines\n{'  ' * (i % 2)}\n{chr(10) * (i % 3)}" for i in range(50)]


@pytest.mark.parametrize("chunk", [4, 11, 1 << 18])
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize(("split", "units"), [("lines", LINES), ("paragraphs", PARAGRAPHS)])
def test_drawn_units_are_whole(
    read: Reader, split: str, units: list[str], tokenizer: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of the lines or paragraphs is held out, each whole, evenly over the text; the rest is for training, in order."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    text = "".join(units)
    got = read(read.file(text), split=split, seed=3, tokenizer=tokenizer)
    train, val = parts(got)
    drawn = list(splits.draw(len(units), 0.1, 3))

    assert val == "".join(units[i] for i in drawn)
    assert train == "".join(unit for i, unit in enumerate(units) if i not in drawn)
    assert [i * len(drawn) // len(units) for i in drawn] == [*range(len(drawn))]
    assert got.split == split
    assert sum(got.counts) == len(got.train)
    assert any(f"{len(drawn)} of {len(units)} {split}" in note for note in got.notes)


def test_files_are_held_out_whole(read: Reader) -> None:
    """Files that are drawn are whole, near the share that was asked for, and a single large one is not left without training."""
    texts = {f"{i:02}": f"file {i} " * (1 + i % 5) + "\n" for i in range(30)}
    for name, text in texts.items():
        read.file(text, f"f/{name}")
    folder = str(read.folder / "f")
    got = read(folder, split="auto", seed=1)
    train, val = parts(got)

    assert got.split == "files"
    assert train + val != "".join(texts.values())
    assert sorted((train + val).splitlines()) == sorted("".join(texts.values()).splitlines())
    assert 0.05 < len(val) / got.chars <= 0.1
    assert read(str(read.folder / "f/00"), str(read.folder / "f/04"), split="auto").split == "tail"
    two = read(str(read.folder / "f/00"), str(read.folder / "f/04"), split="files")
    assert "".join(parts(two)) in (texts["00"] + texts["04"], texts["04"] + texts["00"])
    assert len(two.train)
    assert len(two.val)


def test_the_seed_draws_and_the_fingerprint_knows(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed holds out the same, from the cache too, another one something else, with another fingerprint."""
    path = read.file("".join(LINES))
    first, other = (read(path, split="lines", seed=seed) for seed in (1, 2))
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 100)
    again, symbols = read(path, split="lines", seed=1), first.tokenizer.to_dict().get("symbols")
    cached, known = read(path, split="lines", seed=1), read(path, split="lines", seed=1, symbols=symbols)

    assert parts(first) == parts(again) == parts(cached) == parts(known) != parts(other)
    assert first.fingerprint == again.fingerprint == cached.fingerprint == known.fingerprint != other.fingerprint
    assert first.fingerprint != read(path).fingerprint


def test_one_unit_cannot_be_split(read: Reader) -> None:
    """A text of one paragraph has no validation part by paragraphs, and that is said."""
    got = read(read.file("".join(LINES)), split="paragraphs")

    assert len(got.val) == 0
    assert any("no validation part" in note and "1 paragraph" in note for note in got.notes)


def test_lines_that_end_in_cr(read: Reader) -> None:
    """CR ends lines where it is the only line end."""
    train, val = parts(read(read.file("".join(LINES).replace("\n", "\r")), split="lines", seed=3))

    assert val.count("\r") == 20
    assert train.count("\r") == 180


def test_what_is_drawn_rises_and_is_a_share() -> None:
    """As many units are drawn as the share says, one from each stretch, and one is always left for training."""
    for count, fraction in ((1, 0.5), (2, 0.1), (10, 0.1), (1000, 0.25), (7, 0.5)):
        drawn = list(splits.draw(count, fraction, seed=count))

        assert drawn == sorted(set(drawn))
        assert len(drawn) == min(max(1, round(count * fraction)), count - 1)
    assert not list(splits.draw(9, 0.0, 0))
    lengths = random.Random(0).choices(range(1, 50), k=40)
    drawn = list(splits.draw_files(lengths, 0.2, 5))
    assert 0.15 * sum(lengths) < sum(lengths[i] for i in drawn) <= 0.2 * sum(lengths)
    assert not list(splits.draw_files([9], 0.1, 0))


def test_a_field_that_is_nowhere_is_refused(read: Reader) -> None:
    """A corpus without a file of records has no field to read."""
    with pytest.raises(TextError, match="Leave out `--field`"):
        read(read.file("text"), field="x", split="lines")
