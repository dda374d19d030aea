"""A run that learns from a trained model too: its bits, its state, and what it is without the teacher."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm import kernels
from lstmlm.config.run_config import RunConfig
from lstmlm.data.corpus import Corpus
from lstmlm.data.tokenizer import separator_ids
from lstmlm.errors import UsageError
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import ensemble
from lstmlm.training import teacher
from lstmlm.training.members import Members
from lstmlm.training.teacher import Teacher
from tests.helpers import small_model
from tests.training.test_trainer import Bench, configured

pytestmark = pytest.mark.usefixtures("short_samples")
CPU = torch.device("cpu")
FULL = {"weight_dropout": 0.2, "state_dropout": 0.3, "average": 0.3}
Make = Callable[..., Bench]


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Make:
    """Return a maker of runs, each taught by a model of another size: one network, or several."""
    made: list[Bench] = []

    def make(weight: float | None = 0.45, by: int = 1, members: int = 1, separator: str | None = None, **train: Any) -> Bench:
        config = configured(**{**FULL, "distill_weight": weight or 0.0, **train})
        config = replace(config, model=replace(config.model, members=members, document_separator=separator))
        made.append(Bench(corpus, tmp_path / f"taught{len(made)}", config))
        if weight is not None:
            made[-1].teacher = taught_by(by, len(corpus.tokenizer), weight, separator_ids(separator, corpus.tokenizer))
        return made[-1]

    return make


def taught_by(networks: int, vocabulary: int, weight: float, separator: Sequence[int] = ()) -> Teacher:
    """Return a teacher of so many networks, wider and deeper than what learns from it."""
    torch.manual_seed(3)
    models = [small_model(vocabulary, torch.float32, separator, hidden=9, layers=3) for _ in range(networks)]
    return Teacher(ensemble.of(models), replace(models[0].config, members=networks), weight)


def learnt(run: Bench) -> dict[str, bytes]:
    """Return weights, moments and averages."""
    return {name: data for name, data in run.weights().items() if not name.startswith("state.")}


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"segment": 2}, {"separator": "t"}, {"separator": "st "}], ids=str)
def test_of_no_weight(bench: Make, options: dict[str, Any]) -> None:
    """A teacher that counts for nothing changes no bit of what a run learns, and one that counts changes it."""
    alone, none, some = (bench(weight, **options).run() for weight in (None, 0.0, 0.45))

    assert learnt(none) == learnt(alone)
    assert learnt(some) != learnt(alone)
    assert [m for m in none.metrics() if "rate" in m] == [m for m in alone.metrics() if "rate" in m]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "by": 2}, {"members": 2, "separator": "st "}, {"separator": "t"}], ids=str
)
def test_resumed(bench: Make, kernel: str, options: dict[str, Any]) -> None:
    """Stopped after any of some steps and resumed, a run with a teacher ends with the same bits, records and scores."""
    chosen, why = kernels.choose(kernel)
    if why:
        pytest.skip(why)

    def made() -> Bench:
        run = bench(**options)
        run.kernel = chosen
        return run

    expected = made().run().end()

    assert [k for k in (1, 7, 10, 11, 19) if made().stop_at(k).run(resume=True).end() != expected] == []


def test_each_member_is_taught(bench: Make) -> None:
    """Of several networks each learns what a run of its own seed learns from the same teacher."""
    together, alone = bench(members=2, seed=5).run(), [bench(seed=seed).run() for seed in (5, 6)]

    for number, run in enumerate(alone):
        own = f".members.{number}."
        assert {k.replace(own, "."): v for k, v in learnt(together).items() if own in k} == learnt(run)


def test_its_state_goes_on(corpus: Corpus) -> None:
    """The teacher reads each stream from its beginning: what empties the state of a network leaves that of the teacher."""
    config: RunConfig = configured(state_dropout=0.999, dropout=0.0)
    mentor = taught_by(2, len(corpus.tokenizer), 0.45)
    members = Members(config, len(corpus.tokenizer), EagerKernel(), CPU, teacher=mentor)
    members.prepare([3], 5, 3)
    ids = corpus.train.tensor(0, 33).view(3, 11).t()
    state, expected = None, mentor.network.initial_state(3)
    for step, start in enumerate((0, 5)):
        members.begin(0.0)
        _, state = members.learn(ids[start : start + 5], ids[start + 1 : start + 6], state, step, 3, 0)
        _, expected = mentor(ids[start : start + 5], expected)

    def parts(state: Any) -> list[Tensor]:
        return [part for layer in state for part in layer]

    assert len(expected) == 6
    assert state is not None
    assert all(torch.equal(a, b) for a, b in zip(parts(state[-6:]), parts(expected), strict=True))


def test_expects_what_eval_scores(corpus: Corpus) -> None:
    """Of several networks it expects the mean of their probabilities."""
    mentor = taught_by(2, len(corpus.tokenizer), 0.3)
    ids = corpus.train.tensor(0, 12).view(4, 3)
    found, _ = mentor(ids, mentor.network.initial_state(3))
    each = [model(ids)[0].softmax(-1) for model in ensemble.members(mentor.network)]

    assert found.weight == 0.3
    assert torch.allclose(found.probabilities, sum(each) / 2, atol=1e-6)


def test_another_vocabulary(bench: Make, corpus: Corpus) -> None:
    """A teacher that knows other characters is refused."""
    saved = bench(None).run().last()
    saved.meta["tokenizer"]["symbols"] = "".join(chr(ord(c) + 1000) for c in saved.meta["tokenizer"]["symbols"])

    with pytest.raises(UsageError, match="--distill: expected a model with the vocabulary of this run"):
        teacher.of(saved, corpus.tokenizer, EagerKernel(), CPU, 0.45)
