"""The recurrence in Triton for CUDA: one launch runs all T steps, with the recurrent weights kept on chip where they fit.

It knows tensors, tiles and launches. The device code is `persistent_steps`; what the numbers are for, it does not know.

The grid is blocks of units x blocks of rows of the batch. All programs of a block of rows wait for each other after every step,
so they must all be running: as many as there are multiprocessors at most, launched cooperatively. Where they would be more, every
step is a launch of its own; so it is in Triton's interpreter, which runs one program after another and would wait for ever.
Layers follow one another: each is a launch.

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
"""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Rows
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.persistent_tiles import INTERPRETER, Chip, tiles
from lstmlm.kernels.pointwise import TorchPointwise

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

    pointwise = TorchPointwise()
    factors = None

    def __init__(
        self, factors: torch.dtype, chip: Chip, strict: "PersistentKernel | None" = None, *, interpreted: bool = False
    ) -> None:
        from lstmlm.kernels import persistent_steps

        self._steps = persistent_steps
        self._strict = strict
        self._factors, self._chip, self._interpreted = factors, chip, interpreted
        self.name = f"triton {str(factors).removeprefix('torch.')}" + (" (interpreted)" if interpreted else "")

    @property
    def strict(self) -> "PersistentKernel":
        """See `Kernel.strict`."""
        return self._strict or self

    def side_by_side(self, B: int, S: int) -> int:
        """See `Kernel.side_by_side`."""
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
        T, B, S4 = a.shape
        S = S4 // 4
        if into is None:
            gates = H_0.new_empty(T, B, 4 * S) if isinstance(a, Rows) else a
            into = Activations(gates, H_0.new_empty(T, B, S), H_0.new_empty(T, B, S))
        gates, C, H = _checked("gates", into.gates, T, B, 4 * S), _checked("C", into.C, T, B, S), _checked("H", into.H, T, B, S)
        ids = table = None
        if isinstance(a, Rows):
            ids, table = a.ids.contiguous(), _checked("table", a.table, len(a.table), 4 * S)
        elif a.data_ptr() != gates.data_ptr():
            raise ValueError("gates: expected the memory of a, found other memory.")
        if bias is not None:
            _checked("bias", bias, 4 * S)
        X = self._exchange(B, S, H_0)
        X[0] = H_0
        # A pointer that is not read still has a type: any will do.
        pointers = (
            *(gates, gates if ids is None else ids, gates if table is None else table, gates if bias is None else bias),
            *(_checked("W", W, S, 4 * S).to(self._factors), X, _checked("C_0", C_0.contiguous(), B, S), C, H),
        )
        self._launch(self._steps.forward, pointers, (), T, B, S, S, TABLE=table is not None, BIAS=bias is not None)
        return into

    def backward(
        self, dH: Tensor, dC_T: Tensor, gates: Tensor, C: Tensor, C_0: Tensor, W: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the T steps back; see `Kernel.backward`. tanh(C_t) is computed again rather than kept."""
        T, B, S = C.shape
        dH, C, C_0 = _checked("dH", dH.contiguous(), T, B, S), C.contiguous(), _checked("C_0", C_0.contiguous(), B, S)
        dC_0, dH_0 = _checked("dC_T", dC_T, B, S).clone(memory_format=torch.contiguous_format), C.new_empty(B, S)
        X = self._exchange(B, 4 * S, C)
        X[0] = 0
        factors = _checked("W", W, S, 4 * S).to(self._factors)
        pointers = dH, _checked("gates", gates, T, B, 4 * S), C, C_0, factors, X, dC_0, dH_0
        self._launch(self._steps.backward, pointers, (T,), T + 1, B, S, 4 * S)
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

    def _exchange(self, B: int, width: int, like: Tensor) -> Tensor:
        """Return memory for what programs need of each other: one half is read while the other is written."""
        return like.new_empty(2, B, width, dtype=self._factors)

    def _counters(self, count: int, device: torch.device) -> Tensor:
        """Return a counter of arrivals for each block of rows."""
        return torch.zeros(count, dtype=torch.int32, device=device)

    def _launch(
        self,
        kernel: Any,
        pointers: tuple[Tensor, ...],
        numbers: tuple[int, ...],
        rounds: int,
        B: int,
        S: int,
        K: int,
        **options: bool,
    ) -> None:
        """Run the rounds: in one launch, or each in its own.

        Args:
            kernel: Of `persistent_steps`.
            pointers: Its first arguments.
            numbers: What it takes between the rounds and B.
            rounds: How many.
            B: Rows.
            S: Units.
            K: Inner dimension of its product.
            options: What else it takes.
        """
        cut = tiles(B, S, K, self._factors.itemsize, self._chip)
        grid = cut.grid(B, S)
        others = cut.together and grid[0] > 1
        counters = self._counters(grid[1], pointers[0].device)
        for begin, end in [(0, rounds)] if cut.together else [(n, n + 1) for n in range(rounds)]:
            kernel[grid](
                *(*pointers, counters, begin, end, *numbers, B, S),
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
    """Return the largest relative difference between the kernel and eager in float64, over a case of several programs."""
    T, B, S = 3, 17, 37
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, B, 4 * S), (S, 4 * S), (B, S), (B, S), (T, B, S), (B, S)]
    a, W, H_0, C_0, dH, dC_T = (torch.randn(*shape, generator=generator) for shape in shapes)
    W *= S**-0.5
    results = []
    for run, like in ((EagerKernel(), a.double()), (kernel, a.to(device))):
        gates, C, H = run.forward(a.to(like, copy=True), W.to(like), H_0.to(like), C_0.to(like))
        kept = gates.clone()
        back = run.backward(dH.to(like, copy=True), dC_T.to(like), gates, C, C_0.to(like), W.to(like))
        results.append([part.cpu() for part in (kept, C, H, *back)])
    return float(torch.stack([(x - y).abs().max() / x.abs().max() for x, y in zip(*results, strict=True)]).max())  # or NaN


def _checked(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor; the device code trusts what has passed here.

    Raises:
        ValueError: It is not contiguous, float32 and of this shape.
    """
    if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        found = f"{tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()}"
        raise ValueError(f"{name}: expected contiguous {shape} of float32, found {found}.")
    return tensor
