"""Scores of lines: the same however many come at a time, and in sum those of the whole text."""

import math

import pytest
import torch

from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation.per_line import Line, LineScorer
from lstmlm.evaluation.scoring import CODE_POINTS, first_char, score_ids
from lstmlm.model import char_lm
from lstmlm.model.char_lm import CharLM
from tests.helpers import small_model

WITH_NEWLINE = CharTokenizer("abcdefghij\n")
WITHOUT = CharTokenizer("abcdefghijk")
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]
LINES = ["abc\n", "\n", "jihgfedcba\n", "a\n", "aab", "a?b\n", "\n", "", "??\n"]


def score(model: CharLM, tokenizer: CharTokenizer, lines: list[str], at_once: int, carried: bool) -> list[Line]:
    """Score lines, some at a time."""
    scorer = LineScorer(model, tokenizer, COUNTS, carried)
    return [line for low in range(0, len(lines), at_once) for line in scorer.score(lines[low : low + at_once])]


@pytest.mark.parametrize("tokenizer", [WITH_NEWLINE, WITHOUT])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_lines_may_come_in_any_groups(
    tokenizer: CharTokenizer, carried: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many lines come at a time and are read side by side, each gets the same numbers, in order."""
    monkeypatch.setattr(char_lm, "PIECE", 8)
    model = small_model()
    together, apart = (score(model, tokenizer, LINES, n, carried) for n in (len(LINES), at_once))

    assert [line.number for line in together] == list(range(1, len(LINES) + 1))
    for one, other in zip(together, apart, strict=True):
        ends = one.text.endswith("\n") and tokenizer is WITHOUT  # what is not known costs nothing
        assert (one.text, one.unknown, one.chars) == (other.text, other.unknown, len(one.text) - ends)
        assert one.costs == pytest.approx(other.costs, abs=1e-9)


def test_reset_lines_are_texts_of_their_own() -> None:
    """Each line costs what it costs read alone after a line end."""
    model = small_model()
    for line in score(model, WITH_NEWLINE, LINES[:5], 5, carried=False):
        assert line.bits == pytest.approx(alone(model, line.text), abs=1e-9)


def alone(model: CharLM, text: str) -> float:
    """Return the bits of a text after a line end, id 0 of this vocabulary, the obvious way."""
    ids = [0, *(WITH_NEWLINE.symbols.index(c) for c in text)]
    with torch.inference_mode():
        logs = torch.log_softmax(model(torch.tensor(ids)[:, None])[0][:, 0], -1)
    return -sum(float(logs[t, ids[t + 1]]) for t in range(len(ids) - 1)) / math.log(2)


def test_carried_lines_sum_to_the_whole_text() -> None:
    """With the state carried, the lines cost together what the text costs in one piece."""
    model = small_model()
    text = "".join(LINES[:5])
    ids = WITH_NEWLINE.encode(text)
    total = score_ids(model, ids, COUNTS, byte_length=len(text))

    assert sum(line.bits for line in score(model, WITH_NEWLINE, LINES[:5], 2, carried=True)) == pytest.approx(
        total.nats / math.log(2), abs=1e-9
    )


def test_unknown_characters_are_charged_where_they_stand() -> None:
    """Their cost has their place in the line, is counted, and the others cost what they cost without them."""
    with_unknown, without = score(small_model(), WITH_NEWLINE, ["a?b\n", "ab\n"], 2, carried=False)

    assert with_unknown.costs[1] == math.log2(CODE_POINTS)
    assert with_unknown.unknown == 1
    assert with_unknown.costs[:1] + with_unknown.costs[2:] == pytest.approx(without.costs, abs=1e-9)


def test_a_first_character_without_anything_before_it_is_charged_at_its_frequency() -> None:
    """Where the vocabulary has no line end, and where the state is carried from the very start."""
    frequency = first_char(COUNTS, 2) / math.log(2)
    (reset,) = score(small_model(), WITHOUT, ["cab"], 1, carried=False)
    one, two = score(small_model(), WITHOUT, ["cab", "cab"], 1, carried=True)

    assert reset.costs[0] == pytest.approx(frequency)
    assert one.costs[0] == pytest.approx(frequency)
    assert two.costs[0] != pytest.approx(frequency)


def test_a_line_end_that_is_not_known_costs_nothing() -> None:
    """CRLF and CR cost a model of LF no more than they would without what it does not know; within a line CR is unknown."""
    plain, crlf, cr, within = score(small_model(), WITH_NEWLINE, ["ab\n", "ab\r\n", "ab\r", "a\rb\n"], 4, carried=False)
    (none,) = score(small_model(), WITHOUT, ["ab\n"], 1, carried=False)

    assert crlf.costs == pytest.approx(plain.costs, abs=1e-9)
    assert cr.costs == pytest.approx(plain.costs[:2], abs=1e-9)
    assert (crlf.unknown, cr.unknown, within.unknown, none.unknown) == (0, 0, 1, 0)
    assert (none.chars, crlf.body, within.body) == (2, "ab", "a\rb")


@pytest.mark.parametrize("carried", [False, True])
def test_line_ends_need_not_be_scored(carried: bool) -> None:
    """Without line ends every other character costs what it costs with them: they are read all the same."""
    model, lines = small_model(), ["abc\n", "\n", "jih\r\n", "a"]
    whole = LineScorer(model, WITH_NEWLINE, COUNTS, carried).score(lines)
    bare = LineScorer(model, WITH_NEWLINE, COUNTS, carried, line_ends=False).score(lines)

    assert [line.chars for line in bare] == [3, 0, 3, 1]
    for one, other in zip(whole, bare, strict=True):
        assert one.costs[: other.chars] == pytest.approx(other.costs, abs=1e-9)


@pytest.mark.parametrize("carried", [False, True])
def test_lines_after_a_text(carried: bool) -> None:
    """After a text every line, or with the state carried the first one, costs what it costs as that text's continuation."""
    model = small_model()
    before = WITH_NEWLINE.encode("cab\nfi")
    for line, text in zip(
        LineScorer(model, WITH_NEWLINE, COUNTS, carried, after=before).score(["abc\n", "de\n"]),
        ("cab\nfiabc\n", "cab\nfiabc\nde\n" if carried else "cab\nfide\n"),
        strict=True,
    ):
        ids = WITH_NEWLINE.encode(text)
        given = WITH_NEWLINE.encode(text[: -len(line.text)])
        whole, part = (score_ids(model, one, COUNTS, byte_length=1).nats for one in (ids, given))
        assert line.bits == pytest.approx((whole - part) / math.log(2), abs=1e-6)
