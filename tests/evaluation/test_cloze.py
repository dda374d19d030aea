"""Blanks: ranked by the whole text, whatever is read side by side."""

import math

import pytest
import torch

from lstmlm.errors import TextError, UsageError
from lstmlm.evaluation.cloze import Asked, Filler, Question, by_distance, chance, parse_set, tally
from lstmlm.evaluation.scoring import first_char
from lstmlm.model.char_lm import CharLM
from lstmlm.units import bits
from tests.helpers import small_model

SYMBOLS = "abcdefghij\n"
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]
NEWLINE = SYMBOLS.index("\n")


def encode(text: str) -> list[int]:
    """Turn text into ids by position."""
    return [SYMBOLS.index(c) for c in text]


def filler(model: CharLM, start: int | None = NEWLINE) -> Filler:
    """Make a filler over the small vocabulary."""
    return Filler(model, encode, COUNTS, [] if start is None else [start])


def whole(model: CharLM, text: str, start: int | None) -> float:
    """Return the bits of a text, the obvious way: one pass over it alone."""
    ids = ([] if start is None else [start]) + encode(text)
    with torch.inference_mode():
        logits, _ = model(torch.tensor(ids)[:, None])
    logs = torch.log_softmax(logits[:, 0], -1)
    total = first_char(COUNTS, ids[0]) if start is None else 0.0
    return bits(total - sum(float(logs[t, ids[t + 1]]) for t in range(len(ids) - 1)))


TEXTS = ["abc____de", "____", "____abc", "jihg____", "a____b____c", "abcdefgh____ij", "a____"]


@pytest.mark.parametrize("start", [NEWLINE, None])
def test_bits_are_those_of_the_whole_text(start: int | None) -> None:
    """Questions read together, of all lengths, each get for every filling the bits of the whole text read alone."""
    model = small_model()
    questions = [Question(text, ("a", "bcd", "ef")) for text in TEXTS] * 20

    for question, answers in zip(questions, filler(model, start).rank(questions), strict=True):
        assert {answer.words for answer in answers} == set(question.fillings())
        for answer in answers:
            assert answer.bits == pytest.approx(whole(model, question.filled(answer.words), start), abs=1e-9)


def test_the_text_after_the_blank_counts() -> None:
    """The order of the candidates changes with what comes after the blank alone."""
    model = small_model()
    questions = [Question(f"abc____{after}", ("a", "b", "c", "d", "e")) for after in ("", "a", "ij", "\n", "fgh")]

    assert len({tuple(a.words[0] for a in answers) for answers in filler(model).rank(questions)}) > 1


def test_probabilities_are_shares_of_the_set() -> None:
    """They sum to one, the best comes first, and a ratio of two is two to the difference of their bits."""
    (answers,) = filler(small_model()).rank([Question("ab____cd____", ("a", "bcd", "ef"))])

    assert len(answers) == 9
    assert math.fsum(a.probability for a in answers) == pytest.approx(1.0, abs=1e-12)
    assert [a.bits for a in answers] == sorted(a.bits for a in answers)
    assert answers[0].probability / answers[1].probability == pytest.approx(2 ** (answers[1].bits - answers[0].bits))


def test_an_empty_candidate_is_a_candidate() -> None:
    """Nothing at all may stand in a blank, even where nothing else does."""
    model = small_model()
    (answers,) = filler(model, None).rank([Question("____", ("", "ab"))])

    assert {a.words[0]: a.bits for a in answers}[""] == 0.0


@pytest.mark.parametrize("text", ["abc", "", "a___b"])
def test_a_text_without_a_blank_is_refused(text: str) -> None:
    """The message names what to write."""
    with pytest.raises(TextError, match="____"):
        Question(text, ("a", "b"))


def test_a_blank_has_four_underscores() -> None:
    """One too many is said, and not read as a blank beside a character; eight are two blanks."""
    with pytest.raises(TextError, match="found 5 underscores"):
        Question("a_____b", ("a", "b"))

    assert len(Question("________", ("a", "b")).fillings()) == 4


def test_too_few_or_too_many_candidates_are_refused() -> None:
    """One candidate twice is one, and combinations are bounded before anything is read."""
    with pytest.raises(UsageError, match="two or more"):
        Question("a____", ("a", "a"))
    with pytest.raises(UsageError, match="combinations"):
        Question("____ " * 5, tuple("abcdefgh"))


HEADER = "text\tcandidates\tanswer\tkind\tdistance"


def test_a_set_is_read_by_its_header() -> None:
    """Columns are found by name in any order; kind and distance may be missing."""
    (one,) = parse_set("answer\tnote\ttext\tcandidates\r\nb\tx\ta____\ta|b\r\n\n", "f")
    (two,) = parse_set(f"{HEADER}\na____b____\ta|b\tb|a\tname\t17", "f")

    assert (one.question.text, one.answer, one.kind, one.distance) == ("a____", ("b",), "", None)
    assert (two.question.candidates, two.answer, two.kind, two.distance) == (("a", "b"), ("b", "a"), "name", 17)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a____\ta|b\ta\tk", "5 columns"),
        ("a____\ta|b\tc\tk\t1", "one of the candidates"),
        ("a____\ta|b\ta|b\tk\t1", "each blank"),
        ("a____\ta|b\ta\tk\t-1", "distance"),
        ("a\ta|b\ta\tk\t1", "____"),
        ("a____\ta\ta\tk\t1", "two or more"),
    ],
)
def test_a_bad_line_is_named(line: str, says: str) -> None:
    """A set with a line that makes no sense is refused, with its number and what was expected."""
    with pytest.raises(TextError, match="line 3") as caught:
        parse_set(f"{HEADER}\na____\ta|b\ta\tk\t1\n{line}", "f")

    assert says in str(caught.value)


@pytest.mark.parametrize("inner", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\r"])
def test_only_lf_and_crlf_end_a_line_of_a_set(inner: str) -> None:
    """What a text may hold in its middle (line separators of Unicode, form feeds, a CR alone) does not cut its row in two."""
    for end in ("\n", "\r\n"):
        (asked,) = parse_set(end.join([HEADER, f"a{inner}b____\ta|b\ta\tk\t1", ""]), "f")

        assert (asked.question.text, asked.answer) == (f"a{inner}b____", ("a",))


@pytest.mark.parametrize("lines", [[], [HEADER], ["text\tanswer"]])
def test_a_set_without_questions_is_refused(lines: list[str]) -> None:
    """No header, no rows or no candidates: an error, not an accuracy of nothing."""
    with pytest.raises(TextError, match="expected"):
        parse_set("\n".join(lines), "f")


def asked(distance: int | None, candidates: tuple[str, ...] = ("a", "b")) -> Asked:
    """Make a question of a distance."""
    return Asked(Question("____", candidates), ("a",), "k", distance)


def test_distances_are_counted_in_rows() -> None:
    """Each question falls into one row of equal width, rows without any are left out, far ones make rows wider."""
    near = by_distance([asked(0), asked(49), asked(50), asked(199), asked(None)], [True, False, True, True, True])
    far = by_distance([asked(0), asked(1999)], [True, False])

    assert [(b.low, b.high, b.count, b.correct) for b in near] == [(0, 50, 2, 1), (50, 100, 1, 1), (150, 200, 1, 1)]
    assert [(b.low, b.high, b.count) for b in far] == [(0, 100, 1), (1900, 2000, 1)]
    assert by_distance([asked(None)], [True]) == []


def test_accuracy_and_chance() -> None:
    """Accuracy is the share that was right; chance is the mean of one over the number of ways."""
    two, three = asked(1), asked(1, ("a", "b", "c"))

    assert tally([two, three], [True, False]).accuracy == 0.5
    assert chance([two, three]) == pytest.approx((1 / 2 + 1 / 3) / 2)
