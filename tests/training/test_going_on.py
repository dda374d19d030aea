"""What going on promises: further than a run was asked for, otherwise than it was, from a model, and from where it was killed."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmlm.data.corpus import Corpus
from lstmlm.errors import Stopped
from lstmlm.storage import checkpoint
from lstmlm.training.events import Clock
from lstmlm.training.trainer import Trainer
from tests.training.test_trainer import STEPS, Bench, configured

pytestmark = pytest.mark.usefixtures("short_samples")
CHANGED: dict[str, Any] = {"train.steps": [STEPS, 2 * STEPS]}


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of runs."""
    made: list[Bench] = []

    def make(**train: Any) -> Bench:
        made.append(Bench(corpus, tmp_path / f"bench{len(made)}", configured(**train)))
        return made[-1]

    return make


def resumed(run: Bench, changed: dict[str, Any], **train: Any) -> Trainer:
    """Return a trainer that stands where a run has ended, and has it otherwise from there on."""
    run.config = configured(**train)
    identity: dict[str, Any] = {"corpus": {}, "versions": {}, "command": []}
    made = Trainer(run.config, run.corpus, run.kernel, run.folder, identity, run.records.append, Clock(0.0))
    made.restore(run.last(), changed)
    made.begin()
    return made


@pytest.mark.parametrize("average", [0.0, 0.3])
def test_further_than_it_was_asked_for(bench: Callable[..., Bench], average: float) -> None:
    """At a rate that stays, a run of 20 steps that goes on to 40 leaves the bits of one of 40: weights, moments, state."""
    kept = {"final_lr": 1.0, "average": average, "eval_every": 5}
    whole = bench(steps=2 * STEPS, **kept).run()
    run = bench(steps=STEPS, **kept).run()
    resumed(run, CHANGED, steps=2 * STEPS, **kept).run()

    assert run.weights() == whole.weights()
    assert run.end()["best"] == whole.end()["best"]
    assert [r for r in run.metrics() if "changed" not in r] == whole.metrics()
    assert [r for r in run.metrics() if "changed" in r] == [{"step": STEPS, "changed": CHANGED}]


def test_a_change_stands_from_its_first_moment(bench: Callable[..., Bench]) -> None:
    """A run that is killed before the first step after a change goes on as changed, without being told again."""
    run = bench(final_lr=1.0).run()
    resumed(run, CHANGED, steps=2 * STEPS, final_lr=1.0)

    assert run.last().meta["config"]["train"]["steps"] == run.last().meta["training"]["steps"] == 2 * STEPS
    assert not any(key in run.last().meta["training"] for key in ("changed",))


def test_passes_further(bench: Callable[..., Bench]) -> None:
    """Passes are counted from the beginning of the run, not from where it goes on."""
    run = bench(steps=None, epochs=1.0, final_lr=1.0).run()
    made = resumed(run, {"train.epochs": [1.0, 2.0]}, steps=None, epochs=2.0, final_lr=1.0)

    assert made.progress.steps == 2 * made.streams.steps_per_epoch


def test_another_rate(bench: Callable[..., Bench]) -> None:
    """A rate that is asked for is the rate, whatever had halved the old one."""
    run = bench(steps=2 * STEPS, final_lr=1.0).stop_at(10)
    saved = run.last()
    saved.meta["training"] |= {"rate_scale": 0.25, "retries": 2}
    checkpoint.write(run.folder / "last.safetensors", saved)
    made = resumed(run, {"train.lr": [0.02, 0.004]}, steps=2 * STEPS, lr=0.004, final_lr=1.0)
    made.run()

    assert {r["rate"] for r in run.metrics() if r["step"] > STEPS and "rate" in r} == {0.004}


def test_stopped_early_and_asked_to_go_on(bench: Callable[..., Bench]) -> None:
    """A run that had stopped early goes on when a larger budget is asked for."""
    run = bench(steps=4 * STEPS, patience=1, lr=1.0, eval_every=2, final_lr=1.0).run()
    at = run.last().meta["step"]
    made = resumed(run, {"train.steps": [4 * STEPS, 5 * STEPS]}, steps=5 * STEPS, patience=1, lr=1.0, eval_every=2, final_lr=1.0)
    made.run()

    assert at < 4 * STEPS
    assert made.progress.step > at


def test_models_that_are_kept(bench: Callable[..., Bench]) -> None:
    """`train.keep` leaves a model of each so-many-th step, with the weights and, where it has one, the score of that step."""
    run = bench(keep=7, save_every=None).run()
    kept = sorted(path.name for path in run.folder.glob("step-*"))
    stopped = bench().stop_at(7)

    assert kept == ["step-14.safetensors", "step-7.safetensors"]
    saved = checkpoint.read(run.folder / "step-7.safetensors")
    assert saved.meta["step"] == saved.meta["scores"]["step"] == 7
    assert {name: bytes(blob.data) for name, blob in saved.tensors.items()} == {
        name: data for name, data in stopped.weights().items() if name.startswith("model.")
    }


def test_killed_in_the_last_validation(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it is validated goes on from that step, however seldom it is saved."""
    expected = bench(save_every=None, eval_every=STEPS).run().end()
    run = bench(save_every=None, eval_every=STEPS)
    made = run.trainer()

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, "_validate", killed)
        with pytest.raises(KeyboardInterrupt):
            made.run()

    assert run.last().meta["step"] == STEPS
    assert run.run(resume=True).end() == expected


# From a model


def tuned(run: Bench, parent: Bench) -> Trainer:
    """Return a trainer of a new run that starts from the best model of another, begun but not run."""
    identity: dict[str, Any] = {"corpus": {}, "versions": {}, "command": []}
    made = Trainer(run.config, run.corpus, run.kernel, run.folder, identity, run.records.append, Clock(0.0))
    best = checkpoint.read(parent.folder / "best.safetensors")
    made.start_from(checkpoint.to_tensors(best.part("model.")), STEPS)
    made.begin()
    return made


def best(run: Bench) -> dict[str, bytes]:
    """Return the weights of the best model."""
    return {name: bytes(blob.data) for name, blob in checkpoint.read(run.folder / "best.safetensors").tensors.items()}


@pytest.mark.parametrize("average", [0.0, 0.3])
def test_the_parent_is_kept_where_nothing_is_better(bench: Callable[..., Bench], average: float) -> None:
    """A tuned run scores its parent before the first step; where training makes it worse, the parent is the best model."""
    parent = bench(steps=60, average=average, lr=0.03).run()
    run = bench(weight_decay=50.0, warmup=0, eval_every=10, average=average)  # every step wipes out what was learnt
    made = tuned(run, parent)
    made.run()
    first = run.metrics()[0]

    assert first["step"] == 0
    assert first["validation_nats_per_char"] == pytest.approx(parent.last().meta["scores"]["validation_nats_per_char"], abs=1e-6)
    assert best(run) == best(parent)
    assert made.progress.best_step == checkpoint.read(run.folder / "best.safetensors").meta["scores"]["step"] == 0
    assert made.progress.ended


def test_a_gain_that_may_be_chance(bench: Callable[..., Bench]) -> None:
    """On a validation part of some characters a better score is not enough: the parent is kept, and the score known."""
    parent = bench(steps=8).run()
    run = bench(steps=60, lr=0.02)
    made = tuned(run, parent)
    made.run()

    assert made.progress.best_step == 0
    assert made.progress.unsure_nats < made.progress.best_nats
    assert best(run) == best(parent)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a text of some characters be enough to compare a model with its parent."""
    monkeypatch.setattr("lstmlm.training.validation.STRETCH", 2)
    monkeypatch.setattr("lstmlm.training.validation.FEWEST", 2)


@pytest.mark.usefixtures("short")
def test_a_tuned_run_that_is_better(bench: Callable[..., Bench]) -> None:
    """Where training makes it better, the best model is another than the parent, and has the better score."""
    parent = bench(steps=8).run()
    run = bench(steps=60, lr=0.02)
    made = tuned(run, parent)
    made.run()

    assert made.progress.best_step > 0
    assert made.progress.best_nats < run.metrics()[0]["validation_nats_per_char"]


def test_a_tuned_run_is_resumed_to_the_same_bits(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before its parent is scored, or after any of its first steps, a tuned run ends with the same bits."""
    parent = bench(steps=30, average=0.3).run()
    whole = bench(average=0.3)
    tuned(whole, parent).run()
    for at in (0, 1, 9):
        run = bench(average=0.3)
        made = tuned(run, parent)
        monkeypatch.setattr(made, "stop", lambda made=made, at=at: signal.SIGTERM if made.progress.step >= at else None)
        with pytest.raises(Stopped):
            made.run()
        assert json.loads(json.dumps(run.last().meta["training"]))["validated"] == (-1 if at == 0 else 0 if at < 7 else 7)
        again = run.run(resume=True)

        assert again.weights() == whole.weights()
        assert again.metrics() == whole.metrics()


def test_a_model_that_is_started_from_is_in_the_first_checkpoint(bench: Callable[..., Bench]) -> None:
    """The first checkpoint of a tuned run holds its parent's weights, where averages are the model too."""
    parent = bench(steps=30, average=0.3).run()
    run = bench(average=0.3)
    tuned(run, parent)

    assert {k: v for k, v in run.weights().items() if k.startswith("model.")} == best(parent)
