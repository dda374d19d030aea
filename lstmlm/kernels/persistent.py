"""The recurrence in Triton for CUDA: one launch runs all T steps, with the recurrent weights kept on chip where they fit.

The device code is `persistent_steps`.

The grid is blocks of units x blocks of rows of the batch x recurrences. All programs of a block of rows of a recurrence wait for
each other after every step, so they must all be running: as many as there are multiprocessors at most, launched cooperatively.
Where they would be more, every step is a launch of its own; so it is in Triton's interpreter, which runs one program after
another and would wait for ever.

A launch runs one recurrence, or several of one size side by side: what one of them waits for, the others wait for meanwhile.

What a step cannot be faster than, worked out beforehand for an H200 (790e12 operations/s in bfloat16, 4.8e12 bytes/s, 132
multiprocessors), B 64 and T 128. Nothing of this was measured; that a barrier takes 1 to 2 us is an assumption.

    S               512                     1024
    products        2 B S 4S = 134e6        537e6 operations a step and pass: 0.17 and 0.68 us
    weights         2 MB                    8 MB in bfloat16: 16 and 64 KB a multiprocessor if split evenly, so read once a launch
    activations     1.3 MB                  2.6 MB: 4 bytes x B x 10S read or written a step, 0.27 and 0.55 us beside the products
    exchange        2 bytes x B x S (4S backward), read by all programs of a block of rows from the second level of cache
    barrier         1 to 2 us, assumed: the largest part

    2 x 512:  2 x 128 x (0.27 + 1 to 2) = 0.33 to 0.58 ms forward, at least twice that backward and forward together
    3 x 1024: 3 x 128 x (0.68 + 1 to 2) = 0.65 to 1.03 ms forward, likewise

That is one layer after another, with T L barriers. L layers side by side, each c steps behind the one below, are T + c (L - 1)
barriers and the same work: 2 x 512 with c 32 waits 160 times and not 256, 0.25 to 0.41 ms forward. Members of an ensemble side by
side wait as often as one of them. 8 x 512 or 2 x 1024 run at once with their weights on chip. The more there are, the more rows
a program goes through in a step, one block after another; what that costs is not in these numbers.
"""

import math
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lstmlm.kernels import MANY, Activations, Rows
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.persistent_memory import checked, staggered, strides_of
from lstmlm.kernels.persistent_tiles import INTERPRETER, Chip, tiles

__all__ = ["PersistentKernel", "Unavailable", "load"]

PRODUCTS = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""The precisions there are."""

WITHIN = {torch.bfloat16: 5e-2, torch.float32: 1e-5}
"""What the self-check allows, relative to the largest value: some ten times the rounding of bfloat16; float32's promise."""

CAPABILITY = (8, 0)
"""The first CUDA devices that multiply bfloat16."""


class PersistentKernel:
    """See `Kernel`. float32 tensors; a product is of bfloat16 factors, or of float32 ones, with float32 sums.

    `strict` is the same with float32 factors. Ids are trusted to lie in the table: to look at them is to wait for the device.
    """

    def __init__(
        self, factors: torch.dtype, chip: Chip, strict: "PersistentKernel | None" = None, *, interpreted: bool = False
    ) -> None:
        from lstmlm.kernels import fused, persistent_steps

        self._steps = persistent_steps
        self._strict = strict
        self._factors, self._chip, self._interpreted = factors, chip, interpreted
        self.pointwise = fused.load(interpreted, fast=factors != torch.float32)
        self.name = f"triton {str(factors).removeprefix('torch.')}" + (" (interpreted)" if interpreted else "")

    @property
    def strict(self) -> "PersistentKernel":
        """See `Kernel.strict`."""
        return self._strict or self

    @property
    def factors(self) -> torch.dtype | None:
        """See `Kernel.factors`."""
        return None if self._factors == torch.float32 else self._factors

    def side_by_side(self, B: int, S: int) -> int:
        """See `Kernel.side_by_side`: as many as one launch a pass can run, with their weights on chip if one's would be."""
        size = self._factors.itemsize
        for count in range(MANY, 1, -1):
            cuts = [tiles(B, S, K, size, self._chip, count) for K in (S, 4 * S)]
            if all(cut.together and (cut.kept or size > 2) for cut in cuts):
                return count
        return 1

    def forward(
        self,
        a: Tensor | Rows,
        W: Tensor,
        H_0: Tensor,
        C_0: Tensor,
        *,
        bias: Tensor | None = None,
        into: Activations | None = None,
    ) -> Activations:
        """Run T steps; see `Kernel.forward`."""
        *many, T, B, S4 = a.shape
        S = S4 // 4
        if into is None:
            gates = H_0.new_empty(T, B, 4 * S) if isinstance(a, Rows) else a
            into = Activations(gates, H_0.new_empty(*many, T, B, S), H_0.new_empty(*many, T, B, S))
        gates, C = checked("gates", into.gates, many, T, B, 4 * S), checked("C", into.C, many, T, B, S)
        H, C_0 = checked("H", into.H, many, T, B, S), checked("C_0", C_0 if many else C_0.contiguous(), many, B, S)
        ids = table = None
        if isinstance(a, Rows):
            ids, table = a.ids.contiguous(), checked("table", a.table, [], len(a.table), 4 * S)
        elif a.data_ptr() != gates.data_ptr() or strides_of(many, a) != strides_of(many, gates):
            raise ValueError("gates: expected the memory of a, found other memory.")
        # A pointer that is not read still has a type: any will do.
        added = gates if bias is None else checked("bias", bias, many, 4 * S)
        W = self._weights(W, many, S)
        X = self._exchange(math.prod(many), B, S, H_0)
        X[0].view(*many, B, S).copy_(H_0)
        pointers = gates, gates if ids is None else ids, gates if table is None else table, added, W, X, C_0, C, H
        strides = strides_of(many, gates, added, W, C_0, C, H)
        options = {"TABLE": table is not None, "BIAS": bias is not None}
        self._launch(self._steps.forward, pointers, strides, (), T, (*many, B, S, S), **options)
        return into

    def backward(
        self, dH: Tensor, dC_T: Tensor, gates: Tensor, C: Tensor, C_0: Tensor, W: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the T steps back; see `Kernel.backward`. tanh(C_t) is computed again rather than kept."""
        *many, T, B, S = C.shape
        if not many:
            dH, C, C_0 = dH.contiguous(), C.contiguous(), C_0.contiguous()
        dH, gates = checked("dH", dH, many, T, B, S), checked("gates", gates, many, T, B, 4 * S)
        C, C_0 = checked("C", C, many, T, B, S), checked("C_0", C_0, many, B, S)
        dC_0 = checked("dC_T", dC_T, many, B, S).clone(memory_format=torch.contiguous_format)
        dH_0, W = torch.empty_like(dC_0), self._weights(W, many, S)
        X = self._exchange(math.prod(many), B, 4 * S, C)
        X[0] = 0
        pointers = dH, gates, C, C_0, W, X, dC_0, dH_0
        self._launch(self._steps.backward, pointers, strides_of(many, *pointers[:5]), (T,), T + 1, (*many, B, S, 4 * S))
        return gates, dH_0, dC_0

    def product(self, A: Tensor, B: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Compute A B, or out + A B, in the kernel's precision with float32 sums; see `Kernel.product`."""
        A, B = A.to(self._factors), B.to(self._factors)
        how: dict[str, Any] = {}
        if A.is_cuda and self._factors != torch.float32:
            how = {"out_dtype": torch.float32}
        else:
            A, B = A.float(), B.float()
        if out is not None and not add:
            return torch.mm(A, B, out=out, **how)
        C: Tensor = torch.mm(A, B, **how)
        return C if out is None else out.add_(C)

    def _weights(self, W: Tensor, many: list[int], S: int) -> Tensor:
        """Return recurrent weights in the type of the products."""
        return checked("W", W, many, S, 4 * S, also=self._factors).to(self._factors)

    def _exchange(self, count: int, B: int, width: int, like: Tensor) -> Tensor:
        """Return memory for what programs need of each other: one half is read while the other is written."""
        return like.new_empty(2, count, B, width, dtype=self._factors)

    def _counters(self, count: int, device: torch.device) -> Tensor:
        """Return a counter of arrivals for each block of rows of each recurrence."""
        return torch.zeros(count, dtype=torch.int32, device=device)

    def _launch(
        self,
        kernel: Any,
        pointers: tuple[Tensor, ...],
        strides: tuple[tuple[int, int], ...],
        numbers: tuple[int, ...],
        rounds: int,
        sizes: tuple[int, ...],
        **options: bool,
    ) -> None:
        """Run the rounds: in one launch, or each in its own.

        Args:
            kernel: Of `persistent_steps`.
            pointers: Its first arguments.
            strides: Of those that need not lie one recurrence after another.
            numbers: What it takes between the rounds and B.
            rounds: How many.
            sizes: M and L if there are several recurrences; rows, units, and the inner dimension of a step's product.
            options: What else it takes.
        """
        *many, B, S, K = sizes
        count, L = math.prod(many), many[-1] if many else 1
        cut = tiles(B, S, K, self._factors.itemsize, self._chip, count)
        grid = *cut.grid(B, S), count
        others = cut.together and grid[0] > 1 and rounds > 1  # a single round has nobody to wait for
        # A pointer that is not read: as in `forward`.
        counters = self._counters(grid[1] * count, pointers[0].device) if others else pointers[0]
        for begin, end in [(0, rounds)] if cut.together else [(n, n + 1) for n in range(rounds)]:
            kernel[grid](
                *(*pointers, counters, strides, L, begin, end, *numbers, B, S),
                **options,
                KEPT=cut.kept,
                OTHERS=others,
                EMULATE=self._interpreted,
                TURNS=cut.turns,
                ROWS=cut.rows,
                UNITS=cut.units,
                DEPTH=cut.depth,
                WARPS=cut.warps,
                CHUNKS=cut.chunks,
                AHEAD=cut.ahead,
                num_warps=cut.warps,
                num_stages=1 if cut.kept else 2,
                launch_cooperative_grid=others,
            )


@cache
def load(precision: str = "auto") -> PersistentKernel:
    """Return the kernel for the current CUDA device, after a check on a small case against eager in float64.

    With TRITON_INTERPRET=1 in the environment it runs on the CPU, in Triton's interpreter: a check of the program, and no more.

    Args:
        precision: bfloat16 or float32: of the products inside the recurrence. auto is bfloat16.

    Raises:
        Unavailable: There is no such device, no Triton, no such precision, or the results are wrong.
    """
    if precision not in PRODUCTS:
        raise Unavailable(f"it has no {precision} products")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device")
    if not interpreted and torch.cuda.get_device_capability() < CAPABILITY:
        raise Unavailable("the CUDA device is older than bfloat16 products")
    factors = PRODUCTS[precision]
    strict = None if factors == torch.float32 else load("float32")
    try:
        if interpreted:
            return PersistentKernel(factors, INTERPRETER, strict, interpreted=True)
        properties = torch.cuda.get_device_properties()
        memory = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
        chip = Chip(properties.multi_processor_count, memory)
        reason = ""
        for one in (chip, chip._replace(programs=0)):  # then without waiting, where the device refuses that
            kernel = PersistentKernel(factors, one, strict)
            try:
                error = disagreement(kernel, "cuda")
            except Exception as refusal:  # of the compiler, the driver or the device: eager does without all of them
                reason = str(refusal).partition("\n")[0] or type(refusal).__name__
                continue
            if error < WITHIN[factors]:
                return kernel
            reason = f"it disagrees with eager by {error:.1e}"
    except ImportError:
        raise Unavailable("Triton is not installed, or too old: pip install 'lstmlm[gpu]'") from None
    raise Unavailable(reason)


def disagreement(kernel: PersistentKernel, device: str) -> float:
    """Return the largest relative difference between the kernel and eager in float64, over cases of several programs."""
    T, B, S = 3, 17, 37
    generator = torch.Generator().manual_seed(0)
    differences = []
    for many in ([], [2, 2]):
        shapes = [(T, B, 4 * S), (T, B, S), (T, B, S), (S, 4 * S), (B, S), (B, S), (T, B, S), (B, S)]
        given = [torch.randn(*many, *shape, generator=generator) for shape in shapes]
        given[3] *= S**-0.5
        results = []
        for run, like in ((EagerKernel(), given[0].double()), (kernel, given[0].to(device))):
            a, C, H, W, H_0, C_0, dH, dC_T = (part.to(like, copy=True) for part in given)
            into = Activations(*(map(staggered, (a, C, H)) if many else (a, C, H)))
            run.forward(into.gates, W, H_0, C_0, into=into)
            kept = into.gates.clone()
            back = run.backward(staggered(dH) if many else dH, dC_T, into.gates, into.C, C_0, W)
            results.append([part.cpu() for part in (kept, into.C, into.H, *back)])
        differences += [(x - y).abs().max() / x.abs().max() for x, y in zip(*results, strict=True)]
    return float(torch.stack(differences).max())  # or NaN
