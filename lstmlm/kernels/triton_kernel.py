"""The recurrence for CUDA: each time step a product by cuBLAS and one launch of Triton (`triton_steps`) for gates and state.

`load` is the entry point; `kernels.choose` calls it. No program waits for another, so nothing can hang: the order of a stream is
all the order there is. Recorded in a CUDA graph (`cuda_graph`), a time step of a layer is two nodes each way.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Multiplied, Rows
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.fused import checked
from lstmlm.kernels.fused import load as load_fused
from lstmlm.kernels.pointwise import Pointwise, TorchPointwise
from lstmlm.machine import cache_folder

__all__ = ["TritonKernel", "Unavailable", "disagreement", "load"]

PRODUCTS = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""The precisions there are."""

WITHIN = {torch.bfloat16: 5e-2, torch.float32: 1e-5}
"""What the check allows, relative to the largest value: some ten times the rounding of bfloat16; float32's promise."""

CAPABILITY = (8, 0)
"""The first CUDA devices that multiply bfloat16."""

CASES = ((3, 5, 37, 11), (8, 64, 512, 100))
"""T, B, S, V of the check in a child: nothing divides anything, and all is of whole 16."""

SECONDS = 90
"""After which the child is ended, and the kernel not used."""


class TritonKernel:
    """See `Kernel`. float32 tensors; a product is of bfloat16 factors, or of float32 ones, with float32 sums.

    `strict` is the same with float32 factors. Ids are trusted to lie in the table: to look at them is to wait for the device.

    Args:
        factors: Type of the products' factors.
        strict: What `strict` returns; None: the kernel itself.
        interpreted: Triton's interpreter runs it, on the CPU: a check of the program, and no more.
        fused: Whether norm and dropout are Triton's too; else torch's.

    Attributes:
        note: One line where norm and dropout are torch's though Triton's were asked for.
    """

    any_threads = True  # nothing is computed by them

    def __init__(
        self, factors: torch.dtype, strict: "TritonKernel | None" = None, *, interpreted: bool = False, fused: bool = True
    ) -> None:
        from lstmlm.kernels import triton_steps

        self._steps = triton_steps
        self._strict, self._factors, self._interpreted = strict, factors, interpreted
        fast = factors != torch.float32
        self.name = f"triton {str(factors).removeprefix('torch.')}" + (" (interpreted)" if interpreted else "")
        self.pointwise: Pointwise
        self.pointwise, reason = load_fused(interpreted, fast=fast) if fused else (TorchPointwise(fast=fast), "")
        self.note = f"kernel {self.name}: norm and dropout are torch's ({reason})" if reason else ""

    @property
    def strict(self) -> "TritonKernel":
        """See `Kernel.strict`."""
        return self._strict or self

    @property
    def factors(self) -> torch.dtype | None:
        """See `Kernel.factors`."""
        return None if self._factors == torch.float32 else self._factors

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
        """Run T steps; see `Kernel.forward`."""
        T, B, S4 = a.shape
        S = S4 // 4
        if into is None:
            gates = H_0.new_empty(T, B, S4) if isinstance(a, Rows) else a
            into = Activations(gates, H_0.new_empty(T, B, S), H_0.new_empty(T, B, S))
        for name, part, shape in zip(("gates", "C", "H"), into, ((T, B, S4), (T, B, S), (T, B, S)), strict=True):
            checked(name, part, *shape)
        H_0, C_before = checked("H_0", H_0.contiguous(), B, S), checked("C_0", C_0.contiguous(), B, S)
        table = ids = None
        if isinstance(a, Rows):
            ids, table = a.ids.contiguous(), checked("table", a.table, len(a.table), S4)
        elif a.data_ptr() != into.gates.data_ptr():
            raise ValueError("gates: expected the memory of a, found other memory.")
        if bias is not None:
            checked("bias", bias, S4)
        W = checked("W", W, S, S4, also=self._factors).to(self._factors)
        rounded = self._factors != torch.float32
        X, product, H_before = H_0.to(self._factors), H_0.new_empty(B, S4), H_0
        for t, (gates_t, C_t, H_t) in enumerate(zip(*(part.unbind(0) for part in into), strict=True)):
            if multiplied is not None:
                X = torch.mul(multiplied.scale[t], H_before, out=multiplied.m[t]).to(self._factors)
            self._multiply(X, W, product)
            self._launch(
                self._steps.forward,
                # A pointer that is not read still has a type: any will do.
                *(product, gates_t, gates_t if ids is None else ids[t], gates_t if table is None else table),
                *(gates_t if bias is None else bias, C_before, C_t, H_t, X),
                TABLE=table is not None,
                BIAS=bias is not None,
                ROUNDED=rounded,
            )
            H_before, C_before = H_t, C_t
            if not rounded:
                X = H_t
        return into

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
        """Run the T steps back; see `Kernel.backward`. tanh(C_t) is computed again rather than kept."""
        T, B, S = C.shape
        checked("gates", gates, T, B, 4 * S)
        dH, C, C_0 = checked("dH", dH.contiguous(), T, B, S), C.contiguous(), checked("C_0", C_0.contiguous(), B, S)
        dC = checked("dC_T", dC_T, B, S).clone(memory_format=torch.contiguous_format)
        W_back = checked("W", W, S, 4 * S, also=self._factors).to(self._factors).t()
        rounded = self._factors != torch.float32
        dH_0 = torch.empty_like(dC)  # da_{t+1} W^T all the way
        X = C.new_empty(B, 4 * S, dtype=self._factors)
        for t in range(T - 1, -1, -1):
            if t < T - 1:
                self._multiply(X, W_back, dH_0)
                _to_hidden(dH_0, multiplied, t + 1)
            before = C[t - 1] if t else C_0
            self._launch(self._steps.backward, dH_0, dH[t], gates[t], before, C[t], dC, X, LAST=t == T - 1, ROUNDED=rounded)
            if not rounded:
                X = gates[t]
        self._multiply(X, W_back, dH_0)
        _to_hidden(dH_0, multiplied, 0)
        return gates, dH_0, dC

    def product(self, A: Tensor, B: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Compute A B, or out + A B, in the kernel's precision with float32 sums; see `Kernel.product`."""
        A, B = A.to(self._factors), B.to(self._factors)
        if out is not None and not add:
            return self._multiply(A, B, out)
        C = self._multiply(A, B, torch.empty(len(A), B.shape[1], device=A.device))
        return C if out is None else out.add_(C)

    def _multiply(self, A: Tensor, B: Tensor, out: Tensor) -> Tensor:
        """Write A B to `out`, summed in float32."""
        if self._factors == torch.float32:
            return torch.mm(A, B, out=out)
        if A.device.type == "cpu":  # interpreted: torch's CPU has no such sums
            return torch.mm(A.float(), B.float(), out=out)
        return torch.mm(A, B, out_dtype=torch.float32, out=out)

    def _launch(self, function: Any, *given: Tensor, **options: bool) -> None:
        """Run a function of the device code over all rows and units of a step. The second last but one is (B, S)."""
        B, S = given[-2].shape
        block = min(256, max(32, 1 << (S - 1).bit_length()))
        function[B, -(-S // block)](*given, S, **options, BLOCK=block, num_warps=max(1, block // 128))


def _to_hidden(dm: Tensor, multiplied: Multiplied | None, t: int) -> None:
    """Turn dm_t into the gradient of H_{t-1}; of a multiplicative layer keep it in the scale's place first."""
    if multiplied is not None:
        scale = multiplied.scale[t].clone()
        multiplied.scale[t] = dm
        dm.mul_(scale)


@cache
def load(precision: str = "auto") -> TritonKernel:
    """Return the kernel for the current CUDA device.

    It has been compared with eager in a child process first, once for this device, driver, torch, Triton and code: what ends
    the process, or does not end, does so there. With TRITON_INTERPRET=1 in the environment it runs on the CPU, in Triton's
    interpreter: a check of the program, and no more.

    Args:
        precision: bfloat16 or float32: of the products. auto is bfloat16.

    Raises:
        Unavailable: There is no such device, no Triton, no such precision, torch is too old, or the results are wrong.
    """
    if precision not in PRODUCTS:
        raise Unavailable(f"it has no {precision} products")
    factors = PRODUCTS[precision]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted:
        _require_device()
    try:
        import triton
    except ImportError:
        raise Unavailable("Triton is not installed: pip install 'lstmlm[gpu]'") from None
    if not interpreted:
        _examined_in_child(triton.__version__)
    strict = None if factors == torch.float32 else TritonKernel(torch.float32, interpreted=interpreted)
    return TritonKernel(factors, strict, interpreted=interpreted)


def _require_device() -> None:
    """Refuse devices and versions that it was not made for.

    Raises:
        Unavailable: With the reason.
    """
    if torch.version.hip is not None:
        raise Unavailable("torch is built for ROCm, on which it was never tried")
    if not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device")
    if torch.cuda.get_device_capability() < CAPABILITY:
        raise Unavailable("the CUDA device is older than bfloat16 products")
    if "dtype_out" not in torch.ops.aten.mm.overloads():
        raise Unavailable(f"torch {torch.__version__} has no products with float32 sums of bfloat16 factors: 2.8 has")


def _examined_in_child(triton_version: str) -> None:
    """Compare with eager in a child process, unless that was done before.

    Raises:
        Unavailable: It disagrees, ends the process or does not end.
    """
    passed = _passed_file(triton_version)
    if passed is not None and passed.exists():
        return
    code = f"from lstmlm.kernels import triton_kernel; triton_kernel.examine({torch.cuda.current_device()})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_root(), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            timeout=SECONDS,
            text=True,
            errors="replace",
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"its check did not end within {SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"its check cannot be started: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its check ended with status {done.returncode}"]
        raise Unavailable(lines[-1][:200])
    if passed is not None:
        with contextlib.suppress(OSError):  # then it is examined each time
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()


def _root() -> str:
    """Return the folder that the package is in."""
    return str(Path(__file__).parents[2])


def _passed_file(triton_version: str) -> Path | None:
    """Return the empty file that says that this device, driver, torch, Triton and code have passed; None: nothing is kept."""
    folder = cache_folder()
    if folder is None:
        return None
    driver = str(getattr(torch._C, "_cuda_getDriverVersion", int)())
    with contextlib.suppress(OSError):  # then what CUDA itself says of its driver will do
        driver += Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    parts = [torch.cuda.get_device_name(), driver, torch.__version__, triton_version]
    digest = hashlib.sha256("\0".join(map(str, parts)).encode())
    for name in ("triton_kernel.py", "triton_steps.py", "fused.py", "fused_rows.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return folder / f"triton-{digest.hexdigest()[:24]}.passed"


def examine(device: int) -> None:
    """Compare with eager in both precisions; for a process of its own.

    Raises:
        SystemExit: It disagrees; with the reason.
    """
    torch.cuda.set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    strict = TritonKernel(torch.float32)
    for kernel in (strict, TritonKernel(torch.bfloat16, strict)):
        for case in CASES:
            if reason := wrong(kernel, torch.device("cuda"), *case):
                raise SystemExit(reason)


def wrong(kernel: TritonKernel, device: torch.device, T: int, B: int, S: int, V: int) -> str:
    """Return how a kernel disagrees with eager at these sizes; empty if it agrees."""
    error = disagreement(kernel, device, T, B, S, V)
    return "" if error < WITHIN[kernel._factors] else f"it disagrees with eager by {error:.1e} at T {T}, B {B}, S {S}, V {V}"


def disagreement(kernel: TritonKernel, device: torch.device, T: int, B: int, S: int, V: int) -> float:
    """Return the largest relative difference from eager in float64: of all results, of a multiplicative layer
    with bias and table, and of a plain one with neither, and of `product`.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(V, 4 * S), (4 * S,), (T, B, 4 * S), (S, 4 * S), (B, S), (B, S), (T, B, S), (B, S), (T, B, S)]
    given = [torch.randn(*shape, generator=generator) for shape in shapes]
    given[3] *= S**-0.5
    ids = torch.randint(V, (T, B), generator=generator).to(device)
    results = []
    for run, dtype in ((EagerKernel(), torch.float64), (kernel, torch.float32)):
        table, bias, a, W, H_0, C_0, dH, dC_T, scale = (part.to(device, dtype, copy=True) for part in given)
        for part, added, by in ((Rows(ids, table), bias, Multiplied(scale, torch.empty_like(scale))), (a, None, None)):
            gates, C, H = run.forward(part, W, H_0, C_0, bias=added, multiplied=by)
            kept = gates.clone()
            back = run.backward(dH, dC_T, gates, C, C_0, W, multiplied=by)
            rows = back[0].view(T * B, 4 * S)
            large = run.product(H.view(T * B, S).t(), rows), run.product(rows, W.t(), dH.view(T * B, S).clone(), add=True)
            results.append([part.double() for part in (kept, C, H, *back, *large, *(by or ()))])
    pairs = [pair for case in range(2) for pair in zip(results[case], results[2 + case], strict=True)]
    return float(torch.stack([(x - y).abs().max() / x.abs().max() for x, y in pairs]).max())  # or NaN
