"""A device that computes on the CPU and says that it is another one: what is made in the wrong place cannot hide.

Its tensors hold numbers, unlike torch's fake ones, so that whole runs go through: reading back, waiting and files. As on CUDA, an
operation takes tensors of one device (numbers without dimensions may come from the CPU), and only copying crosses over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITING = ("_local_scalar_dense", "aten.item", "nonzero", "masked_select", "unique")  # what asks the device for a number
_alone = False

DEVICE = torch.device("meta")  # torch without CUDA lets no tensor that says `cuda` be indexed
CROSSING = ("aten.copy_", "aten._to_copy")


class Card(Tensor):
    """A tensor on the device; `held` is what it stands for."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Card":
        """Stand for a tensor on the CPU."""
        make: Any = torch.Tensor._make_wrapper_subclass
        card: Card = make(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        card.held = held
        return card

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # torch's own is switched off in C
        """Compute."""
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]  # torch's own takes an argument that nobody gives
        """Return what it holds."""
        return f"Card({self.held!r})"


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation where its tensors are."""
    if str(func).startswith("aten.to."):  # in inference mode it comes as a whole
        with _Operations():  # type: ignore[no-untyped-call]  # torch does not annotate it
            return func.decompose(*args, **kwargs)
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    counts = "aten.index" in str(func) and any(x.dtype == torch.bool for x in given[1:])  # how many are to be taken
    if _alone and (counts or any(word in str(func) for word in WAITING)):
        raise AssertionError(f"{func} waits for the device")
    cards = [x for x in given if isinstance(x, Card)]
    crosses = str(func).startswith(CROSSING)
    strangers = [x for x in given if not isinstance(x, Card) and x.dim()]
    if cards and strangers and not crosses:
        raise AssertionError(f"{func}: tensors of two devices: {[tuple(x.shape) for x in strangers]} on the CPU")
    device = kwargs.get("device")
    there = bool(cards) if device is None else torch.device(device) == DEVICE
    if _alone and (len(cards) < len(given) or not there):
        raise AssertionError(f"{func}: expected tensors of the device alone, as a graph cannot ask the CPU")
    if device is not None and there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    owners = {id(card.held): card for card in cards}
    out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if crosses and "copy_." in str(func):
        return args[0]

    def outer(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in owners:
            return owners[id(x)]
        return Card(x) if there else x

    return tree_map(outer, out)


def inner(x: Any) -> Any:
    """Return what a tensor stands for."""
    return x.held if isinstance(x, Card) else x


class _Operations(TorchDispatchMode):
    """Sees what takes no tensor of the device, such as making one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Data(TorchFunctionMode):
    """Does what torch does for its own tensors alone: a parameter is given other memory, and lists are read and written."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            args = (inner(args[0]),)
        if func is torch.tensor and kwargs and kwargs.get("device") == DEVICE:
            return torch.tensor(*args, **{**kwargs, "device": torch.device("cpu")}).to(DEVICE)
        if func is Tensor.t and torch.is_inference_mode_enabled() and not args[0].is_inference():  # torch refuses this of others'
            with torch.inference_mode(False), torch.no_grad():
                return func(*args)
        done = func(*args, **(kwargs or {}))
        if func == Tensor.data.__set__ and isinstance(args[0], Card):  # type: ignore[attr-defined]  # a descriptor
            args[0].held = args[1].held
        return done


def alone(run: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does its work on the device without a word from the CPU: what can be recorded as a graph.

    Nothing comes from the CPU or goes there, not even a tensor without dimensions, and nothing waits.
    """

    def strictly() -> None:
        global _alone
        _alone = True
        try:
            run()
        finally:
            _alone = False

    return strictly


@contextmanager
def device() -> Iterator[torch.device]:
    """Have such a device meanwhile."""
    with _Data(), _Operations():  # type: ignore[no-untyped-call]  # torch does not annotate it
        yield DEVICE
