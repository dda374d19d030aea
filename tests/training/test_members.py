"""The networks of one run: each has the bits of a run of its own seed, and all of them come back together."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lstmlm
from lstmlm import kernels
from lstmlm.config.run_config import RunConfig
from lstmlm.data.corpus import Corpus
from lstmlm.errors import CheckpointError, UsageError
from lstmlm.evaluation.scoring import score_ids
from lstmlm.storage import checkpoint
from lstmlm.training.events import SteppedBack, Validated
from tests.helpers import TEXT
from tests.training import test_trainer
from tests.training.test_trainer import STEPS, Bench, configured, spoil_once

pytestmark = pytest.mark.usefixtures("short_samples")
SEED, N = 5, 3


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # `lstmlm.load` takes all cores


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of runs with so many members."""
    made: list[Bench] = []

    def make(members: int = N, **options: Any) -> Bench:
        made.append(Bench(corpus, tmp_path / f"bench{len(made)}", several(members, **{"seed": SEED, **options})))
        return made[-1]

    return make


def several(members: int, hidden: int = 7, **options: Any) -> RunConfig:
    """Return a configuration that has everything, dropout of each kind among it, with so many members."""
    config = configured(**{"weight_dropout": 0.2, "state_dropout": 0.2, "average": 0.3, **options})
    return replace(config, model=replace(config.model, members=members, hidden=hidden))


def learnt(run: Bench, member: int | None = None) -> dict[str, bytes]:
    """Return weights, moments and carried state of a run's last checkpoint, or those of one of its members by their own names."""
    found = run.weights()
    if member is None:
        return found
    layers = len({name for name in found if name.startswith("state.")}) // 2 // N
    own = {}
    for name, data in found.items():
        kind, _, rest = name.partition(".")
        if kind == "state":
            index, part = rest.split(".")
            if int(index) // layers == member:
                own[f"state.{int(index) % layers}.{part}"] = data
        elif rest.startswith(f"members.{member}."):
            own[f"{kind}.{rest.removeprefix(f'members.{member}.')}"] = data
    return own


ODD = {"batch": 5, "window": 7, "hidden": 9}  # no step's rows, and no parameter, end where a cache line does


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["eager", "float32", "auto"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, ODD, {**ODD, "accumulate": 2}, {**ODD, "accumulate": 4}], ids=str)
def test_each_has_the_bits_of_its_own_run(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, kernel: str, options: dict[str, int]
) -> None:
    """Member m of seed s has the weights, averages, moments and carried state of a run of seed s + m alone, bit for bit."""
    chosen, why = kernels.choose("eager") if kernel == "eager" else kernels.choose("auto", kernel)
    if why:
        pytest.skip(why)
    monkeypatch.setattr(test_trainer, "EagerKernel", lambda: chosen)
    together = bench(**options).run()
    alone = [bench(1, seed=SEED + number, **options).run() for number in range(N)]

    assert [learnt(together, number) == learnt(run) for number, run in enumerate(alone)] == [True] * N
    assert len({run.weights()["model.layers.0.U"] for run in alone}) == N
    assert sum(len(learnt(together, number)) for number in range(N)) == len(learnt(together))


def test_seeds_wrap(corpus: Corpus, tmp_path: Path) -> None:
    """Behind the largest seed comes 0: there is no seed at which members cannot be trained."""
    last = Bench(corpus, tmp_path / "last", several(2, seed=2**63 - 1, steps=1)).run()
    first = Bench(corpus, tmp_path / "first", several(1, seed=0, steps=1)).run()

    assert last.weights()["model.members.1.layers.0.U"] == first.weights()["model.layers.0.U"]


def test_validations(bench: Callable[..., Bench]) -> None:
    """A validation says what all take together, and what each takes alone: the number that its own run has."""
    together = bench().run()
    alone = [bench(1, seed=SEED + number).run() for number in range(N)]
    found = [m for m in together.metrics() if "rate" not in m]
    theirs = [[m["validation_nats_per_char"] for m in run.metrics() if "rate" not in m] for run in alone]

    assert [m["members_nats_per_char"] for m in found] == [list(each) for each in zip(*theirs, strict=True)]
    assert all(m["validation_nats_per_char"] < sum(m["members_nats_per_char"]) / N for m in found)
    assert [r.members for r in together.records if isinstance(r, Validated)] == [tuple(m["members_nats_per_char"]) for m in found]
    assert all("members_nats_per_char" not in m for m in alone[0].metrics())
    assert all(r.members == () for r in alone[0].records if isinstance(r, Validated))


def test_best_is_of_all_together(bench: Callable[..., Bench]) -> None:
    """best.safetensors holds the step at which the members together were best, and scores what its record says."""
    run = bench(eval_every=1, lr=0.3).run()
    scores = {r.step: r.nats_per_char for r in run.records if isinstance(r, Validated)}
    best = checkpoint.read(run.folder / "best.safetensors")
    model = lstmlm.load(str(run.folder))
    val = run.corpus.val.tensor(0, len(run.corpus.val))

    assert best.meta["step"] == min(scores, key=scores.__getitem__)
    assert best.meta["parameters"] == model.network.parameter_count()
    assert score_ids(model.network, val.tolist(), model.counts, byte_length=len(val)).nats_per_char == pytest.approx(
        best.meta["scores"]["validation_nats_per_char"], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {**ODD, "accumulate": 4}], ids=str)
def test_resumed(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, kernel: str, options: dict[str, int]) -> None:
    """Stopped after any of some steps and resumed, a run of three members ends with the same bits, records and scores."""
    chosen, why = kernels.choose(kernel)
    if why:
        pytest.skip(why)
    monkeypatch.setattr(test_trainer, "EagerKernel", lambda: chosen)
    expected = bench(**options).run().end()

    stops = [k for k in (1, 7, 10, 11, 19) if bench(**options).stop_at(k).run(resume=True).end() != expected]

    assert stops == []


@pytest.mark.parametrize("what", ["loss", "gradient", "weight", "moment"])
def test_stepped_back_together(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What is not finite in one member takes all of them back to the checkpoint, and the run ends whole."""
    run = bench()
    made = run.trainer()
    spoil_once(made, monkeypatch, what, 6, math.nan)
    made.run()
    back = [r for r in run.records if isinstance(r, SteppedBack)]

    assert [(r.to, r.rate_scale) for r in back] == [(4, 0.5)]
    assert run.last().meta["step"] == STEPS


def test_a_member_less_is_refused(bench: Callable[..., Bench]) -> None:
    """A checkpoint with other members than its description says is refused by name, before any memory is taken for it."""
    run = bench().run()
    path = run.folder / "best.safetensors"
    read = checkpoint.read(path)
    read.meta["config"]["model"]["members"] = 2
    checkpoint.write(path, read)
    with pytest.raises(CheckpointError, match=r"members\.2\.layers\.0\.M: expected none"):
        lstmlm.load(str(path))
    read.meta["config"]["model"]["members"] = 64
    checkpoint.write(path, read)
    with pytest.raises(CheckpointError, match=r"members\.10\.layers\.0\.M: expected .*, found none"):
        lstmlm.load(str(path))
    read.meta["config"]["model"]["members"] = 10**6
    checkpoint.write(path, read)
    with pytest.raises(CheckpointError, match=r"configuration is refused: members"):
        lstmlm.load(str(path))


def test_a_model_from_before(bench: Callable[..., Bench]) -> None:
    """A checkpoint whose description does not know members is one network: it loads, and training goes on with it."""
    run = bench(1).stop_at(10)
    expected = bench(1).run().weights()
    for path in run.folder.glob("*.safetensors"):
        read = checkpoint.read(path)
        del read.meta["config"]["model"]["members"]
        checkpoint.write(path, read)
    model = lstmlm.load(str(run.folder / "last.safetensors"))

    assert "members" not in json.dumps(model.meta)
    assert model.alone is model.network
    assert run.run(resume=True).weights() == expected


def test_one_of_them(bench: Callable[..., Bench]) -> None:
    """A member taken from the model reads as the model of its own run does; there is no other way to look at units."""
    run = bench().run()
    alone = lstmlm.load(str(bench(1, seed=SEED + 1).run().folder / "last.safetensors"))
    model = lstmlm.load(str(run.folder / "last.safetensors"))
    ids = torch.tensor(model.tokenizer.encode(TEXT))[:, None]

    assert torch.equal(model.member(2).alone(ids)[0], alone.alone(ids)[0])
    assert alone.member(1).network is alone.network
    for wrong in (0, 4):
        with pytest.raises(UsageError, match=f"from 1 to 3, .* found {wrong}"):
            model.member(wrong)
    with pytest.raises(UsageError, match="found 3 members"):
        _ = model.alone
