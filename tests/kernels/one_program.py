"""The kernel's grid as processes, each of which interprets one program: `python -m tests.kernels.one_program FOLDER CASE`.

They run at the same time and share the memory of the files in a folder: so the barrier has something to wait for.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstmlm.kernels import Activations, persistent
from lstmlm.kernels.persistent_tiles import Chip, Tiles

S = 20
CUT = Tiles(rows=16, turns=1, units=16, depth=16, warps=2, chunks=0, ahead=0, kept=True, together=True)


class Case(NamedTuple):
    """What is run.

    T: Steps.
    many: M and L, or nothing.
    B: Rows.
    grid: Programs, which follow from these.
    """

    T: int
    many: tuple[int, ...]
    B: int
    grid: tuple[int, int, int]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of all that is shared."""
        T, many, B, _ = self
        across, along, count = self.grid
        of_each = {
            **dict.fromkeys(("H_0", "C_0", "dC_T", "dH_0", "dC_0"), (B, S)),
            **dict.fromkeys(("C", "H", "dH"), (T, B, S)),
            "gates": (T, B, 4 * S),
            "W": (S, 4 * S),
        }
        return {
            **{name: (*many, *shape) for name, shape in of_each.items()},
            "forward_X": (2, count, B, S),
            "backward_X": (2, count, B, 4 * S),
            **dict.fromkeys(("forward_counters", "backward_counters"), (count * along,)),
            "present": (2, across * along * count),
        }


CASES = {"one": Case(4, (), 17, (2, 2, 1)), "two": Case(2, (2, 1), 17, (2, 2, 2))}


def cut(B: int, S: int, K: int, size: int, chip: Chip, count: int) -> Tiles:
    """Cut a small case up into several programs that run together."""
    return CUT._replace(chunks=-(-K // (CUT.depth * CUT.warps)))


def shared(folder: Path, case: Case) -> dict[str, Tensor]:
    """Return the tensors that lie in a folder's files; they are made with zeros in them."""
    integers = {"forward_counters", "backward_counters", "present"}
    tensors = {}
    for name, shape in case.shapes().items():
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


def become(place: tuple[int, ...], grid: tuple[int, ...]) -> None:
    """Make of this process one program of a grid: the interpreter, launched on a grid of one, runs it as that."""
    from triton.runtime import interpreter

    # It would go through the whole grid: it is told of one program, which has the place and the grid given here.
    builder = interpreter.interpreter_builder
    set_place, set_grid = builder.set_grid_idx, builder.set_grid_dim
    builder.set_grid_idx = lambda *ignored: set_place(*place)
    builder.set_grid_dim = lambda *ignored: set_grid(*grid)
    # One program is behind all others whenever it reads or writes. And there are fewer processors than programs.
    behind = 0.003 * (not any(place))
    for name, pause in (("create_masked_load", behind), ("create_masked_store", behind), ("create_atomic_rmw", 0)):
        setattr(builder, name, after(pause, getattr(builder, name)))
    # It would copy every argument onto itself in the end, and with it what others write meanwhile.
    interpreter.GridExecutor._restore_args_dev = lambda *ignored: None


class Alone:
    """A kernel that runs on a grid of one wherever it is launched on the whole one."""

    def __init__(self, kernel: Any, *whole: int) -> None:
        self.kernel, self.whole = kernel, whole

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what takes the arguments of the launch."""
        assert grid == self.whole
        return self.kernel[1, 1]


def together(program: Callable[[tuple[int, ...]], object], grid: tuple[int, ...]) -> int:
    """Run all programs of a grid, each in a process, and return how many of them failed."""
    processes = []
    for place in itertools.product(*map(range, grid)):
        process = os.fork()
        if process == 0:
            signal.alarm(60)  # whoever waits for ever is ended
            program(place)
            os._exit(0)
        processes.append(process)
    return sum(os.waitpid(process, 0)[1] != 0 for process in processes)


class OneProgram(persistent.PersistentKernel):
    """The kernel, of which only one program runs, in memory that is shared with the others."""

    def __init__(self, memory: dict[str, Tensor], case: Case, x: int, y: int, z: int) -> None:
        super().__init__(torch.float32, Chip(4, 1 << 17), interpreted=True)
        across, along, _ = self.grid = case.grid
        self.memory, self.place, self.turn = memory, (z * along + y) * across + x, "forward"
        become((x, y, z), self.grid)

    def _exchange(self, count: int, B: int, width: int, like: Tensor) -> Tensor:
        return self.memory[f"{self.turn}_X"]

    def _counters(self, count: int, device: torch.device) -> Tensor:
        return self.memory[f"{self.turn}_counters"]

    def _launch(self, kernel: Any, *given: Any, **options: Any) -> None:
        present = self.memory["present"][("forward", "backward").index(self.turn)]
        present[self.place] = 1
        while not present.all():  # what the host prepares is prepared by each: nobody begins before the last one has
            time.sleep(0.001)

        super()._launch(Alone(kernel, *self.grid), *given, **options)


def run(folder: Path, case: Case, x: int, y: int, z: int) -> None:
    """Run both passes of one program."""
    memory = shared(folder, case)
    gates, C, H = (memory[name] for name in ("gates", "C", "H"))
    kernel = OneProgram(memory, case, x, y, z)
    kernel.forward(gates, memory["W"], memory["H_0"], memory["C_0"], into=Activations(gates, C, H))
    kernel.turn = "backward"
    _, dH_0, dC_0 = kernel.backward(memory["dH"], memory["dC_T"], gates, C, memory["C_0"], memory["W"])
    rows, units = slice(y * CUT.rows, (y + 1) * CUT.rows), slice(x * CUT.units, (x + 1) * CUT.units)
    for name, found in (("dH_0", dH_0), ("dC_0", dC_0)):
        memory[name].view(-1, case.B, S)[z, rows, units] = found.view(-1, case.B, S)[z, rows, units]


def main(folder: Path, case: Case) -> int:
    """Run the programs, each in a process, and return how many of them failed."""
    vars(persistent)["tiles"] = cut
    return together(lambda place: run(folder, case, *place), case.grid)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), CASES[sys.argv[2]]))
