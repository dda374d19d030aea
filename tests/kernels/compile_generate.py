"""Compile the generator for an H200 without one: `python -m tests.kernels.compile_generate` prints what came out as JSON."""

import json
import sys
from typing import Any

import torch
import triton

from lstmlm.kernels import persistent_characters
from lstmlm.kernels.generate import Choice, LayerWeights
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_generate import PersistentGenerator
from tests.kernels.compile_persistent import H200, Absent, Compiled

CASES = {"2 x 512": (100, 512, 2, True), "3 x 1024": (100, 1024, 3, True), "1 x 37": (1000, 37, 1, False)}


def compiled(name: str, V: int, S: int, L: int, all_options: bool) -> dict[str, Any]:
    """Compile by running, with tensors that have no memory."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    scales = (empty(S), empty(S)) if all_options else (None, None)
    layers = [LayerWeights(empty(S if index else V, 4 * S), empty(S, 4 * S), empty(4 * S), *scales) for index in range(L)]
    generator: Any = PersistentGenerator(
        PersistentKernel(torch.bfloat16, H200), layers, (empty(V, S), empty(V)), 1, residual=all_options
    )
    generator._characters = function = Compiled(persistent_characters.characters)
    generator.run(empty(2, 1), Choice(1.0, 0, 1.0, greedy=False))
    (result,) = function.results
    return {"case": name, **result}


if __name__ == "__main__":
    triton.runtime.driver.set_active(Absent())
    json.dump([compiled(name, *sizes) for name, sizes in CASES.items()], sys.stdout)
