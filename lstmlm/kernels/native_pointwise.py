"""What lies around the recurrence, in C (`pointwise.h`): each function one pass over its memory on torch's threads.

It is the `pointwise` of the native kernel.
"""

import ctypes
import math
from typing import Any

from torch import Tensor

from lstmlm.kernels import arguments
from lstmlm.kernels.arguments import checked, checked_ids, pointers
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Adam, Norm, Taught

ALONE = 16384
"""Fewer numbers than these are not worth a second thread."""


class NativePointwise:
    """See `Pointwise`. float32 on the CPU; the bits do not depend on the number of threads."""

    deferred = False

    def __init__(self, library: ctypes.CDLL) -> None:
        _declare(library)
        self._library, self._parts = library, library.lstmlm_parts()

    def norm_dropout_residual(
        self, y: Tensor, x: Tensor | None, norm: Norm | None, drop: Dropout | None, layer: int, out: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual`."""
        shape = T, B, S = checked("y", y, *y.shape).shape
        checked("out", out, *shape)
        if x is not None:
            checked("x", x, *shape)
        gamma, beta = _norm(norm, S)
        if norm is not None:
            checked("stats", stats, T, B, 2)
        self._library.lstmlm_norm_dropout_residual(
            arguments.threads(), T, B, S, *_drop(drop, layer, B), *pointers(y, x, gamma, beta, stats, out)
        )

    def norm_dropout_residual_backward(
        self, dx: Tensor, y: Tensor, norm: Norm | None, drop: Dropout | None, layer: int, dy: Tensor, stats: Tensor
    ) -> None:
        """See `Pointwise.norm_dropout_residual_backward`."""
        shape = T, B, S = checked("y", y, *y.shape).shape
        for name, tensor in (("dx", dx), ("dy", dy)):
            checked(name, tensor, *shape)
        if norm is None and drop is None:
            dy.copy_(dx)
            return
        gamma, _ = _norm(norm, S)
        dgamma = dbeta = None
        if norm is not None:
            checked("stats", stats, T, B, 2)
            dgamma, dbeta = checked("dgamma", norm.dgamma, S), checked("dbeta", norm.dbeta, S)
        scratch = y.new_empty(self._parts * 2 * S)
        self._library.lstmlm_norm_dropout_residual_backward(
            arguments.threads(), T, B, S, *_drop(drop, layer, B), *pointers(dx, y, gamma, stats, dy, dgamma, dbeta, scratch)
        )

    def loss(
        self,
        logits: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        dbias: Tensor | None,
        taught: Taught | None = None,
    ) -> float:
        """See `Pointwise.loss`."""
        N, V = checked("logits", logits, *logits.shape).shape
        checked_ids("targets", targets, V, N)
        if bias is not None:
            assert dbias is not None
            checked("bias", bias, V)
            checked("dbias", dbias, V)
        soft, weight = taught or (None, 0.0)
        if soft is not None:
            checked("probabilities", soft, N, V)
        scratch = logits.new_empty(self._parts * V)
        given = pointers(logits, bias, targets, dbias, scratch, soft)
        return float(self._library.lstmlm_loss(arguments.threads(), N, V, scale, *given, weight))

    def scatter(self, ids: Tensor | None, da: Tensor, dU: Tensor | None, db: Tensor | None) -> None:
        """See `Pointwise.scatter`."""
        N, width = checked("da", da, *da.shape).shape
        if ids is not None:
            assert dU is not None
            checked("dU", dU, len(dU), width)
            checked_ids("ids", ids, len(dU), N)
        if db is not None:
            checked("db", db, width)
        V = 1 if dU is None else len(dU)
        self._library.lstmlm_scatter(arguments.threads(), N, V, width, *pointers(ids, da, dU, db))

    def squared(self, gradient: Tensor) -> float:
        """See `Pointwise.squared`."""
        n = checked("gradient", gradient, gradient.numel()).numel()
        return float(self._library.lstmlm_square(_enough(n), n, *pointers(gradient)))

    def adam(self, weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, average: Tensor | None, step: Adam) -> bool:
        """See `Pointwise.adam`."""
        n = weights.numel()
        assert not isinstance(step.rate, Tensor)
        assert not isinstance(step.step, Tensor)
        if average is not None:
            checked("average", average, n)
        for name, tensor in (("weights", weights), ("gradient", gradient), ("mean", mean), ("square", square)):
            checked(name, tensor, n)
        first = 1 - step.beta1**step.step
        second = 1 / math.sqrt(1 - step.beta2**step.step)
        shrink = 1 - step.rate * step.decay
        numbers = (step.rate / first, step.beta1, step.beta2, step.eps, shrink, step.scale, second, step.pull)
        return bool(self._library.lstmlm_adam(_enough(n), n, *numbers, *pointers(weights, gradient, mean, square, average)))


def _drop(drop: Dropout | None, layer: int, B: int) -> tuple[int, int, int, int, float]:
    """Return streams, first, key, threshold and scale."""
    if drop is None:
        return B, 0, 0, 0, 1.0
    assert not isinstance(drop.first, Tensor)
    return drop.streams, drop.first, drop.key(layer), drop.threshold, drop.scale


def _norm(norm: Norm | None, S: int) -> tuple[Tensor | None, Tensor | None]:
    if norm is None:
        return None, None
    return checked("gamma", norm.gamma, S), checked("beta", norm.beta, S)


def _enough(n: int) -> int:
    return arguments.threads() if n > ALONE else 1


def _declare(library: ctypes.CDLL) -> None:
    number, size, pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
    word, real = ctypes.c_uint32, ctypes.c_float
    dropped: list[Any] = [size, size, word, word, real]
    library.lstmlm_parts.argtypes = []
    library.lstmlm_norm_dropout_residual.argtypes = [number, size, size, size, *dropped, *[pointer] * 6]
    library.lstmlm_norm_dropout_residual_backward.argtypes = [number, size, size, size, *dropped, *[pointer] * 8]
    library.lstmlm_loss.argtypes = [number, size, size, real, *[pointer] * 6, real]
    library.lstmlm_loss.restype = ctypes.c_double
    library.lstmlm_scatter.argtypes = [number, size, size, size, *[pointer] * 4]
    library.lstmlm_square.argtypes, library.lstmlm_square.restype = [number, size, pointer], ctypes.c_double
    library.lstmlm_adam.argtypes, library.lstmlm_adam.restype = [number, size, *[real] * 8, *[pointer] * 5], number
