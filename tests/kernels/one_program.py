"""The kernel's grid as processes, each of which interprets one program: `python -m tests.kernels.one_program FOLDER`.

They run at the same time and share the memory of the files in a folder: so the barrier has something to wait for.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lstmlm.kernels import Activations, persistent
from lstmlm.kernels.persistent_tiles import Chip, Tiles

T, B, S = 4, 17, 20
CUT = Tiles(rows=16, turns=1, units=16, depth=16, warps=2, chunks=0, ahead=0, kept=True, together=True)
GRID = (2, 2)
SHAPES = {
    "gates": (T, B, 4 * S),
    "W": (S, 4 * S),
    "H_0": (B, S),
    "C_0": (B, S),
    "C": (T, B, S),
    "H": (T, B, S),
    "dH": (T, B, S),
    "dC_T": (B, S),
    "forward_X": (2, B, S),
    "backward_X": (2, B, 4 * S),
    "dH_0": (B, S),
    "dC_0": (B, S),
    "forward_counters": (2,),
    "backward_counters": (2,),
    "present": (2, 4),
}


def cut(B: int, S: int, K: int, size: int, chip: Chip) -> Tiles:
    """Cut a small case up into several programs that run together."""
    return CUT._replace(chunks=-(-K // (CUT.depth * CUT.warps)))


def shared(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that lie in a folder's files; they are made with zeros in them."""
    integers = {"forward_counters", "backward_counters", "present"}
    tensors = {}
    for name, shape in SHAPES.items():
        dtype = torch.int32 if name in integers else torch.float32
        size = int(torch.Size(shape).numel())
        tensors[name] = torch.from_file(str(folder / name), shared=True, size=size, dtype=dtype).view(shape)
    return tensors


def after(pause: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a pause before it; one of 0 lets others run."""

    def delayed(*given: Any) -> Any:
        time.sleep(pause)
        return function(*given)

    return delayed


class OneProgram(persistent.PersistentKernel):
    """The kernel, of which only one program runs, in memory that is shared with the others."""

    def __init__(self, memory: dict[str, Tensor], x: int, y: int) -> None:
        super().__init__(torch.float32, Chip(4, 1 << 17), interpreted=True)
        from triton.runtime import interpreter

        self.memory, self.place, self.turn = memory, y * GRID[0] + x, "forward"
        # The interpreter would go through the whole grid: it is told of one program, which has the place and the grid given here.
        builder = interpreter.interpreter_builder
        first = self.place == 0
        place, whole = builder.set_grid_idx, builder.set_grid_dim
        builder.set_grid_idx = lambda *ignored: place(x, y, 0)
        builder.set_grid_dim = lambda *ignored: whole(*GRID, 1)
        # One program is behind all others whenever it reads or writes. And there are fewer processors than programs.
        for name, pause in (
            ("create_masked_load", 0.003 * first),
            ("create_masked_store", 0.003 * first),
            ("create_atomic_rmw", 0),
        ):
            setattr(builder, name, after(pause, getattr(builder, name)))
        # It would copy every argument onto itself in the end, and with it what others write meanwhile.
        interpreter.GridExecutor._restore_args_dev = lambda *ignored: None

    def _exchange(self, B: int, width: int, like: Tensor) -> Tensor:
        return self.memory[f"{self.turn}_X"]

    def _counters(self, count: int, device: torch.device) -> Tensor:
        return self.memory[f"{self.turn}_counters"]

    def _launch(self, kernel: Any, *given: Any, **options: Any) -> None:
        present = self.memory["present"][("forward", "backward").index(self.turn)]
        present[self.place] = 1
        while not present.all():  # what the host prepares is prepared by each: nobody begins before the last one has
            time.sleep(0.001)

        class Alone:
            """The kernel on a grid of one."""

            def __getitem__(self, grid: tuple[int, int]) -> Any:
                assert grid == GRID
                return kernel[1, 1]

        super()._launch(Alone(), *given, **options)


def run(folder: Path, x: int, y: int) -> None:
    """Run both passes of one program."""
    memory = shared(folder)
    gates, C, H = (memory[name] for name in ("gates", "C", "H"))
    kernel = OneProgram(memory, x, y)
    kernel.forward(gates, memory["W"], memory["H_0"], memory["C_0"], into=Activations(gates, C, H))
    kernel.turn = "backward"
    _, dH_0, dC_0 = kernel.backward(memory["dH"], memory["dC_T"], gates, C, memory["C_0"], memory["W"])
    own = slice(y * CUT.rows, (y + 1) * CUT.rows), slice(x * CUT.units, (x + 1) * CUT.units)
    memory["dH_0"][own], memory["dC_0"][own] = dH_0[own], dC_0[own]


def main(folder: Path) -> int:
    """Run the programs, each in a process, and return how many of them failed."""
    vars(persistent)["tiles"] = cut
    processes = []
    for x in range(GRID[0]):
        for y in range(GRID[1]):
            process = os.fork()
            if process == 0:
                signal.alarm(60)  # whoever waits for ever is ended
                run(folder, x, y)
                os._exit(0)
            processes.append(process)
    return sum(os.waitpid(process, 0)[1] != 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
