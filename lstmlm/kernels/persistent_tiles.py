"""How a pass of `persistent` is cut up into programs, and a program's products into tiles.

It knows sizes. It does not know tensors or devices.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """What the tiles depend on.

    programs: How many can run at the same time: the multiprocessors. 0: no program may wait for another.
    memory: Bytes of shared memory that one of them may use.
    """

    programs: int
    memory: int


INTERPRETER = Chip(1, 1 << 17)
"""Runs one program after another."""


class Tiles(NamedTuple):
    """How a pass is cut up.

    rows: Rows of the batch of a program.
    units: Units of a program.
    depth: Length of a warp's part of a chunk of a product's inner dimension.
    warps: Of a program; the inner dimension is split among them.
    chunks: Of the inner dimension.
    ahead: Chunks of the left factor that are read before they are needed.
    kept: Whether the weights stay on chip.
    together: Whether all steps are one launch, and all programs run at the same time.
    """

    rows: int
    units: int
    depth: int
    warps: int
    chunks: int
    ahead: int
    kept: bool
    together: bool


def tiles(B: int, S: int, K: int, size: int, chip: Chip) -> Tiles:
    """Choose.

    Args:
        B: Rows.
        S: Units.
        K: Inner dimension of the product of a step: S forward, 4S backward.
        size: Bytes of a factor of the products.
        chip: What it runs on.
    """
    rows, units, warps = 16, 16, 8

    def programs() -> int:
        return -(-B // rows) * -(-S // units)

    # Other rows need no weights of their own, only more of the sums; other units do.
    while programs() > chip.programs and rows < min(B, 64):
        rows *= 2
    while programs() > chip.programs and units < min(S, 64):
        units *= 2
    # The longest of those that fill up with the fewest zeros.
    depth = min((64, 32, 16), key=lambda depth: -(-K // (depth * warps)) * depth)
    chunks = -(-K // (depth * warps))
    weights = chunks * depth * warps * units * (4 * S // K) * size
    room = (chip.memory - weights) // (rows * depth * warps * size)
    kept = room >= 1 and size == 2  # the sums of float32 factors are made without matrix units, from registers
    ahead = max(0, min(room, chunks) - 1) if kept else 0
    return Tiles(rows, units, depth, warps, chunks, ahead, kept, programs() <= chip.programs)
