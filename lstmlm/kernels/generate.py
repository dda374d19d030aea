"""Characters one after another in C (`generate.c`): stack, readout and draw for n streams, many steps in one call.

`Generator` is the entry point, for the sampler.
"""

import ctypes
import math
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.kernels import arguments
from lstmlm.kernels.arguments import checked
from lstmlm.kernels.native import NativeKernel
from lstmlm.kernels.pace import Pace

LARGEST = 1e30
"""A weight beyond this, or NaN, keeps all of them float32: what a diverged run draws shall not look sound."""

SMALL = 8 << 20
"""Bytes that one thread has read before a team has gathered on a busy machine."""


class LayerWeights(NamedTuple):
    """A layer as `lstm.LSTMLayer` keeps it, and the normalisation of its output.

    U: (E, 4S), for the first layer (V, 4S)
    W: (S, 4S)
    b: (4S), or None
    gamma, beta: (S) each, or None
    """

    U: Tensor
    W: Tensor
    b: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None


class Choice(NamedTuple):
    """How an id is drawn: the numbers of `sampler.Sampling`, with 0 or 1 for no cut.

    divisor: Of the logits.
    keep: How many ids stay; 0 is all.
    share: How much probability stays; 1 is all.
    greedy: The largest logit always.
    """

    divisor: float
    keep: int
    share: float
    greedy: bool


class Generator:
    """The network packed for reading it once a character, and the state of n streams.

    It copies the weights: what is done to them later does not reach it. Sums run in a fixed order, so a stream's bits depend
    neither on the streams beside it nor on the number of threads.

    Args:
        kernel: Whose shared object.
        layers: The first one's input is an id.
        readout: Weights (V, S) and bias (V); None: the last layer's H is the logits.
        n: Streams.
        residual: Whether a layer's output is added to its input, from the second layer on.
        eps: Of the normalisation.
        storage: float32; int8: each column of weights and each row of activations as integers up to 127 with one scale, summed
            exactly; or auto: int8 where the CPU has instructions for it.

    Attributes:
        key: Whatever its owner knows it by.
    """

    key: object = None

    def __init__(
        self,
        kernel: NativeKernel,
        layers: Sequence[LayerWeights],
        readout: tuple[Tensor, Tensor] | None,
        n: int,
        *,
        residual: bool,
        eps: float = 1e-5,
        storage: str = "auto",
    ) -> None:
        library = _library(kernel)
        self.n, self.V = n, len(layers[0].U)
        self._widths = [len(layer.W) for layer in layers]
        every = _weights(layers, readout, self.V)
        self.storage = _storage(storage, every, bool(library.lstmlm_generator_bytes()))
        threads = arguments.threads()
        self._pace = Pace(threads)
        self._fresh = True
        self._others: list[Generator] = []
        self._library = library
        handle = library.lstmlm_generator_new(
            self.storage == "int8",
            threads,
            n,
            self.V,
            len(layers),
            (ctypes.c_longlong * len(layers))(*self._widths),
            readout is None,
            residual,
            eps,
        )
        if not handle:
            raise MemoryError
        self._handle = ctypes.c_void_p(handle)
        weakref.finalize(self, library.lstmlm_generator_free, self._handle)
        whole = True
        for index, layer in enumerate(layers):
            whole = whole and library.lstmlm_generator_layer(self._handle, index, *map(_pointer, layer))
        if readout is not None:
            whole = whole and library.lstmlm_generator_readout(self._handle, *map(_pointer, readout))
        if not whole:
            raise MemoryError

    def join(self, other: "Generator") -> None:
        """Read another network beside this one from now on: what is drawn from is the mean of their probabilities.

        Args:
            other: Of as many streams and ids; it is no generator of its own any more.
        """
        if (other.n, other.V) != (self.n, self.V):
            raise ValueError(f"generators: expected {self.n} streams of {self.V} ids, found {other.n} of {other.V}.")
        if not self._library.lstmlm_generator_join(self._handle, other._handle):
            raise ValueError("generators: expected at most 64 in one.")
        self._others.append(other)

    def read(self, ids: Sequence[int]) -> None:
        """Let all streams read the same ids, one at a time, from the empty state; the first draw is from what comes then."""
        if not ids or not all(0 <= id_ < self.V for id_ in ids):
            raise ValueError(f"ids: expected at least one, all from 0 to {self.V - 1}.")
        if not self._library.lstmlm_generator_read(self._handle, len(ids), (ctypes.c_longlong * len(ids))(*ids)):
            raise MemoryError
        self._fresh = True
        for other in self._others:
            other.read(ids)

    def begin(self, logits: Tensor, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set from what the first draw is made, and the state before the step after it.

        Args:
            logits: Of all networks together. (n, V)
            states: H and C of each layer, (n, S) each, of each network that has joined after those of the one before.
        """
        own = len(self._widths)
        for number, other in enumerate(self._others, start=1):
            other.begin(logits, states[number * own : (number + 1) * own])
        states = states[:own]
        logits = _check("logits", logits, self.n, self.V)
        self._library.lstmlm_generator_logits(self._handle, False, _pointer(logits))
        for index, (S, (H, C)) in enumerate(zip(self._widths, states, strict=True)):
            H, C = _check("H", H, self.n, S), _check("C", C, self.n, S)
            self._library.lstmlm_generator_state(self._handle, index, False, _pointer(H), _pointer(C))
        self._fresh = True

    def run(self, noise: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Draw K ids for each stream.

        Args:
            noise: Uniform in [0, 1). (K, n)
            choice: How.

        Returns:
            ids: int64 (K, n)
            nats: Of each under the network's own distribution, uncut. (K, n)
        """
        K = len(noise)
        noise = _check("noise", noise, K, self.n)
        ids, nats = torch.empty(K, self.n, dtype=torch.int64), torch.empty(K, self.n)
        greedy = choice.greedy or choice.divisor == 0 or math.isnan(choice.divisor)
        done = 0
        while done < K:
            began = time.perf_counter()
            threads, most = self._pace.plan(began)
            piece = slice(done, min(K, done + most))
            pointers = _pointer(ids[piece]), _pointer(nats[piece])
            self._library.lstmlm_generator_run(
                self._handle,
                threads,
                len(ids[piece]),
                _pointer(noise[piece]),
                choice.divisor,
                choice.keep,
                choice.share,
                greedy,
                *pointers,
            )
            if steps := len(ids[piece]) - self._fresh:
                self._pace.note(threads, (time.perf_counter() - began) / steps)
            done, self._fresh = piece.stop, False
        return ids, nats

    def logits(self) -> Tensor:
        """Return what the last draw was made from, of the first network's. (n, V)"""
        logits = torch.empty(self.n, self.V)
        self._library.lstmlm_generator_logits(self._handle, True, _pointer(logits))
        return logits

    def states(self) -> list[tuple[Tensor, Tensor]]:
        """Return H and C of each layer of the first network as the last draw found them. (n, S) each"""
        states = [(torch.empty(self.n, S), torch.empty(self.n, S)) for S in self._widths]
        for index, (H, C) in enumerate(states):
            self._library.lstmlm_generator_state(self._handle, index, True, _pointer(H), _pointer(C))
        return states


def _weights(layers: Sequence[LayerWeights], readout: tuple[Tensor, Tensor] | None, V: int) -> list[Tensor]:
    """Return all weights that there are; the C code trusts what has passed here."""
    every, width = [], V
    for layer in layers:
        S = len(layer.W)
        shapes = (width, 4 * S), (S, 4 * S), (4 * S,), (S,), (S,)
        named = zip(LayerWeights._fields, layer, shapes, strict=True)
        every += [checked(name, weight, *shape) for name, weight, shape in named if weight is not None]
        width = S
    if readout is None and width != V:
        raise ValueError(f"readout: expected one from {width} units to {V} ids, found none.")
    return every if readout is None else [*every, checked("R", readout[0], V, width), checked("r", readout[1], V)]


def _storage(requested: str, weights: list[Tensor], quick: bool) -> str:
    """Return float32 or int8."""
    if requested == "float32" or (requested == "auto" and not quick):
        return "float32"
    return "int8" if all(bool(w.abs().max() <= LARGEST) for w in weights) else "float32"


def fingerprint(kernel: NativeKernel, weights: Sequence[Tensor]) -> int:
    """Return a number that is another one when a weight is another one, at the speed at which memory can be read."""
    library, mark = _library(kernel), 0
    for weight in weights:
        if weight.device.type != "cpu" or not weight.is_contiguous():
            raise TypeError("weights: expected contiguous ones on the cpu.")
        size = weight.numel() * weight.element_size()
        scratch = torch.empty(size // 2**18 + 1, dtype=torch.int64)
        threads = arguments.threads() if size > SMALL else 1
        mark = library.lstmlm_fingerprint(weight.data_ptr(), size, threads, mark, scratch.data_ptr())
    return mark


def _check(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor, contiguous; the C code trusts what has passed here."""
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.shape != shape:
        raise ValueError(f"{name}: expected float32 {shape} on the cpu, found {tensor.dtype} {tuple(tensor.shape)}.")
    return tensor.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _library(kernel: NativeKernel) -> ctypes.CDLL:
    """Return the kernel's shared object, the arguments of the entry points stated."""
    library = kernel.library
    if library.lstmlm_generator_free.argtypes is None:
        _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    number, size, pointer, real = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p, ctypes.c_double
    library.lstmlm_generator_new.argtypes = [
        *(number, number, size, size, size, ctypes.POINTER(size), number, number, ctypes.c_float),
    ]
    library.lstmlm_generator_new.restype = pointer
    library.lstmlm_generator_layer.argtypes = [pointer, size, *[pointer] * 5]
    library.lstmlm_generator_readout.argtypes = [pointer] * 3
    library.lstmlm_generator_state.argtypes = [pointer, size, number, pointer, pointer]
    library.lstmlm_generator_join.argtypes = [pointer, pointer]
    library.lstmlm_generator_logits.argtypes = [pointer, number, pointer]
    library.lstmlm_generator_run.argtypes = [pointer, number, size, pointer, real, size, real, number, pointer, pointer]
    library.lstmlm_generator_read.argtypes = [pointer, size, ctypes.POINTER(size)]
    library.lstmlm_fingerprint.argtypes = [pointer, size, number, ctypes.c_ulonglong, pointer]
    library.lstmlm_fingerprint.restype = ctypes.c_ulonglong
    library.lstmlm_generator_free.argtypes, library.lstmlm_generator_free.restype = [pointer], None
