"""What a run is validated by; that the trainer keeps what it says, and leaves it on a signal, is in test_trainer."""

import math
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lstmlm.data.corpus import Corpus
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation.scoring import CODE_POINTS, score_ids
from lstmlm.kernels.eager import EagerKernel
from lstmlm.training import budget
from lstmlm.training.members import Members
from lstmlm.training.validation import Interrupted, Validation, stretches, surely_less
from tests.helpers import ids_of
from tests.training.test_trainer import configured

pytestmark = pytest.mark.usefixtures("short_samples")


@pytest.fixture
def members(corpus: Corpus) -> Members:
    """Return one network for the text."""
    return Members(configured(), len(corpus.tokenizer), EagerKernel(), torch.device("cpu"))


def silent() -> int | None:
    """Say that no signal has come."""
    return None


def test_a_short_text_is_scored_exactly(corpus: Corpus, members: Members) -> None:
    """Its score is that of `lstmlm eval`, and no estimate."""
    ids = corpus.val.tensor(0, len(corpus.val)).tolist()
    text = Validation(corpus, members, silent)
    expected = score_ids(members.network, ids, corpus.counts, byte_length=len(ids)).nats_per_char

    assert not text.estimates(1)
    assert text.score(1)[0] == pytest.approx(expected, abs=1e-6)


def test_a_text_of_which_the_beginning_is_scored(corpus: Corpus, members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the beginning of a text is scored, that is an estimate."""
    monkeypatch.setattr(budget, "MOST_CHARS", len(corpus.val) - 1)
    text = Validation(corpus, members, silent)

    assert len(text) == len(corpus.val) - 1
    assert not text.whole
    assert text.estimates(1)


def test_unknown_characters_are_charged(corpus: Corpus, members: Members) -> None:
    """A character that is not in the vocabulary costs what it costs in `lstmlm eval`, in every score."""
    known, unknown = len(corpus.val), 3
    plain, charged = (Validation(one, members, silent) for one in (corpus, replace(corpus, val_unknown=unknown)))
    scores: list[Callable[[Validation], float]] = [
        lambda text: text.score(1)[0],
        lambda text: text.score_exactly(members.network.state_dict()),
        lambda text: text.counting_nats,
    ]

    for score in scores:
        expected = (score(plain) * known + unknown * math.log(CODE_POINTS)) / (known + unknown)
        assert score(charged) == pytest.approx(expected)


def test_counting(corpus: Corpus, members: Members) -> None:
    """Counting takes the frequencies of the training part, one added to each count."""
    learnt = Counter(corpus.train.tensor(0, len(corpus.train)).tolist())
    ids = corpus.val.tensor(0, len(corpus.val)).tolist()
    share = [(learnt[id_] + 1) / (len(corpus.train) + len(corpus.tokenizer)) for id_ in ids]

    assert Validation(corpus, members, silent).counting_nats == pytest.approx(-sum(map(math.log, share)) / len(ids))


def test_other_weights_do_not_stay(corpus: Corpus, members: Members) -> None:
    """The exact score is of the weights that it is given; the network keeps its own, after a signal too."""
    own = {name: tensor.clone() for name, tensor in members.network.state_dict().items()}
    others = {name: tensor + 0.5 for name, tensor in own.items()}
    kernels = [layer.kernel for layer in members.network.stack()]
    text = Validation(corpus, members, silent)

    assert text.score_exactly(others) != text.score_exactly(own)
    with pytest.raises(Interrupted):
        Validation(corpus, members, lambda: signal.SIGTERM).score_exactly(others)
    assert all(torch.equal(tensor, own[name]) for name, tensor in members.network.state_dict().items())
    assert [layer.kernel for layer in members.network.stack()] == kernels


def test_a_sample_is_that_of_its_seed(corpus: Corpus, members: Members) -> None:
    """A seed gives a text, the same one again, of the length that is asked for."""
    text = Validation(corpus, members, silent)

    assert len(text.sample(7)) == 5
    assert text.sample(7) == text.sample(7)
    assert len({text.sample(seed) for seed in range(8)}) > 1


def test_rare_characters_are_charged(corpus: Corpus) -> None:
    """The symbol of rare ones costs what the network gives it, and what it takes to say which character it is."""
    symbols = CharTokenizer(corpus.tokenizer.symbols, rare=True)  # type: ignore[union-attr]  # of characters
    rare = symbols.rare or 0
    ids = [*corpus.val.tensor(0, len(corpus.val)).tolist(), rare, 1, rare]
    one = replace(corpus, tokenizer=symbols, val=ids_of(ids), counts=[*corpus.counts, 2])
    members = Members(configured(), len(symbols), EagerKernel(), torch.device("cpu"))
    text = Validation(one, members, silent)
    expected = score_ids(members.network, ids, one.counts, byte_length=1, rare=rare)

    assert expected.unknown == expected.rare == 2
    assert text.score(1)[0] == pytest.approx(expected.nats_per_char, abs=1e-6)
    assert text.score_exactly(members.network.state_dict()) == pytest.approx(expected.nats_per_char, abs=1e-6)
    assert text.counting_nats == pytest.approx(expected.order0 / len(ids))


def test_what_is_surely_less() -> None:
    """A text takes less for sure where the mean of its stretches' differences is above two standard errors of it."""
    before = [2.0] * 40
    little = [2.0 - 0.01 * (i % 2 or -0.9) for i in range(40)]  # now less, now more

    assert surely_less([1.9 + 0.01 * (i % 3) for i in range(40)], before)
    assert not surely_less(little, before)
    assert not surely_less(before, before)
    assert not surely_less([1.0] * 9, [2.0] * 9)
    assert not surely_less([1.0] * 40, [])


def test_stretches_are_long_enough() -> None:
    """They are a hundred at most, of a hundred characters at least; a text of fewer than a thousand has none."""
    assert stretches([1.0] * 999) == []
    assert stretches([1.0] * 500 + [3.0] * 500) == [1.0] * 5 + [3.0] * 5
    assert len(stretches([1.0] * 262_144)) == 100
