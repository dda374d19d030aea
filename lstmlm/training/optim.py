"""Flat parameters, the optimizer over them, its schedule and its clipping.

`Optimizer` is AdamW over two flat tensors of each network, for `members`; `learning_rate` is the schedule.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from lstmlm.config.run_config import TrainConfig
from lstmlm.kernels.pointwise import Adam, Number, Pointwise


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the rate of a step: linear from 0 to `lr` over `warmup` steps, then linear to `final_lr` of it at the end.

    Before the warm-up ends it does not depend on `steps`, so that the number of steps may be decided meanwhile.

    Args:
        config: Its lr and warmup may not be None any more.
        step: Counted from 0.
        steps: Of the whole run.
    """
    assert config.lr is not None
    warmup = config.warmup or 0
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)


ALIGNED = 64
"""Bytes at a multiple of which every parameter begins in the flat memory: a line of the cache, a register of AVX-512."""


class Optimizer:
    """AdamW over two flat tensors: matrices, which decay, and all else, which does not.

    The module's parameters and their gradients become views into flat memory that is allocated once, so that one step
    is one pass over it, and the backward pass adds where the optimizer reads. With `average` the weights that count are a
    moving average over that share of the steps so far (polynomial-decay averaging, Shamir and Zhang 2013).

    Args:
        module: Whose parameters are trained; their order and shapes are the layout.
        config: weight_decay may not be None any more.
        pointwise: What runs the step.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, pointwise: Pointwise) -> None:
        assert config.weight_decay is not None
        self.config = config
        self.step_count = 0
        self._pointwise = pointwise
        self._named = list(module.named_parameters())
        decays = [config.weight_decay, 0.0]
        groups = [[p for _, p in self._named if (p.dim() > 1) == matrices] for matrices in (True, False)]
        like = self._named[0][1].detach()
        self._flat = [_Flat(members, decay, bool(config.average), like) for members, decay in zip(groups, decays, strict=True)]
        # Rate, number of the step and pull of the averages: where numbers are tensors, a graph finds them here.
        self._numbers = like.new_zeros(3) if pointwise.deferred else None
        self._next: tuple[Number, Number, Number] = (0.0, 0, 0.0)

    @property
    def gradients(self) -> list[Tensor]:
        """Return the two flat gradients, matrices first."""
        return [flat.gradient for flat in self._flat]

    def zero(self) -> None:
        """Set every gradient to zero, in place."""
        for gradient in self.gradients:
            gradient.zero_()

    def gradient_norm(self) -> Number:
        """Return the norm of the whole gradient: not finite if any part of it is not."""
        squares = sum(self._pointwise.squared(flat.gradient) for flat in self._flat if flat.gradient.numel())
        return squares.sqrt() if isinstance(squares, Tensor) else math.sqrt(squares)

    def prepare(self, rate: float) -> None:
        """Set the numbers of the next step, for `step` or a graph that has it in it."""
        self.step_count += 1
        average = self.config.average
        pull = min(1.0, 1 / (average * self.step_count)) if average else 1.0
        if self._numbers is None:
            self._next = rate, self.step_count, pull
        else:
            self._numbers.copy_(torch.tensor([rate, self.step_count, pull], dtype=self._numbers.dtype))
            rate_, count, pull_ = self._numbers.unbind()
            self._next = rate_, count, pull_

    def step(self, loss: Number = 0.0) -> tuple[Number, Number]:
        """Take the step that was prepared: scale the gradient to at most `clip`, AdamW, and set the gradient to zero.

        Args:
            loss: Where it or the gradient's norm is not finite, weights, moments and averages stay as they are.

        Returns:
            The norm of the gradient, and whether all weights are finite.
        """
        norm = self.gradient_norm()
        if not isinstance(norm, Tensor) and not math.isfinite(norm + loss):
            return norm, True
        c = self.config
        scale: Number = 1.0
        if c.clip > 0:
            scale = c.clip / (norm + 1e-6)
            scale = scale.clamp(max=1.0) if isinstance(scale, Tensor) else min(1.0, scale)
        skip: Number = 0
        if isinstance(norm, Tensor):
            skip = 1 - torch.isfinite(norm + loss).float()
        rate, count, pull = self._next
        found: list[Number] = []
        for flat in self._flat:
            if flat.values.numel():
                step = Adam(rate, c.beta1, c.beta2, c.eps, flat.decay, count, scale, pull, skip)
                found.append(self._pointwise.adam(flat.values, flat.gradient, flat.mean, flat.square, flat.average, step))
        if self._pointwise.deferred:
            return norm, torch.stack([one for one in found if isinstance(one, Tensor)]).all()
        return norm, all(found)

    def state(self) -> dict[str, Tensor]:
        """Return what belongs to every parameter, by name: `exp_avg.<name>`, `exp_avg_sq.<name>`, and `weights.<name>` where the
        averages are the model.
        """
        return {f"{moment}.{name}": tensor for moment, name, tensor in self._moments()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages in the place of the weights meanwhile: they are what the run is for."""
        pairs = [(flat.values, flat.average) for flat in self._flat if flat.average is not None]
        kept = [values.clone() for values, _ in pairs]
        for values, average in pairs:
            values.copy_(average)
        try:
            yield
        finally:
            for (values, _), own in zip(pairs, kept, strict=True):
                values.copy_(own)

    def begin_averages(self) -> None:
        """Let the averages, if any, begin with the weights as they are: those that a run starts from have been put there."""
        for flat in self._flat:
            if flat.average is not None:
                flat.average.copy_(flat.values)

    def restore(self, state: dict[str, Tensor], step_count: int) -> None:
        """Put back what `state` returned after `step_count` steps; a gradient that is there is forgotten.

        The averages, if any, are taken from the module's parameters: `averaged` was how they were saved.

        Raises:
            KeyError: A moment is missing or has another shape than its parameter.
        """
        for moment, name, tensor in self._moments():
            if (found := state[f"{moment}.{name}"]).shape != tensor.shape:
                raise KeyError(f"{moment}.{name}: expected {tuple(tensor.shape)}, found {tuple(found.shape)}")
        self.step_count = step_count
        self.begin_averages()
        for moment, name, tensor in self._moments():
            tensor.copy_(state[f"{moment}.{name}"])
        self.zero()

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        places = [iter(flat.places) for flat in self._flat]
        for name, p in self._named:
            which = 0 if p.dim() > 1 else 1
            flat, place = self._flat[which], next(places[which])
            for moment, whole in (("exp_avg", flat.mean), ("exp_avg_sq", flat.square), ("weights", flat.values)):
                if moment != "weights" or flat.average is not None:
                    yield moment, name, whole[place].view(p.shape)


class _Flat:
    """Parameters moved into one flat tensor, their gradients into another, each a view; the two moments and the average.

    What lies between two parameters is zero and stays zero.
    """

    def __init__(self, members: list[nn.Parameter], decay: float, average: bool, like: Tensor) -> None:
        self.decay = decay
        unit = ALIGNED // like.element_size()
        starts = [0, *accumulate(-(-p.numel() // unit) * unit for p in members)]
        self.places = [slice(start, start + p.numel()) for start, p in zip(starts, members, strict=False)]
        self.values, self.gradient, self.mean, self.square = (like.new_zeros(starts[-1]) for _ in range(4))
        for place, p in zip(self.places, members, strict=True):
            self.values[place] = p.detach().reshape(-1)
            p.data, p.grad = self.values[place].view(p.shape), self.gradient[place].view(p.shape)
        self.average = self.values.clone() if average else None
