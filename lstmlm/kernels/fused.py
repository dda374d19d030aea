"""Norm, dropout and residual in Triton for CUDA: each way one launch that reads and writes every value once.

The device code is `fused_rows`. Loss, table rows and AdamW stay torch's.

A training step of 2x512, B 64, takes 28.9 us a time step with them, 44.7 without (`scripts/bench/gpu_first_hour.py`, one H200).
What is moved for every value of (T, B, S), worked out, at 4.8e12 bytes/s for 128 x 64 x 512 of them:

                torch                                                   here
    forward     278 bytes for the mask, in int64, and 32: 0.27 ms       4 each for y, x and out: 0.01 ms
    backward    278 and 40: 0.28 ms                                     4 each for dx, y and dy, and 1 for the parts: 0.01 ms
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import EPS, Norm, TorchPointwise

__all__ = ["TritonPointwise", "checked", "disagreement", "load"]

TILE = 2048
"""Values that a program has in registers at a time, 16 in each of its threads, unless a row has more."""

WIDEST = 8192
"""The longest row that is normed here: all of it is in one program's registers."""

PARTS = 512
"""Programs that share the rows of the backward pass: four at most for each of an H200's multiprocessors, all running at once."""

REGISTERS = 128
"""Those of a thread of the backward pass at most, so that they do; not where rows are not of whole 16: there it would spill."""

GATHERED = (128, 16)
"""Parts and columns that a program which adds them up has in registers at a time."""

WITHIN = 1e-5
"""What the self-check allows, relative to the largest value."""


class Tile(NamedTuple):
    """How a launch is cut up: rows and columns of a program, and its warps."""

    rows: int
    columns: int
    warps: int


def tile(S: int, *, whole: bool) -> Tile:
    """Return the tile for rows of S values, which has whole rows or need not."""
    columns = 1 << (S - 1).bit_length()
    if not whole:
        columns = min(columns, TILE)
    rows = max(1, TILE // columns)
    return Tile(rows, columns, max(1, rows * columns // 512))


class TritonPointwise(TorchPointwise):
    """See `Pointwise`. What is not float32, or not on its kind of device, is torch's affair.

    Args:
        device: The kind of device that it is for: cuda; cpu in Triton's interpreter.
        fast: See `TorchPointwise`.
    """

    def __init__(self, device: str, *, fast: bool = False) -> None:
        from lstmlm.kernels import fused_rows

        super().__init__(fast=fast)
        self._device, self._rows = device, fused_rows

    def norm_dropout_residual(
        self, y: Tensor, x: Tensor | None, norm: Norm | None, drop: Dropout | None, layer: int, out: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual`."""
        if not self._takes(y, norm, drop):
            super().norm_dropout_residual(y, x, norm, drop, layer, out, stats)
            return
        shape = T, B, S = checked("y", y, *y.shape).shape
        # A pointer that is not followed still has a type: any will do.
        gamma = beta = told = y
        if norm is not None:
            gamma, beta = checked("gamma", norm.gamma, S), checked("beta", norm.beta, S)
            told = checked("stats", stats, T, B, 2)
        cut = tile(S, whole=norm is not None)
        numbers, options = _drop(drop, layer, B)
        self._rows.norm_dropout_residual[-(-T * B // cut.rows), -(-S // cut.columns)](
            *(y, y if x is None else checked("x", x, *shape), gamma, beta, checked("out", out, *shape), told),
            *(T * B, B, S, *numbers),
            NORM=norm is not None,
            EPS=EPS,
            RESIDUAL=x is not None,
            **options,
            ROWS=cut.rows,
            COLUMNS=cut.columns,
            num_warps=cut.warps,
        )

    def norm_dropout_residual_backward(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual_backward`."""
        if not self._takes(y, norm, drop):
            super().norm_dropout_residual_backward(dx, y, norm, drop, layer, dy, stats)
            return
        if norm is None:  # dropout is its own gradient
            self.norm_dropout_residual(dx, None, None, drop, layer, dy, stats)
            return
        shape = T, B, S = checked("y", y, *y.shape).shape
        gamma, dgamma, dbeta = (checked(name, getattr(norm, name), S) for name in ("gamma", "dgamma", "dbeta"))
        cut = tile(S, whole=True)
        parts = min(PARTS, -(-T * B // cut.rows))
        partial = y.new_empty(parts, 2, S)
        numbers, options = _drop(drop, layer, B)
        self._rows.norm_dropout_residual_backward[parts, 1](
            *(checked("dx", dx, *shape), y, gamma, checked("stats", stats, T, B, 2)),
            *(checked("dy", dy, *shape), partial),
            *(T * B, B, S, *numbers),
            **options,
            ROWS=cut.rows,
            COLUMNS=cut.columns,
            num_warps=cut.warps,
            maxnreg=REGISTERS if S % 16 == 0 else None,
        )
        some, columns = GATHERED
        self._rows.gather[-(-S // columns), 1](partial, dgamma, dbeta, parts, S, PARTS=some, COLUMNS=columns, num_warps=4)

    def _takes(self, y: Tensor, norm: Norm | None, drop: Dropout | None) -> bool:
        """Say whether the device code can do it."""
        where = {y.device, *(word.device for word in _pointed(drop))}
        here = len(where) == 1 and y.device.type == self._device
        S = y.shape[-1]
        return here and y.dtype == torch.float32 and 0 < y.numel() < (2**31 - TILE) * S and (norm is None or S <= WIDEST)


@cache
def load(interpreted: bool, *, fast: bool = False) -> tuple[TorchPointwise, str]:
    """Return what is done by Triton on the current CUDA device, after a check on a small case; torch's and why where that fails.

    Args:
        interpreted: Triton's interpreter runs it, on the CPU: a check of the program, and no more.
        fast: See `TorchPointwise`.
    """
    if interpreted:
        return TritonPointwise("cpu", fast=fast), ""
    try:
        pointwise = TritonPointwise("cuda", fast=fast)
        found = disagreement(pointwise, "cuda")
        if found < WITHIN:
            return pointwise, ""
        reason = f"it disagrees with torch by {found:.1e}"
    except Exception as error:  # of the compiler, the driver or the device: torch does without all of them
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return TorchPointwise(fast=fast), reason


def disagreement(pointwise: TorchPointwise, device: str) -> float:
    """Return the largest relative difference from torch's functions in float64, on the same device, over three cases.

    Two have all there is, and several programs, with rows of whole 16 and others; the third is the dropout of a matrix.
    """
    generator = torch.Generator().manual_seed(0)
    drop = Dropout(0.3, 1, 2, streams=41, first=7, weights=0.6)
    pointed = drop.reading(torch.tensor(drop.words(2), device=device))
    differences = []
    cases = ((4, 17, 48), True, pointed), ((4, 17, 37), True, pointed), ((37, 1, 148), False, drop.of_weights())
    for (T, B, S), normed, case in cases:
        given = [torch.randn(*size, generator=generator) for size in [(T, B, S)] * 3 + [(S,)] * 4]
        results = []
        for way, dtype in ((TorchPointwise(), torch.float64), (pointwise, torch.float32)):
            y, x, dx, *weights = (part.to(device, dtype, copy=True) for part in given)
            norm = Norm(*weights) if normed else None
            out, dy, stats = torch.empty_like(y), torch.empty_like(y), y.new_zeros(T, B, 2)
            way.norm_dropout_residual(y, x if normed else None, norm, case, 1, out, stats)
            way.norm_dropout_residual_backward(dx, y, norm, case, 1, dy, stats)
            results.append([part.double() for part in (out, dy, *([stats, norm.dgamma, norm.dbeta] if norm else []))])
        differences += [(one - other).abs().max() / one.abs().max() for one, other in zip(*results, strict=True)]
    return float(torch.stack(differences).max())  # or NaN


def checked(name: str, tensor: Tensor, *shape: int, also: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor; the device code trusts what has passed here.

    Args:
        name: In the error.
        tensor: Of this shape.
        shape: What is expected.
        also: A type that is as good as float32.

    Raises:
        ValueError: It is not of this shape and type, or not contiguous.
    """
    if tensor.shape != shape or tensor.dtype not in (torch.float32, also) or not tensor.is_contiguous():
        found = f"{tuple(tensor.shape)} of {tensor.dtype} with strides {tensor.stride()}"
        raise ValueError(f"{name}: expected contiguous {shape} of float32, found {found}.")
    return tensor


def _drop(drop: Dropout | None, layer: int, B: int) -> tuple[tuple[Any, ...], dict[str, bool]]:
    """Return skip, first, key, threshold and scale, and which of them is where a number is found."""
    if drop is None:
        return (0, 0, 0, 0, 1.0), {"DROP": False, "FIRST": False, "KEY": False}
    first = drop.first if isinstance(drop.first, Tensor) else _signed(drop.first)
    key = _signed(drop.key(layer)) if drop.keys is None else drop.keys[0][layer]
    options = {"DROP": True, "FIRST": isinstance(first, Tensor), "KEY": isinstance(key, Tensor)}
    return (_signed(drop.streams - B), first, key, _signed(drop.threshold), drop.scale), options


def _pointed(drop: Dropout | None) -> list[Tensor]:
    """Return the words of a dropout that are tensors."""
    if drop is None:
        return []
    return [word for word in (drop.first, *(drop.keys or ())) if isinstance(word, Tensor)]


def _signed(word: int) -> int:
    """Return the same 32 bits as a number that is always of the same type to Triton."""
    return (word + 2**31) % 2**32 - 2**31
