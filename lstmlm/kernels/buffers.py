"""Numbers in memory as C takes them: where they begin and what shape they have, whoever keeps them.

`floats_of_bytes` is for what a checkpoint holds, `arguments.floats` for tensors; `generate` takes either. It needs no torch.
"""

import ctypes
import math
from typing import NamedTuple


class Floats(NamedTuple):
    """float32 numbers, contiguous.

    address: Of the first one.
    shape: The last axis runs fastest; not empty.
    owner: Whose memory it is: as long as it is referred to here, it stays.
    """

    address: int
    shape: tuple[int, ...]
    owner: object

    def tolist(self) -> list[float]:
        """Return a copy of the numbers, one after another."""
        return list((ctypes.c_float * math.prod(self.shape)).from_address(self.address))


def floats_of_bytes(data: bytes | bytearray | memoryview, shape: tuple[int, ...]) -> Floats:
    """Return the numbers that bytes hold: their own memory, where it may be written, and else a copy.

    Args:
        data: As many bytes as the shape says.
        shape: Not empty.
    """
    memory = bytearray(data) if memoryview(data).readonly else data
    owner = (ctypes.c_char * len(memory)).from_buffer(memory)
    return Floats(ctypes.addressof(owner), shape, owner)
