"""Compile all device code without a device: `python -m tests.kernels.compile_triton` prints what came out as JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from lstmlm.kernels import Rows, fused_rows, triton_steps
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.fused import TritonPointwise
from lstmlm.kernels.pointwise import Norm
from lstmlm.kernels.triton_kernel import TritonKernel

CAPABILITIES = (80, 90, 100, 120)


class Absent:
    """A device of some compute capability that can only be asked for its name."""

    capability = 90

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return another one for each capability: what is compiled is kept by it."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0


class Compiled:
    """A module of device code whose functions are compiled where they would be launched."""

    def __init__(self, module: Any) -> None:
        self.module, self.results = module, {}  # type: tuple[Any, dict[str, dict[str, Any]]]

    def __getattr__(self, name: str) -> Any:
        """Return a function to be launched on a grid."""
        function = getattr(self.module, name)

        def on(_: object, grid: tuple[int, int]) -> Any:
            def compile_it(*given: Any, **options: Any) -> None:
                kernel = function.warmup(*given, grid=grid, **options)
                if kernel.hash not in self.results:
                    found = {"function": name, "grid": grid, "warps": options["num_warps"], "options": str(options)}
                    self.results[kernel.hash] = found | used(kernel)

            return compile_it

        return type("Grid", (), {"__getitem__": on})()


def used(kernel: Any) -> dict[str, Any]:
    """Return what a program needs: shared memory, and registers of a thread and its memory beside them, atomics."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        (Path(folder) / "cubin").write_bytes(kernel.asm["cubin"])
        told = subprocess.run([program, "-res-usage", f"{folder}/cubin"], capture_output=True, text=True, check=True).stdout
    counts = {name.lower(): int(re.findall(rf"\b{name}:(\d+)", told)[0]) for name in ("REG", "STACK", "LOCAL")}
    atomic = re.search(r"\b(atom|red)\.", kernel.asm["ptx"]) is not None
    return {**counts, "shared": kernel.metadata.shared, "atomic": atomic}


def recurrence(factors: torch.dtype, B: int, S: int) -> list[dict[str, Any]]:
    """Compile both passes by calling them, with tensors that have no memory."""
    kernel: Any = TritonKernel(factors, fused=False)
    kernel._steps = steps = Compiled(triton_steps)
    kernel._multiply = lambda A, B, out: out
    T, V = 2, 65
    shapes = [(S, 4 * S), (B, S), (4 * S,), (T, B, S), (T, B, 4 * S)]
    W, state, bias, states, gates = (torch.empty(*shape, device="meta") for shape in shapes)
    rows = Rows(torch.empty(T, B, dtype=torch.int64, device="meta"), torch.empty(V, 4 * S, device="meta"))
    kernel.forward(rows, W, state, state, bias=bias)
    kernel.forward(gates, W, state, state)
    kernel.backward(states, state, gates, states, state, W)
    return [{"size": (T, B, S), **result} for result in steps.results.values()]


def between(T: int, B: int, S: int) -> list[dict[str, Any]]:
    """Compile norm, dropout and residual likewise."""
    pointwise: Any = TritonPointwise("meta")
    pointwise._rows = rows = Compiled(fused_rows)
    y, x, out, stats = (torch.empty(T, B, size, device="meta") for size in (S, S, S, 2))
    norm = Norm(*(torch.empty(S, device="meta") for _ in Norm._fields))
    words = torch.empty(5, dtype=torch.int64, device="meta")
    drop = Dropout(0.3, 1, 2, B, weights=0.5)
    for case in (drop.reading(words), drop if S == 37 else None):
        pointwise.norm_dropout_residual(y, x, norm, case, 1, out, stats)
        pointwise.norm_dropout_residual_backward(x, y, norm, case, 1, out, stats)
        pointwise.norm_dropout_residual(y, None, None, None if case is None else case.of_weights(), 1, out, stats)
    return [{"size": (T, B, S), **result} for result in rows.results.values()]


def compiled() -> list[dict[str, Any]]:
    """Compile all there is for one capability, the sizes that differ most for each."""
    results = recurrence(torch.bfloat16, 64, 512)
    if Absent.capability == 90:
        results += recurrence(torch.float32, 3, 37) + between(128, 64, 512) + between(3, 5, 37)
    return [{"capability": Absent.capability, **result} for result in results]


if __name__ == "__main__":
    found = []
    for Absent.capability in CAPABILITIES:
        triton.runtime.driver.set_active(Absent())
        found += compiled()
    json.dump(found, sys.stdout)
