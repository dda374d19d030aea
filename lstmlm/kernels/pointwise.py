"""What lies around the recurrence and is no product: norm, dropout, residual, loss, table rows, AdamW; here by torch.

It knows tensors, each function one pass over them in the end. It does not know layers, models, schedules or texts.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adamw import adamw

from lstmlm.dropout import Dropout

EPS = 1e-5
"""Added to the variance under the root by the layer norm, as torch does."""


class Norm(NamedTuple):
    """A layer norm's weights and where their gradients are added. (S) each"""

    gamma: Tensor
    beta: Tensor
    dgamma: Tensor
    dbeta: Tensor


class Adam(NamedTuple):
    """Numbers of one AdamW step (Loshchilov and Hutter 2019).

    step: Counted from 1.
    scale: What the gradient is multiplied by first, for clipping.
    pull: How far the average of the weights moves to the new ones, from 0 to 1.
    """

    rate: float
    beta1: float
    beta2: float
    eps: float
    decay: float
    step: int
    scale: float
    pull: float


class Pointwise(Protocol):
    """Every way to compute has these functions; all tensors are contiguous and of one floating type."""

    def dress(
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
            stats: Written where there is a norm: mean and 1 / deviation of every row, for `undress`. (T, B, 2)
        """

    def undress(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """Compute the gradient of y from dx, that of what `dress` put out; the norm's gradients are added to.

        Args:
            dx: (T, B, S)
            y: As `dress` took it.
            norm: Likewise.
            drop: Likewise.
            layer: Likewise.
            dy: Written; other memory than dx. (T, B, S)
            stats: As `dress` wrote it.
        """

    def loss(self, logits: Tensor, bias: Tensor | None, targets: Tensor, scale: float, dbias: Tensor | None) -> float:
        """Return the sum of minus the log probabilities of the targets, in nats.

        Args:
            logits: Without `bias`. They become the gradient of scale x the sum. (N, V)
            bias: Added to each row. (V)
            targets: int64. (N)
            scale: Of the gradient.
            dbias: Added to. (V)
        """

    def scatter(self, ids: Tensor | None, da: Tensor, dU: Tensor | None, db: Tensor | None) -> None:
        """Add each row of da to the row of dU that its id names, and to db.

        Args:
            ids: int64; None leaves dU alone. (N)
            da: (N, 4S)
            dU: (V, 4S)
            db: (4S)
        """

    def squared(self, gradient: Tensor) -> float:
        """Return the sum of the squares of a flat gradient."""

    def adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, average: Tensor | None, step: Adam) -> bool:
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
    """See `Pointwise`: by torch's own functions, on any device."""

    def dress(
        self, y: Tensor, x: Tensor | None, norm: Norm | None, drop: Dropout | None, layer: int, out: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.dress`."""
        z = y
        if norm is not None:
            z, mean, rstd = torch.native_layer_norm(y, y.shape[-1:], norm.gamma, norm.beta, EPS)
            torch.cat([mean, rstd], dim=-1, out=stats)
        if drop is not None:
            z = z * drop.mask(layer, z)
        torch.add(z, 0 if x is None else x, out=out)

    def undress(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.undress`."""
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

    def loss(self, logits: Tensor, bias: Tensor | None, targets: Tensor, scale: float, dbias: Tensor | None) -> float:
        """See `Pointwise.loss`."""
        if bias is not None:
            logits.add_(bias)
        log_p = functional.log_softmax(logits, dim=1)
        nats = -log_p.gather(1, targets[:, None]).sum(dtype=torch.float64)
        torch.exp(log_p, out=logits)
        logits.scatter_add_(1, targets[:, None], torch.full_like(logits[:, :1], -1.0)).mul_(scale)
        if dbias is not None:
            dbias.add_(logits.sum(0))
        return float(nats)

    def scatter(self, ids: Tensor | None, da: Tensor, dU: Tensor | None, db: Tensor | None) -> None:
        """See `Pointwise.scatter`."""
        if ids is not None and dU is not None:
            # A product with one-hot rows, and not index_add_: that adds by atomics on CUDA, in no order.
            one_hot = ids[:, None] == torch.arange(len(dU), device=ids.device)
            dU.addmm_(one_hot.to(da.dtype).t(), da)
        if db is not None:
            db.add_(da.sum(0))

    def squared(self, gradient: Tensor) -> float:
        """See `Pointwise.squared`."""
        return float(torch.linalg.vector_norm(gradient)) ** 2

    def adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, average: Tensor | None, step: Adam) -> bool:
        """See `Pointwise.adam`."""
        gradient.mul_(step.scale)
        adamw(
            [weights],
            [gradient],
            [mean],
            [square],
            [],
            [torch.tensor(float(step.step - 1), device=weights.device)],
            fused=True,
            amsgrad=False,
            beta1=step.beta1,
            beta2=step.beta2,
            lr=step.rate,
            weight_decay=step.decay,
            eps=step.eps,
            maximize=False,
        )
        gradient.zero_()
        if average is not None:
            average.lerp_(weights, step.pull)
        return bool(torch.isfinite(weights.sum()))
