"""What is handed to C: tensors that have been checked, their addresses, and how many threads.

Used by `native` and `native_pointwise`; `generate`, which needs no torch, takes what `floats` makes of a tensor.
"""

import torch
from torch import Tensor

from lstmlm import machine
from lstmlm.kernels.buffers import Floats


def threads() -> int:
    """Return torch's number of threads, but not more than there are processors: the team spins at its barriers."""
    count = torch.get_num_threads()
    return count if count == 1 else min(count, len(machine.processors()))


def checked(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor; the C code trusts what has passed here.

    Raises:
        TypeError: It is not float32 on the CPU.
        ValueError: It has another shape, is empty or not contiguous.
    """
    if tensor.dtype is not torch.float32 or not tensor.is_cpu:
        raise TypeError(f"{name}: expected float32 on the cpu, found {tensor.dtype} on {tensor.device}.")
    if tensor.shape != shape or not tensor.is_contiguous() or 0 in shape:
        found = f"{tuple(tensor.shape)} with strides {tensor.stride()}"
        raise ValueError(f"{name}: expected contiguous {shape}, not empty, found {found}.")
    return tensor


def checked_ids(name: str, ids: Tensor, V: int, *shape: int) -> Tensor:
    """Return the ids; the C code follows them into a table of V rows.

    Raises:
        TypeError: They are not int64 of this shape on the CPU.
        ValueError: One is out of the table.
    """
    if ids.dtype is not torch.int64 or not ids.is_cpu or ids.shape != shape or not ids.is_contiguous():
        raise TypeError(f"{name}: expected contiguous int64 {shape} on the cpu, found {tuple(ids.shape)} of {ids.dtype}.")
    low, high = torch.aminmax(ids)
    if int(low) < 0 or int(high) >= V:
        raise ValueError(f"{name}: expected ids below {V}, found {int(low)} to {int(high)}.")
    return ids


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return the addresses; None is C's null pointer."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def floats(tensor: Tensor) -> Floats:
    """Return the numbers of a tensor where they are.

    Raises:
        TypeError: It is not float32 on the CPU.
        ValueError: It is empty or not contiguous.
    """
    checked("weights", tensor, *tensor.shape)
    return Floats(tensor.data_ptr(), tuple(tensor.shape), tensor)
