"""The LSTM recurrence over T time steps, forward and backward by hand; one module for each way to compute it.

`choose` returns the fastest that works here. Every kernel has the signature of `Kernel`; `eager` is the one that runs
anywhere, and the one that the others are compared with before they are used. Importing it imports no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lstmlm.errors import UsageError, printable
from lstmlm.kernels import build
from lstmlm.kernels.build import Unavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lstmlm.kernels.pointwise import Pointwise


class Activations(NamedTuple):
    """What the forward pass keeps for the backward pass, and nothing else: 6 TBS values.

    gates: f, i, o, N after their activation, in `cell.GATES` order. (T, B, 4S)
    C:     Cell state after every step. (T, B, S)
    H:     Hidden state after every step. (T, B, S)
    """

    gates: Tensor
    C: Tensor
    H: Tensor


class Multiplied(NamedTuple):
    """What a multiplicative layer reads in place of H_{t-1}: m_t = scale_t * H_{t-1} (Krause et al. 2016, with a diagonal W_mh).

    scale: By what each H_{t-1} is multiplied. (T, B, S)
    m: (T, B, S)
    """

    scale: Tensor
    m: Tensor


class Rows(NamedTuple):
    """Rows of a table, in place of a tensor that holds them: an id is a one-hot vector, and its product a row of U.

    ids: int64. (T, B)
    table: (V, 4S), or more rows
    """

    ids: Tensor
    table: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return T, B, 4S."""
        return self.ids.shape[0], self.ids.shape[1], self.table.shape[1]


class Kernel(Protocol):
    """The recurrence, by hand.

        m_t = H_{t-1},  of a multiplicative layer scale[t] * H_{t-1}
        a_t = a[t] + bias + m_t W
        f_t, i_t, o_t = sigmoid(a_t[:3S]),  N_t = tanh(a_t[3S:])
        C_t = f_t * C_{t-1} + i_t * N_t
        H_t = o_t * tanh(C_t)

    All tensors are contiguous and of one floating type, W perhaps of `factors`' type.
    """

    @property
    def name(self) -> str:
        """What `train` and `info` call this kernel, with its precision where there is a choice."""

    @property
    def strict(self) -> Kernel:
        """The same with float32 products, for scores: streams that differ by a rounding come together again in it."""

    @property
    def pointwise(self) -> Pointwise:
        """What lies around the recurrence, in this kernel's way."""

    @property
    def any_threads(self) -> bool:
        """Whether a run has the same bits on any number of CPU threads, and may change it at any time."""

    @property
    def factors(self) -> torch.dtype | None:
        """The type in which a layer's weights are best kept between calls; None: their own."""

    def forward(
        self,
        a: Tensor | Rows,
        W: Tensor,
        H_0: Tensor,
        C_0: Tensor,
        *,
        bias: Tensor | None = None,
        into: Activations | None = None,
        multiplied: Multiplied | None = None,
    ) -> Activations:
        """Run T steps.

        Args:
            a: Input part of the pre-activations, x U. Its memory becomes `gates` unless it is `Rows`. (T, B, 4S)
            W: Recurrent weights. (S, 4S)
            H_0: Hidden state before the first step. (B, S)
            C_0: Cell state before the first step. (B, S)
            bias: b. (4S)
            into: Where the activations are to be written; new memory if not given. Its gates are `a`, unless that is `Rows`.
            multiplied: Of a multiplicative layer; its m is written.
        """

    def backward(
        self,
        dH: Tensor,
        dC_T: Tensor,
        gates: Tensor,
        C: Tensor,
        C_0: Tensor,
        W: Tensor,
        *,
        multiplied: Multiplied | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the T steps back.

        Args:
            dH: Gradient that reaches each H_t from outside the recurrence; that of the last state is in dH[-1].
                Not written to: another branch of the graph may hold the same memory. (T, B, S)
            dC_T: Gradient of the last cell state. (B, S)
            gates: As `forward` kept them. Their memory becomes da. (T, B, 4S)
            C: As `forward` kept it. (T, B, S)
            C_0: Cell state before the first step. (B, S)
            W: Recurrent weights. (S, 4S)
            multiplied: As `forward` was given it. The memory of its scale becomes dm, the gradient of m; times H_{t-1} that is
                the gradient of the scale.

        Returns:
            da: Gradient of the pre-activations; with x, m and ones it gives dU, dW and db in one product each.
                (T, B, 4S)
            dH_0: Gradient of the first hidden state, in new memory. (B, S)
            dC_0: Gradient of the first cell state, likewise. (B, S)
        """

    def product(self, A: Tensor, B: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Compute A B, or out + A B: one of the large products before or after the T steps.

        Args:
            A: (M, K), contiguous or the transpose of something contiguous.
            B: (K, N), likewise.
            out: (M, N), contiguous; a new tensor if not given.
            add: Whether the product is added to what `out` holds.

        Returns:
            out.
        """


def choose(requested: str = "auto", precision: str = "auto", device: str = "cpu", keep: str | None = None) -> tuple[Kernel, str]:
    """Return the fastest kernel that works here, and a line if it is not the fastest there is, or could not be kept.

    Args:
        requested: auto, eager, native or triton; `LSTMLM_KERNEL` in the environment stands in for auto.
        precision: auto, float32 or bfloat16: of the products inside the recurrence.
        device: cpu or cuda; native runs on the first alone, triton on the second.
        keep: The name of the kernel that a run began with: where several run here, it goes on with that one. Empty for a run that
            begins: it takes the quickest. None for what trains nothing: the sampler and the scores in C go with native.

    Raises:
        UsageError: The request names no kernel that can run here.
    """
    from lstmlm.kernels.eager import EagerKernel

    requested = requested_kernel(requested)
    eager = EagerKernel(fast=device != "cpu" and precision != "float32")
    if requested == "eager":
        return eager, ""
    best = "native" if device == "cpu" else "triton"
    if requested not in ("auto", best):
        raise UsageError(
            f"kernel: expected auto, eager or {best} on the {device}, found {printable(requested)}. "
            "Check train.kernel and LSTMLM_KERNEL."
        )
    try:
        kernel = _load(best, precision, keep or "")
        said = " ".join(filter(None, (build.notes(), getattr(kernel, "note", ""))))
        if requested == "auto" and device == "cpu" and keep is not None:
            return _quicker(kernel, keep, said)
        return kernel, said
    except Unavailable as error:
        if requested == best:
            raise UsageError(f"kernel {best}: expected a machine that can build and run it, found: {error}.") from None
        return eager, f"kernel {eager.name}: {best} is not available ({error})"


def requested_kernel(requested: str = "auto") -> str:
    """Return the kernel that is requested: `LSTMLM_KERNEL` in the environment stands in for auto."""
    return (os.environ.get("LSTMLM_KERNEL") or "auto") if requested == "auto" else requested


def _load(name: str, precision: str, keep: str) -> Kernel:
    """Return the kernel that is made for a device.

    Raises:
        Unavailable: It cannot run here.
    """
    if name == "native":
        from lstmlm.kernels import native

        return native.load(precision, keep)
    from lstmlm.kernels import triton_kernel

    return triton_kernel.load(precision)


def _quicker(kernel: Kernel, keep: str, said: str) -> tuple[Kernel, str]:
    """Return the native kernel, or eager where a run began with it or begins and it is the quicker one; and what is to be said.

    Scores are still the native kernel's, as those of `lstmlm eval`.
    """
    from lstmlm.kernels import native
    from lstmlm.kernels.eager import EagerKernel

    assert isinstance(kernel, native.NativeKernel)
    eager = EagerKernel(strict=kernel.strict)
    if keep == eager.name:
        return eager, said
    if kernel.name == keep or not native.is_slower(kernel, eager):
        return kernel, said
    return eager, " ".join(filter(None, (said, f"kernel {eager.name}: quicker here than {kernel.name}")))


def at_sizes(kernel: Kernel, device: torch.device, T: int, B: int, S: int, V: int) -> tuple[Kernel, str]:
    """Return a kernel that agrees with eager at the sizes of a run: itself, or eager and one line why.

    Args:
        kernel: As `choose` gave it; the ones of the CPU have been checked there.
        device: Where it runs.
        T: Time steps; a few are enough.
        B: Rows.
        S: Units.
        V: Vocabulary.
    """
    if device.type != "cuda" or kernel.name.startswith("eager"):
        return kernel, ""
    from lstmlm.kernels import triton_kernel

    assert isinstance(kernel, triton_kernel.TritonKernel)
    reason = triton_kernel.wrong(kernel, device, min(T, 8), B, S, V)
    if not reason:
        return kernel, ""
    eager = choose("eager", "float32" if kernel.factors is None else "auto", device.type)[0]
    return eager, f"kernel {eager.name}: triton is not used ({reason})"
