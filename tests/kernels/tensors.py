"""The native generator with tensors: what goes in as addresses and comes out as plain numbers."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from lstmlm.evaluation import sampler
from lstmlm.kernels import arguments
from lstmlm.kernels.generate import Choice, Generator
from lstmlm.model.ensemble import Network


class TensorGenerator:
    """A generator whose numbers are tensors."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.n, self.V, self.storage = generator.n, generator.V, generator.storage

    def join(self, other: "TensorGenerator") -> None:
        """See `Generator`."""
        self.generator.join(other.generator)

    def read(self, ids: Sequence[int]) -> None:
        """See `Generator`."""
        self.generator.read(ids)

    def begin(self, logits: Tensor, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """See `Generator`."""
        given = [(arguments.floats(H.contiguous()), arguments.floats(C.contiguous())) for H, C in states]
        self.generator.begin(arguments.floats(logits.contiguous()), given)

    def run(self, noise: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """See `Generator`; noise, ids and nats are (K, n)."""
        ids, nats = self.generator.run(array("f", noise.flatten().tolist()), choice)
        return torch.tensor(ids), torch.tensor(nats)

    def logits(self) -> Tensor:
        """See `Generator`. (n, V)"""
        return torch.tensor(self.generator.logits()).view(self.n, self.V)

    def states(self) -> list[tuple[Tensor, Tensor]]:
        """See `Generator`. (n, S) each"""
        return [(torch.tensor(H).view(self.n, -1), torch.tensor(C).view(self.n, -1)) for H, C in self.generator.states()]


def tensor_generator(model: Network, n: int, storage: str = "auto") -> TensorGenerator:
    """Pack a model whose kernel is the native one."""
    generator = sampler.native_generator(model, n, storage)
    assert generator is not None
    return TensorGenerator(generator)
