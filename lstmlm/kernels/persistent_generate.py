"""Characters one after another in Triton for CUDA: draw, stack and readout for n streams, many characters in one launch.

The device code is `persistent_characters`.

Programs share the units of all layers and the columns of the readout; as in `persistent` all of them must be running. Weights
are rounded to bfloat16 and read from the second level of cache for every character: to keep them on chip would save the time of
that reading, which is the smaller part below, and nothing but small networks has room there (3 x 1024 has 42 MB of weights, the
chip 30 MB of shared memory). Nothing else is rounded: sums, states and norms are float32, the draw is float64.

What a character of one stream takes on an H200, worked out beforehand: 5.5e12 bytes/s from the second level of cache, 4.8e12 from
memory, V 100. Nothing of this was measured; a barrier of 1 to 2 us and 1 us for a phase (a row is read, summed over a program and
written) are assumptions.

    L x S           2 x 512                 3 x 1024
    weights         6.4 MB                  42 MB: U 17, W 25; 50 MB is all that the second level of cache has
    their reading   1.2 us                  7.7 us; 8.8 if it comes from memory
    of that W       0.8 us                  4.6 us: read while a barrier is waited for
    barriers        3: 3 to 6 us            4: 4 to 8 us
    phases, draw    3 + 1: 4 us             4 + 1: 5 us

    2 x 512:  0.4 + 4 + 3 to 6 = 7.4 to 10.4 us a character
    3 x 1024: 3.1 + 5 + 4.6 to 8 = 12.7 to 16.1 us; a barrier is no shorter than what is read meanwhile

Each stream has programs of its own, so that it has the bits that it has alone: n streams have an n-th of the programs each, and
those n times the work. By the same assumptions, with 0.4 us for each further block of units, 4 streams take 13 us a character of
2 x 512, and 36 of 3 x 1024, all of that for reading; a step of the model with what is drawn from it, replayed as a CUDA graph, is
thought to take 40 of 2 x 512, for any few. The more streams there are, the better is the latter, which reads weights once.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.generate import Choice, LayerWeights
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_memory import checked
from lstmlm.kernels.persistent_tiles import Chip

MANY = 4
"""Streams up to which this is likely to be quicker than the model itself."""

TILE = 8192
"""Weights of a gate that a program reads at a time, or of the readout; more need more registers than there are."""

V_MAX = 1024
"""Logits that a program draws from at a time."""

FEW = 2048
"""Up to as many 8 warps read them; 16 read more."""

REGISTERS = {8: 255, 16: 128}
"""All that a thread can have; left to itself the compiler spills some, to make room for a second program where there is none."""

WITHIN = 1e-3
"""What the self-check allows: some hundred times the rounding of float32 in so few characters."""

Readout = tuple[Tensor, Tensor]
"""Weights (V, S) and bias (V)."""


class Shares(NamedTuple):
    """How the work is shared.

    units: Of a layer, that a program computes at a time.
    columns: Of the readout, likewise.
    programs: Of a stream.
    warps: Of a program.
    """

    units: int
    columns: int
    programs: int
    warps: int


def shares(S: int, V: int, n: int, chip: Chip) -> Shares:
    """Choose. All programs can run at once, or each is its stream's only one; how a sum is made does not depend on n."""
    most = max(1, TILE // _power(S))
    units, columns = (min(most, _power(-(-width // chip.programs))) for width in (S, V))
    programs = max(1, min(max(-(-S // units), -(-V // columns)), chip.programs // n))
    return Shares(units, columns, programs, 8 if max(units, columns) * _power(S) <= FEW and V <= 512 else 16)


def _power(size: int) -> int:
    """Return the first power of two that is as large."""
    return 1 << (size - 1).bit_length()


class PersistentGenerator:
    """The network rounded and turned for reading it once a character, and the state of n streams.

    It copies the weights: what is done to them later does not reach it. A stream's bits do not depend on the streams beside it.

    Args:
        kernel: For which device.
        layers: Of one width, all with a normalisation or none; the first one's input is an id.
        readout: Of the last layer's output.
        n: Streams.
        residual: Whether a layer's output is added to its input, from the second layer on.
        eps: Of the normalisation.

    Attributes:
        logits: What the next draw is made from. (n, V)
    """

    @torch.no_grad()
    def __init__(
        self,
        kernel: PersistentKernel,
        layers: Sequence[LayerWeights],
        readout: Readout,
        n: int,
        *,
        residual: bool,
        eps: float = 1e-5,
    ) -> None:
        from lstmlm.kernels import persistent_characters

        self._characters = persistent_characters.characters
        table, W = layers[0].U, layers[0].W
        self.n, self.V, self.S, self.L = n, len(table), len(W), len(layers)
        V, S, L = self.V, self.S, self.L
        self._shares = shares(S, V, n, kernel._chip)
        turned_U, turned_W = (W.new_empty(count, 4 * S, S, dtype=torch.bfloat16) for count in (L - 1, L))
        b, gamma, beta = W.new_zeros(L, 4 * S), W.new_zeros(L, S), W.new_zeros(L, S)
        norm = layers[0].gamma is not None
        for index, layer in enumerate(layers):
            if index:
                turned_U[index - 1].copy_(checked("U", layer.U, [], S, 4 * S).t())
            turned_W[index].copy_(checked("W", layer.W, [], S, 4 * S).t())
            for name, to, given in (("b", b, layer.b), ("gamma", gamma, layer.gamma), ("beta", beta, layer.beta)):
                if given is not None:
                    to[index].copy_(checked(name, given, [], *to[index].shape))
        R, r = checked("R", readout[0], [], V, S).to(torch.bfloat16), checked("r", readout[1], [], V).clone()
        self._weights = checked("U", table, [], V, 4 * S).clone(), turned_U, turned_W, b, gamma, beta, R, r
        self._H, self._C = W.new_zeros(2, L, n, S), W.new_zeros(2, L, n, S)
        self._sums = W.new_empty(n, 4 * S)
        self.logits = W.new_zeros(n, V)
        self._divisor = W.new_ones(1, dtype=torch.float64)
        self._turn = 0  # which half holds the state
        tiles = {"UNITS": self._shares.units, "COLUMNS": self._shares.columns, "WIDTH": _power(S), "WIDE": _power(V)}
        self._options = {"S": S, "V": V, "EPS": eps, "NORM": norm, "RESIDUAL": residual, **tiles}

    def begin(self, logits: Tensor, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set from what the first draw is made, and the state before the step after it.

        Args:
            logits: (n, V)
            states: H and C of each layer, (n, S) each.
        """
        self.logits.copy_(logits)
        for index, (H, C) in enumerate(states):
            self._H[self._turn, index].copy_(H)
            self._C[self._turn, index].copy_(C)

    def run(self, noise: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Draw K ids for each stream.

        Args:
            noise: Uniform in [0, 1), on any device. (K, n)
            choice: Without cuts.

        Returns:
            ids: int64 (K, n)
            nats: Of each under the network's own distribution. (K, n)
        """
        if choice.keep or choice.share != 1:
            raise ValueError(f"choice: expected one without cuts, found {choice}.")
        noise = checked("noise", noise.to(self.logits.device).contiguous(), [], len(noise), self.n)
        greedy = choice.greedy or choice.divisor == 0 or math.isnan(choice.divisor)
        self._divisor.fill_(1.0 if greedy else choice.divisor)
        ids, nats = torch.empty_like(noise, dtype=torch.int64), torch.empty_like(noise)
        self._launch(noise, ids, nats, greedy)
        self._turn = (self._turn + len(noise)) % 2
        return ids, nats

    def _launch(self, noise: Tensor, ids: Tensor, nats: Tensor, greedy: bool) -> None:
        """Draw all of them."""
        share = self._shares
        others = share.programs > 1
        memory = self._H, self._C, self._sums, self.logits, noise, self._divisor, ids, nats, self._counters()
        self._characters[share.programs, self.n](
            *(*self._weights, *memory, int(greedy), self._turn, len(noise), self.L),
            **self._options,
            OTHERS=others,
            num_warps=share.warps,
            num_stages=1,
            maxnreg=REGISTERS[share.warps],
            launch_cooperative_grid=others,
        )

    def _counters(self) -> Tensor:
        """Return a counter of arrivals for each stream."""
        return torch.zeros(self.n, dtype=torch.int32, device=self.logits.device)


class Sizes(NamedTuple):
    """What the device code depends on."""

    V: int
    S: int
    L: int
    norm: bool
    residual: bool


def load(
    kernel: PersistentKernel, layers: Sequence[LayerWeights], readout: Readout | None, n: int, *, residual: bool
) -> PersistentGenerator | None:
    """Return a generator, if there is one for such a network and it has been found right on this device; else None."""
    V, S, norm = len(layers[0].U), len(layers[0].W), layers[0].gamma is not None
    alike = all(len(layer.W) == S and (layer.gamma is not None) == norm for layer in layers)
    small = n <= MANY and V <= V_MAX
    if not runs(kernel) or readout is None or not alike or not small or readout[0].dtype != torch.float32:
        return None
    if not works(kernel, Sizes(V, S, len(layers), norm, residual), readout[0].device):
        return None
    return PersistentGenerator(kernel, layers, readout, n, residual=residual)


def runs(kernel: PersistentKernel) -> bool:
    """Return whether programs may wait for each other, and that is not in the interpreter, where it would be slow."""
    return not kernel._interpreted and kernel._chip.programs > 0


@cache
def works(kernel: PersistentKernel, sizes: Sizes, device: torch.device) -> bool:
    """Return whether a network of this size with other weights draws there what it should."""
    try:
        return all(disagreement(kernel, sizes, n, device) < WITHIN for n in (1, 3))
    except Exception:  # of the compiler, the driver or the device: the sampler does without
        return False


def disagreement(kernel: PersistentKernel, sizes: Sizes, n: int, device: torch.device) -> float:
    """Return the largest difference between a generator of random weights and torch in float64.

    That is in the nats of ids, in how far the noise is from the part of [0, 1) that is the id's, and in the last logits.
    """
    V, S, L, norm, residual = sizes
    source = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=source, device=device) * scale).bfloat16().float()

    def layer(index: int) -> LayerWeights:
        scales = (normal(S) + 1, normal(S)) if norm else (None, None)
        U = normal(S, 4 * S, scale=S**-0.5) if index else normal(V, 4 * S)
        return LayerWeights(U, normal(S, 4 * S, scale=0.5 * S**-0.5), normal(4 * S), *scales)

    layers, readout = [layer(index) for index in range(L)], (normal(V, S, scale=2 * S**-0.5), normal(V))
    logits, states = normal(n, V).double(), [(normal(n, S, scale=0.3).double(), normal(n, S).double()) for _ in layers]
    generator = PersistentGenerator(kernel, layers, readout, n, residual=residual)
    generator.begin(logits, states)
    differences = []
    for K, choice in ((3, Choice(0.8, 0, 1.0, greedy=False)), (3, Choice(1.0, 0, 1.0, greedy=True))):
        noise = torch.rand(K, n, generator=source, device=device)
        for ids, nats, numbers in zip(*generator.run(noise, choice), noise.double()[:, :, None], strict=True):
            place = ids[:, None]
            differences.append(-torch.log_softmax(logits, -1).gather(-1, place).squeeze(-1) - nats)
            p = torch.softmax(logits / choice.divisor, -1)
            upto = p.cumsum(-1).gather(-1, place)
            misses = torch.maximum(numbers - upto, upto - p.gather(-1, place) - numbers).relu()
            differences.append(p.amax(-1, keepdim=True) - p.gather(-1, place) if choice.greedy else misses)
            logits = _stepped(layers, readout, ids, states, residual)
    differences.append(generator.logits - logits)
    return float(torch.stack([difference.abs().max() for difference in differences]).max())  # or NaN


def _stepped(
    layers: Sequence[LayerWeights], readout: Readout, ids: Tensor, states: list[tuple[Tensor, Tensor]], residual: bool
) -> Tensor:
    """Return the logits after ids (n), in float64; the states become those after them."""
    x = torch.empty(0)
    for index, layer in enumerate(layers):
        U, W, b, gamma, beta = (None if part is None else part.double() for part in layer)
        assert U is not None
        assert W is not None
        a = x @ U if index else U[ids]
        _, C, H = EagerKernel().forward(a[None], W, *states[index], bias=b)
        states[index] = H[0], C[0]
        y = H[0] if gamma is None else functional.layer_norm(H[0], (len(W),), gamma, beta)
        x = x + y if residual and index else y
    return x @ readout[0].double().t() + readout[1].double()
