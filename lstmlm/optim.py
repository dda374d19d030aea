"""Flat parameters, the optimizer over them, its schedule and its clipping.

It knows tensors and steps. It does not know the model's layers, texts or files.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lstmlm.config import TrainConfig


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


class Optimizer:
    """AdamW over two flat tensors: matrices, which decay, and all else, which does not.

    The module's parameters and their gradients become views into flat memory that is allocated once, so that one step
    is one pass over it, and the backward pass adds where the optimizer reads.

    Args:
        module: Whose parameters are trained; their order and shapes are the layout.
        config: weight_decay may not be None any more.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        assert config.weight_decay is not None
        self.config = config
        self.step_count = 0
        self._named = list(module.named_parameters())
        self._flat = [_flatten([p for _, p in self._named if (p.dim() > 1) == decays]) for decays in (True, False)]
        decay = [config.weight_decay, 0.0]
        groups: list[dict[str, Any]] = [
            {"params": [flat], "weight_decay": w} for flat, w in zip(self._flat, decay, strict=True) if flat.numel()
        ]
        self._adam = torch.optim.AdamW(
            groups,
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    def zero(self) -> None:
        """Set every gradient to zero, in place."""
        for flat in self._flat:
            assert flat.grad is not None
            flat.grad.zero_()

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient, (): not finite if any part of it is not."""
        grads = [flat.grad for flat in self._flat if flat.grad is not None and flat.numel()]
        norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        return norm

    def update(self, rate: float, norm: Tensor) -> None:
        """Scale the gradient to at most `clip` and take one step of AdamW.

        Args:
            rate: Learning rate of this step.
            norm: What `gradient_norm` returned.
        """
        if self.config.clip > 0:
            scale = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
            for flat in self._flat:
                assert flat.grad is not None
                flat.grad.mul_(scale)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self.step_count += 1

    def state(self) -> dict[str, Tensor]:
        """Return both moments of every parameter by name: `exp_avg.<name>`, `exp_avg_sq.<name>`."""
        return {f"{moment}.{name}": tensor for moment, name, tensor in self._moments()}

    def restore(self, state: dict[str, Tensor], step_count: int) -> None:
        """Put back what `state` returned after `step_count` steps.

        Raises:
            KeyError: A moment is missing or has another shape than its parameter.
        """
        for moment, name, tensor in self._moments():
            if (found := state[f"{moment}.{name}"]).shape != tensor.shape:
                raise KeyError(f"{moment}.{name}: expected {tuple(tensor.shape)}, found {tuple(found.shape)}")
        self.step_count = step_count
        for flat in self._flat:
            if flat.numel():
                self._adam.state[flat] = {
                    "step": torch.tensor(float(step_count), dtype=torch.float32, device=flat.device),
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }
        for moment, name, tensor in self._moments():
            tensor.copy_(state[f"{moment}.{name}"])

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        offsets = [0, 0]
        for name, p in self._named:
            which = 0 if p.dim() > 1 else 1
            start, offsets[which] = offsets[which], offsets[which] + p.numel()
            kept = self._adam.state.get(self._flat[which], {})
            for moment in ("exp_avg", "exp_avg_sq"):
                whole = kept[moment] if moment in kept else torch.zeros_like(self._flat[which])
                yield moment, name, whole[start : offsets[which]].view(p.shape)


def _flatten(members: list[nn.Parameter]) -> nn.Parameter:
    """Move the parameters into one flat tensor, and their gradients into another; each becomes a view."""
    values = torch.cat([p.detach().reshape(-1) for p in members]) if members else torch.empty(0)
    flat = nn.Parameter(values)
    flat.grad = torch.zeros_like(values)
    start = 0
    for p in members:
        end = start + p.numel()
        p.data = values[start:end].view(p.shape)
        p.grad = flat.grad[start:end].view(p.shape)
        start = end
    return flat
