"""The optimizer over flat memory: the same steps as torch's AdamW, and a state that can be put back."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lstmlm.config.run_config import TrainConfig
from lstmlm.kernels.pointwise import TorchPointwise
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.training.optim import Optimizer, learning_rate
from tests.helpers import assert_close, normal, small_model, some_ids

T, B, V = 5, 3, 11


def train_config(**changes: Any) -> TrainConfig:
    """Return a configuration with everything that the optimizer needs."""
    return TrainConfig(**{"lr": 0.1, "warmup": 5, "weight_decay": 0.3, "beta1": 0.9, "final_lr": 0.0, "average": 0.0, **changes})


def backward(model: CharLM, seed: int) -> None:
    """Add the gradient of one window to what is there."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (T + 1, B), generator=generator)
    logits, _ = model(ids[:-1])
    nats(logits, ids[1:]).mean().backward()


def twins(**changes: Any) -> tuple[CharLM, CharLM]:
    """Return two models with the same weights."""
    one, other = small_model(**changes), small_model(**changes)
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_are_adamws(clip: float, dtype: torch.dtype) -> None:
    """Twenty steps at changing rates equal `torch.optim.AdamW` that decays only matrices, after `clip_grad_norm_`."""
    model, rival = twins(dtype=dtype)
    config = train_config(clip=clip)
    optimizer = Optimizer(model, config, TorchPointwise())
    matrices = [p for p in rival.parameters() if p.dim() > 1]
    vectors = [p for p in rival.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        foreach=False,
    )

    for step in range(20):
        rate = learning_rate(config, step, 20)
        optimizer.zero()
        backward(model, step)
        norm = optimizer.gradient_norm()
        optimizer.prepare(rate)
        optimizer.step()

        adam.zero_grad()
        backward(rival, step)
        expected_norm = nn.utils.clip_grad_norm_(rival.parameters(), clip if clip > 0 else math.inf)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-4 if dtype == torch.float32 else 1e-11)

    for (name, p), q in zip(model.named_parameters(), rival.parameters(), strict=True):
        # A float32 weight whose gradient is almost zero moves by a rate of 0.1 in a direction that is all rounding.
        assert_close(p, q, name, 2e-3 if dtype == torch.float32 else 1e-9)


def test_only_matrices_decay() -> None:
    """Without a gradient a step shrinks every matrix by rate times decay, and leaves every vector alone."""
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, train_config(weight_decay=0.5), TorchPointwise())

    optimizer.zero()
    optimizer.prepare(0.1)
    optimizer.step()

    assert {p.dim() for p in model.parameters()} == {1, 2}
    for name, p in model.named_parameters():
        assert_close(p, before[name] * (0.95 if p.dim() > 1 else 1.0), name, 1e-14)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(7), lambda: nn.Linear(6, 7, bias=False)])
def test_modules_with_only_vectors_or_only_matrices(make: Any) -> None:
    """A module without one of the two kinds of parameter trains, saves and restores like any other."""
    module = make().double()
    optimizer = Optimizer(module, train_config(), TorchPointwise())
    before = [p.detach().clone() for p in module.parameters()]

    for p in module.parameters():
        assert p.grad is not None
        p.grad.fill_(2.0)
    norm = optimizer.gradient_norm()
    optimizer.prepare(0.1)
    optimizer.step()
    state = {name: t.clone() for name, t in optimizer.state().items()}
    optimizer.restore(state, 1)

    count = sum(p.numel() for p in module.parameters())
    assert float(norm) == pytest.approx(2 * count**0.5, rel=1e-12)
    assert all(bool((p < q).all()) for p, q in zip(module.parameters(), before, strict=True))
    assert state.keys() == optimizer.state().keys()


def test_taking_over_the_parameters_changes_no_value() -> None:
    """Moving the parameters into flat memory leaves what the model computes as it was, bit for bit."""
    model = small_model()
    ids = some_ids(9)[:, None]
    before = model(ids)[0]

    Optimizer(model, train_config(), TorchPointwise())

    assert torch.equal(model(ids)[0], before)


def test_parameters_and_gradients_stay_views() -> None:
    """Through steps, zeroing, loading weights and restoring, every parameter and gradient keeps its place in memory."""
    model, other = small_model(), small_model()
    optimizer = Optimizer(model, train_config(), TorchPointwise())

    def places() -> list[tuple[int, int]]:
        return [(p.data_ptr(), p.grad.data_ptr()) for p in model.parameters() if p.grad is not None]

    before = places()
    for step in range(3):
        optimizer.zero()
        backward(model, step)
        optimizer.prepare(0.1)
        optimizer.step()
    model.load_state_dict(other.state_dict())
    optimizer.restore(optimizer.state(), 3)

    assert len(before) == len(list(model.parameters()))
    assert places() == before


def test_flat_memory_is_whole() -> None:
    """Matrices lie behind each other, and so do vectors: one pass of the optimizer meets them all. Each begins, as its gradient
    does, at a multiple of 64 bytes, and what lies between two of them stays zero.
    """
    model = small_model()
    optimizer = Optimizer(model, train_config(), TorchPointwise())
    backward(model, 0)
    optimizer.prepare(0.1)
    optimizer.step()

    for dims in (1, 2):
        members = [p for p in model.parameters() if p.dim() == dims]
        for one, following in pairwise(members):
            end = one.data_ptr() + one.numel() * one.element_size()
            assert 0 <= following.data_ptr() - end < 64
        assert {place % 64 for p in members if p.grad is not None for place in (p.data_ptr(), p.grad.data_ptr())} == {0}
    for flat in optimizer._flat:
        between = torch.ones(len(flat.values), dtype=torch.bool)
        for place in flat.places:
            between[place] = False
        assert between.any()
        assert not torch.stack([flat.values, flat.gradient, flat.mean, flat.square])[:, between].any()


def test_gradients_add_up_until_they_are_zeroed() -> None:
    """Two backward passes leave the sum of their gradients, and `zero` leaves none."""
    model, rival = twins()
    optimizer = Optimizer(model, train_config(), TorchPointwise())

    optimizer.zero()
    backward(model, 1)
    backward(model, 2)
    backward(rival, 1)
    backward(rival, 2)

    for (name, p), q in zip(model.named_parameters(), rival.parameters(), strict=True):
        assert_close(p.grad, q.grad, f"gradient of {name}", 1e-14)
    optimizer.zero()
    assert float(optimizer.gradient_norm()) == 0.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float, dims: int) -> None:
    """One bad number anywhere, in a matrix or in a vector, makes the norm not finite."""
    model = small_model()
    optimizer = Optimizer(model, train_config(), TorchPointwise())
    victim = next(p for p in model.parameters() if p.dim() == dims)
    assert victim.grad is not None

    victim.grad.view(-1)[-1] = bad

    assert not math.isfinite(float(optimizer.gradient_norm()))


@pytest.mark.parametrize("at", [0, 7])
def test_ten_steps_equal_some_steps_a_restore_and_the_rest(at: int) -> None:
    """An optimizer restored into a fresh process's memory goes on bit for bit, also from before the first step."""
    model, other = twins(dtype=torch.float32)
    config = train_config()
    optimizer = Optimizer(model, config, TorchPointwise())
    saved: dict[str, Tensor] = {}
    for step in range(10):
        if step == at:
            saved = {name: t.clone() for name, t in optimizer.state().items()}
            other.load_state_dict(model.state_dict())
        optimizer.zero()
        backward(model, step)
        optimizer.prepare(learning_rate(config, step, 10))
        optimizer.step()

    resumed = Optimizer(other, config, TorchPointwise())
    resumed.restore(saved, at)
    for step in range(at, 10):
        resumed.zero()
        backward(other, step)
        resumed.prepare(learning_rate(config, step, 10))
        resumed.step()

    assert resumed.step_count == optimizer.step_count == 10
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    for name, moment in optimizer.state().items():
        assert torch.equal(moment, resumed.state()[name]), name


def test_moments_are_named_and_shaped_like_parameters() -> None:
    """The state holds both moments of every parameter and nothing else, in the parameter's own shape."""
    model = small_model()
    optimizer = Optimizer(model, train_config(), TorchPointwise())

    expected = {f"{m}.{name}": p.shape for name, p in model.named_parameters() for m in ("exp_avg", "exp_avg_sq")}

    assert {name: moment.shape for name, moment in optimizer.state().items()} == expected
    backward(model, 0)
    optimizer.prepare(0.1)
    optimizer.step()
    assert {name: moment.shape for name, moment in optimizer.state().items()} == expected


def test_a_state_is_by_name_alone() -> None:
    """Moments saved by name, wherever they lay in memory then, come back bit for bit, and each parameter moves by its own."""
    model, before = twins()
    config = train_config(clip=0.0)
    saved = {f"{m}.{name}": torch.rand_like(p) for name, p in model.named_parameters() for m in ("exp_avg", "exp_avg_sq")}
    optimizer = Optimizer(model, config, TorchPointwise())
    optimizer.restore(saved, 5)
    found = {name: moment.clone() for name, moment in optimizer.state().items()}

    optimizer.prepare(0.1)
    optimizer.step()

    assert all(torch.equal(moment, saved[name]) for name, moment in found.items())
    for (name, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        mean, square = saved[f"exp_avg.{name}"] * config.beta1, saved[f"exp_avg_sq.{name}"] * config.beta2
        down = mean / (1 - config.beta1**6) / ((square / (1 - config.beta2**6)).sqrt() + config.eps)
        assert_close(p, old * (1 - 0.1 * 0.3 * (p.dim() > 1)) - 0.1 * down, name, 1e-12)


@pytest.mark.parametrize("broken", ["missing", "shape"])
def test_a_state_that_does_not_fit_is_refused(broken: str) -> None:
    """A moment that is missing, or would only fit by being repeated, is an error, and nothing is half restored."""
    model = small_model()
    optimizer = Optimizer(model, train_config(), TorchPointwise())
    backward(model, 0)
    optimizer.prepare(0.1)
    optimizer.step()
    before = {name: t.clone() for name, t in optimizer.state().items()}
    state = {name: normal(*t.shape).abs() for name, t in before.items()}
    last = list(state)[-1]
    if broken == "missing":
        del state[last]
    else:
        state[last] = state[last].reshape(-1)[:1]

    with pytest.raises(KeyError, match=last):
        optimizer.restore(state, 9)

    assert optimizer.step_count == 1
    assert all(torch.equal(t, before[name]) for name, t in optimizer.state().items())


def test_the_rate_rises_then_falls() -> None:
    """Linear to `lr` when the warm-up ends, then linear to `final_lr` of it after the last step."""
    config = train_config(lr=0.6, warmup=5, final_lr=0.1)

    rates = [learning_rate(config, step, 25) for step in range(26)]

    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[5] == pytest.approx(0.6)
    assert rates[15] == pytest.approx((0.6 + 0.06) / 2)
    assert rates[25] == pytest.approx(0.06)
    falls = [one - other for one, other in pairwise(rates[5:])]
    assert falls == pytest.approx([falls[0]] * 20)


def test_the_rate_does_not_know_the_number_of_steps_before_the_warm_up_ends() -> None:
    """Up to and including the first step at full rate, any number of steps gives the same rates."""
    config = train_config(warmup=5)

    for step in range(6):
        assert len({learning_rate(config, step, steps) for steps in (6, 7, 100, 10**9)}) == 1


@pytest.mark.parametrize("warmup", [0, 5, 9])
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_every_step_of_any_run_has_a_rate_above_zero(warmup: int, steps: int) -> None:
    """However short the run and long the warm-up, no step is spent at a rate of zero or above `lr`."""
    config = train_config(warmup=warmup)

    assert all(0 < learning_rate(config, step, steps) <= 0.1 for step in range(steps))
    assert learning_rate(config, steps + 3, steps) >= 0


def test_the_average_looks_back_on_a_share_of_the_steps() -> None:
    """The averages are the weights at first, then move to them by one over that share of the steps so far."""
    model = small_model()
    optimizer = Optimizer(model, train_config(average=0.25), TorchPointwise())
    p = next(model.parameters())
    expected = p.detach().clone()
    for step in range(20):
        backward(model, step)
        optimizer.prepare(0.1)
        optimizer.step()
        expected.lerp_(p.detach(), min(1.0, 1 / (0.25 * (step + 1))))
        own = p.detach().clone()
        with optimizer.averaged():
            assert_close(p, expected, f"average after step {step + 1}")
        assert torch.equal(p, own)
        if step < 4:
            assert torch.equal(expected, own)
    assert not torch.equal(expected, p)


def test_averages_are_put_back() -> None:
    """Ten steps, saved with the averages as the model, and ten more equal twenty: weights and averages."""
    one, other = twins()
    whole, first = (Optimizer(model, train_config(average=0.2), TorchPointwise()) for model in (one, other))
    for step in range(20):
        backward(one, step)
        whole.prepare(0.1)
        whole.step()
    for step in range(10):
        backward(other, step)
        first.prepare(0.1)
        first.step()
    with first.averaged():
        saved = {name: p.detach().clone() for name, p in other.named_parameters()}
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    last = small_model()
    last.load_state_dict(saved)
    resumed = Optimizer(last, train_config(average=0.2), TorchPointwise())
    resumed.restore(state, 10)
    for step in range(10, 20):
        backward(last, step)
        resumed.prepare(0.1)
        resumed.step()

    for p, q in zip(one.parameters(), last.parameters(), strict=True):
        assert torch.equal(p, q)
    with whole.averaged(), resumed.averaged():
        for p, q in zip(one.parameters(), last.parameters(), strict=True):
            assert torch.equal(p, q)
