"""What resuming promises: the same end from any step, all of the state or an error, and never from what is not finite."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm.data import names
from lstmlm.data.corpus import Corpus
from lstmlm.errors import CheckpointError
from lstmlm.training.events import SteppedBack
from tests.data.test_names import corpus_of, play
from tests.training.test_trainer import STEPS, Bench, configured, spoil_once

pytestmark = pytest.mark.usefixtures("short_samples")
LONG = 200


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of runs."""
    made: list[Bench] = []

    def make(**train: int) -> Bench:
        made.append(Bench(corpus, tmp_path / f"bench{len(made)}", configured(**train)))
        return made[-1]

    return make


@pytest.mark.slow
def test_every_step_of_two_hundred(bench: Callable[..., Bench]) -> None:
    """Resumed from each single step of a run of 200, one process a step, the end has the bits of the run that was never left."""
    expected = bench(steps=LONG).run().end()
    patient = bench(steps=LONG)
    patient.stop_at(1)
    states = [patient.weights()]
    for step in range(2, LONG):
        patient.stop_at(step, resume=True)
        states.append(patient.weights())

    assert patient.run(resume=True).end() == expected
    assert (
        len({state["model.embedding.weight" if "model.embedding.weight" in state else sorted(state)[0]] for state in states})
        == LONG - 1
    )


@pytest.mark.slow
def test_far_from_the_end(bench: Callable[..., Bench]) -> None:
    """From a step of a run of 200 to its end in one go: the same bits."""
    expected = bench(steps=LONG).run().end()

    assert [step for step in (1, 101, 198) if bench(steps=LONG).stop_at(step).run(resume=True).end() != expected] == []


@pytest.mark.slow
def test_not_finite_at_random_steps(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN or infinity in loss, gradient, weight or moment at thirty random steps: seen, never written, stepped back once."""
    dice = random.Random(5)
    for _ in range(30):
        what = dice.choice(["loss", "gradient", "weight", "moment"])
        at, value = dice.randrange(STEPS), dice.choice([math.nan, math.inf, -math.inf])
        run = bench(save_every=dice.choice([1, 4, 9]))
        made = run.trainer()
        with monkeypatch.context() as patch:
            spoil_once(made, patch, what, at, value)
            made.run()
        back = [record for record in run.records if isinstance(record, SteppedBack)]
        last = run.last()  # reading refuses what is not finite

        assert len(back) == 1, (what, at, value)
        assert last.meta["step"] == STEPS
        assert last.meta["training"]["rate_scale"] == 0.5
        assert what == "moment" or back[0].step == at + 1, (what, at, back)


def test_a_restore_that_fails_is_an_error(bench: Callable[..., Bench]) -> None:
    """Each tensor of a checkpoint is needed: without any one of them resuming is refused."""
    run = bench().stop_at(7)
    saved = run.last()
    for name in saved.tensors:
        made = run.trainer(resume=True)
        tensors = {key: blob for key, blob in saved.tensors.items() if key != name}
        with pytest.raises(CheckpointError):
            made.restore(type(saved)(saved.kind, saved.meta, tensors))


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_in_a_section_with_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    """Stopped in the second pass, in the middle of a section, the same end; with shards too, and other names make another one."""
    monkeypatch.setattr(names, "BLOCK", 512)
    corpus = corpus_of(play(times=2))
    ends = []
    for name, rename, stops in (("whole", 0.5, ()), ("stopped", 0.5, (40, 47)), ("plain", 0.0, ())):
        config = configured(steps=60, batch=16, window=20, accumulate=accumulate, rename=rename)
        run = Bench(corpus, tmp_path / name, config)
        assert 20 < run.trainer().streams.steps_per_epoch < 40
        for at, stop in enumerate(stops):
            run.stop_at(stop, resume=at > 0)
        ends.append(run.run(resume=bool(stops)).weights())

    assert ends[0] == ends[1] != ends[2]
