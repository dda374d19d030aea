"""Recurrences that run side by side give what they give one after another, and each starts when what it needs is there."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lstmlm.training.train_step
from lstmlm.config.run_config import RunConfig
from lstmlm.data.corpus import Corpus
from lstmlm.kernels import Activations
from lstmlm.kernels.cuda_graph import Graph
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import ensemble
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import StackState
from lstmlm.training.backprop import Backprop
from lstmlm.training.wavefront import SHORTEST, Band, Part, chunk, depth, diagonal
from tests import pretend, tape
from tests.helpers import assert_close, small_model
from tests.training import test_trainer
from tests.training.test_trainer import Bench

pytestmark = pytest.mark.usefixtures("short_samples")
V, T, B, SCALE = 11, 24, 3, 0.25
SHAPES: list[dict[str, Any]] = [
    {"layers": 3, "dropout": 0.3, "weight_dropout": 0.2},
    {"layers": 3, "layer_norm": False, "residual": False, "bias": False},
    {"layers": 3, "readout": "direct", "dropout": 0.3},
    {"layers": 1},
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))


class Counting(EagerKernel):
    """Notes how many recurrences each of its calls runs."""

    def __init__(self, side_by_side: int) -> None:
        super().__init__(side_by_side=side_by_side)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, a: Any, W: Tensor, H_0: Tensor, C_0: Tensor, **options: Any) -> Activations:
        """Run them."""
        self.calls.append((*W.shape[:-2], a.shape[-3]))
        return super().forward(a, W, H_0, C_0, **options)

    def backward(
        self, dH: Tensor, dC_T: Tensor, gates: Tensor, C: Tensor, C_0: Tensor, W: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run them back."""
        self.calls.append((*W.shape[:-2], -len(C) if C.dim() == 3 else -C.shape[2]))
        return super().backward(dH, dC_T, gates, C, C_0, W)


def networks(count: int, shape: dict[str, Any], kernel: EagerKernel) -> list[CharLM]:
    """Return networks that differ, each parameter with a gradient of zero; the same ones in every call."""
    found = []
    for number in range(count):
        torch.manual_seed(number)
        made = small_model(**shape)
        other = CharLM(made.config, V, kernel).double()
        other.load_state_dict(made.state_dict())
        for p in other.parameters():
            p.grad = torch.zeros_like(p)
        found.append(other)
    return found


def given(models: list[CharLM], shape: dict[str, Any]) -> tuple[Tensor, list[StackState], list[Dropout | None]]:
    """Return ids (T + 1, B), and of each network a state that is not empty and its dropout."""
    generator = torch.Generator().manual_seed(1)
    states = [
        tuple(LSTMState(*(torch.randn(part.shape, generator=generator).to(part) for part in layer)) for layer in own)
        for own in (model.initial_state(B) for model in models)
    ]
    rates = shape.get("dropout", 0.0), shape.get("weight_dropout", 0.0)
    drops = [Dropout(rates[0], seed, 3, 8, 2, rates[1]) if rates[0] else None for seed in range(len(models))]
    return torch.randint(V, (T + 1, B), generator=generator), states, drops


@pytest.mark.parametrize("segment", [0, 16])
@pytest.mark.parametrize(("count", "abreast"), [(1, 64), (1, 2), (3, 64), (3, 2), (2, 4)])
@each_shape
def test_equals_one_after_another(shape: dict[str, Any], count: int, abreast: int, segment: int) -> None:
    """Losses, gradients and states of some networks are those that each has alone, whatever runs side by side."""
    alone, together = networks(count, shape, EagerKernel()), networks(count, shape, EagerKernel(side_by_side=abreast))
    ids, states, drops = given(alone, shape)

    apart = [
        Backprop(model, B, T, segment)(ids[:-1], ids[1:], state, SCALE, drop)
        for model, state, drop in zip(alone, states, drops, strict=True)
    ]
    backprop = Backprop(ensemble.of(together), B, T, segment)
    for _ in range(2):  # the second time in memory that was used
        for p in itertools.chain.from_iterable(model.parameters() for model in together):
            assert p.grad is not None
            p.grad.zero_()
        nats, last = backprop(ids[:-1], ids[1:], ensemble.joined(states), SCALE, *drops)

    assert float(nats) == pytest.approx(sum(float(found) for found, _ in apart), rel=1e-12)
    for one, other in zip(alone, together, strict=True):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            assert_close(q.grad, p.grad, name, 1e-9)
    for expected, found in zip(ensemble.joined(state for _, state in apart), last, strict=True):
        assert_close(found.hidden, expected.hidden, "hidden", 1e-9)
        assert_close(found.cell, expected.cell, "cell", 1e-9)


@pytest.mark.parametrize(
    ("count", "abreast", "calls"),
    [
        (1, 1, [(24,), (24,), (24,)]),
        (1, 64, [(8,), (1, 2, 8), (1, 3, 8), (1, 2, 8), (8,)]),
        (3, 64, [(3, 1, 8), (3, 2, 8), (3, 3, 8), (3, 2, 8), (3, 1, 8)]),
        (2, 4, [(2, 1, 12), (2, 2, 12), (2, 1, 12), (2, 1, 24)]),
        (3, 2, [(2, 1, 24), (1, 1, 24)] * 3),
    ],
)
def test_what_runs_side_by_side(count: int, abreast: int, calls: list[tuple[int, ...]]) -> None:
    """Three layers and T steps: one call for a wave, with all networks and layers that are at work, and no call beside those."""
    kernel = Counting(abreast)
    models = networks(count, SHAPES[0], kernel)
    ids, states, drops = given(models, SHAPES[0])

    Backprop(ensemble.of(models), B, T)(ids[:-1], ids[1:], ensemble.joined(states), SCALE, *drops)

    assert kernel.calls[: len(calls)] == calls
    assert sorted((*many, -t) for *many, t in kernel.calls[len(calls) :]) == sorted(calls)


@pytest.mark.parametrize("layers", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 16, 30, 64, 97, 100, 128, 256, 1000])
def test_waves(length: int, layers: int) -> None:
    """Each layer reads each step once, after the steps before it and after the layer below has put them out; no wave is empty."""
    band = Band(EagerKernel(side_by_side=64), 1, layers, length, 1, 1, torch.empty(0))
    done = [0] * layers
    waves = band.waves(length)
    for wave in waves:
        before = list(done)
        for layer, start, end in wave:
            assert start == before[layer]
            assert layer == 0 or before[layer - 1] >= end
            done[layer] = end
        assert [part.layer for part in wave] == list(range(wave[0].layer, wave[0].layer + len(wave)))

    c = chunk(length, layers)
    assert done == [length] * layers
    assert len(waves) == length // c + layers - 1
    assert length % c == 0
    assert c == length or (c >= SHORTEST and layers > 1)


def test_a_longer_window_has_longer_chunks() -> None:
    """Chunks grow as the root of the window, and shrink with the layers that wait for each other."""
    assert [chunk(128, layers) for layers in (1, 2, 3)] == [128, 32, 16]
    assert [chunk(length, 2) for length in (64, 128, 512)] == [16, 32, 64]


def test_depth() -> None:
    """As many layers as run side by side for so many networks: at least one, and not more than there are."""
    assert [depth(EagerKernel(side_by_side=8), networks, 3, 1, 1) for networks in (1, 2, 3, 4, 5, 9)] == [3, 3, 2, 2, 1, 1]
    assert depth(EagerKernel(), 1, 3, 1, 1) == 1


def test_diagonal() -> None:
    """A view of each layer's own steps, or of those one later, into the same memory."""
    whole = 1 + torch.arange(2 * 3 * 13 * 2 * 5.0).view(2, 3, 13, 2, 5)
    wave = [Part(1, 8, 12), Part(2, 4, 8)]
    for later in (0, 1):
        expected = torch.stack([whole[:, layer, start + later : end + later] for layer, start, end in wave], dim=1)

        assert torch.equal(diagonal(whole, wave, later), expected)
        assert torch.equal(diagonal(whole[1:], wave, later), expected[1:])
    diagonal(whole, wave).zero_()
    assert int((whole == 0).sum()) == 2 * 2 * 4 * 2 * 5
    assert not whole[:, 2, 4:8].any()


# Whole runs

MANY = {"layers": 3, "dropout": 0.2, "weight_dropout": 0.2, "window": 16, "average": 0.3, "state_dropout": 0.3}


@pytest.fixture
def bench(corpus: Corpus, tmp_path: Path) -> Callable[..., Bench]:
    """Return a maker of runs of three members whose recurrences run side by side."""
    made: list[Bench] = []

    def make(side_by_side: int = 64, **options: Any) -> Bench:
        config: RunConfig = test_trainer.configured(**{**MANY, **options})
        made.append(Bench(corpus, tmp_path / f"run{len(made)}", replace(config, model=replace(config.model, members=3))))
        made[-1].kernel = EagerKernel(side_by_side=side_by_side)
        return made[-1]

    return make


def test_a_run_learns_the_same(bench: Callable[..., Bench]) -> None:
    """Twenty steps of members side by side leave what steps one after another leave, to rounding."""
    one, other = (bench(side_by_side=count).run().last().tensors for count in (1, 64))
    differences = []
    for name, blob in one.items():
        a, b = (torch.frombuffer(bytearray(found.data), dtype=torch.float32) for found in (blob, other[name]))
        differences.append(float((a - b).abs().max()) / (float(a.abs().max()) + 1e-3))

    assert one.keys() == other.keys()
    assert 0 < max(differences) < 1e-3


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"segment": 8}], ids=str)
def test_a_run_resumes(bench: Callable[..., Bench], options: dict[str, Any]) -> None:
    """Stopped and resumed, a run of members side by side ends with the same bits."""
    expected = bench(**options).run().end()

    assert [k for k in (1, 7, 10) if bench(**options).stop_at(k).run(resume=True).end() != expected] == []


@pytest.mark.parametrize("options", [{"steps": 6}, {"steps": 4, "accumulate": 3, "segment": 8}], ids=str)
def test_a_step_is_left_to_the_device(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """On a device all members and layers are one piece of work, which asks nothing of the CPU, and leave the CPU's bits."""
    expected = bench(**options).run().end()
    made: list[Graph] = []

    def graph(run: Any, device: torch.device, record: Any) -> Graph:
        made.append(Graph(run, device, pretend.alone))
        return made[-1]

    monkeypatch.setattr(lstmlm.training.train_step, "Graph", graph)
    run = bench(**options)
    with pretend.device() as run.device:
        run.run()

    assert run.end() == expected
    assert len(made) == 1


def test_a_recorded_run(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded once and replayed, steps of members side by side leave the bits of steps that are called."""
    expected = bench().run().end()
    monkeypatch.setattr(lstmlm.training.train_step, "Graph", lambda run, device, ignored: Graph(run, device, tape.record))

    assert bench().run().end() == expected
