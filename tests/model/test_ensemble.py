"""Several networks read as one: the mean of their probabilities, for every reader of a network."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.analysis.activations import Forgetting
from lstmlm.config.run_config import ModelConfig
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation.per_line import LineScorer
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import score_ids, side_by_side
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import ensemble, weights
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Ensemble, average, joined, members, parted
from lstmlm.training.dynamic import LEARN_EVERY, DynamicEvaluator, Rates
from tests.helpers import assert_close, cold, scores, small_model, some_ids, warm

V, N = 11, 3
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]


@pytest.fixture
def models() -> list[CharLM]:
    """Make three networks of one shape whose predictions differ."""
    return [small_model() for _ in range(N)]


def mean(costs: list[Tensor]) -> Tensor:
    """Return the nats of the mean of probabilities whose nats are given."""
    return -torch.stack([torch.exp(-cost) for cost in costs]).mean(0).log()


def test_probabilities_are_averaged(models: list[CharLM]) -> None:
    """The logits are the logarithm of the mean of the members' probabilities, and the state is the members' states in a row."""
    ids = some_ids(30).view(10, 3)
    logits, state = Ensemble(models)(ids)
    apart = [model(ids) for model in models]

    assert_close(logits.exp(), torch.stack([torch.softmax(one, -1) for one, _ in apart]).mean(0), "probabilities")
    assert_close(torch.logsumexp(logits, -1), torch.zeros(10, 3, dtype=torch.float64), "their sum")
    for own, (_, alone) in zip(parted(state, N), apart, strict=True):
        assert all(torch.equal(a, b) for one, other in zip(own, alone, strict=True) for a, b in zip(one, other, strict=True))


def test_state_is_carried(models: list[CharLM]) -> None:
    """Reading a text in two pieces gives what reading it in one gives."""
    ids, network = some_ids(30)[:, None], Ensemble(models)
    whole, after = network(ids)
    first, state = network(ids[:13])
    second, last = network(ids[13:], state)

    assert_close(torch.cat([first, second]), whole, "logits", 1e-12)
    assert all(torch.allclose(a.cell, b.cell) for a, b in zip(last, after, strict=True))


def test_unlikely_everywhere() -> None:
    """A probability that no floating type can hold stays a finite logarithm, as it does for one network."""
    logits = torch.tensor([[0.0, -3000.0]])

    assert average([logits, logits]).tolist() == [[0.0, -3000.0]]


def test_one_is_itself(models: list[CharLM]) -> None:
    """Of one network nothing is averaged: it is the network itself, and its logits are untouched."""
    logits, _ = models[0](some_ids(5)[:, None])

    assert ensemble.of(models[:1]) is models[0]
    assert average([logits]) is logits
    assert members(models[0]) == models[:1]
    assert isinstance(ensemble.build(ModelConfig(hidden=3, layers=1, dropout=0.0), V, EagerKernel()), CharLM)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parted_and_joined(count: int) -> None:
    """Taking a state apart and putting it together again changes nothing."""
    states = [small_model().initial_state(2) for _ in range(count)]

    assert parted(joined(states), count) == states


@pytest.mark.parametrize("protocol", ["warm", "cold"])
def test_scores(models: list[CharLM], protocol: str) -> None:
    """Each character costs the nats of the mean of the probabilities that the members give it, warm and cold."""
    ids, network = some_ids(700), Ensemble(models)

    def read(model: ensemble.Network) -> Tensor:
        return (warm(model, ids, batch=4, window=8) if protocol == "warm" else cold(model, ids, 32)).nats

    assert_close(read(network), mean([read(model) for model in models]), "nats")


def test_side_by_side(models: list[CharLM]) -> None:
    """One pass for each member gives the score of all together, and of each alone, that reading them as one would."""
    ids = some_ids(500)
    together, alone = side_by_side(models, ids.tolist(), COUNTS)

    assert together == pytest.approx(score_ids(Ensemble(models), ids.tolist(), COUNTS, byte_length=500).nats_per_char, abs=1e-12)
    assert alone == pytest.approx([score_ids(m, ids.tolist(), COUNTS, byte_length=500).nats_per_char for m in models], abs=1e-12)
    assert together < sum(alone) / N  # the mean of logarithms is below the logarithm of the mean


@pytest.mark.parametrize("length", [1, 2, 500])
def test_side_by_side_of_one(length: int) -> None:
    """One network's score has the bits that `score_ids` gives it."""
    model, ids = small_model(dtype=torch.float32), some_ids(length)
    score = score_ids(model, ids.tolist(), COUNTS, byte_length=length).nats_per_char

    assert side_by_side([model], ids.tolist(), COUNTS) == (score, (score,))


def test_an_empty_text_takes_nothing(models: list[CharLM]) -> None:
    """Of no characters there is no score to be had, and no error."""
    assert side_by_side(models, [], COUNTS) == (0.0, (0.0,) * N)


@pytest.mark.parametrize("how", [Sampling(), Sampling(greedy=True), Sampling(temperature=0.5, top_k=3)])
def test_samples(models: list[CharLM], how: Sampling) -> None:
    """A sample's nats are those that the network as one gives it; greedy takes the largest mean of probabilities."""
    network = Ensemble(models).eval()
    stream = generate(network, [3, 1], [5, 6], how)
    steps = [next(stream) for _ in range(20)]
    for column in range(2):
        ids = torch.tensor([3, 1, *(chosen[column] for chosen, _ in steps)])
        logits, _ = network(ids[:-1, None])
        costs = -torch.log_softmax(logits[1:, 0], -1).gather(-1, ids[2:, None]).squeeze(-1)
        assert [cost[column] for _, cost in steps] == pytest.approx(costs.tolist(), abs=1e-9)
        if how.greedy:
            assert ids[2:].tolist() == logits[1:, 0].argmax(-1).tolist()


def test_each_learns_by_itself(models: list[CharLM]) -> None:
    """Dynamic: every member learns as it would alone, and what is scored is the mean of their probabilities."""
    ids, own = some_ids(2 * LEARN_EVERY + 30), LEARN_EVERY + 9
    found = DynamicEvaluator(Ensemble(models), 3, Rates(0.03), own).read(ids.tolist())
    alone = [DynamicEvaluator(model, 3, Rates(0.03), own).read(ids.tolist()) for model in models]

    assert_close(scores(found).nats, mean([scores(one).nats for one in alone]), "nats")
    assert [a.cell.tolist() for a in found.state] == [a.cell.tolist() for a in joined(one.state for one in alone)]


def test_forgetting(models: list[CharLM]) -> None:
    """Without their memory after a mark, too, the members' probabilities are averaged."""
    ids, network = some_ids(20)[:, None], Ensemble(models)
    logits, _ = Forgetting(network, 2)(ids, network.initial_state(1))
    apart = [Forgetting(model, 2)(ids, model.initial_state(1))[0] for model in models]

    assert_close(logits.exp(), torch.stack([torch.softmax(one, -1) for one in apart]).mean(0), "probabilities")


def test_lines(models: list[CharLM]) -> None:
    """A line costs what the mean of the members' probabilities gives it, character by character."""
    symbols = CharTokenizer("\nabcdefghij")
    line = "abbadejibi\n"
    [found] = LineScorer(Ensemble(models), symbols, COUNTS).score([line])
    apart = [LineScorer(model, symbols, COUNTS).score([line])[0] for model in models]
    costs = mean([torch.tensor(one.costs, dtype=torch.float64) * math.log(2) for one in apart]) / math.log(2)

    assert found.costs == pytest.approx(costs.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"readout": "direct"}, {"bias": False, "layer_norm": False}, {"layers": 1}, {"pairs": 9}]
)
@pytest.mark.parametrize("count", [1, 3])
def test_shapes(options: dict[str, Any], count: int) -> None:
    """The names and shapes that a file is compared with are those of the networks themselves; so is the number of weights."""
    config = ModelConfig(**{"hidden": 7, "layers": 2, "dropout": 0.0, "members": count, **options})
    network = ensemble.build(config, V, EagerKernel())

    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == weights.shapes(config, V)
    assert weights.parameter_count(config, V) == network.parameter_count()
    assert len(network.stack()) == count * config.layers if config.layers else False


def test_first_guess(models: list[CharLM]) -> None:
    """What counts as right is the largest mean of probabilities, not a vote of the members."""
    ids = some_ids(200)
    network = Ensemble(models)
    found, state = [], network.initial_state(1)
    for before, after in pairwise(ids.tolist()):
        logits, state = network(torch.tensor([[before]]), state)
        found.append(int(logits.exp().argmax()) == after)

    assert warm(network, ids).correct.tolist() == found
