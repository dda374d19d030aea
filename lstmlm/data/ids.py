"""The ids of a text, one after another: in memory when they are few, in a memory-mapped file when they are many.

`Ids` is what `corpus` returns for each part and `batches` cuts into windows; `cache` maps its files with `map_file`.
"""

import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 1 << 20  # ids that are searched at a time
RESIDENT_LIMIT = 64 << 20  # bytes of a mapped file that may stay resident after they were read


class Ids:
    """A sequence of ids over memory or a mapped file; nothing is read before it is asked for.

    Args:
        buffer: What holds them: a `bytearray` or a private `mmap`.
        width: Bytes of one id: 1, 2 or 4.
        start: Offset of the first id, in bytes.
        count: Number of ids.
    """

    def __init__(self, buffer: "bytearray | mmap.mmap", width: int, start: int, count: int) -> None:
        self._buffer, self.width, self._start, self._count = buffer, width, start, count
        self._read = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"id {index} of {self._count}")
        start = self._start + index * self.width
        return int.from_bytes(self._buffer[start : start + self.width], sys.byteorder)

    def view(self) -> "Tensor":
        """Return all ids as one tensor of the stored type (uint8, uint16 or int32) over the memory itself. (len,)"""
        import torch

        dtype = stored_type(self.width)
        if not self._count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._buffer, dtype=dtype, count=self._count, offset=self._start)

    def tensor(self, start: int, stop: int) -> "Tensor":
        """Copy ids `start` to `stop` (clamped to the text) into a new int64 tensor. (stop - start,)"""
        import torch

        start, stop = max(0, start), min(stop, self._count)
        if start >= stop:
            return torch.empty(0, dtype=torch.int64)
        part = Ids(self._buffer, self.width, self._start + start * self.width, stop - start).view().to(torch.int64)
        self.release_after(len(part))
        return part

    def stored(self, start: int, stop: int) -> bytes:
        """Copy ids `start` to `stop` (clamped to the text) as they are stored."""
        start, stop = max(0, start), min(stop, self._count)
        part = bytes(self._buffer[self._start + start * self.width : self._start + stop * self.width])
        self.release_after(stop - start)
        return part

    def occurrences(self, pattern: Sequence[int]) -> int:
        """Count where some ids stand one after another; two places share none of them."""
        wanted = b"".join(id_.to_bytes(self.width, sys.byteorder) for id_ in pattern)
        count = start = 0
        while start + len(pattern) <= self._count:
            stop = min(self._count, start + PIECE + len(pattern))
            part, at, done = self.stored(start, stop), 0, 0
            while (at := part.find(wanted, at)) >= 0:
                if at % self.width:  # the end of one id and the beginning of the next
                    at += 1
                    continue
                at += len(wanted)
                count, done = count + 1, at // self.width
            start = stop if stop == self._count else max(start + done, stop - len(pattern) + 1)
        return count

    def release_after(self, read: int) -> None:
        """Count `read` more ids as read, and give the mapped pages back to the system once they add up.

        Without this a pass over a text of many gigabytes would count as memory of the process, although the system
        could take the pages away at any time.
        """
        self._read += read * self.width
        if self._read >= RESIDENT_LIMIT:
            self._read = 0
            if isinstance(self._buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                self._buffer.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Store:
    """Ids and what they are: `facts` is the dict that the writer gave."""

    buffer: "bytearray | mmap.mmap"
    width: int
    start: int
    facts: dict[str, Any]

    def ids(self, first: int, last: int) -> Ids:
        """Return the ids from `first` up to `last` as a sequence of its own."""
        return Ids(self.buffer, self.width, self.start + first * self.width, last - first)


def stored_type(width: int) -> "torch.dtype":
    """Return the type of ids of `width` bytes: all are positive, so two bytes have no sign."""
    import torch

    return {1: torch.uint8, 2: torch.uint16, 4: torch.int32}[width]


def map_file(descriptor: int) -> mmap.mmap:
    """Map an open file so that torch takes it: private and writable, though nobody writes."""
    if sys.platform == "linux":
        # Private and writable, as torch wants it, yet without a claim on memory for pages that nobody will write:
        # otherwise the system refuses to map a file larger than its memory.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
