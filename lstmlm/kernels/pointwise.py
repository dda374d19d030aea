"""What lies around the recurrence and is no product: norm, dropout, residual, loss, table rows, AdamW; here by torch.

`Pointwise` is the interface, each function one pass over its tensors in the end; `TorchPointwise` is the reference that the
others are tested against. Backprop and the optimizer call them through their kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lstmlm.kernels.dropout import Dropout

Number: TypeAlias = float | Tensor
"""A number, or a tensor without dimensions that holds it, which nobody has waited for."""

EPS = 1e-5
"""Added to the variance under the root by the layer norm, as torch does."""


_fused_adamw = torch.ops.aten._fused_adamw_.tensor_lr  # one pass; does nothing where found_inf is 1


@contextmanager
def tf32(fast: bool) -> Iterator[None]:
    """Let products round to TF32 meanwhile, or leave them as they are: torch knows no other way than one switch for all."""
    if not fast:
        yield
        return
    switch = torch.backends.cuda.matmul
    name, on = ("fp32_precision", "tf32") if hasattr(switch, "fp32_precision") else ("allow_tf32", True)  # torch before 2.9
    before = getattr(switch, name)
    setattr(switch, name, on)
    try:
        yield
    finally:
        setattr(switch, name, before)


class Norm(NamedTuple):
    """A layer norm's weights and where their gradients are added. (S) each"""

    gamma: Tensor
    beta: Tensor
    dgamma: Tensor
    dbeta: Tensor


class Taught(NamedTuple):
    """What a teacher expects, and how much of the loss that is (Hinton et al. 2015, at temperature 1).

    probabilities: Of each next character. (N, V)
    weight: From 0 to 1; the rest is for the character that came.
    """

    probabilities: Tensor
    weight: float


class Adam(NamedTuple):
    """Numbers of one AdamW step (Loshchilov and Hutter 2019).

    step: Counted from 1.
    scale: What the gradient is multiplied by first, for clipping.
    pull: How far the average of the weights moves to the new ones, from 0 to 1.
    skip: 1 where nothing is to change but the gradient, which becomes zero; 0 elsewhere.
    """

    rate: Number
    beta1: float
    beta2: float
    eps: float
    decay: float
    step: Number
    scale: Number
    pull: Number
    skip: Number = 0


class Pointwise(Protocol):
    """Every way to compute has these functions; all tensors are contiguous and of one floating type.

    deferred: Whether numbers come as tensors and may be given as such, so that a whole step waits for none: on a device that
        works through what it is given, each wait costs more than most of what it waits for.
    """

    @property
    def deferred(self) -> bool:
        """See above."""

    def norm_dropout_residual(
        self, y: Tensor, x: Tensor | None, norm: Norm | None, drop: Dropout | None, layer: int, out: Tensor, stats: Tensor
    ) -> None:
        """Compute out = dropout(norm(y)) + x.

        Args:
            y: Output of a layer. (T, B, S)
            x: Its input, for a residual. (T, B, S)
            norm: Its layer norm.
            drop: The step's dropout.
            layer: Its number, which is part of what dropout draws from.
            out: Written. (T, B, S)
            stats: Written if there is a norm: mean and 1 / deviation of every row, for the backward pass. (T, B, 2)
        """

    def norm_dropout_residual_backward(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """Compute the gradient of y from dx, that of what `norm_dropout_residual` put out; the norm's gradients are added to.

        Args:
            dx: (T, B, S)
            y: As `norm_dropout_residual` took it.
            norm: Likewise.
            drop: Likewise.
            layer: Likewise.
            dy: Written; other memory than dx. (T, B, S)
            stats: As `norm_dropout_residual` wrote it.
        """

    def loss(
        self,
        logits: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        dbias: Tensor | None,
        taught: Taught | None = None,
    ) -> Number:
        """Return the sum of minus the log probabilities of the targets, in nats.

        With a teacher that expects q, the gradient is that of (1 - weight) x this sum + weight x KL(q || p), summed:

            dlogits = scale (p - (1 - weight) onehot(target) - weight q)

        Args:
            logits: Without `bias`. They become the gradient of scale x the sum. (N, V)
            bias: Added to each row. (V)
            targets: int64. (N)
            scale: Of the gradient.
            dbias: Added to. (V)
            taught: What a teacher expects; None: there is none.
        """

    def scatter(self, ids: Tensor | None, da: Tensor, dU: Tensor | None, db: Tensor | None) -> None:
        """Add each row of da to the row of dU that its id names, and to db.

        Args:
            ids: int64; None leaves dU alone. (N)
            da: (N, K)
            dU: (V, K)
            db: None: the rows are not added up. (K)
        """

    def squared(self, gradient: Tensor) -> Number:
        """Return the sum of the squares of a flat gradient."""

    def adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, average: Tensor | None, step: Adam) -> Number:
        """Take one step of AdamW over flat tensors, set the gradient to zero, and say whether all weights are finite now.

        Args:
            weights: (n)
            gradient: (n)
            mean: Of the gradient, moving. (n)
            square: Of its square. (n)
            average: Of the weights; None: there is none. (n)
            step: Its numbers.
        """


class TorchPointwise:
    """See `Pointwise`: by torch's own functions, on any device, none of which adds in an order of its own each time.

    Args:
        fast: Whether the product that adds table rows up may round its factors on a CUDA device; see `tf32`.
    """

    deferred = True

    def __init__(self, *, fast: bool = False) -> None:
        self._fast = fast

    def norm_dropout_residual(
        self, y: Tensor, x: Tensor | None, norm: Norm | None, drop: Dropout | None, layer: int, out: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual`."""
        z = y
        if norm is not None:
            z, mean, rstd = torch.native_layer_norm(y, y.shape[-1:], norm.gamma, norm.beta, EPS)
            torch.cat([mean, rstd], dim=-1, out=stats)
        if drop is not None:
            z = z * drop.mask(layer, z)
        torch.add(z, 0 if x is None else x, out=out)

    def norm_dropout_residual_backward(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual_backward`."""
        d = dx if drop is None else dx * drop.mask(layer, dx)
        if norm is None:
            dy.copy_(d)
            return
        mean, rstd = (part.contiguous() for part in stats.split(1, dim=-1))  # torch reads them as if they were
        backward = torch.ops.aten.native_layer_norm_backward
        dz, dgamma, dbeta = backward(d, y, y.shape[-1:], mean, rstd, norm.gamma, norm.beta, [True, True, True])
        dy.copy_(dz)
        norm.dgamma.add_(dgamma)
        norm.dbeta.add_(dbeta)

    def loss(
        self,
        logits: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        dbias: Tensor | None,
        taught: Taught | None = None,
    ) -> Tensor:
        """See `Pointwise.loss`."""
        if bias is not None:
            logits.add_(bias)
        log_p = functional.log_softmax(logits, dim=1)
        nats: Tensor = -log_p.gather(1, targets[:, None]).sum(dtype=torch.float64)
        torch.exp(log_p, out=logits)
        share = 1.0
        if taught is not None:
            logits.sub_(taught.probabilities, alpha=taught.weight)
            share -= taught.weight
        # Each row adds to one place of its own: there is no order that could differ.
        logits.scatter_add_(1, targets[:, None], torch.full_like(logits[:, :1], -share)).mul_(scale)
        if dbias is not None:
            dbias.add_(logits.sum(0))
        return nats

    def scatter(self, ids: Tensor | None, da: Tensor, dU: Tensor | None, db: Tensor | None) -> None:
        """See `Pointwise.scatter`."""
        if ids is not None and dU is not None:
            # A product with one-hot rows, and not index_add_: that adds by atomics on CUDA, in no order.
            one_hot = ids[:, None] == torch.arange(len(dU), device=ids.device)
            with tf32(self._fast):
                dU.addmm_(one_hot.to(da.dtype).t(), da)
        if db is not None:
            db.add_(da.sum(0))

    def squared(self, gradient: Tensor) -> Tensor:
        """See `Pointwise.squared`."""
        squared: Tensor = torch.linalg.vector_norm(gradient).double().square()
        return squared

    def adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, average: Tensor | None, step: Adam) -> Tensor:
        """See `Pointwise.adam`."""
        numbers = (
            number if isinstance(number, Tensor) else weights.new_tensor(number) for number in (step.rate, step.step, step.pull)
        )
        rate, count, pull = numbers
        skip = torch.as_tensor(step.skip, dtype=torch.float32, device=weights.device)
        gradient.mul_(step.scale)
        _fused_adamw(
            [weights],
            [gradient],
            [mean],
            [square],
            [],
            [count],
            lr=rate,
            beta1=step.beta1,
            beta2=step.beta2,
            weight_decay=step.decay,
            eps=step.eps,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        gradient.zero_()
        if average is not None:
            average.lerp_(weights, pull * (1 - skip).to(pull.dtype))
        finite: Tensor = torch.isfinite(weights.sum())
        return finite
