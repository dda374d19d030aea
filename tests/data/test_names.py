import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lstmlm.data import names
from lstmlm.data.corpus import Corpus, open_corpus
from lstmlm.data.names import Renaming

PEOPLE = [
    *("Orsino", "Viola", "Olivia", "Malvolio", "Feste", "Curio", "Fabian"),
    *("Antonio", "Maria", "Toby", "Andrew", "Valentine", "Sebastian", "Cesario"),
]
SMALL = list(dict.fromkeys(re.findall("[a-z]+", "so it is that the sea gives back what it has and nobody asks for more")))


def play(people: list[str] = PEOPLE, seed: int = 1, times: int = 40) -> str:
    """Return scenes of two people each, who call one another by name so many times."""
    drawn = random.Random(seed)
    scenes = []
    for scene in range(3 * len(people)):
        pair = people[scene % len(people)], people[(scene + 1) % len(people)]
        lines = [f"{speaker.upper()}:\n{other}, {' '.join(drawn.sample(SMALL, 9))}.\n" for speaker, other in (pair, pair[::-1])]
        scenes += lines * times
    return "\n".join(scenes)


def corpus_of(text: str, tokenizer: str = "char") -> Corpus:
    """Return the corpus of a text, all of it for training."""
    Path("text.txt").write_text(text, encoding="utf-8")
    return open_corpus(["text.txt"], val_fraction=0.0, cache_dir=Path("cache"), tokenizer=tokenizer)


def renaming_of(text: str, share: float = 1.0, separator: str = "") -> tuple[Renaming, Tensor, Corpus]:
    """Return what renames a text, the first 4,000 ids of it, and its corpus."""
    corpus = corpus_of(text)
    ends = tuple(corpus.tokenizer.encode(separator))
    return Renaming(corpus.train, corpus.tokenizer, share, ends), corpus.train.tensor(0, 4000), corpus


def words(text: str) -> list[str]:
    """Return the words of a text as they stand there."""
    return names.WORD.findall(text)


def test_names_are_the_words_that_are_never_small_and_stand_in_few_places() -> None:
    """Of a play these are its people, not a word that is everywhere, nor one that is small once in a while."""
    text = play().replace(".\n", ". Exeunt.\n")
    scene = text.index("MARIA")
    text = text[:scene] + text[scene : scene + 6000].replace("Toby", "Toby Knight") + text[scene + 6000 :]

    assert renaming_of(text)[0].names == {name.lower() for name in (*PEOPLE, "Knight")}
    assert renaming_of(text + " knight" * 5)[0].names == {name.lower() for name in PEOPLE}


@pytest.mark.parametrize(
    "text", ["ACGT " * 5000, "吾輩は猫である。" * 2000, play().upper(), play(PEOPLE[:5]), play().lower(), "A b", "ǅ a" * 9]
)
def test_a_text_without_names_or_with_few_has_none(text: str) -> None:
    """Where there are no two kinds of letters, or too little to make up names from, nothing is ever replaced."""
    renaming, section, _ = renaming_of(text)

    assert renaming.names == frozenset()
    assert torch.equal(renaming.replaced(section, (1,)), section)


def test_a_section_has_other_names_and_nothing_else_is_touched() -> None:
    """Lengths, cases, and all that is no name stay; a name is the same other one wherever it stands in the section."""
    renaming, section, corpus = renaming_of(play())
    before = corpus.tokenizer.decode(section.tolist())
    after = corpus.tokenizer.decode(renaming.replaced(section, (1, 2, 3)).tolist())
    pairs = {
        (old.lower(), new.lower()) for old, new in zip(words(before), words(after), strict=True) if old.lower() in renaming.names
    }

    assert [word.isupper() for word in words(before)] == [word.isupper() for word in words(after)]
    assert [len(word) for word in words(before)] == [len(word) for word in words(after)]
    assert names.WORD.sub("", before) == names.WORD.sub("", after)
    assert [w for w in words(before) if w.islower()] == [w for w in words(after) if w.islower()]
    assert len(pairs) == len(dict(pairs)) > 1
    assert all(old != new for old, new in pairs)


def test_the_place_decides_and_nothing_else() -> None:
    """One place has the same names whenever it is asked for, another one others; the section that was given stays."""
    renaming, section, _ = renaming_of(play())
    kept = section.clone()
    first = renaming.replaced(section, (1, 2, 3))
    other = renaming.replaced(section, (2, 2, 3))

    assert torch.equal(first, renaming_of(play())[0].replaced(section, (1, 2, 3)))
    assert torch.equal(section, kept)
    assert not torch.equal(first, other)
    for stored in (torch.uint8, torch.uint16, torch.int32):
        found = renaming.replaced(section.to(stored), (1, 2, 3))
        assert found.dtype == stored
        assert torch.equal(found.long(), first)


def test_a_share_of_the_names_is_replaced() -> None:
    """A share of 0 leaves a section as it is; of 0.3 about so many names in many sections are others."""
    section = renaming_of(play())[1]
    none, some = (renaming_of(play(), share)[0] for share in (0.0, 0.3))
    people = [place for place in range(300) if not torch.equal(some.replaced(section[:400], (place,)), section[:400])]

    assert torch.equal(none.replaced(section, (7,)), section)
    assert 0.4 < len(people) / 300 < 0.62  # 1 - 0.7 ** 2: two people speak there


@pytest.mark.parametrize("separator", ["Toby", "by", "OL", "Olivia, ", ":"])
def test_what_parts_documents_stays_where_it_is(separator: str) -> None:
    """A section is left as it is where renaming would spoil or make a separator, be it a word or a part of one."""
    renaming, _, corpus = renaming_of(play(), separator=separator)
    ids, ends = corpus.train.tensor(0, len(corpus.train)), corpus.tokenizer.encode(separator)
    changed = 0
    for place in range(0, len(ids) - 400, 400):
        before, after = (text[place : place + 400].unfold(0, len(ends), 1) for text in (ids, ids.clone()))
        found = renaming.replaced(ids[place : place + 400], (place,))
        after = found.unfold(0, len(ends), 1)
        changed += not torch.equal(found, ids[place : place + 400])

        assert torch.equal((before == torch.tensor(ends)).all(-1), (after == torch.tensor(ends)).all(-1))
    assert changed


def test_letters_outside_the_vocabulary_are_never_asked_for() -> None:
    """Where a made-up name has a letter that the text has not, in that case, the letter of before stays."""
    first = [
        name.capitalize()
        for name in ("baab", "caac", "daad", "faaf", "gaag", "haah", "jaaj", "kaak", "laal", "maam", "paap", "qaaq")
    ]
    renaming, section, corpus = renaming_of(play(first).replace("AA", "ZZ"))
    known = set(corpus.train.tensor(0, len(corpus.train)).tolist())
    found = {id_ for place in range(50) for id_ in renaming.replaced(section, (place,)).tolist()}

    assert "A" not in corpus.tokenizer.decode(sorted(known))
    assert found <= known
    assert found


@pytest.mark.parametrize("odd", ["İstanbul", "ǅungla", "Straße", "ΣΊΣΥΦΟΣ"])
def test_odd_letters_keep_their_length(odd: str) -> None:
    """Letters whose other case is two letters, or none, change neither lengths nor what is no name."""
    renaming, _, corpus = renaming_of(play([odd, *PEOPLE]))
    section = corpus.train.tensor(0, 20_000)
    before, after = (corpus.tokenizer.decode(ids.tolist()) for ids in (section, renaming.replaced(section, (3,))))

    assert before != after
    assert names.WORD.sub("", before) == names.WORD.sub("", after)
    assert list(map(len, words(before))) == list(map(len, words(after)))


def test_bytes_have_names_too() -> None:
    """Of a model of bytes the words of plain letters are renamed; bytes of other letters stay as they are."""
    corpus = corpus_of(play([*PEOPLE, "Éléonore"]), tokenizer="byte")
    renaming = Renaming(corpus.train, corpus.tokenizer, 1.0)
    section = corpus.train.tensor(0, len(corpus.train))
    before, after = bytes(section.tolist()), bytes(renaming.replaced(section, (1,)).tolist())

    assert {name.lower() for name in PEOPLE} <= renaming.names
    assert before != after
    assert len(before) == len(after)
    assert [(at, byte) for at, byte in enumerate(before) if byte > 127] == [
        (at, byte) for at, byte in enumerate(after) if byte > 127
    ]
    assert after.decode().count("é") == before.decode().count("é")


def test_of_a_large_text_pieces_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is bounded: as many characters as SEARCHED, from the beginning to the end of the text."""
    monkeypatch.setattr(names, "SEARCHED", 10 * names.BLOCK)
    places = names._places(10**7)

    assert sum(stop - start for start, stop in places) <= 10 * names.BLOCK
    assert places[0][0] == 0
    assert places[-1][0] > 0.85 * 10**7
    assert names._places(3 * names.BLOCK) == [(i * names.BLOCK, (i + 1) * names.BLOCK) for i in range(3)]
