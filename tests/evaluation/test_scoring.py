"""Scores of a text: the same number for every batch, window and piece, and the rules for what a model cannot score."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lstmlm.config.run_config import ModelConfig
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation import scoring
from lstmlm.evaluation.per_line import LineScorer
from lstmlm.evaluation.scoring import Score, Scorer, first_char, score_ids
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import char_lm
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, StackState
from tests.helpers import Scores, assert_close, cold, small_model, some_ids, warm

V = 11
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]


def forgetful(dtype: torch.dtype = torch.float64) -> CharLM:
    """Make a model that forgets where it started within some ten characters."""
    model = small_model(dtype=dtype, forget_bias=0.0)
    with torch.no_grad():
        for layer in model.stack():
            layer.W.mul_(0.5)
    return model


def mindful(dtype: torch.dtype = torch.float64) -> CharLM:
    """Make a model that never forgets: with a forget bias of 20 its cell state only adds up."""
    model = small_model(dtype=dtype, forget_bias=20.0, layers=1)
    with torch.no_grad():
        for layer in model.stack():
            layer.U.mul_(0.2)
            layer.W.mul_(0.01)
    return model


def plain(model: CharLM, ids: Tensor, state: StackState | None = None) -> Scores:
    """Score one character after the other, the obvious way."""
    state = model.initial_state(1) if state is None else state
    nats, correct = [], []
    with torch.inference_mode():
        for now, following in pairwise(ids):
            logits, state = model(now[None, None], state)
            nats.append(-torch.log_softmax(logits[0, 0], -1)[following])
            correct.append(logits[0, 0].argmax() == following)
    return Scores(torch.stack(nats), torch.stack(correct), state)


def assert_same(actual: Scores, expected: Scores, tolerance: float) -> None:
    """Compare the nats and hits of every character, and the state at the end."""
    assert_close(actual.nats, expected.nats.double(), "nats", tolerance)
    assert torch.equal(actual.correct, expected.correct)
    for one, other in zip(actual.state, expected.state, strict=True):
        assert_close(one.hidden, other.hidden, "last H", tolerance)
        assert_close(one.cell, other.cell, "last C", tolerance * (1 + float(other.cell.abs().max())))


class Counted:
    """Counts the characters that a model reads, and its calls."""

    def __init__(self, model: CharLM) -> None:
        self.read = self.calls = self.largest = 0
        model.register_forward_pre_hook(self)

    def __call__(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Look at what goes in."""
        self.read += inputs[0].numel()
        self.calls += 1
        self.largest = max(self.largest, inputs[0].numel())


@pytest.mark.slow
@pytest.mark.parametrize("make", [forgetful, mindful])
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("window", [1, 3, 10, 1000])
def test_warm_is_one_pass_from_left_to_right(make: Callable[[], CharLM], batch: int, window: int) -> None:
    """For every batch and window, each character's score, and the state at the end, are those of reading one by one."""
    model, ids = make(), some_ids(401)

    assert_same(warm(model, ids, None, batch, window), plain(model, ids), 1e-9)


@pytest.mark.parametrize("make", [forgetful, mindful])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_warm_in_float32_is_right_to_a_millionth_per_character(make: Callable[[torch.dtype], CharLM], batch: int) -> None:
    """In the precision that models are trained in, the mean does not depend on the batch to 1e-6 nats."""
    model, ids = make(torch.float32), some_ids(1003)

    actual, expected = warm(model, ids, None, batch, 2), plain(model, ids)

    assert float(actual.nats.double().mean()) == pytest.approx(float(expected.nats.double().mean()), abs=1e-6)
    assert_close(actual.nats, expected.nats.double(), "nats", 1e-3)


@pytest.mark.parametrize("length", [2, 3, 31, 32, 33, 95, 96, 97, 98, 127, 128, 129, 130])
def test_warm_cuts_no_tail(length: int) -> None:
    """Texts of lengths around every border have each character after the first scored once."""
    model, ids = forgetful(), some_ids(length)

    actual = warm(model, ids, None, 3, 2)

    assert len(actual.nats) == len(actual.correct) == length - 1
    assert_same(actual, plain(model, ids), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("make", [forgetful, mindful])
@pytest.mark.parametrize("segment", [1, 7, 100, 398, 399, 400, 401])
def test_borders_of_segments_do_not_show(make: Callable[[], CharLM], segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text longer than what is scored at once is still one text."""
    monkeypatch.setattr(scoring, "SEGMENT", segment)
    model, ids = make(), some_ids(401)

    assert_same(warm(model, ids, None, 5, 2), plain(model, ids), 1e-9)


@pytest.mark.parametrize(("batch", "window"), [(5, 3), (64, 1)])  # the second starts over with fewer streams
def test_warm_goes_on_from_a_state(batch: int, window: int) -> None:
    """Scoring the rest from the state after the beginning gives the rest of the whole, and leaves that state."""
    model, ids = mindful(), some_ids(701)
    whole = plain(model, ids)
    before = plain(model, ids[:301]).state
    copy = [(s.hidden.clone(), s.cell.clone()) for s in before]

    actual = warm(model, ids[300:], before, batch, window)

    assert_same(actual, Scores(whole.nats[300:], whole.correct[300:], whole.state), 1e-9)
    for s, (hidden, cell) in zip(before, copy, strict=True):
        assert torch.equal(s.hidden, hidden)
        assert torch.equal(s.cell, cell)


def test_the_mindful_model_does_not_forget() -> None:
    """The promise above is worth something: 300 characters on, this model's scores still depend on where it started."""
    model, ids = mindful(), some_ids(601)

    late = plain(model, ids).nats[-300:] - plain(model, ids[300:]).nats

    assert float(late.abs().max()) > 0.05


def test_a_forgetful_model_reads_a_text_about_once() -> None:
    """Where streams meet, warm scoring costs one reading and a little more, side by side."""
    model, ids = forgetful(torch.float32), some_ids(64 * 256 + 1)
    counted = Counted(model)

    warm(model, ids, None, 64, 16)

    assert counted.read <= 1.3 * len(ids)
    assert counted.calls <= 1.5 * 256 / 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 300.0])
def test_states_are_compared_by_their_own_roundings(size: float, dtype: torch.dtype) -> None:
    """Eight roundings of a value are no difference, however large the value; sixty-four are, in any one unit."""
    values = torch.full((3, 7), size, dtype=dtype)
    rounding = torch.finfo(dtype).eps * (1 + size)
    near, far = values + 8 * rounding, values.clone()
    far[1, 5] += 64 * rounding

    def roundings(other: Tensor) -> list[float]:
        return TorchReader(small_model()).roundings((LSTMState(values, other),), (LSTMState(values, values),))

    assert max(roundings(near)) < scoring.SAME
    assert roundings(far) == [0.0, pytest.approx(64, rel=0.05), 0.0]


@pytest.mark.parametrize("batch", [2, 8, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_never_forgets_is_read_from_left_to_right(batch: int, dtype: torch.dtype) -> None:
    """That streams never meet is seen halfway through their second run; what follows is one pass, and nothing else."""
    model, ids = mindful(dtype), some_ids(64 * 16 + 1)
    counted = Counted(model)

    warm(model, ids, None, batch, 1)

    assert counted.read <= 2.6 * len(ids)


def test_reading_from_left_to_right_can_be_declined() -> None:
    """Who has no time for a whole pass is told so, at the cost of a pass and a half side by side."""
    model, ids = mindful(), some_ids(64 * 16 + 1)
    counted = Counted(model)

    with pytest.raises(scoring.StreamsApartError):
        warm(model, ids, None, 64, 1, one_pass=False)
    assert counted.read <= 1.6 * len(ids)
    assert counted.calls <= 1.6 * 16


@pytest.mark.parametrize(
    ("quarter", "half", "read", "expected"),
    [
        (900.0, 30.0, 0, True), (900.0, 900.0, 0, False), (900.0, 1000.0, 0, False),
        (1e6, 1e5, 0, True), (1e6, 9.9e5, 0, False), (1e6, 1e5, 4001, False),
    ],
)  # fmt: skip
def test_whether_streams_will_meet(quarter: float, half: float, read: int, expected: bool) -> None:
    """What comes nearer fast enough is waited for, what does not or has been read too often already is not."""
    assert scoring._will_meet(quarter, half, 4, read, 4000, 62) is expected


def test_who_is_in_a_hurry_waits_less() -> None:
    """Streams that would meet only after more than may be read are given up, before it is read."""
    assert scoring._will_meet(1e6, 1e5, 4, 1500, 3000, 62)
    assert not scoring._will_meet(1e6, 1e5, 4, 1500, 2000, 62)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chars", [2048, 5000, 10**6])
def test_an_estimate_is_near_and_cheap(chars: int, dtype: torch.dtype) -> None:
    """An estimate reads each stream's characters and a short way before them, whatever the model remembers."""
    ids = some_ids(20_001)
    for model in (forgetful(dtype), mindful(dtype)):
        counted = Counted(model)
        value, alone = scoring.estimate([model], ids.tolist(), COUNTS, chars)
        read = counted.read

        assert read <= 1.3 * min(chars, len(ids))
        assert alone == (value,)
        assert value == scoring.estimate([model], ids.tolist(), COUNTS, chars)[0]
    model = forgetful(dtype)
    exact, _ = scoring.side_by_side([model], ids.tolist(), COUNTS)
    assert scoring.estimate([model], ids.tolist(), COUNTS, chars)[0] == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_an_estimate_counts_what_it_says() -> None:
    """The characters that count are spread evenly over the text, each once, and have the scores of a model that forgets."""
    model, ids = forgetful(), some_ids(10_240)
    streams = scoring.streams_of(len(ids), len(ids))
    each = plain(model, ids).nats
    length = (len(ids) - 1 - scoring.WARM_UP) // streams
    starts = [(len(ids) - 1 - scoring.WARM_UP - length) * one // (streams - 1) + scoring.WARM_UP for one in range(streams)]
    counted = torch.stack([each[start : start + length] for start in starts])

    assert streams == 10
    assert streams * length > len(ids) - scoring.WARM_UP - 2 * streams
    assert scoring.estimate([model], ids.tolist(), COUNTS, len(ids))[0] == pytest.approx(float(counted.mean()), rel=1e-9)


def test_a_short_text_is_never_estimated() -> None:
    """Below two streams the text is read as it is, and the number is that of `side_by_side`."""
    model, ids = mindful(), some_ids(2 * scoring.STREAM_CHARS - 1)

    assert scoring.streams_of(len(ids), 10**6) == 1
    assert scoring.estimate([model], ids.tolist(), COUNTS, 10**6) == scoring.side_by_side([model], ids.tolist(), COUNTS)
    assert scoring.streams_of(10**6, 100) == 2


def test_a_large_vocabulary_makes_pieces_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many characters there are to choose from, one call has a bounded number of scores."""
    monkeypatch.setattr(char_lm, "PIECE_SCORES", 40 * V)
    model, ids = forgetful(), some_ids(501)
    counted = Counted(model)

    warm(model, ids, None, 8, 40)

    assert counted.largest <= 40


@pytest.mark.parametrize("protocol", ["warm", "cold"])
def test_the_model_is_called_with_pieces_of_bounded_size(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long window nor many of them lets one call grow beyond the bound, and the scores stay."""
    model, ids = forgetful(), some_ids(501)

    def run() -> Scores:
        return warm(model, ids, None, 1, 400) if protocol == "warm" else cold(model, ids, 400, 64)

    expected = run()
    monkeypatch.setattr(char_lm, "PIECE", 30)
    counted = Counted(model)
    actual = run()

    assert counted.largest <= 30
    assert_close(actual.nats, expected.nats.double(), "nats", 1e-12)


@pytest.mark.parametrize("window", [1, 6, 25, 100, 150])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_cold_windows_by_hand(window: int, batch: int) -> None:
    """Each window of N inputs starts from the empty state, the character after each input is scored; so is the rest."""
    model, ids = mindful(), some_ids(101)

    actual = cold(model, ids, window, batch)

    pieces = [plain(model, ids[start : start + window + 1]) for start in range(0, 100, window)]
    assert_close(actual.nats, torch.cat([piece.nats for piece in pieces]), "nats", 1e-12)
    assert torch.equal(actual.correct, torch.cat([piece.correct for piece in pieces]))


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_second_character_has_no_scores(length: int) -> None:
    """Nothing follows a first character: both protocols return nothing, and the state as it was."""
    model, ids = forgetful(), some_ids(length)

    for scored in (warm(model, ids), cold(model, ids, 7)):
        assert len(scored.nats) == len(scored.correct) == 0
        assert all(torch.equal(s.cell, torch.zeros(1, 7)) for s in scored.state)


def test_evaluating_changes_nothing_else() -> None:
    """Neither torch's generator, nor the weights' gradients, nor the ids know afterwards that a text was scored."""
    model, ids = forgetful(), some_ids(200)
    copy, generator = ids.clone(), torch.get_rng_state()

    warm(model, ids, None, 3, 2)
    cold(model, ids, 7)

    assert torch.equal(ids, copy)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())


def test_the_first_character_is_charged_at_its_frequency() -> None:
    """One is added to each count, so that the charges of all symbols are a distribution and none is infinite."""
    charges = [first_char(COUNTS, symbol) for symbol in range(V)]

    assert charges[4] == pytest.approx(-math.log(10 / (sum(COUNTS) + V)))
    assert sum(math.exp(-charge) for charge in charges) == pytest.approx(1.0)


@pytest.mark.parametrize("protocol", ["warm", "cold"])
def test_a_score_adds_up(protocol: str) -> None:
    """A text's nats are those of its first character, of each that follows, and of each that is unknown."""
    model, ids = forgetful(), some_ids(60)

    score = score_ids(model, ids.tolist(), COUNTS, byte_length=90, unknown=3, protocol=protocol, window=8)

    scored = plain(model, ids) if protocol == "warm" else cold(model, ids, 8)
    expected = first_char(COUNTS, int(ids[0])) + float(scored.nats.sum()) + 3 * math.log(1_114_112)
    assert score.nats == pytest.approx(expected, rel=1e-12)
    assert (score.chars, score.bytes, score.unknown, score.correct) == (63, 90, 3, int(scored.correct.sum()))
    known = score_ids(model, ids.tolist(), COUNTS, byte_length=90, protocol=protocol, window=8)
    assert score.known_bits_per_char == pytest.approx(known.bits_per_char)


@pytest.mark.parametrize(("length", "unknown"), [(0, 0), (0, 3), (1, 0)])
def test_texts_that_a_model_cannot_read_have_a_score(length: int, unknown: int) -> None:
    """An empty text, one of unknown characters only and one of a single character have finite numbers."""
    ids = some_ids(length)

    score = score_ids(forgetful(), ids.tolist(), COUNTS, byte_length=length + unknown, unknown=unknown)

    expected = unknown * math.log(1_114_112) + (first_char(COUNTS, int(ids[0])) if length else 0.0)
    assert score.nats == pytest.approx(expected)
    assert score.chars == length + unknown
    numbers = [score.nats_per_char, score.bits_per_char, score.bits_per_byte, score.perplexity, score.accuracy]
    assert all(math.isfinite(number) for number in numbers)


def test_units_of_a_score() -> None:
    """Nats become bits by ln 2, per character or per byte; perplexity is e to the nats; accuracy a share."""
    score = Score(chars=50, bytes=80, unknown=0, nats=50 * math.log(8), correct=20, order0=0.0)

    assert score.nats_per_char == pytest.approx(math.log(8))
    assert score.bits_per_char == pytest.approx(3.0)
    assert score.bits_per_byte == pytest.approx(150 / 80)
    assert score.perplexity == pytest.approx(8.0)
    assert score.accuracy == 0.4


def cuts(text: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Cut a text into pieces of the given sizes, the rest last."""
    yield from text.split([*sizes, len(text) - sum(sizes)])


@pytest.mark.parametrize("protocol", ["warm", "cold"])
@pytest.mark.parametrize("sizes", [[], [0, 1, 0, 1, 150], [500], [100, 100, 100, 100], [3] * 150])
@pytest.mark.parametrize("segment", [16, 90, 10_000])
def test_a_text_in_pieces_has_the_score_of_the_whole(
    protocol: str, sizes: list[int], segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a text arrives and however little is kept of it, its score is that of the text at once."""
    model, ids = mindful(), some_ids(511)
    expected = score_ids(model, ids.tolist(), COUNTS, byte_length=600, unknown=5, protocol=protocol, window=13, batch=3)

    monkeypatch.setattr(scoring, "SEGMENT", segment)
    scorer = Scorer(model, COUNTS, protocol, 13, 3)
    scorer.add([], 5, 89)  # five characters that the model does not know
    for piece in cuts(ids, sizes):
        scorer.add(piece.tolist(), len(piece), len(piece))
    score = scorer.finish()

    assert score.nats == pytest.approx(expected.nats, rel=1e-10)
    assert (score.chars, score.bytes, score.unknown) == (516, 600, 5)
    assert score.correct == expected.correct


@pytest.mark.parametrize("before", [1, 2, 40])
def test_a_text_given_another(before: int) -> None:
    """A text after another one costs what both cost together less what the first costs; its first character is predicted."""
    model, ids = mindful(), some_ids(120).tolist()
    whole, first = (score_ids(model, part, COUNTS, byte_length=1) for part in (ids, ids[:before]))

    given = score_ids(model, ids[before:], COUNTS, byte_length=1, after=ids[:before])

    assert given.nats == pytest.approx(whole.nats - first.nats, rel=1e-9)
    assert (given.chars, given.correct) == (120 - before, whole.correct - first.correct)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says how much memory a process holds")
@pytest.mark.parametrize("how", ["warm", "cold", "lines"])
def test_many_symbols_take_bounded_memory(how: str) -> None:
    """With tens of thousands of symbols, memory does not grow with the length of what is scored."""
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x9C00))))
    symbols = len(tokenizer)
    model = CharLM(ModelConfig(hidden=2, layers=1, dropout=0.0), symbols, EagerKernel()).eval()

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def score(n: int) -> None:
        ids = torch.arange(n) * 17 % symbols
        if how == "warm":
            warm(model, ids)
        elif how == "cold":
            cold(model, ids, 8, batch=8)
        else:
            lines = [tokenizer.decode(row.tolist()) for row in ids.split(100)]
            LineScorer(model, tokenizer, [1] * symbols).score(lines)

    score(300)
    before = held()
    score(3000)

    assert held() - before < 50 << 20
