"""Compile norm and dropout for an H200 without one: `python -m tests.kernels.compile_fused` prints what came out as JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import triton

from lstmlm.kernels import fused_rows
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.fused import TritonPointwise
from lstmlm.kernels.pointwise import Norm
from tests.kernels.compile_persistent import Absent

SIZES = [(128, 64, 512), (128, 64, 1024), (3, 5, 37), (16, 8, 8192)]


class Compiled:
    """A function of the device code that is compiled where it would be launched."""

    def __init__(self, name: str, results: list[dict[str, Any]]) -> None:
        self.name, self.results = name, results

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        """Return what takes the arguments of a launch on this grid."""

        def compile_it(*given: Any, **options: Any) -> None:
            kernel = getattr(fused_rows, self.name).warmup(*given, grid=grid, **options)
            self.results.append({"function": self.name, "grid": grid, "warps": options["num_warps"], **used(kernel)})

        return compile_it


def used(kernel: Any) -> dict[str, Any]:
    """Return what a program needs: shared memory, and registers of a thread and its memory beside them, atomics."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        (Path(folder) / "cubin").write_bytes(kernel.asm["cubin"])
        told = subprocess.run([program, "-res-usage", f"{folder}/cubin"], capture_output=True, text=True, check=True).stdout
    counts = {name.lower(): int(re.findall(rf"\b{name}:(\d+)", told)[0]) for name in ("REG", "STACK", "LOCAL")}
    atomic = re.search(r"\b(atom|red)\.", kernel.asm["ptx"]) is not None
    return {**counts, "shared": kernel.metadata.shared, "atomic": atomic}


def compiled(T: int, B: int, S: int) -> list[dict[str, Any]]:
    """Compile both ways by calling them, with tensors that have no memory."""
    results: list[dict[str, Any]] = []
    pointwise: Any = TritonPointwise("meta")
    pointwise._rows = type(
        "Rows",
        (),
        {name: Compiled(name, results) for name in ("norm_dropout_residual", "norm_dropout_residual_backward", "gather")},
    )
    y, x, out, stats = (torch.empty(T, B, size, device="meta") for size in (S, S, S, 2))
    norm = Norm(*(torch.empty(S, device="meta") for _ in Norm._fields))
    words = torch.empty(5, dtype=torch.int64, device="meta")
    drop = Dropout(0.3, 1, 2, B, weights=0.5)
    for case in (drop.reading(words), drop if S == 37 else None):
        pointwise.norm_dropout_residual(y, x, norm, case, 1, out, stats)
        pointwise.norm_dropout_residual_backward(x, y, norm, case, 1, out, stats)
        pointwise.norm_dropout_residual(y, None, None, None if case is None else case.of_weights(), 1, out, stats)
    return [{"size": (T, B, S), **result} for result in results]


if __name__ == "__main__":
    triton.runtime.driver.set_active(Absent())
    json.dump([result for size in SIZES for result in compiled(*size)], sys.stdout)
