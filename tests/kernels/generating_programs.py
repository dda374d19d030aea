"""The generator's grid as processes, like `one_program`: `python -m tests.kernels.generating_programs FOLDER`."""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from lstmlm.kernels import persistent_generate
from lstmlm.kernels.generate import Choice, LayerWeights
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_generate import PersistentGenerator, Shares
from lstmlm.kernels.persistent_tiles import INTERPRETER, Chip
from tests.kernels.one_program import Alone, become, together

V, S, L, n, K = 9, 20, 3, 2, 3
GRID = 2, n, 1
CHOICE = Choice(0.9, 0, 1.0, greedy=False)
SHAPES = {"H": (2, L, n, S), "logits": (n, V), "ids": (K, n), "nats": (K, n), "counters": (n,), "present": GRID}


def shared(folder: Path) -> dict[str, Tensor]:
    """Return what programs tell each other, as it lies in a folder's files; it is made with zeros in it."""
    types = {"ids": torch.int64, "counters": torch.int32, "present": torch.int32}
    tensors = {}
    for name, shape in SHAPES.items():
        size, dtype = int(torch.Size(shape).numel()), types.get(name, torch.float32)
        tensors[name] = torch.from_file(str(folder / name), shared=True, size=size, dtype=dtype).view(shape)
    return tensors


def problem() -> tuple[PersistentGenerator, Tensor]:
    """Return the generator, the same in every process, in its beginning, and the noise."""
    torch.manual_seed(0)
    widths = V, *[S] * (L - 1)
    layers = [LayerWeights(torch.randn(width, 4 * S), torch.randn(S, 4 * S) * 0.1, None, None, None) for width in widths]
    readout = torch.randn(V, S), torch.randn(V)
    kernel = PersistentKernel(torch.float32, INTERPRETER, interpreted=True)
    generator = PersistentGenerator(kernel, layers, readout, n, residual=True)
    generator.begin(torch.randn(n, V), [(torch.randn(n, S).tanh(), torch.randn(n, S)) for _ in range(L)])
    return generator, torch.rand(K, n)


def shares(S: int, V: int, n: int, chip: Chip) -> Shares:
    """Share the work of a stream, three blocks of units and of columns, among two programs."""
    return Shares(units=8, columns=4, programs=GRID[0], warps=8)


def run(folder: Path, place: tuple[int, ...]) -> None:
    """Run one program."""
    memory = shared(folder)
    generator, noise = problem()
    become(place, GRID)
    parts = vars(generator)
    parts.update(_H=memory["H"].copy_(generator._H), logits=memory["logits"].copy_(generator.logits))
    parts.update(_characters=Alone(generator._characters, *GRID[:2]), _counters=lambda: memory["counters"])
    memory["present"][place] = 1
    while not memory["present"].all():  # nobody begins before the last one is ready
        time.sleep(0.001)
    generator._divisor.fill_(CHOICE.divisor)
    generator._launch(noise, memory["ids"], memory["nats"], CHOICE.greedy)


if __name__ == "__main__":
    vars(persistent_generate)["shares"] = shares
    sys.exit(together(lambda place: run(Path(sys.argv[1]), place), GRID))
