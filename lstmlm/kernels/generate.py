"""Characters one after another in C (`generate.c`): stack, readout and draw for n streams, many steps in one call.

`Generator` is the entry point, for the sampler. It takes addresses, of a checkpoint's bytes or of tensors, and needs no torch.
"""

import ctypes
import itertools
import math
import sys
import time
import weakref
from array import array
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from lstmlm.kernels import build
from lstmlm.kernels.buffers import Floats
from lstmlm.kernels.pace import Pace

Library: TypeAlias = ctypes.CDLL
"""The shared object that `build.library` gives."""

_Stream: TypeAlias = "tuple[array[float], list[tuple[array[float], array[float]]], array[int]]"

LARGEST = 1e30
"""A weight beyond this, or NaN, keeps all of them float32: what a diverged run draws shall not look sound."""

SMALL = 8 << 20
"""Bytes that one thread has read before a team has gathered on a busy machine."""


class LayerWeights(NamedTuple):
    """A layer as `lstm.LSTMLayer` keeps it, and the normalisation of its output.

    U: (E, 4S), for the first layer (V + N, 4S)
    W: (S, 4S)
    b: (4S), or None
    gamma, beta: (S) each, or None
    M: (V + N, S), of a first layer that is multiplicative; or None
    """

    U: Floats
    W: Floats
    b: Floats | None
    gamma: Floats | None
    beta: Floats | None
    M: Floats | None = None


class NetworkWeights(NamedTuple):
    """A network as it is packed.

    layers: The first one's input is an id.
    readout: Weights (V, S) and bias (V); None: the last layer's H is the logits.
    residual: Whether a layer's output is added to its input, from the second layer on.
    pairs: The ids of each of N pairs that have rows behind those of the V ids, in ascending order (N, 2); None: none do.
    """

    layers: tuple[LayerWeights, ...]
    readout: tuple[Floats, Floats] | None
    residual: bool
    pairs: Floats | None = None


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
        library: The shared object.
        weights: Of the network.
        n: Streams.
        threads: As many as may share a step; whether they do is found out while it runs.
        eps: Of the normalisation.
        storage: float32; int8: each column of weights as integers to 127 with one scale, each row of activations likewise to
            32767, summed exactly; or auto: int8 where the CPU has instructions for it.
        separator: Ids of what parts documents: after them a stream's state is empty, wherever they are read or drawn; or none.

    Attributes:
        key: Whatever its owner knows it by.
    """

    key: object = None

    def __init__(
        self,
        library: ctypes.CDLL,
        weights: NetworkWeights,
        n: int,
        *,
        threads: int,
        eps: float = 1e-5,
        storage: str = "auto",
        separator: Sequence[int] = (),
    ) -> None:
        layers, readout, residual, pairs = weights
        if n < 1 or threads < 1:
            raise ValueError(f"generator: expected at least one stream and one thread, found {n} and {threads}.")
        self._library = _declared(library)
        self.n, self.N = n, pairs.shape[0] if pairs is not None else 0
        self.V = layers[0].U.shape[0] - self.N
        self._widths = [layer.W.shape[0] for layer in layers]
        every = _checked(weights, self.V)
        self.storage = _storage(library, storage, every)
        # A prompt is read for all streams at once, a text is scored by some of them: other times.
        self._pace, self._reading, self._scoring = Pace(threads), Pace(threads), Pace(threads)
        self._fresh = True
        self._others: list[Generator] = []
        handle = library.lstmlm_generator_new(
            self.storage == "int8",
            threads,
            n,
            self.V,
            len(layers),
            (ctypes.c_longlong * len(layers))(*self._widths),
            readout is None,
            residual,
            layers[0].M is not None,
            self.N,
            eps,
        )
        if not handle:
            raise MemoryError
        self._handle = ctypes.c_void_p(handle)
        weakref.finalize(self, library.lstmlm_generator_free, self._handle)
        whole = True
        for index, layer in enumerate(layers):
            whole = whole and library.lstmlm_generator_layer(self._handle, index, *map(_address, layer))
        if readout is not None:
            whole = whole and library.lstmlm_generator_readout(self._handle, *map(_address, readout))
        if pairs is not None:
            whole = whole and library.lstmlm_generator_pairs(self._handle, pairs.address)
        if separator:
            if not all(0 <= id_ < self.V for id_ in separator):
                raise ValueError(f"separator: expected ids from 0 to {self.V - 1}, found {list(separator)}.")
            ids = array("q", separator)
            whole = whole and library.lstmlm_generator_separator(self._handle, len(ids), _start(ids))
        if not whole:
            raise MemoryError

    def join(self, other: "Generator") -> None:
        """Read another network beside this one from now on: what is drawn from is the mean of their probabilities.

        Args:
            other: Of as many streams and ids and the same pairs, with what has joined it; it is no generator of its own any more.
        """
        if (other.n, other.V, other.N) != (self.n, self.V, self.N):
            own, theirs = (f"{one.n} streams of {one.V} ids and {one.N} pairs" for one in (self, other))
            raise ValueError(f"generators: expected {own}, found {theirs}.")
        if not self._library.lstmlm_generator_join(self._handle, other._handle):
            raise ValueError("generators: expected at most 64 in one.")
        self._others += [other, *other._others]
        other._others = []

    def read(self, ids: Sequence[int]) -> None:
        """Let all streams read the same ids, from the empty state; the first draw is from what comes then.

        The system hears of an interruption after some characters.
        """
        if not ids or not all(0 <= id_ < self.V for id_ in ids):
            raise ValueError(f"ids: expected at least one, all from 0 to {self.V - 1}.")
        every, done = array("q", ids), 0
        while done < len(every):
            began = time.perf_counter()
            threads, most = self._reading.plan(began)
            count = min(most, len(every) - done)
            self._library.lstmlm_generator_read(self._handle, threads, count, _start(every) + 8 * done, done == 0)
            self._reading.note(threads, (time.perf_counter() - began) / count)
            done += count
        self._fresh = True
        for other in self._others:
            other.read(ids)

    def read_each(self, prompts: Sequence[Sequence[int]]) -> None:
        """Let each stream read ids of its own, from the empty state; the same bits as if all streams read them.

        Args:
            prompts: One for each stream.
        """
        if len(prompts) != self.n:
            raise ValueError(f"prompts: expected one for each of {self.n} streams, found {len(prompts)}.")
        every = (self, *self._others)
        after: dict[tuple[int, ...], list[_Stream]] = {}
        for ids in map(tuple, prompts):
            if ids not in after:
                self.read(ids)
                after[ids] = [one._stream() for one in every]
        if len(after) == 1:
            return
        for number, one in enumerate(every):
            own = [after[tuple(ids)][number] for ids in prompts]
            logits = array("f", itertools.chain.from_iterable(row for row, *_ in own))
            self._library.lstmlm_generator_logits(one._handle, False, _start(logits))
            for index in range(len(one._widths)):
                H, C = (
                    array("f", itertools.chain.from_iterable(states[index][part] for _, states, _ in own)) for part in range(2)
                )
                self._library.lstmlm_generator_state(one._handle, index, False, _start(H), _start(C))
            seen = array("q", itertools.chain.from_iterable(there for *_, there in own))
            self._library.lstmlm_generator_seen(one._handle, False, self.n, _start(seen))

    def _stream(self) -> "_Stream":
        """Return the first stream's logits, its H and C of each layer, and what it has seen (`Seen` in C), after `read`."""
        widths, seen = zip(self.states(), self._widths, strict=True), array("q", [0, 0])
        self._library.lstmlm_generator_seen(self._handle, True, 1, _start(seen))
        return self.logits()[: self.V], [(H[:S], C[:S]) for (H, C), S in widths], seen

    def begin(self, logits: Floats, states: Sequence[tuple[Floats, Floats]]) -> None:
        """Set from what the first draw is made, and the state before the step after it; no separator or pair has begun.

        Args:
            logits: Of all networks together. (n, V)
            states: H and C of each layer, (n, S) each, of each network that has joined after those of the one before.
        """
        own = len(self._widths)
        for number, other in enumerate(self._others, start=1):
            other.begin(logits, states[number * own : (number + 1) * own])
        states = states[:own]
        _check("logits", logits, self.n, self.V)
        none = array("q", [0, -1] * self.n)
        self._library.lstmlm_generator_seen(self._handle, False, self.n, _start(none))
        self._library.lstmlm_generator_logits(self._handle, False, logits.address)
        for index, (S, (H, C)) in enumerate(zip(self._widths, states, strict=True)):
            _check("H", H, self.n, S)
            _check("C", C, self.n, S)
            self._library.lstmlm_generator_state(self._handle, index, False, H.address, C.address)
        self._fresh = True

    def run(self, noise: "array[float]", choice: Choice) -> tuple[list[list[int]], list[list[float]]]:
        """Draw K ids for each stream.

        Args:
            noise: Uniform in [0, 1), float32: n numbers for the first ids, n for the next ones, and so on. (K n)
            choice: How.

        Returns:
            ids: (K, n)
            nats: Of each under the network's own distribution, uncut. (K, n)
        """
        n = self.n
        if noise.typecode != "f" or not noise or len(noise) % n:
            raise ValueError(f"noise: expected float32, {n} numbers for each draw, found {len(noise)} of type {noise.typecode}.")
        K = len(noise) // n
        ids, nats = array("q", bytes(8 * K * n)), array("f", bytes(4 * K * n))
        greedy = choice.greedy or choice.divisor == 0 or math.isnan(choice.divisor)
        divisor = max(choice.divisor, sys.float_info.min)  # in C a number below that is 0
        done = 0
        while done < K:
            began = time.perf_counter()
            threads, most = self._pace.plan(began)
            count = min(most, K - done)
            self._library.lstmlm_generator_run(
                self._handle,
                threads,
                count,
                _start(noise) + 4 * n * done,
                divisor,
                choice.keep,
                choice.share,
                greedy,
                _start(ids) + 8 * n * done,
                _start(nats) + 4 * n * done,
            )
            if steps := count - self._fresh:
                self._pace.note(threads, (time.perf_counter() - began) / steps)
            done, self._fresh = done + count, False
        rows = range(0, K * n, n)
        return [ids[at : at + n].tolist() for at in rows], [nats[at : at + n].tolist() for at in rows]

    def score(self, rows: int, inputs: "array[int]", targets: "array[int]") -> "tuple[array[float], bytes]":
        """Let the first streams read some ids each, from where they are; the others stay where they are.

        Args:
            rows: How many of them.
            inputs: (K rows)
            targets: What comes after each of the inputs. (K rows)

        Returns:
            nats: Of each target, as float64. (K rows)
            correct: Whether it was the likeliest, 1 or 0. (K rows)
        """
        count = len(inputs)
        self._require_floats()
        if not 0 < rows <= self.n or not count or count % rows or len(targets) != count:
            raise ValueError(f"ids: expected a number for each of {rows} of {self.n} streams, found {count} and {len(targets)}.")
        if not all(ids.typecode == "q" and min(ids) >= 0 and max(ids) < self.V for ids in (inputs, targets)):
            raise ValueError(f"ids: expected int64 from 0 to {self.V - 1}.")
        nats, correct = array("d", bytes(8 * count)), bytearray(count)
        inputs = array("q", inputs)  # the C code writes rows of the tables into it
        hits = (ctypes.c_ubyte * count).from_buffer(correct)
        done = 0
        while done < count:
            began = time.perf_counter()
            threads, most = self._scoring.plan(began)
            K = min(most, (count - done) // rows)
            given = [_start(numbers) + 8 * done for numbers in (inputs, targets, nats)]
            self._library.lstmlm_generator_score(self._handle, threads, rows, K, *given, ctypes.addressof(hits) + done)
            self._scoring.note(threads, (time.perf_counter() - began) / (K * rows))
            done += K * rows
        self._fresh = False
        return nats, bytes(correct)

    @property
    def state_bytes(self) -> int:
        """How long the state of a stream is, as float32: H and C of each layer of each network, and what it has seen."""
        return 4 * int(self._library.lstmlm_generator_state_size(self._handle))

    def put_states(self, states: bytes) -> None:
        """Put the first streams where they were when `take_states` gave this."""
        self._require_floats()
        count, rest = divmod(len(states), self.state_bytes)
        if rest or not 0 < count <= self.n:
            raise ValueError(f"states: expected those of 1 to {self.n} streams, found {len(states)} bytes.")
        self._library.lstmlm_generator_states(self._handle, False, count, states)

    def take_states(self, count: int) -> bytes:
        """Return where the first streams are, one after another."""
        if not 0 < count <= self.n:
            raise ValueError(f"states: expected those of 1 to {self.n} streams, found {count}.")
        states = bytearray(count * self.state_bytes)
        self._library.lstmlm_generator_states(self._handle, True, count, (ctypes.c_char * len(states)).from_buffer(states))
        return bytes(states)

    def roundings(self, one: bytes, other: bytes) -> float:
        """Return by how many roundings, of 1 or of its own size, the number of two states that differs most does so; or NaN."""
        if len(one) != len(other):
            raise ValueError(f"states: expected two of one size, found {len(one)} and {len(other)} bytes.")
        found: float = self._library.lstmlm_roundings(one, other, len(one) // 4)
        return found

    def _require_floats(self) -> None:
        """Refuse a network that is kept as bytes: it reads a state as such too, which what is put in from outside has not."""
        if not all(one.storage == "float32" for one in (self, *self._others)):
            raise ValueError("storage: expected float32, found int8.")

    def logits(self) -> "array[float]":
        """Return what the last draw was made from, of the first network's. (n V)"""
        logits = array("f", bytes(4 * self.n * self.V))
        self._library.lstmlm_generator_logits(self._handle, True, _start(logits))
        return logits

    def probabilities(self) -> list[float]:
        """Return the distribution that the first stream's next draw is from, after `read`: the mean of the networks'. (V)"""
        rows = [_softmax(generator.logits()[: self.V].tolist()) for generator in (self, *self._others)]
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    def states(self) -> "list[tuple[array[float], array[float]]]":
        """Return H and C of each layer of the first network as the last draw found them. (n S) each"""
        states = [(array("f", bytes(4 * self.n * S)), array("f", bytes(4 * self.n * S))) for S in self._widths]
        for index, (H, C) in enumerate(states):
            self._library.lstmlm_generator_state(self._handle, index, True, _start(H), _start(C))
        return states


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    whole = math.fsum(powers)
    return [power / whole for power in powers]


def examined_library() -> ctypes.CDLL | None:
    """Return the shared object if it is there and its recurrence was once found right, under any torch.

    None: it is for `native.load` to make and examine it.
    """
    library = build.cached()
    return library if library is not None and build.ever_passed(library, "0-") else None


def _checked(weights: NetworkWeights, V: int) -> list[Floats]:
    """Return all weights that there are; the C code trusts what has passed here."""
    every: list[Floats] = []
    N = 0 if weights.pairs is None else weights.pairs.shape[0]
    width = V + N
    for index, layer in enumerate(weights.layers):
        S = layer.W.shape[0]
        if index and layer.M is not None:
            raise ValueError("M: expected one in the first layer alone, whose input is an id, found one above.")
        shapes = (width, 4 * S), (S, 4 * S), (4 * S,), (S,), (S,), (V + N, S)
        for name, weight, shape in zip(LayerWeights._fields, layer, shapes, strict=True):
            if weight is not None:
                _check(name, weight, *shape)
                every.append(weight)
        width = S
    if weights.pairs is not None:
        _check("pairs", weights.pairs, N, 2)
    added = [layer.W.shape[0] for layer in weights.layers[: -1 if weights.readout is None else None]]
    if weights.residual and len(set(added)) > 1:
        raise ValueError(f"layers: expected one width of those that are added to one another, found {added}.")
    if weights.readout is None:
        if width != V:
            raise ValueError(f"readout: expected one from {width} units to {V} ids, found none.")
        return every
    R, r = weights.readout
    _check("R", R, V, width)
    _check("r", r, V)
    return [*every, R, r]


def _storage(library: ctypes.CDLL, requested: str, weights: list[Floats]) -> str:
    """Return float32 or int8."""
    if requested == "float32" or (requested == "auto" and not library.lstmlm_generator_bytes()):
        return "float32"
    within = all(library.lstmlm_within(w.address, math.prod(w.shape), LARGEST) for w in weights)
    return "int8" if within else "float32"


def fingerprint(library: ctypes.CDLL, weights: Sequence[Floats], threads: int) -> int:
    """Return a number that is another one when a weight is another one, at the speed at which memory can be read."""
    _declared(library)
    mark = 0
    for weight in weights:
        size = 4 * math.prod(weight.shape)
        marks = array("Q", bytes(8 * (size // 2**18 + 1)))
        mark = library.lstmlm_fingerprint(weight.address, size, threads if size > SMALL else 1, mark, _start(marks))
    return mark


def _check(name: str, given: Floats, *shape: int) -> None:
    """Refuse another shape, or none; the C code trusts what has passed here."""
    if given.shape != shape or 0 in shape:
        raise ValueError(f"{name}: expected float32 {shape}, not empty, found {given.shape}.")


def _address(floats: Floats | None) -> int | None:
    return None if floats is None else floats.address


def _start(numbers: "array[int] | array[float]") -> int:
    return numbers.buffer_info()[0]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return the shared object, the arguments of its entry points stated."""
    if library.lstmlm_generator_free.argtypes is None:
        _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    number, size, pointer, real = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p, ctypes.c_double
    library.lstmlm_generator_new.argtypes = [
        *(number, number, size, size, size, ctypes.POINTER(size), number, number, number, size, ctypes.c_float),
    ]
    library.lstmlm_generator_new.restype = pointer
    library.lstmlm_generator_layer.argtypes = [pointer, size, *[pointer] * 6]
    library.lstmlm_generator_readout.argtypes = [pointer] * 3
    library.lstmlm_generator_state.argtypes = [pointer, size, number, pointer, pointer]
    library.lstmlm_generator_separator.argtypes = [pointer, size, pointer]
    library.lstmlm_generator_pairs.argtypes = [pointer, pointer]
    library.lstmlm_generator_seen.argtypes = [pointer, number, size, pointer]
    library.lstmlm_generator_join.argtypes = [pointer, pointer]
    library.lstmlm_generator_logits.argtypes = [pointer, number, pointer]
    library.lstmlm_generator_run.argtypes = [pointer, number, size, pointer, real, size, real, number, pointer, pointer]
    library.lstmlm_generator_read.argtypes = [pointer, number, size, pointer, number]
    library.lstmlm_generator_score.argtypes = [pointer, number, size, size, *[pointer] * 4]
    library.lstmlm_generator_state_size.argtypes, library.lstmlm_generator_state_size.restype = [pointer], size
    library.lstmlm_generator_states.argtypes = [pointer, number, size, pointer]
    library.lstmlm_roundings.argtypes, library.lstmlm_roundings.restype = [pointer, pointer, size], ctypes.c_float
    library.lstmlm_within.argtypes = [pointer, size, ctypes.c_float]
    library.lstmlm_fingerprint.argtypes = [pointer, size, number, ctypes.c_ulonglong, pointer]
    library.lstmlm_fingerprint.restype = ctypes.c_ulonglong
    library.lstmlm_generator_free.argtypes, library.lstmlm_generator_free.restype = [pointer], None
