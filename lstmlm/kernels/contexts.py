"""Context mixing: counts of what followed each context so far, mixed with a network's probabilities by weights that learn.

`open_mixer` returns it, in C (`contexts.c`) or, where that cannot run, the slow one here; `eval --mix` uses it.

The symbols are the leaves of a binary tree; the probability of one is the product of those of the branches that lead to it, so
those of all symbols sum to 1. A branch is predicted by the counts of it after the last 0, 1, ... `ORDERS` - 1 symbols, after the
letters of the word so far, and after those and the word before, and by the network:

    x_c = logit(map_c[n_0, n_1]), 0 where the context is new;  x_network = logit(its probability), 0 where both branches have none
    o_s = w_s x,  p = sigmoid((o_1 + o_2) / 2)
    w_s = w_s + FAST (branch - sigmoid(o_s)) x,  map_c = map_c + SLOW (branch - map_c)

where w_1 is that of the longest context that is known, w_2 that of the node. Counts go up to `MOST`; where the other branch is
taken, those above 2 go down. What predicts a branch knows the symbols before and the branches that lead to it, and no more.

Source: Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression" (PAQ).
"""

import copy
import ctypes
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from lstmlm.kernels import build

ORDERS, MOST = 7, 40
FAST, SLOW = 0.003, 0.01
PIECE = 1 << 14
"""Symbols that C learns in one call: in between an interruption is heard."""

FIRST = 0.15
"""What a context weighs at first, ..."""
AFTER, ALONE = (0.35, 0.7), (0.02 / FIRST, 1.0)
"""... what that is multiplied by once a network comes in, and what the network weighs: where a text was read before, or none."""


class Mixer(Protocol):
    """Reads a text, symbol by symbol."""

    def learn(self, ids: Tensor) -> None:
        """Read a text without a network, before any with one. (n)"""

    def read(self, ids: Tensor, logits: Tensor) -> list[float]:
        """Return the nats that each symbol takes, and learn from it.

        Args:
            ids: (n)
            logits: The network's of each, however shifted. (n, V)
        """

    def follow(self, symbol: int) -> None:
        """Let a symbol be what stands before the next one, and learn nothing from it."""


def tree(counts: Sequence[int]) -> list[list[int]]:
    """Return the two children of each node, a node or ~symbol; symbols are in order, each node halves their occurrences.

    Args:
        counts: Of each symbol in the training text, at least two. (V)
    """
    sums = [0, *accumulate(count + 1 for count in counts)]
    found: list[list[int]] = []
    waiting = deque([(0, len(counts), -1, 0)])
    while waiting:
        low, high, parent, side = waiting.popleft()
        at = ~low if high - low == 1 else len(found)
        if parent >= 0:
            found[parent][side] = at
        if at < 0:
            continue
        found.append([0, 0])
        cut = bisect_left(sums, (sums[low] + sums[high]) / 2, low + 1, high - 1)
        if cut > low + 1 and sums[cut] - (sums[low] + sums[high]) / 2 > (sums[low] + sums[high]) / 2 - sums[cut - 1]:
            cut -= 1
        waiting.extend([(low, cut, at, 0), (cut, high, at, 1)])
    return found


def open_mixer(counts: Sequence[int], letters: Sequence[bool]) -> tuple[Mixer, str]:
    """Return the fast mixer, or the slow one where there is no compiler, and a line where there is something to be said.

    Args:
        counts: Of each symbol in the training text, at least two. (V)
        letters: Whether a symbol belongs to a word. (V)
    """
    try:
        return NativeMixer(build.library(), counts, letters), build.notes()
    except build.Unavailable as error:
        return ContextMixer(counts, letters), f"contexts are counted in Python, which is slow: native is not available ({error})"


class ContextMixer:
    """The mixer in Python: slow, and what the fast one is compared with."""

    def __init__(self, counts: Sequence[int], letters: Sequence[bool]) -> None:
        self._child, self._letters = tree(counts), list(letters)
        self._up = {child: (node, side) for node, pair in enumerate(self._child) for side, child in enumerate(pair)}
        self._counts: dict[Any, list[int]] = {}
        self._maps: dict[tuple[int, int, int], float] = {}
        self._weights: dict[tuple[str, int], list[float]] = {}
        self._begin = [FIRST] * (ORDERS + 4)
        self._text: list[int] = []
        self._words: list[tuple[int, ...]] = [(), ()]  # before, and the letters so far
        self._known = self._joined = False

    def learn(self, ids: Tensor) -> None:
        """See `Mixer`."""
        for symbol in ids.tolist():
            self._read(symbol, None)
            self._known = True

    def read(self, ids: Tensor, logits: Tensor) -> list[float]:
        """See `Mixer`."""
        if not self._joined:
            scale, network = AFTER if self._known else ALONE
            for w in [self._begin, *self._weights.values()]:
                w[:] = [*(one * scale for one in w[:-1]), network]
            self._joined = True
        p = torch.log_softmax(logits, -1).float().double().exp().tolist()
        return [self._read(symbol, row) for symbol, row in zip(ids.tolist(), p, strict=True)]

    def follow(self, symbol: int) -> None:
        """See `Mixer`."""
        self._text.append(symbol)
        if self._letters[symbol]:
            self._words[1] = (*self._words[1], symbol)
        elif self._words[1]:
            self._words = [self._words[1], ()]

    def probabilities(self, logits: Tensor) -> list[float]:
        """Return what each symbol would be given next. (V)"""
        return [math.exp(-copy.deepcopy(self).read(torch.tensor([symbol]), logits[None])[0]) for symbol in range(len(logits))]

    def _mass(self, at: int, row: Sequence[float]) -> float:
        return row[~at] if at < 0 else sum(self._mass(child, row) for child in self._child[at])

    def _read(self, symbol: int, row: Sequence[float] | None) -> float:
        """Return the nats of a symbol, given the network's probabilities, if any."""
        contexts = [tuple(self._text[len(self._text) - min(k, len(self._text)) :]) for k in range(ORDERS)]
        path = []
        at = ~symbol
        while at in self._up:  # only the first node is not
            at, side = self._up[at]
            path.append((at, side))
        cost = 0.0
        for node, side in reversed(path):
            keys: list[Any] = [(c, context, node) for c, context in enumerate([*contexts, self._words[1], tuple(self._words)])]
            counts = [self._counts.get(key, [0, 0]) for key in keys]
            states = [(c, n[0], n[1]) for c, n in enumerate(counts)]
            maps = [self._maps.get(state, (state[2] + 0.3) / (state[1] + state[2] + 0.6)) for state in states]
            x = [_logit(p, 1e-4) if sum(n) else 0.0 for p, n in zip(maps, counts, strict=True)] + [0.3, 0.0]
            if row is not None:
                mass = self._mass(node, row)
                x[-1] = _logit(self._mass(self._child[node][1], row) / mass, 1e-6) if mass else 0.0
            depth = max((c + 1 for c in range(ORDERS) if sum(counts[c])), default=0)
            weights = [self._weights.get(which, self._begin) for which in (("depth", depth), ("node", node))]
            sums = [max(-12.0, min(12.0, sum(a * b for a, b in zip(w, x, strict=True)))) for w in weights]
            p = _sigmoid((sums[0] + sums[1]) / 2)
            cost -= math.log(p if side else 1 - p)
            for which, w, o in zip((("depth", depth), ("node", node)), weights, sums, strict=True):
                error = FAST * (side - _sigmoid(o))
                self._weights[which] = [a + error * b for a, b in zip(w, x, strict=True)]
            for key, state, p, n in zip(keys, states, maps, counts, strict=True):
                self._maps[state] = p + SLOW * (side - p)
                taken, other = min(n[side] + 1, MOST), n[1 - side]
                other = (other + 2) // 2 if other > 2 else other
                self._counts[key] = [other, taken] if side else [taken, other]
        self.follow(symbol)
        return cost


def _logit(p: float, least: float) -> float:
    p = max(least, min(1 - least, p))
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class NativeMixer:
    """The mixer in C, some microseconds a character; 64 MiB.

    Contexts are told apart by 16 bits of a hash: a new one is taken for another in one case of 32,768 at most.
    """

    def __init__(self, library: ctypes.CDLL, counts: Sequence[int], letters: Sequence[bool]) -> None:
        if len(counts) < 2 or len(letters) != len(counts):
            raise ValueError(f"letters: expected one for each of two symbols or more, found {len(letters)} for {len(counts)}.")
        number, pointer, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
        library.lstmlm_contexts_new.argtypes, library.lstmlm_contexts_new.restype = [number, pointer, pointer, real], pointer
        library.lstmlm_contexts_free.argtypes = [pointer]
        library.lstmlm_contexts_weigh.argtypes = [pointer, real, real]
        library.lstmlm_contexts_follow.argtypes = [pointer, ctypes.c_int32]
        library.lstmlm_contexts_read.argtypes = [pointer, number, pointer, pointer, real, real, pointer]
        self._library, self._symbols = library, len(counts)
        child = torch.tensor(tree(counts), dtype=torch.int32)
        flags = torch.tensor(list(letters), dtype=torch.uint8)
        self._handle = library.lstmlm_contexts_new(len(counts), child.data_ptr(), flags.data_ptr(), FIRST)
        if not self._handle:
            raise MemoryError
        self._known = self._joined = False

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lstmlm_contexts_free(self._handle)

    def learn(self, ids: Tensor) -> None:
        """See `Mixer`."""
        self._known = self._known or len(ids) > 0
        for piece in self._checked(ids).split(PIECE):
            self._read(piece, None)

    def read(self, ids: Tensor, logits: Tensor) -> list[float]:
        """See `Mixer`."""
        if not self._joined:
            self._library.lstmlm_contexts_weigh(self._handle, *(AFTER if self._known else ALONE))
            self._joined = True
        if logits.shape != (len(ids), self._symbols):
            raise ValueError(f"logits: expected {(len(ids), self._symbols)}, found {tuple(logits.shape)}.")
        nats: list[float] = self._read(self._checked(ids), torch.log_softmax(logits, -1).float().contiguous()).tolist()
        return nats

    def follow(self, symbol: int) -> None:
        """See `Mixer`."""
        self._checked(torch.tensor([symbol]))
        self._library.lstmlm_contexts_follow(self._handle, symbol)

    def _checked(self, ids: Tensor) -> Tensor:
        """Return ids as C reads them.

        Raises:
            ValueError: One is no symbol.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._symbols:
            raise ValueError(f"ids: expected some below {self._symbols}, found {int(ids.min())} to {int(ids.max())}.")
        return ids.to(torch.int32).contiguous()

    def _read(self, ids: Tensor, network: Tensor | None) -> Tensor:
        nats = torch.empty(len(ids), dtype=torch.float64)
        given = None if network is None else network.data_ptr()
        self._library.lstmlm_contexts_read(self._handle, len(ids), ids.data_ptr(), given, SLOW, FAST, nats.data_ptr())
        return nats
