"""The bundled stories: what the script writes, what it says they cost, and what the blanks promise."""

import importlib.util
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load() -> Any:
    """Import the script, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("make_stories", ROOT / "scripts" / "data" / "make_stories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


stories: Any = load()


@pytest.fixture(scope="module")
def told() -> Any:
    """Give the teller of the whole shipped corpus, and its stories."""
    teller = stories.Writer(stories.SEED)
    return teller, stories.tell_all(teller, stories.CHARS)


@pytest.fixture(scope="module")
def corpus() -> str:
    """Give the shipped corpus."""
    return (ROOT / "data" / "stories.txt").read_bytes().decode("ascii")


@pytest.fixture(scope="module")
def blanks() -> list[dict[str, str]]:
    """Give the shipped blanks, a dictionary for each line."""
    lines = (ROOT / "data" / "blanks.tsv").read_bytes().decode("ascii").splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]


class Route(stories.Teller):  # type: ignore[misc]  # loaded by path: mypy sees Any
    """Take given choices, then always the first, and note how many ways there were each time."""

    def __init__(self, choices: list[tuple[int, int]]) -> None:
        super().__init__()
        self.given = choices
        self.ways: list[list[tuple[int, int]]] = []
        self.probability = Fraction(1)

    def select(self, groups: Any) -> tuple[int, int]:
        """Take the next given choice."""
        ways = [(group, place) for group, (weight, options) in enumerate(groups) if weight for place in range(len(options.texts))]
        turn = len(self.ways)
        self.ways.append(ways)
        group, place = chosen = self.given[turn] if turn < len(self.given) else ways[0]
        weight, options = groups[group]
        self.probability *= Fraction(weight, sum(weight for weight, _ in groups))
        self.probability *= Fraction(options.weights[place], sum(options.weights))
        return chosen


def small(teller: Any) -> None:
    """Tell a name, one or two of three deeds of unequal weight, and a full stop."""
    names = stories.Options({"Bob ": 2, "Dan ": 1})
    deeds, stop = stories.Options({"ran": 3, "sat": 1}), stories.Options({".": 1})
    teller.pick([(1, names)])
    teller.pick([(5, deeds), (2, stories.Options({"laughed": 1}))])
    if teller.pick([(3, stop), (1, stories.Options({" and ": 1}))])[0]:
        teller.pick([(1, deeds)])
        teller.pick([(1, stop)])


def every(production: Any) -> Iterator[Any]:
    """Yield a teller for each way in which a production can be told."""
    waiting: list[list[tuple[int, int]]] = [[]]
    while waiting:
        choices = waiting.pop()
        teller = Route(choices)
        production(teller)
        made = [*choices, *(ways[0] for ways in teller.ways[len(choices) :])]
        for turn in range(len(choices), len(made)):
            waiting.extend([*made[:turn], other] for other in teller.ways[turn][1:])
        yield teller


def test_all_texts_of_a_small_grammar_add_up_to_one() -> None:
    """Every text of a small production is told in one way, and their probabilities add up to exactly 1."""
    tellers = list(every(small))

    assert len(tellers) == len({teller.text for teller in tellers}) == 18
    assert sum(teller.probability for teller in tellers) == 1


def test_bits_are_minus_log2_of_the_probability() -> None:
    """The bits that a teller adds up are those of the exact product of its choices' probabilities."""
    for teller in every(small):
        expected = math.log2(teller.probability.denominator) - math.log2(teller.probability.numerator)

        assert teller.bits == pytest.approx(expected, abs=1e-12)


def test_draws_are_as_frequent_as_their_probability() -> None:
    """A writer's texts are as frequent as the grammar says, within five standard deviations."""
    expected = {teller.text: float(teller.probability) for teller in every(small)}
    writer, count = stories.Writer(3), 20_000
    found: Counter[str] = Counter()
    for _ in range(count):
        writer.pieces.clear()
        small(writer)
        found[writer.text] += 1

    assert found.keys() <= expected.keys()
    for text, probability in expected.items():
        spread = math.sqrt(count * probability * (1 - probability))
        assert abs(found[text] - count * probability) < 5 * spread


@pytest.mark.slow
def test_the_text_tells_its_choices(told: Any) -> None:
    """Read from the text alone, a corpus costs exactly the bits that writing it did: no text is told in two ways."""
    writer = stories.Writer(11)
    stories.tell_all(writer, 150_000)
    reader = stories.Reader(writer.text)
    stories.tell_all(reader, 150_000)

    assert reader.costs == writer.costs


def test_a_text_of_another_grammar_is_refused() -> None:
    """A text that the grammar cannot tell is refused, with the character at which it leaves it."""
    with pytest.raises(ValueError, match="Character 0: expected one way to go on, found 0"):
        stories.tell(stories.Reader("Rob is a sailor.\n"))


def test_two_ways_to_one_text_are_refused() -> None:
    """Options of which one is the beginning of another are noticed, for the count of bits would be wrong."""
    options = stories.Options({"Bob": 1, "Bob ": 1})

    with pytest.raises(ValueError, match="found 2"):
        stories.Reader("Bob ").pick([(1, options)])


@pytest.mark.slow
def test_shipped_files_are_what_the_script_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files of the checkout are, byte for byte, what the script writes by default; it says what they cost."""
    assert stories.main(["--out", str(tmp_path)]) == 0
    for name in ("stories.txt", "blanks.tsv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes()
    said = capsys.readouterr().out

    assert re.search(r"the best possible: 0\.\d{4} bits/char; on the last 10 %: 0\.\d{4} bits/char", said)


def test_size_and_characters(corpus: str) -> None:
    """The corpus has 1 to 3 MB of printable ASCII and line ends, one story a line."""
    assert 1_000_000 <= len(corpus) <= 3_000_000
    assert corpus.endswith(".\n")
    assert all(char == "\n" or " " <= char <= "~" for char in corpus)
    assert "\n\n" not in corpus


@pytest.mark.slow
def test_every_part_has_every_kind(told: Any) -> None:
    """In each tenth of the file, so in the validation part too, the three kinds are about as many."""
    counts = [Counter[str]() for _ in range(10)]
    position = 0
    for line, story in zip(told[0].text.splitlines(keepends=True), told[1], strict=True):
        counts[10 * position // told[0].length][story.kind] += 1
        position += len(line)

    for tenth in counts:
        assert min(tenth[kind] for kind in stories.KINDS) > 0.27 * sum(tenth.values())


def test_recalls_lie_at_every_distance(told: Any) -> None:
    """Each kind of recall occurs in every 50 characters up to 400, none farther, half of them within 100."""
    for kind in stories.KINDS:
        distances = [
            recall.distance
            for story in told[1]
            if story.kind == kind
            for recall in story.recalls
            if (recall.word in stories.PRONOUN) == (kind != "fact")
        ]
        rows = Counter(min(distance, 399) // 50 for distance in distances)

        assert max(distances) <= 400
        assert all(rows[row] >= 20 for row in range(8))
        assert rows[0] + rows[1] > 0.5 * len(distances)


def test_names_cannot_be_guessed(told: Any) -> None:
    """The names of a story are drawn evenly: none is more than a fifth more frequent than another of the twelve."""
    first = Counter(story.names[0] for story in told[1])

    assert len(first) == 12
    assert max(first.values()) < 1.4 * min(first.values())
    assert max(first.values()) - min(first.values()) < 6 * math.sqrt(len(told[1]) / 12)


def test_blanks_are_spread_evenly(blanks: list[dict[str, str]]) -> None:
    """Every kind has as many blanks in each 50 characters of distance from 0 to 400, and evenly drawn answers."""
    rows = Counter((blank["kind"], min(int(blank["distance"]), 399) // 50) for blank in blanks)

    assert rows == {(kind, row): stories.BLANKS for kind in stories.KINDS for row in range(8)}
    for kind in stories.KINDS:
        answers = Counter(blank["answer"] for blank in blanks if blank["kind"] == kind)
        assert max(answers.values()) < 3 * sum(answers.values()) / (32 if kind == "fact" else 12)


def test_distances_are_what_they_claim(blanks: list[dict[str, str]]) -> None:
    """The distance is counted from the end of the answer's last mention to the blank; what follows is no help."""
    for blank in blanks:
        before, after = blank["text"].split("____")
        last = [match.end() for match in re.finditer(rf"\b{blank['answer']}\b", before)][-1]
        candidates = blank["candidates"].split("|")

        assert len(before) - last == int(blank["distance"])
        assert blank["answer"] in candidates
        assert len(candidates) == len(set(candidates)) == (8 if blank["kind"] == "fact" else 6)
        assert not any(re.search(rf"\b{candidate}\b", after) for candidate in candidates)
        assert after.endswith(".")
        assert "." not in after[:-1]


def test_blanks_are_told_by_the_grammar(blanks: list[dict[str, str]]) -> None:
    """Filled in, the text of each blank is the beginning of one story of its kind, read by the grammar to its end."""
    for blank in blanks:
        filled = blank["text"].replace("____", blank["answer"])
        reader = stories.Reader(filled + "\n")
        try:
            assert stories.tell(reader).kind == blank["kind"]
        except ValueError:  # a story cannot end here: the text broke off at the end of its last sentence
            assert reader.length == len(filled)


def test_blanks_are_held_out(blanks: list[dict[str, str]], corpus: str) -> None:
    """No blank's story, filled in, occurs in the corpus."""
    assert not [blank for blank in blanks if blank["text"].replace("____", blank["answer"]) in corpus]


def test_five_characters_do_not_tell_the_answer(blanks: list[dict[str, str]], corpus: str) -> None:
    """From 50 characters on, counts of order 5 over the whole corpus answer no better than dice."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for i in range(5, len(corpus)):
        counts[corpus[i - 5 : i]][corpus[i]] += 1

    def cost(text: str) -> float:
        nats = 0.0
        for i in range(5, len(text)):
            seen = counts[text[i - 5 : i]]
            nats -= math.log((seen[text[i]] + 0.01) / (seen.total() + 0.47))
        return nats

    draw = random.Random(0)
    for kind in stories.KINDS:
        right = asked = 0
        for blank in blanks:
            if blank["kind"] != kind or int(blank["distance"]) < 50:
                continue
            before, after = blank["text"].split("____")
            candidates = blank["candidates"].split("|")
            draw.shuffle(candidates)
            best = min(candidates, key=lambda word: cost(before[-5:] + word + after))
            right += best == blank["answer"]
            asked += 1
        chance = 1 / 8 if kind == "fact" else 1 / 6
        spread = math.sqrt(chance * (1 - chance) / asked)

        assert abs(right / asked - chance) < 4 * spread
