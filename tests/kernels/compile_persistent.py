"""Compile the kernel for an H200 without one: `python -m tests.kernels.compile_persistent` prints what came out as JSON."""

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

from lstmlm.kernels import Rows, persistent_steps
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_memory import staggered
from lstmlm.kernels.persistent_tiles import Chip

H200 = Chip(132, 232_448)
CASES = {
    "forward": ((), 64, 512, torch.bfloat16),
    "backward": ((), 64, 1024, torch.bfloat16),
    "strict": ((), 3, 37, torch.float32),
    "forward of 8": ((4, 2), 64, 512, torch.bfloat16),
    "backward of 3": ((1, 3), 64, 512, torch.bfloat16),
}


class Absent:
    """A device of compute capability 9.0 that can only be asked for its name."""

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0


class Compiled:
    """A function of the device code that is compiled where it would be launched."""

    def __init__(self, function: Any) -> None:
        self.function, self.results = function, []  # type: tuple[Any, list[dict[str, Any]]]

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        """Return what takes the arguments of a launch on this grid."""

        def compile_it(*given: Any, **options: Any) -> None:
            kernel = self.function.warmup(*given, grid=grid, **options)
            self.results.append(
                {
                    "grid": grid,
                    "kept": options.get("KEPT"),
                    "shared": kernel.metadata.shared,
                    "cooperative": kernel.metadata.launch_cooperative_grid,
                    "stack": stack(kernel.asm["cubin"]),
                    "ptx": kernel.asm["ptx"],
                }
            )

        return compile_it


def stack(cubin: bytes) -> int:
    """Return the bytes of memory that each thread needs beside its registers."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        (Path(folder) / "cubin").write_bytes(cubin)
        told = subprocess.run([program, "-res-usage", f"{folder}/cubin"], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", told)[0])


def compiled(name: str, many: tuple[int, ...], B: int, S: int, factors: torch.dtype) -> dict[str, Any]:
    """Compile a pass by calling it, with tensors that have no memory."""
    kernel: Any = PersistentKernel(factors, H200)
    functions = {"forward": Compiled(persistent_steps.forward), "backward": Compiled(persistent_steps.backward)}
    kernel._steps = type("Steps", (), functions)
    T, V = 2, 65
    shapes = [(S, 4 * S), (B, S), (4 * S,), (T, B, S), (T, B, 4 * S)]
    W, state, bias, states, gates = (torch.empty(*many, *shape, device="meta") for shape in shapes)
    if many:
        states, gates = staggered(states), staggered(gates)
    if name.startswith("backward"):
        kernel.backward(states, state, gates, states, state, W)
    else:
        rows = Rows(torch.empty(T, B, dtype=torch.int64, device="meta"), torch.empty(V, 4 * S, device="meta"))
        kernel.forward(gates if many else rows, W, state, state, bias=bias)
    (result,) = (result for function in functions.values() for result in function.results)
    return {"case": name, **result}


if __name__ == "__main__":
    triton.runtime.driver.set_active(Absent())
    json.dump([compiled(name, *sizes) for name, sizes in CASES.items()], sys.stdout)
