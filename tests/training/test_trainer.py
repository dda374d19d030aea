import contextlib
import hashlib
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import kernels
from lstmlm.config.run_config import DataConfig, ModelConfig, RunConfig, TrainConfig, from_dict
from lstmlm.data.corpus import Corpus, open_corpus
from lstmlm.errors import CheckpointError, Diverged, Stopped
from lstmlm.evaluation import scoring
from lstmlm.kernels import Kernel
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.pointwise import Number
from lstmlm.model import ensemble
from lstmlm.model.char_lm import StackState, load_weights
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training import budget, trainer, validation
from lstmlm.training.backprop import Backprop
from lstmlm.training.events import Clock, Event, Planned, Scored, StepDone, SteppedBack, TrainState, Validated
from lstmlm.training.teacher import Teacher
from lstmlm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("short_samples")
STEPS = 20  # a pass of the text has 11: so many cross its border


def configured(layers: int = 2, dropout: float = 0.3, weight_dropout: float = 0.0, **train: Any) -> RunConfig:
    """Return the smallest configuration that has everything: carried state, dropout, warm-up, decay."""
    chosen: dict[str, Any] = {
        "steps": STEPS, "batch": 3, "window": 5, "lr": 0.02, "warmup": 3, "weight_decay": 0.01,
        "eval_every": 7, "save_every": 4, "average": 0.0, "state_dropout": 0.0, "patience": 0, **train,
    }  # fmt: skip
    network = ModelConfig(hidden=7, layers=layers, dropout=dropout, weight_dropout=weight_dropout)
    return RunConfig(network, DataConfig(), TrainConfig(**chosen))


class Bench:
    """One run folder, in which a trainer is made as often as a process would be."""

    def __init__(self, corpus: Corpus, folder: Path, config: RunConfig) -> None:
        self.corpus, self.folder, self.config = corpus, folder, config
        self.device: torch.device | None = None
        self.kernel: Kernel = EagerKernel()
        self.teacher: Teacher | None = None
        self.records: list[Event] = []
        folder.mkdir(exist_ok=True)

    def trainer(self, *, resume: bool = False, stop: Callable[[], int | None] = lambda: None) -> Trainer:
        """Make a trainer; a resumed one stands where the last checkpoint does."""
        torch.manual_seed(int.from_bytes(self.folder.name.encode()[-4:]) + resume)  # no process has the generator of another
        identity = {
            "corpus": {"name": "text", "fingerprint": self.corpus.fingerprint, "chars": self.corpus.chars},
            "versions": {},
            "command": ["lstmlm"],
        }
        known = (self.config, self.corpus, self.kernel, self.folder, identity, self.records.append, Clock(0.0))
        made = Trainer(*known, stop, device=self.device, teacher=self.teacher)
        if resume:
            made.restore(self.last())
        made.begin()
        return made

    def last(self) -> Checkpoint:
        """Read the last checkpoint, which checks every byte and that all numbers are finite."""
        return checkpoint.read(self.folder / "last.safetensors")

    def run(self, *, resume: bool = False) -> "Bench":
        """Train to the end."""
        self.trainer(resume=resume).run()
        return self

    def stop_at(self, step: int, *, resume: bool = False) -> "Bench":
        """Train until a signal comes during a step."""
        made = self.trainer(resume=resume, stop=lambda: signal.SIGTERM if made.progress.step >= step else None)
        with pytest.raises(Stopped) as stopped:
            made.run()
        assert stopped.value.exit_code == 143
        return self

    def end(self) -> dict[str, str]:
        """Return digests of all that a run leaves behind."""
        found = {}
        for kind in ("best", "last"):
            read = checkpoint.read(self.folder / f"{kind}.safetensors")
            for name, blob in read.tensors.items():
                found[f"{kind}.{name}"] = hashlib.sha256(blob.data).hexdigest()
            found[kind] = json.dumps([read.meta["training"], read.meta["scores"], read.meta["config"]])
        for name in ("metrics.jsonl", "samples.txt"):
            found[name] = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        return found

    def weights(self) -> dict[str, bytes]:
        """Return what learning left in the last checkpoint: weights, moments and carried state."""
        return {name: bytes(blob.data) for name, blob in self.last().tensors.items()}

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of runs."""
    made: list[Bench] = []

    def make(config: RunConfig | None = None, **train: Any) -> Bench:
        made.append(Bench(corpus, tmp_path / f"run{len(made)}", config or configured(**train)))
        return made[-1]

    return make


@pytest.mark.parametrize(
    "config",
    [
        configured(),
        configured(layers=1, dropout=0.0),
        configured(layers=3, dropout=0.5, clip=0.0),
        configured(eval_every=1),
        configured(average=0.3, weight_dropout=0.2, state_dropout=0.2, segment=3),
    ],
    ids=["plain", "no dropout", "deep", "evaluating", "averaged"],
)
def test_ten_and_ten(bench: Callable[..., Bench], config: RunConfig) -> None:
    """Ten steps, a save, a load and ten more leave the same bits as twenty: tensors, metrics, samples, scores."""
    whole = bench(config).run().end()
    halves = bench(config).stop_at(10).run(resume=True).end()

    assert halves == whole


@pytest.mark.slow
def test_every_step(bench: Callable[..., Bench]) -> None:
    """Stopping after any one step, the last of a pass and the first of the next among them, changes no bit of the end."""
    whole = bench().run()
    expected = whole.end()
    border = whole.trainer(resume=True).streams.steps_per_epoch
    assert 1 < border < STEPS - 1

    differing = [k for k in range(1, STEPS) if bench().stop_at(k).run(resume=True).end() != expected]

    assert differing == []


def test_stopped_at_each_step(bench: Callable[..., Bench]) -> None:
    """A run that is stopped after each single step ends as if it had never been stopped."""
    expected = bench().run().end()
    patient = bench().stop_at(1)
    for step in range(2, STEPS):
        patient.stop_at(step, resume=True)

    assert patient.run(resume=True).end() == expected


def test_finished(bench: Callable[..., Bench]) -> None:
    """Resuming a run that has ended trains nothing and changes nothing."""
    done = bench().run()
    before, count = done.end(), len(done.records)

    assert done.run(resume=True).end() == before
    assert len(done.records) == count


def test_evaluating_changes_nothing(bench: Callable[..., Bench]) -> None:
    """How often a run is validated and sampled has no influence on weights, moments or carried state."""
    rare, often = bench(eval_every=STEPS).run(), bench(eval_every=1).run()

    assert often.weights() == rare.weights()
    assert sum(isinstance(r, Validated) for r in often.records) == STEPS


def test_saving_changes_nothing(bench: Callable[..., Bench]) -> None:
    """How often a run is saved has no influence on anything that it leaves."""
    ends = [bench(save_every=every).run().end() for every in (1, 6, None)]
    for end in ends:  # the setting itself is all that differs
        for kind in ("best", "last"):
            training, scores, config = json.loads(end[kind])
            config["train"]["save_every"] = None
            end[kind] = json.dumps([training, scores, config])

    assert ends[0] == ends[1] == ends[2]


def test_carried_state(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """The state goes from window to window, as the last window left it, and starts empty where a pass does."""
    made = bench(eval_every=STEPS).trainer()
    began: list[Any] = []
    ended: list[Any] = []
    call = Backprop.__call__

    def watched(*args: Any, **more: Any) -> tuple[Number, StackState]:
        began.append([[part.clone() for part in layer] for layer in args[3]])
        nats, state = call(*args, **more)
        ended.append(state)
        return nats, state

    monkeypatch.setattr(Backprop, "__call__", watched)
    made.run()
    fresh = [made.streams.starts(step)[1] for step in range(STEPS)]

    assert [not any(part.any() for layer in state for part in layer) for state in began] == fresh
    assert fresh.count(True) == 2
    pairs = [(after, state) for after, state, new in zip(ended, began[1:], fresh[1:], strict=False) if not new]
    assert all(torch.equal(*parts) for pair in pairs for layers in zip(*pair, strict=True) for parts in zip(*layers, strict=True))


def test_state_dropout(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some streams begin a step with an empty state, whole and in every layer; the others go on from where they were."""
    made = bench(eval_every=STEPS, state_dropout=0.5).trainer()
    call = Backprop.__call__
    seen: list[list[bool]] = []

    def watched(*args: Any, **more: Any) -> tuple[Number, StackState]:
        rows = [[bool(part[row].any()) for layer in args[3] for part in layer] for row in range(len(args[3][0].hidden))]
        assert all(len(set(row)) == 1 for row in rows)
        seen.append([row[0] for row in rows])
        return call(*args, **more)

    monkeypatch.setattr(Backprop, "__call__", watched)
    made.run()
    began = [flag for row, step in zip(seen, range(STEPS), strict=True) if not made.streams.starts(step)[1] for flag in row]

    assert 0.2 < sum(began) / len(began) < 0.8


def test_averages_are_the_model(bench: Callable[..., Bench]) -> None:
    """With averaging, what is scored and saved is the average; the weights themselves wait in `last` for the next step."""
    made = bench(eval_every=STEPS, average=0.5).trainer()
    made.run()
    best, last = (checkpoint.read(made.folder / f"{kind}.safetensors") for kind in ("best", "last"))
    own = checkpoint.to_blobs({f"model.{k}": v for k, v in made.model.state_dict().items()})
    with made.members.each[0].optimizer.averaged():
        averaged = checkpoint.to_blobs({f"model.{k}": v for k, v in made.model.state_dict().items()})

    assert own != averaged
    assert best.tensors == averaged
    assert {k: v for k, v in last.tensors.items() if k.startswith("model.")} == averaged
    weights = {k.replace("optimizer.weights.", "model."): v for k, v in last.tensors.items() if ".weights." in k}
    assert weights == own


def test_validation_is_strict(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation is scored by the kernel's strict twin, and the steps after it by the kernel itself."""
    made = bench(eval_every=STEPS).trainer()
    twin, own = EagerKernel(), made.model.stack()[0].kernel
    seen: list[bool] = []
    monkeypatch.setattr(EagerKernel, "strict", property(lambda _: twin))
    made.model.register_forward_pre_hook(lambda *_: seen.append(made.model.stack()[-1].kernel is twin))
    monkeypatch.setattr(made.validation, "sample", str)
    made._validate()

    assert seen
    assert all(seen)
    assert all(layer.kernel is own for layer in made.model.stack())


def test_metrics(bench: Callable[..., Bench]) -> None:
    """metrics.jsonl holds the mean of each ten steps, and each validation, with rising steps."""
    run = bench().run()
    steps = [r for r in run.records if isinstance(r, StepDone)]
    trained = [m for m in run.metrics() if "rate" in m]
    validated = {m["step"]: m["validation_nats_per_char"] for m in run.metrics() if "rate" not in m}

    assert [m["step"] for m in trained] == [10, 20]
    assert trained[1]["nats_per_char"] == pytest.approx(sum(s.nats_per_char for s in steps[10:]) / 10)
    assert validated == {r.step: r.nats_per_char for r in run.records if isinstance(r, Validated)}
    assert sorted(validated) == [7, 14, 20]
    assert steps[-1].chars == STEPS * 3 * 5


def test_best(bench: Callable[..., Bench]) -> None:
    """best.safetensors holds the weights of the best validation, and no optimizer."""
    run = bench(eval_every=1, lr=0.2).run()
    scores = {r.step: r.nats_per_char for r in run.records if isinstance(r, Validated)}
    best = checkpoint.read(run.folder / "best.safetensors")

    assert best.meta["step"] == min(scores, key=scores.__getitem__)
    assert best.meta["scores"]["validation_nats_per_char"] == min(scores.values())
    assert all(name.startswith("model.") for name in best.tensors)


def test_without_validation(corpus: Corpus, tmp_path: Path) -> None:
    """Without a validation text the newest model is the best, and resuming holds all the same."""
    bare = open_corpus([str(tmp_path / "text.txt")], cache_dir=tmp_path / "cache", val_fraction=0.0)
    whole = Bench(bare, tmp_path / "whole", configured()).run()
    halves = Bench(bare, tmp_path / "halves", configured()).stop_at(9).run(resume=True)

    assert checkpoint.read(whole.folder / "best.safetensors").meta["step"] == STEPS
    assert halves.end() == whole.end()


def test_patience(bench: Callable[..., Bench]) -> None:
    """A run that gets worse more often than patience allows ends early, with a committed checkpoint."""
    run = bench(eval_every=1, patience=2, lr=0.4, steps=400, warmup=0).run()
    scores = [r.nats_per_char for r in run.records if isinstance(r, Validated)]

    assert len(scores) < 400
    assert min(scores) == scores[-3]
    assert run.last().meta["step"] == len(scores)


# What is not finite


def spoil_once(made: Trainer, monkeypatch: pytest.MonkeyPatch, what: str, at: int, value: float, times: int = 1) -> None:
    """Put a value that is not finite into one part of training, at a step, so many times."""
    left = [times]
    member = made.members.each[-1]

    def due() -> bool:
        if made.progress.step != at or not left[0]:
            return False
        left[0] -= 1
        return True

    if what in ("loss", "gradient"):
        call = Backprop.__call__

        def spoiled_gradient(backprop: Backprop, *args: Any, **more: Any) -> tuple[Number, StackState]:
            nats, state = call(backprop, *args, **more)
            if due():
                if what == "loss":
                    return nats * value, state
                member.optimizer.gradients[0][0] = value
            return nats, state

        monkeypatch.setattr(Backprop, "__call__", spoiled_gradient)
    else:
        step = member.optimizer.step

        def spoiled(loss: Number) -> tuple[Number, Number]:
            now = due()
            if now and what == "weight":
                with torch.no_grad():
                    list(member.model.parameters())[-1].view(-1)[0] = value
            found = step(loss)
            if now and what == "moment":
                moments = {k: v for k, v in member.optimizer.state().items() if k.startswith("exp_avg_sq")}
                next(iter(moments.values())).view(-1)[0] = value
            return found

        monkeypatch.setattr(member.optimizer, "step", spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient", "weight", "moment"])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_stepped_back(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, what: str, value: float, at: int) -> None:
    """A value that is not finite is seen, the run goes back to its checkpoint with half the rate, and ends whole."""
    run = bench()
    made = run.trainer()
    spoil_once(made, monkeypatch, what, at, value)
    made.run()
    back = [r for r in run.records if isinstance(r, SteppedBack)]
    last = run.last()

    assert len(back) == 1
    assert back[0].to == min(at, last.meta["step"]) // 4 * 4
    assert back[0].rate_scale == last.meta["training"]["rate_scale"] == 0.5
    assert last.meta["step"] == STEPS
    assert [m["step"] for m in run.metrics() if "rate" in m] == [10, 20]
    assert [m["step"] for m in run.metrics() if "rate" not in m] == [7, 14, 20]
    if what != "moment":  # that one is seen when it would be written, or hurts
        assert back[0].step == at + 1


def test_stepped_back_and_resumed(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller rate is saved: a run that was stepped back and stopped goes on as it would have."""
    ends = []
    for stop in (False, True):
        run = bench()
        made = run.trainer(stop=lambda: signal.SIGINT if stop and made.progress.step >= 12 else None)  # noqa: B023  # read in this turn of the loop
        spoil_once(made, monkeypatch, "gradient", 9, math.nan)
        if stop:
            with pytest.raises(Stopped):
                made.run()
            run.run(resume=True)
        else:
            made.run()
        ends.append(run.end())

    assert ends[0] == ends[1]


def test_calm_steps_are_credited(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Spikes far from each other do not end a long run: between them it gets back its rate, and its tries."""
    monkeypatch.setattr(trainer, "CALM", 3)
    run = bench()
    made = run.trainer()
    for at in (2, 6, 10, 14):
        spoil_once(made, monkeypatch, "weight", at, math.nan)
    made.run()
    state = run.last().meta["training"]

    assert [(r.step, r.rate_scale) for r in run.records if isinstance(r, SteppedBack)] == [(at, 0.5) for at in (3, 7, 11, 15)]
    assert run.last().meta["step"] == STEPS
    assert (state["retries"], state["rate_scale"]) == (0, 1.0)


def test_spikes_in_a_row_are_not_forgotten(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer calm steps than asked for between two spikes, and the second one halves the rate again."""
    monkeypatch.setattr(trainer, "CALM", 5)
    run = bench()
    made = run.trainer()
    for at in (2, 6):
        spoil_once(made, monkeypatch, "weight", at, math.nan)
    made.run()

    assert [r.rate_scale for r in run.records if isinstance(r, SteppedBack)] == [0.5, 0.25]


def test_a_step_back_leaks_no_file(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """The journals of before are closed where those cut back are opened."""
    run = bench()
    made = run.trainer()
    spoil_once(made, monkeypatch, "loss", 5, math.nan, times=3)
    assert made._files is not None
    before = made._files._metrics, made._files._samples
    made.run()

    assert [journal._fd for journal in before] == [-1, -1]


@pytest.mark.parametrize("what", ["loss", "gradient", "weight"])
def test_diverged(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A run that cannot be saved by smaller rates ends with exit code 6 and its last good checkpoint."""
    run = bench()
    made = run.trainer()
    spoil_once(made, monkeypatch, what, 6, math.nan, times=1000)
    with pytest.raises(Diverged) as diverged:
        made.run()

    assert diverged.value.exit_code == 6
    assert [r.rate_scale for r in run.records if isinstance(r, SteppedBack)] == [0.5, 0.25, 0.125]
    assert run.last().meta["step"] == 4


def test_a_score_worse_than_guessing_is_divergence(bench: Callable[..., Bench]) -> None:
    """Steps that stay clearly worse than even guessing go back with half the rate, in the end with exit code 6."""
    run = bench(lr=9.0, clip=0.0, warmup=2, steps=200)
    with pytest.raises(Diverged) as diverged:
        run.run()
    back = [r for r in run.records if isinstance(r, SteppedBack)]

    assert diverged.value.exit_code == 6
    assert "worse than even guessing" in str(diverged.value)
    assert [r.rate_scale for r in back] == [0.5, 0.25, 0.125]
    assert {r.what for r in back} == {"score"}


@pytest.mark.parametrize(("seconds", "to"), [(-1.0, 10), (1e9, 0)])
def test_the_clock_does_not_decide_on_what_is_looked_at(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, seconds: float, to: int
) -> None:
    """Steps are looked at where records end, however often the clock asks for a checkpoint; it is made of good steps."""
    monkeypatch.setattr(trainer, "SAVE_SECONDS", seconds)
    run = bench(save_every=None, eval_every=40, steps=40, warmup=0)
    made = run.trainer(stop=lambda: signal.SIGTERM if made.progress.retries else None)
    take = made._step

    def spoilt() -> StepDone | None:
        done = take()
        made.progress.recent_nats += 100.0 * (made.progress.step > 15)
        return done

    monkeypatch.setattr(made, "_step", spoilt)
    with pytest.raises(Stopped):
        made.run()

    assert [(r.step, r.to) for r in run.records if isinstance(r, SteppedBack)] == [(20, to)]


def test_a_smaller_rate_mends_a_score(bench: Callable[..., Bench]) -> None:
    """A run that half or a quarter of the rate mends goes on to its end and learns."""
    run = bench(lr=1.5, clip=0.0, warmup=2, steps=200, save_every=50).run()

    assert 1 <= len([r for r in run.records if isinstance(r, SteppedBack)]) <= 3
    assert min(r.nats_per_char for r in run.records if isinstance(r, Validated)) < 3.0


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e20, 1e37])
def test_huge_rate(bench: Callable[..., Bench], scale: float) -> None:
    """An absurd learning rate ends in Diverged or in finite weights; what is on the disk can be read either way."""
    run = bench(lr=10.0, clip=0.0, warmup=0)
    made = run.trainer()
    made.progress.rate_scale = scale
    made.begin()
    with contextlib.suppress(Diverged):
        made.run()

    assert run.last().meta["step"] <= STEPS


# Minutes


class SlowClock(Clock):
    """A clock that the trainer's steps and validations move on, by what they take on a machine whose speed changes."""

    def __init__(self, made: Trainer, monkeypatch: pytest.MonkeyPatch, step: Callable[[float], float]) -> None:
        super().__init__(0.0)
        object.__setattr__(self, "now", 0.0)
        object.__setattr__(self, "looking", 0.0)
        take, look = made._step, made._validate

        def stepped() -> StepDone | None:
            object.__setattr__(self, "now", self.now + step(self.now))
            return take()

        def looked() -> bool:
            object.__setattr__(self, "now", self.now + 2 * step(self.now))
            object.__setattr__(self, "looking", self.looking + 2 * step(self.now))
            return look()

        monkeypatch.setattr(made, "_step", stepped)
        monkeypatch.setattr(made, "_validate", looked)
        assert made._budget is not None
        made._budget = budget.Budget(made.config.train.minutes or 0.0, self.seconds, made._budget.cost)

    def seconds(self) -> float:
        """Return the seconds that passed."""
        return self.now

    now: float
    looking: float


def in_minutes(minutes: float = 1.0, **train: Any) -> RunConfig:
    """Return a configuration with a budget in minutes."""
    config = configured()
    return replace(config, train=replace(config.train, **{"steps": None, "minutes": minutes, "eval_every": None, **train}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "speed",
    [lambda t: 0.2, lambda t: 0.1 if t < 10 else 0.5, lambda t: 0.1 if t < 40 else 0.6, lambda t: 0.8 if t < 3 else 0.1],
    ids=["steady", "slower from second 10", "slower from second 40", "slow at first"],
)
def test_minutes_are_met(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, speed: Callable[[float], float]) -> None:
    """Whatever happens to the machine's speed, the run ends in time; it looks five times or more, at little cost."""
    run = bench(in_minutes())
    made = run.trainer()
    clock = SlowClock(made, monkeypatch, speed)
    made.run()
    looks = [r.step for r in run.records if isinstance(r, Validated)]
    planned = [r.steps for r in run.records if isinstance(r, Planned)]

    assert 57 < clock.now < 60
    assert looks[-1] == made.progress.step == made.progress.steps == planned[-1] == run.last().meta["training"]["steps"]
    assert len(looks) >= 5
    assert looks[-1] - looks[-2] > 3  # the end is not put off again and again
    assert clock.looking < 0.1 * 60


def test_minutes_make_a_run_of_so_many_steps(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that became so many steps by the clock has the weights of one that was asked for as many."""
    run = bench(in_minutes())
    made = run.trainer()
    SlowClock(made, monkeypatch, lambda t: 1.0 if t < 20 else 0.4)
    made.run()
    steps = made.progress.step
    fixed = bench(replace(in_minutes(), train=replace(in_minutes().train, steps=steps, minutes=None, eval_every=steps))).run()

    assert steps > 60
    assert run.weights() == fixed.weights()


def test_a_resumed_run_keeps_its_number_of_steps(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """What minutes have become is stored: a run that is stopped goes on to that number, twice to the same bits."""
    run = bench(in_minutes())
    made = run.trainer(stop=lambda: signal.SIGTERM if made.progress.step >= 50 else None)
    SlowClock(made, monkeypatch, lambda t: 0.6)
    with pytest.raises(Stopped):
        made.run()
    planned = run.last().meta["training"]["steps"]
    again = bench(in_minutes())
    for path in run.folder.iterdir():
        (again.folder / path.name).write_bytes(path.read_bytes())
    again.folder = again.folder.rename(again.folder.with_name("other"))

    assert run.run(resume=True).end() == again.run(resume=True).end()
    assert run.last().meta["step"] == planned
    assert 80 < planned < 100


@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_a_resumed_run_looks_when_it_would_have(
    bench: Callable[..., Bench], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_fraction: float
) -> None:
    """What minutes have become says when to look too: a run that goes on keeps it, with a validation text or without one."""
    run = bench(in_minutes())
    run.corpus = open_corpus([str(tmp_path / "text.txt")], cache_dir=tmp_path / "cache", val_fraction=val_fraction)
    made = run.trainer(stop=lambda: signal.SIGTERM if made.progress.step >= 50 else None)
    SlowClock(made, monkeypatch, lambda t: 0.6)
    with pytest.raises(Stopped):
        made.run()
    made.progress.look_gap += 1  # no plan that is made from numbers alone
    made.save()

    assert vars(run.trainer(resume=True).progress) == vars(made.progress)


@pytest.mark.slow
def test_what_is_saved_with_the_first_plan_is_looked_at(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """When minutes become steps that is saved, but not a run that is worse than guessing just then: it steps back before that."""
    run = bench(in_minutes(warmup=0, save_every=10**9))
    made = run.trainer(stop=lambda: signal.SIGTERM if made.progress.retries or made.progress.step > 30 else None)
    SlowClock(made, monkeypatch, lambda t: 0.05)
    take = made._step

    def spoilt() -> StepDone | None:
        done = take()
        if made.progress.step > 10:  # the mean of the first ten is written down as it is
            made.progress.recent_nats += 100.0
        return done

    monkeypatch.setattr(made, "_step", spoilt)
    with pytest.raises(Stopped):
        made.run()
    planned = [r.step for r in run.records if isinstance(r, Planned)]
    back = [(r.step, r.to) for r in run.records if isinstance(r, SteppedBack)]

    assert 10 < planned[0] < 20
    assert back == [(planned[0], 0)]


@pytest.mark.parametrize(("slower_from", "smaller"), [(10, True), (18, False), (40, False), (99, False)])
def test_a_machine_that_becomes_slow_early(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, slower_from: int, smaller: bool
) -> None:
    """Where half of the steps that were expected fit in before a third of the time is over, that is said once."""
    run = bench(in_minutes())
    made = run.trainer()
    clock = SlowClock(made, monkeypatch, lambda t: 0.1 if t < slower_from else 0.5)
    made.expected = 590
    ended = made.run()

    assert ended is not smaller
    if smaller:
        assert slower_from + 3 < clock.now < 20
        assert made.run()
    assert 57 < clock.now < 60


def test_where_the_rate_falls_minutes_become_steps_once(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate that depends on the number of steps, that is decided before the warm-up ends, and stays."""
    run = bench(in_minutes(final_lr=0.1, warmup=30))
    made = run.trainer()
    SlowClock(made, monkeypatch, lambda t: 0.2 if t < 10 else 0.3)
    made.run()
    planned = [r for r in run.records if isinstance(r, Planned)]

    assert len(planned) == 1
    assert planned[0].step <= 30
    assert run.last().meta["step"] == planned[0].steps


# The exact score at the end


@pytest.fixture
def long(tmp_path: Path) -> Corpus:
    """Open a text whose validation part is read in several streams."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"Bob has {n} and Ann has {n * n % 97}.\n" for n in range(1500)), encoding="utf-8")
    return open_corpus([str(path)], cache_dir=tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.3])
def test_the_best_model_is_scored_exactly_at_the_end(long: Corpus, tmp_path: Path, average: float) -> None:
    """Validations are estimates and say so; the score that is kept at the end is that of `lstmlm eval`, to the bit."""
    run = Bench(long, tmp_path / "run", configured(eval_every=10, average=average, steps=120, batch=16, window=64, lr=0.03)).run()
    best = checkpoint.read(run.folder / "best.safetensors")
    network = ensemble.build(from_dict(best.meta["config"]).model, len(long.tokenizer), EagerKernel())
    load_weights(network, checkpoint.to_tensors(best.part("model.")))
    exact = scoring.side_by_side([network], long.val.tensor(0, len(long.val)).tolist(), long.counts)[0]
    validated = {r.step: r for r in run.records if isinstance(r, Validated)}
    scored = [r for r in run.records if isinstance(r, Scored)]

    assert not any(r.exact for r in validated.values())
    assert [r.nats_per_char for r in scored] == [exact]
    assert best.meta["scores"] == {"validation_nats_per_char": exact, "step": scored[0].step, "exact": True}
    assert exact == pytest.approx(validated[scored[0].step].nats_per_char, rel=0.02)
    assert run.metrics()[-1] == {"step": scored[0].step, "validation_nats_per_char": exact, "exact": True}
    reached = [json.loads(line)["step"] for line in (run.folder / "clock.jsonl").read_text().splitlines()]
    assert reached == sorted(reached)
    assert run.weights() == run.run(resume=True).weights()
    assert len([r for r in run.records if isinstance(r, Scored)]) == 1


@pytest.mark.slow
def test_a_signal_while_the_best_model_is_scored(long: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the end of the text; resumed, the run makes up for it, to the same bits."""
    config = configured(eval_every=10, steps=120, batch=16, window=64)
    expected = Bench(long, tmp_path / "whole", config).run().end()
    run = Bench(long, tmp_path / "run", config)
    came: list[int] = []
    made = run.trainer(stop=lambda: came[0] if came else None)
    score = scoring.side_by_side

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        came.append(signal.SIGINT)
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "side_by_side", interrupted)
        with pytest.raises(Stopped):
            made.run()

    assert run.last().meta["training"]["exact_step"] == -1
    assert run.run(resume=True).end() == expected


@pytest.mark.slow
def test_streams_that_stay_apart_leave_an_estimate(long: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the exact score would take one pass from left to right, the estimate stays, and is said to be one."""

    def apart(*args: object, **kwargs: object) -> None:
        raise scoring.StreamsApartError

    monkeypatch.setattr(validation, "side_by_side", apart)
    run = Bench(long, tmp_path / "run", configured(eval_every=10, steps=120, batch=16, window=64)).run()

    assert checkpoint.read(run.folder / "best.safetensors").meta["scores"]["exact"] is False
    assert not any(isinstance(r, Scored) for r in run.records)
    assert run.last().meta["training"]["exact_step"] > 0


def test_the_score_of_a_long_text_is_an_estimate(long: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the beginning of the validation text is read, no score is said to be that of `lstmlm eval`."""
    monkeypatch.setattr(budget, "MOST_CHARS", 600)  # so few are read in one stream, and so exactly
    run = Bench(long, tmp_path / "run", configured(eval_every=10, batch=16, window=64)).run()

    assert len(long.val) > 600
    assert checkpoint.read(run.folder / "best.safetensors").meta["scores"]["exact"] is False
    assert not any(r.exact for r in run.records if isinstance(r, Validated))
    assert not any(isinstance(r, Scored) for r in run.records)


# Signals


def test_signal_while_validating(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal during a validation does not wait for its end: it is owed, and made up on resuming, to the same bits."""
    expected = bench().run().end()
    run = bench()
    came: list[int] = []
    made = run.trainer(stop=lambda: came[0] if came else None)
    score = scoring.estimate

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if made.progress.step == 14:
            came.append(signal.SIGHUP)
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "estimate", interrupted)
        with pytest.raises(Stopped) as stopped:
            made.run()

    assert stopped.value.exit_code == 129
    assert run.last().meta["training"]["validated"] == 7
    assert not any(isinstance(r, Validated) and r.step == 14 for r in run.records)
    assert run.run(resume=True).end() == expected


# Damage


@pytest.mark.parametrize("prefix", ["model.", "optimizer.exp_avg.", "optimizer.exp_avg_sq.", "state.1."])
def test_missing_part(bench: Callable[..., Bench], prefix: str) -> None:
    """A checkpoint that lacks any part of the training state is refused, never resumed halfway."""
    run = bench().stop_at(6)
    saved = run.last()
    name = next(name for name in saved.tensors if name.startswith(prefix))
    broken = replace(saved, tensors={k: v for k, v in saved.tensors.items() if k != name})

    with pytest.raises(CheckpointError, match=name.split(".")[-1]):
        run.trainer().restore(broken)


@pytest.mark.parametrize("name", ["state.0.hidden", "state.1.cell", "optimizer.exp_avg.layers.0.W"])
def test_wrong_shape(bench: Callable[..., Bench], name: str) -> None:
    """A part of the training state that has another shape is refused when it is loaded, not when it is used."""
    run = bench().stop_at(6)
    saved = run.last()
    assert name in saved.tensors
    small = checkpoint.to_blobs({"x": torch.zeros(1, 2)})["x"]

    with pytest.raises(CheckpointError):
        run.trainer().restore(replace(saved, tensors={**saved.tensors, name: small}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", "6"), ("step", True), ("step", None), ("step", 6.0), ("best_nats", "low"), ("rate_scale", 1), ("other", 1)],
)
def test_wrong_progress(key: str, value: object) -> None:
    """A training state with a value of another type, or of another version, is refused."""
    with pytest.raises(CheckpointError):
        TrainState.from_meta({**TrainState().to_meta(), key: value})


def test_progress_round_trip() -> None:
    """A training state goes into a header and comes back the same, infinite scores included."""
    assert TrainState.from_meta(json.loads(json.dumps(TrainState(step=3).to_meta()))) == TrainState(step=3)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_threads_do_not_change_bits(bench: Callable[..., Bench], precision: str) -> None:
    """With the native kernel a run of two threads ends with the bits of a run of one: weights, losses, scores, samples."""
    kernel, why = kernels.choose("auto", precision)
    if why:
        pytest.skip(why)
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run = bench(
            replace(
                configured(batch=20, window=30, weight_dropout=0.2, average=0.3),
                model=ModelConfig(hidden=130, layers=2, dropout=0.2),
            )
        )
        run.kernel = kernel
        ends.append(run.run().end())

    assert ends[0] == ends[1]


def test_a_run_takes_as_many_threads_as_are_quickest(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the native kernel every run tries one thread and all of them, and ends with the bits of a run that kept to one."""
    kernel, why = kernels.choose()
    if why:
        pytest.skip(why)
    counts: list[int] = []
    step = Trainer._step

    def counted(self: Trainer) -> StepDone | None:
        counts.append(torch.get_num_threads())
        return step(self)

    monkeypatch.setattr(Trainer, "_step", counted)
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run = bench()
        run.kernel = kernel
        ends.append(run.run().end())

    assert {1, 2} == set(counts[STEPS:])
    assert ends[0] == ends[1]


def test_a_resumed_run_in_minutes_changes_no_bits_by_the_clock(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once minutes have become steps, a kernel whose bits hang on the number of threads stays on those that it was given."""
    torch.set_num_threads(2)
    run = bench(in_minutes())
    made = run.trainer(stop=lambda: signal.SIGTERM if made.progress.step >= 50 else None)
    SlowClock(made, monkeypatch, lambda t: 0.6)
    with pytest.raises(Stopped):
        made.run()
    counts: list[int] = []
    torch.set_num_threads(2)
    again = run.trainer(resume=True)
    step = again._step

    def counted() -> StepDone | None:
        counts.append(torch.get_num_threads())
        return step()

    monkeypatch.setattr(again, "_step", counted)
    again.run()

    assert set(counts) == {2}
