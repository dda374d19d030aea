"""Where device code may be told that its numbers lie: tensors of one recurrence, or of M x L with strides of their own."""

import torch
from torch import Tensor


def checked(name: str, tensor: Tensor, many: list[int], *shape: int, also: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor; the device code trusts what has passed here.

    Args:
        name: In the error.
        tensor: (*many, *shape)
        many: Nothing, or M and L.
        shape: What is contiguous.
        also: A type that is as good as float32.

    Raises:
        ValueError: It is not of this shape and type, or not contiguous behind M and L.
    """
    fine = tensor.shape == (*many, *shape) and tensor.dtype in (torch.float32, also) and len(many) in (0, 2)
    step = 1
    for size, stride in zip(reversed(shape), reversed(tensor.stride()), strict=False):
        fine &= size == 1 or stride == step
        step *= size
    if not fine:
        found = f"{tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()}"
        each = f", {many[0]} x {many[1]} of them" if len(many) == 2 else ", one or M x L of them" if many else ""
        raise ValueError(f"{name}: expected contiguous {shape} of float32{each}, found {found}.")
    return tensor


def strides_of(many: list[int], *tensors: Tensor) -> tuple[tuple[int, int], ...]:
    """Return how far apart the recurrences lie in each tensor, along M and along L; 0 where there is one."""
    return tuple((x.stride(0) if many[0] > 1 else 0, x.stride(1) if many[1] > 1 else 0) if many else (0, 0) for x in tensors)


def staggered(x: Tensor) -> Tensor:
    """Return (M, L, T, ...) as it lies where each of L layers has L T steps, and is T steps behind the one below."""
    M, L, T = x.shape[:3]
    room = x.new_zeros(M, L, L * T, *x.shape[3:])
    along = room.stride()
    return room.as_strided(x.shape, (along[0], along[1] - T * along[2], *along[2:]), (L - 1) * T * along[2]).copy_(x)
