"""Several networks in one generator: the ids and nats that the ensemble and the sampler's own rules give."""

import math
from array import array
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from lstmlm.evaluation import sampler
from lstmlm.evaluation.sampler import Sampling, generate, native_generator
from lstmlm.kernels import arguments
from lstmlm.kernels.generate import Choice
from lstmlm.kernels.native import NativeKernel
from lstmlm.kernels.pace import Pace
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Ensemble
from tests.helpers import small_model
from tests.kernels import test_generate
from tests.kernels.tensors import TensorGenerator, tensor_generator
from tests.kernels.test_generate import calm, with_kernel

kernel = test_generate._kernel
N, V = 3, 30
HOW = [Sampling(), Sampling(temperature=0.5), Sampling(temperature=1.4, top_k=6, top_p=0.8), Sampling(greedy=True)]
SHAPES: list[dict[str, Any]] = [{}, {"layers": 3, "hidden": 40}, {"readout": "direct"}, {"layers": 1, "layer_norm": False}]


def ensembles(kernel: NativeKernel, count: int = N, **shape: Any) -> tuple[Ensemble, Ensemble]:
    """Return networks as one, read by torch and by the generator."""
    models = [calm(small_model(vocabulary=V, dtype=torch.float32, **shape)) for _ in range(count)]
    return Ensemble(models).eval(), Ensemble([with_kernel(model, kernel) for model in models]).eval()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [[3, 1, 4], [5, 2] * 20], ids=["short", "long"])
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_seed_gives_the_ids_of_the_eager_sampler(
    kernel: NativeKernel, shape: dict[str, Any], how: Sampling, prompt: list[int]
) -> None:
    """A hundred characters of two seeds, and their nats, are those drawn from the mean of the members' probabilities."""
    slow, fast = ensembles(kernel, **shape)
    expected = list(islice(generate(slow, prompt, [7, 8], how), 100))
    found = list(islice(generate(fast, prompt, [7, 8], replace(how, exact=True)), 100))

    assert native_generator(fast, 2, "float32") is not None
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, nats), (_, others) in zip(found, expected, strict=True):
        assert nats == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("storage", ["float32", "auto"])
def test_company_blocks_and_threads_do_not_matter(kernel: NativeKernel, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's bits are the same alone and among others, in one call or in pieces, on one thread or on three."""
    _, model = ensembles(kernel, hidden=50)
    noise, state = torch.rand(30, 20), model.initial_state(20)
    results = []
    for threads, n, pieces in ((1, 20, [30]), (1, 1, [30]), (3, 20, [1, 2, 27]), (3, 5, [30]), (2, 1, [13, 17])):
        monkeypatch.setattr(arguments, "threads", lambda threads=threads: threads)
        monkeypatch.setattr(Pace, "plan", lambda self, now, threads=threads: (threads, 9))
        generator = tensor_generator(model, n, storage)
        generator.begin(torch.zeros(n, V), [(s.hidden[:n], s.cell[:n]) for s in state])
        parts = [generator.run(piece, Choice(1.0, 0, 1.0, False)) for piece in noise[:, :n].contiguous().split(pieces)]
        results.append([torch.cat(columns)[:, 0].tolist() for columns in zip(*parts, strict=True)])

    assert all(result == results[0] for result in results)


def test_unlikely_everywhere(kernel: NativeKernel) -> None:
    """What no member can think of is never drawn, and what is drawn costs what it should."""
    slow, fast = ensembles(kernel, layers=1)
    with torch.no_grad():
        for one in (slow, fast):
            for model in one.members:
                assert isinstance(model, CharLM)
                assert model.readout is not None
                model.readout.bias[5:] = -3000.0
    found = list(islice(generate(fast, [1], [2], Sampling(exact=True)), 200))

    assert {ids[0] for ids, _ in found} <= set(range(5))
    assert [nats for _, nats in found] == [
        pytest.approx(nats, abs=1e-4) for _, nats in islice(generate(slow, [1], [2], Sampling()), 200)
    ]


def test_next_to_nothing_has_a_price(kernel: NativeKernel) -> None:
    """What all members think less likely than any float64 costs what the mean says; where one has a NaN it costs NaN."""
    slow, fast = ensembles(kernel, layers=1)
    with torch.no_grad():
        for place, one in enumerate([*slow.members, *fast.members]):
            assert isinstance(one, CharLM)
            assert one.readout is not None
            one.readout.bias[5] = -1000.0 - place % N
    generator = native_generator(fast, 1, "float32")
    assert generator is not None
    generator.read([1])
    members = [one for one in slow.members if isinstance(one, CharLM)]
    with torch.inference_mode():
        logs = torch.stack([torch.log_softmax(one(torch.tensor([[1], [2]]))[0][-1, 0].double(), -1) for one in members])
    expected = math.log(N) - torch.logsumexp(logs, 0)

    for target in (3, 5):
        generator.read([1])
        assert generator.score(1, array("q", [2]), array("q", [target]))[0][0] == pytest.approx(float(expected[target]), rel=1e-5)
    with torch.no_grad():
        last = fast.members[-1]
        assert isinstance(last, CharLM)
        assert last.readout is not None
        last.readout.bias[7] = math.nan
    sick = native_generator(fast, 1, "float32")
    assert sick is not None
    sick.read([1])
    assert math.isnan(sick.score(1, array("q", [2]), array("q", [3]))[0][0])


def test_what_is_kept_is_of_all_members(kernel: NativeKernel) -> None:
    """A generator is used again as long as no weight of any member has changed, and only then."""
    _, model = ensembles(kernel)
    before = [ids for ids, _ in islice(generate(model, [1], [3], Sampling()), 50)]
    kept = sampler._kept[model]
    again = [ids for ids, _ in islice(generate(model, [1], [3], Sampling()), 50)]
    same = sampler._kept[model] is kept
    with torch.no_grad():
        list(model.parameters())[-1].add_(3.0 * torch.randn(V))
    other = [ids for ids, _ in islice(generate(model, [1], [3], Sampling()), 50)]

    assert same
    assert before == again != other


def test_what_does_not_fit_is_refused(kernel: NativeKernel) -> None:
    """Networks of other ids or streams do not join, and no more of them than one generator holds."""

    def one(n: int = 1, vocabulary: int = V, pairs: int = 0) -> TensorGenerator:
        small = small_model(vocabulary, torch.float32, layers=1, hidden=3, pairs=pairs)
        model = with_kernel(small, kernel)
        return tensor_generator(model, n)

    first = one()
    for other in (one(2), one(1, 7), one(1, V, 4)):
        with pytest.raises(ValueError, match="expected 1 streams of 30 ids and 0 pairs, found"):
            first.join(other)
    pair = one()
    pair.join(one())
    for _ in range(62):
        first.join(one())
    with pytest.raises(ValueError, match="at most 64"):
        first.join(pair)
    first.join(one())
    with pytest.raises(ValueError, match="at most 64"):
        first.join(one())
    first.read([1, 2])
    assert first.run(torch.rand(5, 1), Choice(1.0, 0, 1.0, False))[1].isfinite().all()
