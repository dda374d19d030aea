"""Compile the kernel for an H200 without one: `python -m tests.kernels.compile_persistent` prints what came out as JSON."""

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as translate

from lstmlm.kernels import persistent_steps
from lstmlm.kernels.persistent_tiles import Chip, tiles

CASES = [("forward", 64, 512, torch.bfloat16), ("backward", 64, 1024, torch.bfloat16), ("forward", 3, 37, torch.float32)]
H200 = Chip(132, 232_448)
TYPES = {"ids": "*i64", "counters": "*i32", **dict.fromkeys(("begin", "end", "T", "B", "S"), "i32")}
FREE = ("begin", "end", "T", "B")


def compiled(name: str, B: int, S: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile a pass as `persistent` launches it for these sizes."""
    function: Any = getattr(persistent_steps, name)
    cut = tiles(B, S, S if name == "forward" else 4 * S, dtype.itemsize, H200)
    others = cut.together and cut.units < S
    constants = {"KEPT": cut.kept, "OTHERS": others, "EMULATE": False, "TABLE": True, "BIAS": True}
    constants |= {field.upper(): value for field, value in cut._asdict().items()}
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    factor = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    signature = {n: "constexpr" if n in constants else factor if n in "WX" else TYPES.get(n, "*fp32") for n in function.arg_names}
    aligned = [n for n in function.arg_names if n not in constants and n not in FREE and (n != "S" or S % 16 == 0)]
    place = function.arg_names.index
    source = ASTSource(
        function,
        signature,
        constexprs={(place(n),): value for n, value in constants.items()},
        attrs={(place(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": cut.warps, "num_stages": 1 if cut.kept else 2, "launch_cooperative_grid": others}
    kernel: Any = translate(source, target=GPUTarget("cuda", 90, 32), options=options)
    return {
        "pass": name,
        "B": B,
        "S": S,
        "precision": str(dtype).removeprefix("torch."),
        "kept": cut.kept,
        "ptx": kernel.asm["ptx"],
        "shared": kernel.metadata.shared,
        "cooperative": kernel.metadata.launch_cooperative_grid,
    }


if __name__ == "__main__":
    print(json.dumps([compiled(*case) for case in CASES]))
