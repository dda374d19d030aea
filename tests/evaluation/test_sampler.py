"""From logits to ids: what is cut, what is drawn, and that a seed means the same text."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.evaluation import sampler, sampling, torch_sampler
from lstmlm.evaluation.sampler import Noise, Sampling, generate
from lstmlm.evaluation.torch_sampler import distribution, draw
from lstmlm.kernels.cuda_graph import Graph
from lstmlm.model import char_lm
from tests.helpers import assert_close, normal, small_model, some_ids
from tests.tape import record

V = 11


def logits(n: int = 3) -> Tensor:
    """Draw logits as a model gives them."""
    return normal(n, V, dtype=torch.float32, scale=2.0)


def first(count: int, seeds: Sequence[int], how: Sampling, prompt: Sequence[int] = (1, 2, 3)) -> list[list[int]]:
    """Return the first ids of each seed. (count, n)"""
    stream = generate(small_model(dtype=torch.float32), prompt, seeds, how)
    return [ids for ids, _ in islice(stream, count)]


@pytest.mark.parametrize(
    "how",
    [
        Sampling(greedy=True),
        Sampling(greedy=True, temperature=3.0),
        Sampling(temperature=0.0),
        Sampling(top_k=1),
        Sampling(top_p=1e-9),
        Sampling(top_p=0.0),
    ],
)
def test_the_narrowest_choices_are_the_articles(how: Sampling) -> None:
    """Greedy, temperature 0, top-k 1 and the smallest top-p all give the largest score, and of equals the first."""
    scores = logits()
    scores[1, 5] = scores[1, 8] = 9.0
    scores[2] = 0.0

    p = distribution(scores, how)

    assert p.argmax(-1).tolist() == scores.argmax(-1).tolist() == [int(scores[0].argmax()), 5, 0]
    assert p.sum(-1).tolist() == p.max(-1).values.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("temperature", [1e-30, 5e-324])
def test_a_temperature_of_almost_zero_is_zero(temperature: float) -> None:
    """A temperature by which no score can be divided without overflow still gives the largest score."""
    scores = logits()

    p = distribution(scores, Sampling(temperature=temperature))

    assert torch.equal(p, distribution(scores, Sampling(greedy=True)))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 7.0, 1e6, math.inf])
@pytest.mark.parametrize("top_k", [0, 1, 5, V, V + 5])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
def test_probabilities_sum_to_one(temperature: float, top_k: int, top_p: float) -> None:
    """Whatever is cut, what is left is a distribution, also for scores of a hundred and of minus infinity."""
    scores = logits() * 50
    scores[0, 2] = -torch.inf if temperature < math.inf else 0.0

    p = distribution(scores, Sampling(temperature, top_k, top_p))

    assert bool((p >= 0).all())
    assert_close(p.sum(-1), torch.ones(3, dtype=torch.float64), "sum", 1e-12)


def test_temperature_divides_the_scores() -> None:
    """Uncut, the distribution is the softmax of the scores divided by the temperature."""
    scores = logits()

    p = distribution(scores, Sampling(temperature=0.7))

    assert_close(p, torch.softmax(scores.double() / 0.7, dim=-1), "p", 1e-12)


def test_top_k_keeps_the_k_likeliest() -> None:
    """Exactly k ids are left, the likeliest ones, in their old proportions."""
    scores = logits()

    p = distribution(scores, Sampling(top_k=5))

    whole = torch.softmax(scores.double(), dim=-1)
    kept = p > 0
    assert kept.sum(-1).tolist() == [5, 5, 5]
    assert set(p[0].topk(5).indices.tolist()) == set(scores[0].topk(5).indices.tolist())
    expected = whole * kept / (whole * kept).sum(-1, keepdim=True)
    assert_close(p, expected, "p", 1e-12)


def test_top_k_keeps_k_of_equals() -> None:
    """Where scores are equal no more than k ids stay, the first of them."""
    p = distribution(torch.zeros(1, V), Sampling(top_k=3))

    assert_close(p[0, :3], torch.full((3,), 1 / 3), "p", 1e-7)
    assert p[0, 3:].tolist() == [0.0] * (V - 3)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest(top_p: float) -> None:
    """The ids left have together at least top-p, and without the least of them they have less."""
    scores = logits(50)

    p = distribution(scores, Sampling(top_p=top_p))

    whole = torch.softmax(scores.double(), dim=-1)
    for row, kept in zip(whole, p > 0, strict=True):
        together = float(row[kept].sum())
        assert together >= top_p - 1e-12
        assert together - float(row[kept].min()) < top_p
        assert set(row[kept].tolist()) == set(row.topk(int(kept.sum())).values.tolist())


def test_top_p_stops_where_it_is_reached_exactly() -> None:
    """One half and one quarter are three quarters: nothing more is kept."""
    p = distribution(torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log(), Sampling(top_p=0.75))

    assert_close(p, torch.tensor([[1 / 3, 2 / 3, 0.0]], dtype=torch.float64), "p", 1e-12)


def test_top_p_counts_what_top_k_left() -> None:
    """Both cuts together: top-p is a share of the k likeliest, not of all."""
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()

    p = distribution(scores, Sampling(top_k=2, top_p=0.55))  # 0.4 of the 0.7 that are left is 0.571

    assert_close(p, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), "p", 1e-12)


def test_logits_are_left_as_they_are() -> None:
    """Choosing does not write into the model's output, which is asked for the cost afterwards."""
    scores = logits()
    copy = scores.clone()

    distribution(scores, Sampling(temperature=0.5, top_k=3, top_p=0.5))

    assert torch.equal(scores, copy)


ALMOST_ONE = 1 - 2.0**-24  # the largest number that the noise can be


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 2.0**-24, 0.5, ALMOST_ONE, 1.0])  # 1 itself could only come by rounding
@pytest.mark.parametrize(
    "p",
    [
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.5, 0.0],
        [1 / 3, 0.0, 1 / 3, 1 / 3, 0.0],
        [0.0, 1e-30, 1.0, 1e-30, 0.0],
        [0.1] * 3 + [0.0] * 3,  # rescaled by the sum
    ],
)
def test_an_impossible_id_is_never_drawn(p: list[float], noise: float, dtype: torch.dtype) -> None:
    """At both edges of the noise, an id of probability 0 is not chosen."""
    row = torch.tensor([p], dtype=dtype)

    chosen = int(draw(row, torch.tensor([[noise]])))

    assert float(row[0, chosen]) > 0


def test_draw_turns_the_noise_into_shares() -> None:
    """Evenly spread noise chooses each id as often as its probability says."""
    p = torch.tensor([[0.5, 0.0, 0.125, 0.25, 0.125]], dtype=torch.float64)
    noise = (torch.arange(1000) / 1000)[:, None]

    counts = draw(p.expand(1000, -1), noise).bincount(minlength=5)

    assert counts.tolist() == [500, 0, 125, 250, 125]


def numbers(seeds: list[int], block: int, column: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the first noise of a column, which torch's generators and Python's give alike, taken in pieces of all sizes."""
    monkeypatch.setattr(sampler, "NOISE_BLOCK", block)
    monkeypatch.setattr(torch_sampler, "NOISE_BLOCK", block)
    torch.rand(block)
    plain, tensors = Noise(seeds), torch_sampler.Noise(seeds)
    found: list[float] = []
    while len(found) < 700:
        found += plain.steps(1 + len(found) // 3).tolist()[column :: len(seeds)]
    assert found[:700] == [float(tensors.step()[column, 0]) for _ in range(700)]
    return found[:700]


def test_every_bit_of_a_seed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that have the lowest 32 bits in common have numbers of their own, the same for torch's generators and Python's."""
    seeds = [7, 7 + 2**32, 7 + 2**33, 7 + 2**62]

    assert len({tuple(numbers(seeds, 256, column, monkeypatch)) for column in range(4)}) == 4


def test_noise_of_a_seed_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of a seed are the same in blocks of any size, whichever seeds are beside it."""
    expected = numbers([8], 256, 0, monkeypatch)

    assert len(set(expected)) > 690
    assert all(0 <= number < 1 for number in expected)
    assert numbers([8], 1, 0, monkeypatch) == numbers([5, 8, 6], 7, 1, monkeypatch) == expected
    assert numbers([8, 8], 16, 1, monkeypatch) == expected != numbers([9], 256, 0, monkeypatch)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_noise_is_that_of_torch(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's Mersenne Twister in the state of torch's gives its numbers bit for bit."""
    expected = torch.rand(700, generator=torch.Generator().manual_seed(seed)).tolist()

    assert numbers([seed], 700, 0, monkeypatch) == expected


def test_sampling_leaves_torchs_own_generator_alone() -> None:
    """How often a run prints a sample does not change the numbers that training draws next."""
    model = small_model(dtype=torch.float32)
    before = torch.get_rng_state()

    list(islice(generate(model, [1], [0, 1], Sampling()), 5))

    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_gives_the_same_ids() -> None:
    """A seed's text is its own: alone, beside other seeds, in any place, and not the text of another seed."""
    how = Sampling(temperature=0.9)
    torch.manual_seed(3)
    alone = [ids[0] for ids in first(60, [8], how)]
    torch.manual_seed(3)
    beside = first(60, [5, 8, 6], how)

    assert [ids[1] for ids in beside] == alone
    assert [ids[0] for ids in beside] != alone


def test_a_prompt_in_pieces_is_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many characters of a prompt are read at once does not change what follows it."""
    model, prompt = small_model(dtype=torch.float32), some_ids(23).tolist()

    def follow(block: int) -> list[tuple[list[int], list[float]]]:
        monkeypatch.setattr(char_lm, "PIECE", block)
        return list(islice(generate(model, prompt, [7, 9], Sampling()), 20))

    expected = follow(4096)

    assert [ids for ids, _ in follow(5)] == [ids for ids, _ in expected]


def test_the_prompt_matters_to_its_last_character() -> None:
    """What comes first after a prompt is drawn from the distribution that the model gives after all of it."""
    model = small_model()
    prompt = some_ids(9)
    state = None
    for id_ in prompt:
        scores, state = model(id_[None, None], state)
    scores = scores.detach()

    ids, cost = next(generate(model, prompt.tolist(), [0, 1], Sampling(greedy=True)))

    assert ids == [int(scores.argmax())] * 2
    assert cost == pytest.approx([float(-torch.log_softmax(scores[0, 0], -1).max())] * 2, abs=1e-12)


def test_greedy_text_is_the_argmax_of_every_step() -> None:
    """The article's rule all the way: every id is the largest score after those before it."""
    model = small_model()
    text = [3, 5]
    for _ in range(20):
        scores, _ = model(torch.tensor(text)[:, None])
        text.append(int(scores[-1, 0].argmax()))

    stream = generate(model, [3, 5], [11], Sampling(greedy=True))

    assert [ids[0] for ids, _ in islice(stream, 20)] == text[2:]


def test_nats_are_those_of_the_uncut_distribution() -> None:
    """However the choice is narrowed, a text's nats are what the network itself gives it, at temperature 1."""
    model = small_model()
    prompt = [3, 5]

    drawn = list(islice(generate(model, prompt, [2, 6], Sampling(0.5, 5, 0.8)), 15))

    for column in range(2):
        text = prompt + [ids[column] for ids, _ in drawn]
        scores, _ = model(torch.tensor(text[:-1])[:, None])
        expected = -torch.log_softmax(scores[:, 0], -1).gather(1, torch.tensor(text[1:])[:, None])[1:, 0]
        assert_close(torch.tensor([cost[column] for _, cost in drawn], dtype=torch.float64), expected, "nats")


def test_frequencies_match_the_probabilities() -> None:
    """Of twenty thousand draws, each id has its share to within five standard deviations."""
    n = 20_000
    scores = logits(1)
    how = Sampling(temperature=1.3, top_k=8, top_p=0.95)
    noise = torch.rand(n, 1, generator=torch.Generator().manual_seed(1))

    p = distribution(scores, how)
    counts = draw(p.expand(n, -1), noise).bincount(minlength=V)

    spread = (p[0] * (1 - p[0]) / n).sqrt()
    assert bool(((counts / n - p[0]).abs() <= 5 * spread).all())


@pytest.mark.slow
@pytest.mark.parametrize("how", [Sampling(), Sampling(0.8, 5, 0.9), Sampling(greedy=True)])
@pytest.mark.parametrize("options", [{}, {"readout": "direct", "layers": 1}])
def test_a_recorded_step_draws_the_same(how: Sampling, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed as a graph, a character waits for nobody, and three hundred of each seed are the same as called one by one."""
    model = small_model(dtype=torch.float32, **options)
    expected = list(islice(generate(model, [1, 2], [4, 5, 6], how), 300))
    monkeypatch.setattr(torch_sampler, "Graph", partial(Graph, record=record))

    assert list(islice(generate(model, [1, 2], [4, 5, 6], how), 300)) == expected


def test_thousands_at_once() -> None:
    """Of 4,096 samples drawn side by side each is the one that its seed draws alone."""
    model, seeds = small_model(dtype=torch.float64, hidden=3), range(4096)
    together = list(islice(generate(model, [1], seeds, Sampling(top_k=7)), 20))

    for seed in (0, 1, 2047, 4095):
        alone = [ids[0] for ids, _ in islice(generate(model, [1], [seed], Sampling(top_k=7)), 20)]
        assert [ids[seed] for ids, _ in together] == alone
    assert len({tuple(ids[seed] for ids, _ in together) for seed in seeds}) > 4000


def test_the_first_character_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of characters begin with one, and grow."""
    steps: list[int] = []
    own = torch_sampler.Noise.steps

    def watched(noise: torch_sampler.Noise, most: int) -> Tensor:
        steps.append(most)
        return own(noise, most)

    monkeypatch.setattr(torch_sampler.Noise, "steps", watched)
    monkeypatch.setattr(sampling, "SECONDS", 1e9)
    stream = generate(small_model(), [1], [0], Sampling())
    next(stream)
    assert steps == [1]
    list(islice(stream, 400))
    assert steps[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
