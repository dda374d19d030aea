"""What stands in for a CUDA graph where there is none: the operations of a function, recorded and run again on the same memory.

Like a graph it knows no Python: a number that the function took from the host is the same in every replay, and asking for a
number that is being computed is an error. Unlike a graph it computes while it records, so that what was written is put back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lstmlm.kernels.cuda_graph import Work

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")


class Tape(TorchDispatchMode):
    """Records every operation below it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and keep it."""
        if any(word in str(func) for word in WAITS):
            raise AssertionError(f"{func} waits for the device")
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor) and given.numel():
                storage = given.untyped_storage()
                self.before.setdefault(storage.data_ptr(), (given, whole(given).clone()))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, [x for x in tree_leaves(out) if isinstance(x, Tensor)]))
        return out


def whole(tensor: Tensor) -> Tensor:
    """Return all memory that a tensor is a view of."""
    storage: Any = tensor.untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))


def record(run: Work) -> Work:
    """Record a function without an effect; return what does its work again."""
    with Tape() as tape:
        run()
    for tensor, was in tape.before.values():
        whole(tensor).copy_(was)

    def replay() -> None:
        for func, args, kwargs, outs in tape.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for kept, new in zip(outs, again, strict=True):
                if kept.numel() and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    return replay
