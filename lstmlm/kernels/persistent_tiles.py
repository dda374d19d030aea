"""How a pass of `persistent` is cut up into programs, and a program's products into tiles."""

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

    rows: Rows of the batch that a program computes at a time.
    turns: How many such blocks of rows it goes through in a step.
    units: Units of a program.
    depth: Length of a warp's part of a chunk of a product's inner dimension.
    warps: Of a program; the inner dimension is split among them.
    chunks: Of the inner dimension.
    ahead: Chunks of the left factor that are read before they are needed.
    kept: Whether the weights stay on chip.
    together: Whether all steps are one launch, and all programs run at the same time.
    """

    rows: int
    turns: int
    units: int
    depth: int
    warps: int
    chunks: int
    ahead: int
    kept: bool
    together: bool

    def grid(self, B: int, S: int) -> tuple[int, int]:
        """Return the number of programs of a recurrence: along the units, along the rows."""
        return -(-S // self.units), -(-B // (self.rows * self.turns))


# Rows, turns and units: the first that needs few enough programs. More rows at a time, or more units, need more registers than
# there are; more turns take longer.
SHAPES = [(16, 1, 16), (32, 1, 16), (32, 2, 16), (32, 4, 16), (32, 8, 16), (16, 8, 32), (16, 16, 32)]
WARPS = 8


def tiles(B: int, S: int, K: int, size: int, chip: Chip, count: int = 1) -> Tiles:
    """Choose.

    Args:
        B: Rows.
        S: Units.
        K: Inner dimension of the product of a step: S forward, 4S backward.
        size: Bytes of a factor of the products.
        chip: What it runs on.
        count: Recurrences of this size that run side by side.
    """
    half = size == 2  # sums of float32 factors are made without matrix units, from registers: weights are not kept for them
    # The longest of those that fill up with the fewest zeros.
    depth = min((64, 32, 16) if half else (16,), key=lambda depth: -(-K // (depth * WARPS)) * depth)
    chunks = -(-K // (depth * WARPS))
    cut = Tiles(16, 1, 16, depth, WARPS, chunks, 0, kept=False, together=False)
    for rows, turns, units in SHAPES:
        wider = cut._replace(rows=rows, turns=min(turns, -(-B // rows)), units=units)
        across, along = wider.grid(B, S)
        if across * along * count <= chip.programs:
            cut = wider._replace(together=True)
            break
    weights = chunks * depth * WARPS * cut.units * (4 * S // K) * size
    room = (chip.memory - weights) // (cut.rows * depth * WARPS * size)
    if half and room >= 1:
        cut = cut._replace(kept=True, ahead=min(room, chunks) - 1)
    return cut
