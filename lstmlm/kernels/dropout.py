"""Which values of a step are dropped: a hash of seed, step, layer and position, the same on any machine and for any process.

`Dropout` makes the masks in torch; the kernels in C and Triton compute the same hash.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_BITS = 0xFFFFFFFF
STATE = 1 << 32  # in the place of a layer's number

Position = TypeVar("Position", int, Tensor)


@dataclass(frozen=True)
class Dropout:
    """The dropout of one training step.

    Nothing is drawn in order: there is no generator to save, none that evaluating disturbs, and a process that holds some of
    the streams drops what one that holds all of them would.

    rate: Share of the values that are dropped, below 1.
    seed: Of the run.
    step: Counted from 0.
    streams: Of the global batch.
    first: The first of them that is here; a tensor where a graph is to find it.
    weights: Share of the recurrent weights that is dropped, for all rows and time steps of the step alike (Merity et al. 2018).
    keys: Those of every layer, for values and for weights, where a graph is to find them; then seed and step are not looked at.
    """

    rate: float
    seed: int
    step: int
    streams: int
    first: int | Tensor = 0
    weights: float = 0.0
    keys: tuple[Tensor, Tensor] | None = None

    def since(self, time: int) -> "Dropout":
        """Return the dropout of what begins so many time steps into the window."""
        return replace(self, first=self.first + time * self.streams) if time else self

    def of_weights(self) -> "Dropout":
        """Return the dropout of a matrix, seen as (rows, 1, columns); its keys are no layer's."""
        keys = None if self.keys is None else (self.keys[1], self.keys[1])
        return replace(self, rate=self.weights, streams=1, first=0, seed=~self.seed, keys=keys)

    @property
    def threshold(self) -> int:
        """Return below which hash a value is dropped, of 2^32."""
        return int(self.rate * 2**32)

    @property
    def scale(self) -> float:
        """Return what the values that stay are multiplied by."""
        return 1 / (1 - self.rate)

    def key(self, layer: int) -> int:
        """Return the 32 bits that tell this step and layer from all others (splitmix64's mixing, Steele et al. 2014).

        Worked out from seed and step: `keys`, where they are given, are the same numbers.
        """
        mixed = 0
        for part in (self.seed, self.step, layer):
            mixed = (mixed + part + 0x9E3779B97F4A7C15) % 2**64
            mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) % 2**64
            mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) % 2**64
            mixed ^= mixed >> 31
        return mixed & _BITS

    def words(self, layers: int) -> list[int]:
        """Return what changes from step to step and shard to shard, for `reading`: `first`, and the keys of so many layers."""
        return [int(self.first), *map(self.key, range(layers)), *map(self.of_weights().key, range(layers))]

    def reading(self, words: Tensor) -> "Dropout":
        """Return the same dropout, that finds its words in a tensor whenever it is computed.

        Args:
            words: As `words` gives them, int64, on the device of the values. (1 + 2L)
        """
        values, weights = words[1:].chunk(2)
        return replace(self, first=words[0], keys=(values, weights))

    def emptied(self, share: float, count: int) -> Tensor:
        """Return which of the `count` streams that are here begin the step with an empty state: a share of them, on average."""
        drop = replace(self, rate=share, seed=~self.seed, keys=None)
        key, threshold, first = drop.key(STATE), drop.threshold, int(self.first)
        return torch.tensor([_mixed(stream & _BITS, key) < threshold for stream in range(first, first + count)])

    def mask(self, layer: int, like: Tensor) -> Tensor:
        """Return what the output of a layer is multiplied by: 0 or `scale`.

        Args:
            layer: Counted from 0.
            like: Gives shape (T, B, S), type and device.
        """
        t, b, s = (torch.arange(size, device=like.device) for size in like.shape)
        rows = t[:, None] * self.streams + self.first + b
        x = (rows[..., None] * len(s) + s) & _BITS
        x = _mixed(x, self.key(layer) if self.keys is None else self.keys[0][layer])
        return (x >= self.threshold).to(like) * self.scale


def _mixed(x: Position, key: int | Tensor) -> Position:
    """Return 32 bits for a position, or for each of a tensor of them (C. Wellons's lowbias32)."""
    y: Any = (x * 0x9E3779B9 + key) & _BITS
    y = (y ^ y >> 16) * 0x7FEB352D & _BITS
    y = (y ^ y >> 15) * 0x846CA68B & _BITS
    mixed: Position = y ^ y >> 16
    return mixed
