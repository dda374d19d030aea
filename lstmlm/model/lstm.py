"""A layer of the LSTM and the stack of layers, trained through a kernel; and its weights in another order of gates.

`LSTMLayer` holds U, W, b and M and runs them, for `char_lm`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lstmlm.kernels import Kernel, Multiplied, Rows
from lstmlm.kernels.threads import one_thread
from lstmlm.model.cell import GATES, LSTMState

StackState = tuple[LSTMState, ...]
"""One state for each layer, the first layer first; their widths may differ."""

ZERO_GATE = -1e4  # pre-activation at which a sigmoid is 0 in every floating type

TORCH_ORDER = ("input", "forget", "new", "output")
"""The order of the four blocks in `torch.nn.LSTM`."""


class _Recurrent(torch.autograd.Function):
    """One layer over T steps: products of all steps at once, the kernel in between, the backward pass by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        x: Tensor,
        U: Tensor,
        W: Tensor,
        b: Tensor | None,
        H_0: Tensor,
        C_0: Tensor,
        ends: Tensor | None,
        scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return H (T, B, S) and the last cell state (B, S)."""
        H_0, C_0 = H_0.contiguous(), C_0.contiguous()
        multiplied = multiplying(scale)
        gates, C, H = kernel.forward(input_part(kernel, x, U, ends=ends), W, H_0, C_0, bias=b, multiplied=multiplied)
        ctx.kernel, ctx.ends = kernel, ends
        ctx.save_for_backward(x, U, W, b, H_0, C_0, H, *(multiplied or ()))
        ctx.kept = (gates, C)  # not among the saved tensors: backward writes over them
        return H, C[-1].clone()

    @staticmethod
    @once_differentiable  # the kernels have no second derivative: asking for it is an error, not a wrong number
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of `forward`'s arguments."""
        x, U, W, b, H_0, C_0, H, *scaled = ctx.saved_tensors
        dH, dC_T = grads
        multiplied = Multiplied(scaled[0].clone(), scaled[1]) if scaled else None
        if ctx.kept is None:  # a second backward pass over the same graph: the first one used the activations up
            part = input_part(ctx.kernel, x, U, ends=ctx.ends)
            multiplied = multiplying(multiplied and multiplied.scale)
            gates, C, _ = ctx.kernel.forward(part, W, H_0, C_0, bias=b, multiplied=multiplied)
        else:
            gates, C = ctx.kept
            ctx.kept = None
        da, dH_0, dC_0 = ctx.kernel.backward(dH.contiguous(), dC_T.contiguous(), gates, C, C_0, W, multiplied=multiplied)

        product = ctx.kernel.product
        dscale = None
        if multiplied is not None:
            dW = product(multiplied.m.flatten(0, 1).t(), da.flatten(0, 1))
            dscale = torch.cat([H_0[None], H[:-1]]).mul_(multiplied.scale)  # which is dm now
        else:
            dW = product(H_0.t(), da[0])
            if len(H) > 1:
                product(H[:-1].flatten(0, 1).t(), da[1:].flatten(0, 1), dW, add=True)
        rows = da.view(-1, U.shape[1])
        db = None if b is None else torch.zeros_like(b)
        if x.dim() == 2:
            dx, dU = None, torch.zeros_like(U)
            ctx.kernel.pointwise.scatter(x.reshape(-1), rows, dU, db)
        else:
            dx = product(rows, U.t()).view_as(x) if ctx.needs_input_grad[1] else None
            dU = product(x.reshape(-1, len(U)).t(), rows)
            ctx.kernel.pointwise.scatter(None, rows, None, db)
        return None, dx, dU, dW, db, dH_0, dC_0, None, dscale


class _Affine(torch.autograd.Function):
    """x R^T + r by a kernel's product."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, x: Tensor, R: Tensor, r: Tensor) -> Tensor:
        """Return (..., V)."""
        ctx.kernel = kernel
        ctx.save_for_backward(x, R)
        return kernel.product(x.reshape(-1, x.shape[-1]), R.t()).add_(r).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of `forward`'s arguments."""
        x, R = ctx.saved_tensors
        rows = grads[0].reshape(-1, len(R))
        product = ctx.kernel.product
        return None, product(rows, R).view_as(x), product(rows.t(), x.reshape(len(rows), -1)), rows.sum(0)


class Readout(nn.Linear):
    """A linear readout whose product is the kernel's: the logits of a character have the same bits whatever is beside it.

    Args:
        inputs: S.
        outputs: V.
        kernel: Its strict twin computes them.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Kernel) -> None:
        super().__init__(inputs, outputs)
        self.kernel = kernel.strict

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (..., V), for x, (..., S)."""
        run: Any = _Affine.apply  # torch does not annotate it
        logits: Tensor = run(self.kernel, x, self.weight, self.bias)
        return logits


def input_part(kernel: Kernel, x: Tensor, U: Tensor, out: Tensor | None = None, ends: Tensor | None = None) -> Tensor | Rows:
    """Compute x_t U for all T steps at once; for ids there is nothing to compute.

    Where a document ends, the gates f, i and o are closed: C_t = 0 C_{t-1} + 0 N_t and H_t = 0 tanh(C_t), the empty state, and
    no gradient goes through.

    Args:
        kernel: What computes the product.
        x: Dense inputs (T, B, E), or ids (T, B).
        U: (E, 4S), for ids a row each, those of pairs behind them, or what `with_end` makes of it.
        out: Where a product is written. (T, B, 4S)
        ends: Where a document ends; None: nowhere. (T, B)
    """
    if x.dim() == 2:
        if ends is None:
            return Rows(x.contiguous(), U)
        table = with_end(U)
        return Rows(x.masked_fill(ends, len(table) - 1), table)
    rows = None if out is None else out.view(-1, U.shape[1])
    part = kernel.product(x.reshape(-1, len(U)), U, rows).view(*x.shape[:-1], -1)
    if ends is not None:
        gates = part.view(ends.numel(), -1)[:, : 3 * part.shape[-1] // 4]
        if ends.device.type == "cpu":
            gates.index_fill_(0, ends.flatten().nonzero().flatten(), ZERO_GATE)
        else:  # nobody waits until it is known how many there are
            gates.masked_fill_(ends.flatten()[:, None], ZERO_GATE)
    return part


def multiplying(scale: Tensor | None) -> Multiplied | None:
    """Return a scale (T, B, S), and memory for what it makes; nothing of a layer that has none."""
    return None if scale is None else Multiplied(scale, torch.empty_like(scale))


def with_end(U: Tensor) -> Tensor:
    """Return a table of rows with one more, behind all others, that closes the gates. (R, 4S) -> (R + 1, 4S)"""
    every = torch.ones(1, dtype=torch.bool, device=U.device)
    return torch.cat([U, closed(U.new_zeros(1, U.shape[1]), every)])


def closed(a: Tensor, ends: Tensor) -> Tensor:
    """Return pre-activations (..., 4S) with the gates f, i and o closed where `ends` (...) says so."""
    f, i, o, N = a.chunk(len(GATES), dim=-1)
    return torch.cat([*(gate.masked_fill(ends[..., None], ZERO_GATE) for gate in (f, i, o)), N], dim=-1)


def input_product(kernel: Kernel, x: Tensor, U: Tensor, b: Tensor | None, ends: Tensor | None = None) -> Tensor:
    """Return x_t U + b as a tensor, for ids too: what `input_part` and the bias say, for whoever wants to change it.

    Args:
        kernel: As for `input_part`.
        x: Likewise.
        U: Likewise.
        b: (4S)
        ends: As for `input_part`.

    Returns:
        a: (T, B, 4S)
    """
    part = input_part(kernel, x, U, ends=ends)
    a = part.table[part.ids] if isinstance(part, Rows) else part
    return a if b is None else a.add_(b)


class LSTMLayer(nn.Module):
    """One layer: U, W and b with their gates in `cell.GATES` order; of a multiplicative one M too, a row of S for each id x_t:

        scale_t = 1 + M[x_t]

    U starts uniform within 1/sqrt(E) (a table of rows for ids: normal, deviation 0.5), W orthogonal in each gate's
    block or uniform within 1/sqrt(S), b zero but for the forget gate's (Jozefowicz et al. 2015), M zero.

    Args:
        inputs: E, or V where the inputs are ids.
        width: S.
        kernel: What runs the recurrence.
        bias: False leaves b out, as the article does.
        ids: Whether the inputs are ids.
        forget_bias: Where the forget gate's bias starts. Without `bias` it is not used.
        forget_span: If not 0, these biases of the first units start spread instead: the memory k of a unit, in steps, grows
            geometrically from 2 to this, and b_f = ln(k - 1), so that f = 1 - 1/k; b_i = -b_f, so that what is kept long is
            written little by little. Source: Tallec and Ollivier 2018, who draw k evenly, for all units.
        forget_share: Of the units, those that do.
        orthogonal: How W starts.
        multiplicative: Whether there is M; where the inputs are ids.
        start: False leaves the weights as memory happens to be: others are about to be loaded, and an orthogonal W takes long.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: Kernel,
        *,
        bias: bool = True,
        ids: bool = False,
        forget_bias: float = 1.0,
        forget_span: float = 0.0,
        forget_share: float = 1.0,
        orthogonal: bool = True,
        multiplicative: bool = False,
        start: bool = True,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.width = width
        self.U = nn.Parameter(torch.empty(inputs, 4 * width))
        self.W = nn.Parameter(torch.empty(width, 4 * width))
        self.b = nn.Parameter(torch.zeros(4 * width)) if bias else None
        self.M = nn.Parameter(torch.zeros(inputs, width)) if multiplicative and ids else None
        if not start:
            return
        with torch.no_grad(), one_thread():  # the decomposition that makes a matrix orthogonal has other bits on several
            if ids:
                self.U.normal_(std=0.5)
            else:
                self.U.uniform_(-(inputs**-0.5), inputs**-0.5)
            for block in self.W.split(width, dim=1):
                if orthogonal:
                    block.copy_(nn.init.orthogonal_(torch.empty(width, width)))
                else:
                    block.uniform_(-(width**-0.5), width**-0.5)
            if self.b is not None:
                gates = dict(zip(GATES, self.b.split(width), strict=True))
                gates["forget"].fill_(forget_bias)
                if forget_span:
                    long = int(width * forget_share)
                    spread = (torch.logspace(1, math.log2(max(2.0, forget_span)), long, base=2) - 1).log()
                    gates["forget"][:long] = spread
                    gates["input"][:long] = -spread

    def scale(self, x: Tensor) -> Tensor | None:
        """Return by what each H_{t-1} is multiplied, for ids (T, B): (T, B, S); None where there is no M."""
        return None if self.M is None else functional.embedding(x, self.M) + 1

    def initial_state(self, batch: int) -> LSTMState:
        """Return the empty state: zeros, (B, S) each."""
        return LSTMState(self.W.new_zeros(batch, self.width), self.W.new_zeros(batch, self.width))

    def forward(
        self, x: Tensor, state: LSTMState, W: Tensor | None = None, ends: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run T steps.

        Args:
            x: Dense inputs (T, B, E), or ids (T, B).
            state: State before the first step. (B, S) each
            W: Recurrent weights in place of the layer's own. (S, 4S)
            ends: Steps after which the state is empty; None: none. (T, B)

        Returns:
            H: Hidden state after every step. (T, B, S)
            last: State after step T; gradients flow through both of its parts.
        """
        W = self.W if W is None else W
        if not torch.is_grad_enabled():
            own, hidden, cell = input_part(self.kernel, x, self.U, ends=ends), state.hidden.contiguous(), state.cell.contiguous()
            _, C, H = self.kernel.forward(own, W, hidden, cell, bias=self.b, multiplied=multiplying(self.scale(x)))
            return H, LSTMState(*(steps[-1].clone() if len(steps) > 1 else steps[0] for steps in (H, C)))  # a view keeps them all
        run: Any = _Recurrent.apply  # torch does not annotate it
        H, C_T = run(self.kernel, x, self.U, W, self.b, state.hidden, state.cell, ends, self.scale(x))
        return H, LSTMState(H[-1], C_T)


def to_order(weight: Tensor, order: Sequence[str]) -> Tensor:
    """Return (E, 4S) columns or (4S) biases in `GATES` order as (4S, E) rows or (4S) biases in another, such as `TORCH_ORDER`."""
    blocks = dict(zip(GATES, weight.chunk(4, dim=-1), strict=True))
    moved = torch.cat([blocks[gate] for gate in order], dim=-1)
    return moved.t().contiguous() if moved.dim() == 2 else moved
