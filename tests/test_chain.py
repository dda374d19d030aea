"""The whole chain on a device that is not the CPU: nothing is made in the wrong place, and the numbers are the same.

The device pretends (`tests.pretend`): it computes on the CPU, so that the bits are to be those of the CPU too.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

import lstmlm.training.train_step
from lstmlm.analysis.activations import Forgetting
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.evaluation import torch_sampler
from lstmlm.evaluation.cloze import Filler, Question
from lstmlm.evaluation.per_line import LineScorer
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import Scorer
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.kernels.cuda_graph import Graph, speed_of
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.pointwise import TorchPointwise
from lstmlm.model.ensemble import Network
from lstmlm.training import dynamic
from lstmlm.training.distributed import ProcessGroup, Shards
from tests import pretend
from tests.helpers import Scores, cold, scores, small_model, some_ids, warm
from tests.training import test_trainer
from tests.training.test_trainer import Bench

pytestmark = pytest.mark.usefixtures("short_samples")
bench = test_trainer.bench
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
def test_the_device_is_strict() -> None:
    """What stands in for a device refuses to mix, gives numbers back, and lets a parameter hold other memory."""
    with pretend.device() as device:
        a, flat = torch.zeros(3, 4, device=device), torch.ones(4, device=device)
        with pytest.raises(AssertionError, match="two devices"):
            a + torch.ones(4)
        with pytest.raises(AssertionError, match="two devices"):
            a[torch.tensor([1])]
        p = torch.nn.Parameter(torch.zeros(4).to(device))
        p.data = flat[:4].view(4)
        flat.fill_(3.0)

        assert p.device == a.device == device
        assert p.tolist() == [3.0] * 4
        assert float(a.add_(p.detach()).sum().cpu()) == 36


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [{"average": 0.3, "state_dropout": 0.3}, {"accumulate": 3, "state_dropout": 0.3}, {"segment": 2, "clip": 0.1}],
    ids=["whole", "shards", "segments"],
)
def test_a_run(bench: Callable[..., Bench], train: dict[str, Any]) -> None:
    """Training, validating, sampling and saving on a device leave the CPU's bits."""
    expected = bench(test_trainer.configured(weight_dropout=0.2, **train)).run().end()
    run = bench(test_trainer.configured(weight_dropout=0.2, **train))
    with pretend.device() as run.device:
        run.run()

    assert run.end() == expected


def test_what_may_be_recorded() -> None:
    """In work that a graph is to hold, crossing over and waiting are errors, for tensors without dimensions too."""
    with pretend.device() as device:
        a, number = torch.ones(3, device=device), torch.tensor(2.0)

        def adds() -> None:
            a.add_(torch.arange(3, device=device) * 2.5)

        mistakes: list[Callable[[], object]] = [
            lambda: a.mul_(number),
            lambda: a.add_(a.new_tensor(2.0)),
            lambda: a.copy_(torch.ones(3)),
            lambda: a.cpu(),
            lambda: float(a.sum()),
            lambda: a[a > 0],
        ]
        pretend.alone(adds)()
        assert a.tolist() == [1.0, 3.5, 6.0]
        for mistake in mistakes:
            with pytest.raises(AssertionError, match="the device"):
                pretend.alone(mistake)()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"segment": 2, "clip": 0.0, "average": 0.3}])
def test_a_step_is_left_to_the_device(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Between what is written before it and the one read-back after it, a training step asks nothing of the CPU."""
    expected = bench(test_trainer.configured(weight_dropout=0.2, state_dropout=0.3, **options)).run().end()
    monkeypatch.setattr(lstmlm.training.train_step, "Graph", lambda run, device, record: Graph(run, device, pretend.alone))
    run = bench(test_trainer.configured(weight_dropout=0.2, state_dropout=0.3, **options))
    with pretend.device() as run.device:
        run.run()

    assert run.end() == expected


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_move_both_ways(bench: Callable[..., Bench], first: bool) -> None:
    """A run that is stopped on one device and resumed on the other ends with the bits of one that never moved."""
    expected = bench(average=0.3).run().end()
    run = bench(average=0.3)
    with pretend.device() as device:
        run.device = device if first else None
        run.stop_at(7)
        run.device = None if first else device
        run.run(resume=True)

    assert run.end() == expected


@pytest.mark.slow
def test_stepping_back(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not finite goes back to a checkpoint, which comes from the CPU, and on as the CPU goes on."""
    ends = []
    for there in (False, True):
        run = bench()
        with pretend.device() as device, monkeypatch.context() as patch:
            run.device = device if there else None
            made = run.trainer()
            test_trainer.spoil_once(made, patch, "gradient", 6, float("nan"))
            made.run()
        ends.append(run.end())

    assert ends[0] == ends[1]


def moved(device: torch.device, **options: Any) -> tuple[Any, Any]:
    """Return a model on the CPU, and the same on a device."""
    here = small_model(dtype=torch.float32, **options)
    there = small_model(dtype=torch.float32, **options)
    there.load_state_dict(here.state_dict())
    return here, there.to(device).eval()


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether both are on the CPU and equal."""
    return one.device == other.device == torch.device("cpu") and torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"readout": "direct"}, {"layers": 3, "layer_norm": False}, {"separator": (1,)}, {"separator": (0, 1)}]
)
def test_scores(options: dict[str, Any]) -> None:
    """Warm, cold and dynamic scores of a text that is on the CPU come back to it, the same."""
    ids = some_ids(400)
    with pretend.device() as device:
        here, there = moved(device, **options)
        ways: list[Callable[[Network], Scores]] = [
            lambda m: warm(m, ids, batch=3, window=16),
            lambda m: cold(m, ids, 7),
            lambda m: warm(m, ids[:1]),
        ]
        for score in ways:
            one, other = score(here), score(there)
            assert same(one.nats, other.nats)
            assert same(one.correct, other.correct)
            assert other.state[0].hidden.device == device
        readers = [dynamic.DynamicEvaluator(m, 1, dynamic.Rates(), 40).read for m in (here, there)]
        one, other = (scores(read(ids[:400].tolist())) for read in readers)
        assert same(one.nats, other.nats)
        scorers = [Scorer(m, [1] * 11, read=r) for m, r in zip((here, there), readers, strict=True)]
        for scorer in scorers:
            scorer.add(ids[:300].tolist(), 301, 400)
        assert scorers[0].finish() == scorers[1].finish()


def test_lines_and_blanks() -> None:
    """Lines, in a row and apart, and blanks, with a forgetting network too, give the CPU's numbers."""
    symbols = CharTokenizer("\nabcdefghij")
    text = ["abc\n", "defg\n", "\n", "ab"]
    questions = [Question("ab____cd", ("e", "ff", "g")), Question("____", ("a", "b"))]
    with pretend.device() as device:
        models = moved(device)
        for carried in (False, True):
            one, other = (LineScorer(m, symbols, [1] * 11, carried).score(text) for m in models)
            assert one == other
        for forget in (False, True):
            readers = [TorchReader(m, run=Forgetting(m, 3) if forget else None) for m in models]
            fillers = [Filler(reader, symbols.encode, [1] * 11, [0]) for reader in readers]
            here, there = (list(filler.rank(questions)) for filler in fillers)
            assert here == there


def test_shards_are_added_up_where_they_are() -> None:
    """The sums of shards' gradients are on the gradients' device."""
    with pretend.device() as device:
        shards = Shards(ProcessGroup(), [torch.zeros(5, device=device)], 4, 4)

        assert {total.device for total in shards._sums} == {device}


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.7, 5, 0.8), Sampling(greedy=True)])
def test_samples(how: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same characters and nats, and none of the characters of a block asks anything of the CPU."""
    with pretend.device() as device:
        monkeypatch.setattr(
            torch_sampler, "Graph", lambda run, where: Graph(run, where, pretend.alone if where == device else None)
        )
        one, other = (list(islice(generate(m, [1, 2, 3], [4, 5, 6], how), 40)) for m in moved(device))

    assert one == other


def test_nothing_adds_in_an_order_of_its_own(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation of a training step is among those that torch says are not deterministic on CUDA."""
    seen: set[str] = set()
    compute = pretend.compute

    def watched(func: Any, args: Any, kwargs: Any) -> Any:
        accumulates = "index_put" in str(func) and len(args) > 3 and args[3]
        seen.add(f"{func} accumulates" if accumulates else str(func))
        return compute(func, args, kwargs)

    run = bench(test_trainer.configured(weight_dropout=0.2, steps=2, state_dropout=0.3, average=0.2))
    with pretend.device() as run.device:
        made = run.trainer()
        monkeypatch.setattr(pretend, "compute", watched)
        made._step()
    atomics = ("index_add", "scatter_reduce", "put_", "embedding_dense_backward", "histc", "bincount", "accumulates", "cumsum")

    assert [name for name in seen if any(word in name for word in atomics) and "index_put" not in name] == []
    assert any("_fused_adamw" in name for name in seen)


def test_dropout_is_made_where_it_is_used() -> None:
    """A mask has the device of what it is for, and the same bits with its words in a tensor there."""
    drop = Dropout(0.3, 1, 2, 8, 3, 0.2)
    expected = [drop.mask(1, torch.empty(4, 3, 5)), drop.since(2).mask(0, torch.empty(4, 3, 5))]
    expected += [drop.of_weights().mask(1, torch.empty(4, 1, 5))]
    with pretend.device() as device:
        words = torch.tensor(drop.words(2)).to(device)
        far, near = torch.empty(4, 3, 5, device=device), torch.empty(4, 1, 5, device=device)
        other = Dropout(0.3, 7, 7, 8, 0, 0.2).reading(words)
        found = [other.mask(1, far), other.since(2).mask(0, far), other.of_weights().mask(1, near)]

        assert {mask.device for mask in found} == {device}
        assert all(torch.equal(mask.cpu(), wanted) for mask, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["cpu", "device"])
def test_the_speed_of_a_recurrence(name: str) -> None:
    """What a device computes in a second is measured there, and lies between an abacus and the fastest machine there is."""
    with pretend.device() as device:
        found = speed_of(EagerKernel(), device if name == "device" else torch.device("cpu"), 4, 2, 8, 1)

    assert 1e3 < found < 1e18


@CUDA
def test_a_run_on_cuda(bench: Callable[..., Bench]) -> None:
    """Stopped and resumed on a GPU, in recorded steps, a run ends with the bits of one that was not stopped."""
    whole, parted = bench(average=0.3), bench(average=0.3)
    whole.device = parted.device = torch.device("cuda")

    assert parted.stop_at(9).run(resume=True).end() == whole.run().end()


@CUDA
def test_a_step_on_cuda_is_the_cpus() -> None:
    """One scatter, the sum that has no order in torch's own, is the same in each of twenty calls."""
    ids = torch.randint(65, (8192,), device="cuda")
    da = torch.randn(8192, 256, device="cuda")
    found = []
    for _ in range(20):
        dU = torch.zeros(65, 256, device="cuda")
        TorchPointwise().scatter(ids, da, dU, None)
        found.append(dU)

    assert all(torch.equal(one, found[0]) for one in found)
