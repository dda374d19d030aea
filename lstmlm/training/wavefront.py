"""Which recurrences of a stack run side by side: networks that learn together, and layers as a wavefront over chunks of time.

`diagonal` makes the plan and `Band` runs it, for `backprop`.

Where a step waits longer for the one before than it computes, as on a GPU, recurrences that do not wait for each other should
wait together. Networks never do. A layer needs what the layer below has put out, but only up to the step that it is at: time is
cut into chunks, and while a layer reads a chunk, the layer below reads the next one. What is between the layers, norm, dropout
and products, stays one operation for a whole chunk.

    wave    0   1   2   3   4
    layer 0 c0  c1  c2  c3          T steps in chunks of c: T + c (L - 1) steps wait instead of T L
    layer 1     c0  c1  c2  c3
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, Rows

SHORTEST = 8  # steps of a chunk: in shorter ones the operations between the layers cost more than the waiting
BETWEEN = 10  # steps of a recurrence that the operations between two waves take as long as; assumed, not measured


class Part(NamedTuple):
    """What a layer does in a wave.

    layer: Of the band.
    start: The first time step.
    end: Behind the last one.
    """

    layer: int
    start: int
    end: int


class Band:
    """Layers of one width that follow one another, of all networks, whose recurrences may run side by side.

    Args:
        kernel: What runs them.
        networks: M.
        layers: L.
        T: Time steps, at most.
        B: Rows.
        S: Units.
        like: Gives type and device.

    Attributes:
        gates: What is added before the activation, then the gates, then their gradient. (M, L, T, B, 4S)
        C: Cell states, the one before the first step in front. (M, L, T + 1, B, S)
        H: Hidden states, likewise. (M, L, T + 1, B, S)
        dhidden: Gradient of the hidden state behind the steps that were run back last. (M, L, B, S)
        dcell: Of the cell state, likewise. (M, L, B, S)
    """

    def __init__(self, kernel: Kernel, networks: int, layers: int, T: int, B: int, S: int, like: Tensor) -> None:
        self._kernel, self._layers = kernel, layers
        self._abreast = max(1, kernel.side_by_side(B, S) // layers)  # networks
        self.gates = like.new_empty(networks, layers, T, B, 4 * S)
        self.C, self.H = (like.new_zeros(networks, layers, T + 1, B, S) for _ in range(2))
        self.dhidden, self.dcell = (like.new_zeros(networks, layers, B, S) for _ in range(2))
        self._W: Sequence[Sequence[Tensor]] = ()
        self._b: Sequence[Sequence[Tensor | None]] = ()
        self._together = networks * layers > 1 and kernel.side_by_side(B, S) > 1
        packed = self._together or kernel.factors is not None  # once a step, not in every call
        self._packed_W = like.new_empty(networks, layers, S, 4 * S, dtype=kernel.factors or like.dtype) if packed else None
        self._packed_b = like.new_empty(networks, layers, 4 * S) if self._together else None

    def load(self, W: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor | None]]) -> None:
        """Take the weights of a step: recurrent ones and biases of each network's layers. (S, 4S) and (4S) each"""
        self._W, self._b = W, b
        if self._packed_W is not None:
            _pack(W, self._packed_W)
            self._W = [list(weights) for weights in self._packed_W]
        if self._packed_b is not None:
            _pack(b, self._packed_b)

    def waves(self, T: int) -> list[list[Part]]:
        """Return what runs side by side, wave after wave; backward it is the other way round."""
        c = chunk(T, self._layers)
        count, layers = T // c, range(self._layers)
        return [
            [Part(layer, (wave - layer) * c, (wave - layer + 1) * c) for layer in layers if 0 <= wave - layer < count]
            for wave in range(count + self._layers - 1)
        ]

    def input_buffer(self, network: int, part: Part) -> Tensor:
        """Return the memory for what is added before the activation. (t, B, 4S)"""
        return self.gates[network, part.layer, part.start : part.end]

    def forward(self, wave: Sequence[Part], given: Sequence[Sequence[Tensor | Rows]]) -> None:
        """Run a wave.

        Args:
            wave: One of `waves`.
            given: What is added before the activation, for each network and part: a tensor is what `input_buffer` returned.
        """
        if self._alone(wave):
            for network, inputs in enumerate(given):
                for (layer, start, end), a in zip(wave, inputs, strict=True):
                    C, H = self.C[network, layer], self.H[network, layer]
                    into = Activations(self.gates[network, layer, start:end], C[start + 1 : end + 1], H[start + 1 : end + 1])
                    bias = self._b[network][layer]
                    self._kernel.forward(a, self._W[network][layer], H[start], C[start], bias=bias, into=into)
            return
        for network, inputs in enumerate(given):
            for part, a in zip(wave, inputs, strict=True):
                if isinstance(a, Rows):
                    rows = self.input_buffer(network, part).view(-1, a.table.shape[1])
                    torch.index_select(a.table, 0, a.ids.reshape(-1), out=rows)
        layers = slice(wave[0].layer, wave[-1].layer + 1)
        for some in self._some():
            gates, C, H = self.gates[some], self.C[some], self.H[some]
            into = Activations(diagonal(gates, wave), diagonal(C, wave, 1), diagonal(H, wave, 1))
            H_0, C_0 = diagonal(H, wave)[:, :, 0], diagonal(C, wave)[:, :, 0]
            W, b = self._packed(some, layers)
            self._kernel.forward(into.gates, W, H_0, C_0, bias=b, into=into)

    def backward(self, wave: Sequence[Part], dH: Tensor) -> None:
        """Run a wave back: `gates` become their gradient, `dhidden` and `dcell` those of the state before the wave.

        Args:
            wave: One of `waves`.
            dH: Gradient that reaches each H_t from outside the recurrence. (M, L, t, B, S)
        """
        if self._alone(wave):
            for network in range(len(dH)):
                for layer, start, end in wave:
                    C, dcell = self.C[network, layer], self.dcell[network, layer]
                    gates = self.gates[network, layer, start:end]
                    found = self._kernel.backward(
                        dH[network, layer], dcell, gates, C[start + 1 : end + 1], C[start], self._W[network][layer]
                    )
                    self.dhidden[network, layer], self.dcell[network, layer] = found[1], found[2]
            return
        layers = slice(wave[0].layer, wave[-1].layer + 1)
        for some in self._some():
            gates, C, C_0 = (
                diagonal(self.gates[some], wave),
                diagonal(self.C[some], wave, 1),
                diagonal(self.C[some], wave)[:, :, 0],
            )
            W, _ = self._packed(some, layers)
            found = self._kernel.backward(dH[some, layers], self.dcell[some, layers], gates, C, C_0, W)
            self.dhidden[some, layers], self.dcell[some, layers] = found[1], found[2]

    def _alone(self, wave: Sequence[Part]) -> bool:
        """Say whether each recurrence has a call of its own."""
        return not self._together or len(self.gates) * len(wave) == 1

    def _some(self) -> list[slice]:
        """Return the networks, as many at a time as run side by side."""
        return [slice(first, first + self._abreast) for first in range(0, len(self.gates), self._abreast)]

    def _packed(self, some: slice, layers: slice) -> tuple[Tensor, Tensor | None]:
        """Return weights and biases of some networks' layers."""
        assert self._packed_W is not None
        assert self._packed_b is not None
        return self._packed_W[some, layers], None if self._b[0][0] is None else self._packed_b[some, layers]


def _pack(parts: Sequence[Sequence[Tensor | None]], into: Tensor) -> None:
    for network, layers in enumerate(parts):
        for layer, part in enumerate(layers):
            if part is not None:
                into[network, layer].copy_(part)


def diagonal(whole: Tensor, wave: Sequence[Part], later: int = 0) -> Tensor:
    """Return the steps of a wave, each layer's own ones or those so much later, as one view.

    Args:
        whole: (M, L, T, B, ...)
        wave: Parts of l layers that follow one another, of t steps each.
        later: Steps.

    Returns:
        (M, l, t, B, ...)
    """
    networks, layers, steps, *inner = whole.stride()
    t = wave[0].end - wave[0].start
    size = len(whole), len(wave), t, *whole.shape[3:]
    start = whole.storage_offset() + wave[0].layer * layers + (wave[0].start + later) * steps
    return whole.as_strided(size, (networks, layers - steps * t, steps, *inner), start)


def depth(kernel: Kernel, networks: int, layers: int, B: int, S: int) -> int:
    """Return how many layers of so many networks are worth running side by side."""
    return max(1, min(layers, kernel.side_by_side(B, S) // networks))


def chunk(T: int, layers: int) -> int:
    """Return the steps of a chunk: a divisor of T, near the length at which waiting and the operations in between are least.

    With n chunks a pass waits for T + c (L - 1) steps and has n + L - 1 times what is between the waves: the sum is least at
    c = sqrt(BETWEEN T / (L - 1)).
    """
    if layers == 1:
        return T
    best = math.isqrt(BETWEEN * T // (layers - 1))
    return max((c for c in range(SHORTEST, min(best, T) + 1) if T % c == 0), default=T)
