"""A window's gradient by hand equals the one that autograd finds through the model's own forward pass."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import lstmlm.training.backprop
from lstmlm.kernels import Kernel, native
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.pointwise import Taught
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, StackState, nats
from lstmlm.training.backprop import Backprop
from tests.helpers import assert_close, small_model

V, T, B, SCALE = 11, 9, 5, 0.25
SHAPES = [
    {
        "readout": readout,
        "layers": layers,
        "layer_norm": norm,
        "residual": residual,
        "dropout": dropout,
        "bias": bias,
        "weight_dropout": dropout * bias,
    }
    for readout, layers, norm, residual, dropout, bias in itertools.product(
        ("linear", "direct"), (1, 3), (True, False), (True, False), (0.0, 0.3), (True, False)
    )
] + [{"pairs": 20, "layers": layers, "dropout": 0.3, "weight_dropout": 0.3} for layers in (1, 2)]


def window(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return ids and targets. (T, B) each"""
    ids = torch.randint(V, (T + 1, B), generator=torch.Generator().manual_seed(seed))
    return ids[:-1], ids[1:]


def some_state(model: CharLM) -> StackState:
    """Return a state that is not empty."""
    generator = torch.Generator().manual_seed(2)
    return tuple(
        LSTMState(*(torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in layer))
        for layer in model.initial_state(B)
    )


def prepared(model: CharLM, kernel: Kernel, dtype: torch.dtype) -> CharLM:
    """Return a copy of a model with another kernel and type, each parameter with a gradient of zero."""
    other = CharLM(model.config, V, kernel).to(dtype)
    other.load_state_dict(model.state_dict())
    for p in other.parameters():
        p.grad = torch.zeros_like(p)
    return other


def dropout_of(shape: dict[str, Any]) -> Dropout | None:
    """Return a step's dropout, for the middle streams of a larger batch."""
    return Dropout(shape["dropout"], 7, 3, streams=8, first=2, weights=shape["weight_dropout"]) if shape["dropout"] else None


@pytest.mark.parametrize("readout", ["linear", "direct"])
@pytest.mark.parametrize("segment", [0, 4])
def test_a_large_vocabulary_is_read_out_in_pieces(monkeypatch: pytest.MonkeyPatch, readout: str, segment: int) -> None:
    """However many scores a window has, no more than so many are there at once, and the gradient is the same."""
    found = []
    for scores in (7 * V, T * B * V):
        monkeypatch.setattr(lstmlm.training.backprop, "SCORES", scores)
        torch.manual_seed(0)
        model = prepared(small_model(readout=readout), EagerKernel(), torch.float64)
        backprop = Backprop(model, B, T, segment)
        assert backprop._logits.numel() <= scores
        nats_, _ = backprop(*window(), some_state(model), SCALE, None)
        found.append((float(nats_), [p.grad for p in model.parameters()]))

    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert_close(one, other, "gradient")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(str(v) for v in shape.values()))
def test_equals_autograd(shape: dict[str, Any]) -> None:
    """In float64 loss, gradients and last state are autograd's, for every combination of the model's options."""
    model = small_model(**shape)
    drop, before = dropout_of(shape), some_state(model)
    ids, targets = window()
    logits, last = model(ids, before, drop)
    loss = nats(logits, targets).sum()
    (SCALE * loss).backward()

    by_hand = prepared(model, EagerKernel(), torch.float64)
    found, after = Backprop(by_hand, B, T)(ids, targets, before, SCALE, drop)

    assert found == pytest.approx(float(loss.detach()), rel=1e-12)
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert_close(q.grad, p.grad, name, 1e-9)
    for one, other in zip(after, last, strict=True):
        assert_close(one.hidden, other.hidden, "hidden", 1e-9)
        assert_close(one.cell, other.cell, "cell", 1e-9)


@pytest.mark.parametrize("segment", [0, 4])
@pytest.mark.parametrize("readout", ["linear", "direct"])
@pytest.mark.parametrize("scores", [7 * V, T * B * V])
def test_a_teacher_equals_autograd(monkeypatch: pytest.MonkeyPatch, scores: int, readout: str, segment: int) -> None:
    """With a teacher the gradient is that of (1 - a) x the nats + a KL(teacher || network), and what is reported the nats."""
    monkeypatch.setattr(lstmlm.training.backprop, "SCORES", scores)
    model, weight = small_model(readout=readout), 0.3
    (ids, targets), before = window(), some_state(model)
    expects = torch.randn(T, B, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64).softmax(-1)
    logits, _ = model(ids, before)
    plain = nats(logits, targets).sum()
    apart = functional.kl_div(logits.log_softmax(-1), expects, reduction="sum")
    (SCALE * ((1 - weight) * plain + weight * apart)).backward()

    by_hand = prepared(model, EagerKernel(), torch.float64)
    found, _ = Backprop(by_hand, B, T, segment)(ids, targets, before, SCALE, None, taught=Taught(expects, weight))

    assert found == pytest.approx(float(plain.detach()), rel=1e-12)
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert_close(q.grad, p.grad, name, 1e-9)


@pytest.mark.parametrize("readout", ["linear", "direct"])
@pytest.mark.parametrize("segment", [0, 4])
def test_logits_and_a_shorter_window(readout: str, segment: int) -> None:
    """Where they are asked for the logits are written, of windows of any length up to T, whose gradient is autograd's."""
    model = small_model(readout=readout)
    by_hand = prepared(model, EagerKernel(), torch.float64)
    backprop = Backprop(by_hand, B, T, segment)
    before = some_state(model)
    for steps in (T, T - 3, 1) if not segment else (T,):
        ids, targets = (x[:steps] for x in window())
        expected, _ = model(ids, before)
        found = torch.empty(steps * B, V, dtype=torch.float64)
        for p in by_hand.parameters():
            assert p.grad is not None
            p.grad.zero_()
        backprop(ids, targets, before, SCALE, logits=found)
        gradient = torch.autograd.grad(SCALE * nats(expected, targets).sum(), list(model.parameters()))

        assert_close(found.view(expected.shape), expected.detach(), "logits", 1e-9)
        for p, g in zip(by_hand.parameters(), gradient, strict=True):
            assert p.grad is not None
            assert_close(p.grad, g, "gradient", 1e-9)


# By what a product rounds to: how near the loss is, and the cosine between two gradients of the first of three narrow layers.
AGREES = {"float32": (3e-5, 1 - 1e-9), "float16": (3e-2, 0.999), "bfloat16": (3e-2, 0.97)}


@pytest.mark.parametrize("shape", SHAPES[::5], ids=lambda shape: "-".join(str(v) for v in shape.values()))
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_native_equals_eager(shape: dict[str, Any], precision: str) -> None:
    """The C code gives eager's loss and gradients, to the rounding of its products."""
    try:
        kernel = native.load(precision)
    except native.Unavailable as error:
        pytest.skip(str(error))
    within, cosine = AGREES[kernel.name.split()[1]]
    model = small_model(hidden=37, **shape)
    slow, fast = prepared(model, EagerKernel(), torch.float64), prepared(model, kernel, torch.float32)
    drop, (ids, targets) = dropout_of(shape), window()

    expected, _ = Backprop(slow, B, T)(ids, targets, some_state(slow), SCALE, drop)
    found, _ = Backprop(fast, B, T)(ids, targets, some_state(fast), SCALE, drop)

    assert found == pytest.approx(float(expected), rel=within)
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert float(functional.cosine_similarity(p.grad.flatten(), q.grad.double().flatten(), dim=0)) > cosine, name


@pytest.mark.parametrize("segment", [1, 4, 8, 20])
@pytest.mark.parametrize("shape", SHAPES[::3], ids=lambda shape: "-".join(str(v) for v in shape.values()))
def test_segments_change_nothing(shape: dict[str, Any], segment: int) -> None:
    """What is computed again instead of kept gives the same loss, gradients and state."""
    model = small_model(**shape)
    whole, parts = prepared(model, EagerKernel(), torch.float64), prepared(model, EagerKernel(), torch.float64)
    drop, (ids, targets), before = dropout_of(shape), window(), some_state(model)

    expected, last = Backprop(whole, B, T)(ids, targets, before, SCALE, drop)
    found, after = Backprop(parts, B, T, segment)(ids, targets, before, SCALE, drop)

    assert found == pytest.approx(float(expected), rel=1e-12)
    for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert_close(q.grad, p.grad, name, 1e-9)
    for one, other in zip(after, last, strict=True):
        assert_close(one.hidden, other.hidden, "hidden", 1e-9)
        assert_close(one.cell, other.cell, "cell", 1e-9)


@pytest.mark.parametrize(("chunks", "segment"), [(4, 0), (20, 0), (2, 18)])
@pytest.mark.parametrize("shape", SHAPES[::3], ids=lambda shape: "-".join(str(v) for v in shape.values()))
def test_chunks_change_nothing(shape: dict[str, Any], chunks: int, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that follow one another by a chunk of time give the same loss, gradients and state."""
    monkeypatch.setattr(lstmlm.training.backprop, "SHORTEST", 2)
    model = small_model(**shape)
    whole, parts = prepared(model, EagerKernel(), torch.float64), prepared(model, EagerKernel(), torch.float64)
    drop, before = dropout_of(shape), some_state(model)
    ids = torch.randint(V, (2 * T + 1, B))

    expected, last = Backprop(whole, B, 2 * T)(ids[:-1], ids[1:], before, SCALE, drop)
    found, after = Backprop(parts, B, 2 * T, segment, chunks)(ids[:-1], ids[1:], before, SCALE, drop)

    assert found == pytest.approx(float(expected), rel=1e-12)
    for (name, p), q in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert_close(q[1].grad, p.grad, name, 1e-9)
    for one, other in zip(after, last, strict=True):
        assert_close(one.hidden, other.hidden, "hidden", 1e-9)
        assert_close(one.cell, other.cell, "cell", 1e-9)


def test_windows_do_not_disturb_each_other() -> None:
    """The memory that is used again keeps nothing: a window after others gives the bits it gives alone."""
    model = small_model(layers=2, dropout=0.3)
    used, fresh = prepared(model, EagerKernel(), torch.float64), prepared(model, EagerKernel(), torch.float64)
    drop = Dropout(0.3, seed=7, step=3, streams=B)
    backprop = Backprop(used, B, T)
    state = some_state(model)
    for seed in (5, 6):
        _, state = backprop(*window(seed), state, SCALE, drop)
    for p in used.parameters():
        assert p.grad is not None
        p.grad.zero_()

    one, after = backprop(*window(), some_state(model), SCALE, drop)
    other, again = Backprop(fresh, B, T)(*window(), some_state(model), SCALE, drop)

    assert one == other
    for p, q in zip(used.parameters(), fresh.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
    assert all(torch.equal(a, b) for one_, two in zip(after, again, strict=True) for a, b in zip(one_, two, strict=True))


def test_gradients_are_added() -> None:
    """Two windows add their gradients up, and a state that was returned is not written to by the next window."""
    model = prepared(small_model(layers=2), EagerKernel(), torch.float64)
    backprop = Backprop(model, B, T)
    ids, targets = window()

    _, kept = backprop(ids, targets, some_state(model), SCALE)
    copy = [part.clone() for layer in kept for part in layer]
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    backprop(ids, targets, some_state(model), SCALE)

    for p, gradient in zip(model.parameters(), once, strict=True):
        assert p.grad is not None
        assert_close(p.grad, 2 * gradient, "gradient", 1e-9)
    backprop(*window(9), kept, SCALE)
    assert all(torch.equal(a, b) for a, b in zip(copy, (part for layer in kept for part in layer), strict=True))
