"""Logits -> the next id -> a stream of ids.

`generate` is the entry point, for `sample`, `api`, the trainer's samples and `dynamic`. On the CPU it runs the generator in C,
which needs no torch, for a checkpoint's bytes and for a network in training alike; `torch_sampler` where that cannot run.
"""

import random
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lstmlm.evaluation.sampling import NOISE_BLOCK, blocks, twister_seed
from lstmlm.evaluation.sampling import Sampling as Sampling  # whoever calls `generate` says how
from lstmlm.kernels.generate import Choice, Generator, fingerprint
from lstmlm.model.weights import StoredNetwork

if TYPE_CHECKING:
    from lstmlm.model.ensemble import Network


class Noise:
    """One uniform number a step for each seed, drawn in blocks from a generator of its own.

    The numbers of a seed are the same whatever the block size and whoever else is drawn beside it: the lowest 24 bits of those of
    a Mersenne Twister, as `torch.rand` gives them on the CPU.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [_twister(twister_seed(seed)) for seed in seeds]
        self._block = array("f")
        self._next = 0

    def steps(self, most: int) -> "array[float]":
        """Return the noise of the next steps, at least one and at most `most`. (steps n)"""
        n = len(self._generators)
        if self._next == len(self._block):
            self._block, self._next = array("f", bytes(4 * NOISE_BLOCK * n)), 0
            for column, generator in enumerate(self._generators):
                words = array("I", generator.getrandbits(32 * NOISE_BLOCK).to_bytes(4 * NOISE_BLOCK, sys.byteorder))
                if sys.byteorder == "big":
                    words.reverse()  # the first one has the lowest bits
                self._block[column::n] = array("f", [(word & 0xFFFFFF) * 2**-24 for word in words])
        start, self._next = self._next, min(self._next + most * n, len(self._block))
        return self._block[start : self._next]


def _twister(seed: int) -> random.Random:
    """Return a generator in the state that torch gives its own for a seed (Matsumoto and Nishimura's `init_genrand`)."""
    state = [seed & 0xFFFFFFFF]
    for index in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + index) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


def generate(
    model: "Network | StoredNetwork", prompt: Sequence[int], seeds: Sequence[int], how: Sampling
) -> Iterator[tuple[list[int], list[float]]]:
    """Go on after a prompt without end, one stream for each seed; see `generate_each`."""
    return generate_each(model, [prompt] * len(seeds), seeds, how)


def generate_each(
    model: "Network | StoredNetwork", prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: Sampling
) -> Iterator[tuple[list[int], list[float]]]:
    """Go on after prompts without end, one stream for each seed. A stream's ids depend on no other stream.

    Args:
        model: In evaluation mode.
        prompts: For each stream at least one id.
        seeds: One for each stream.
        how: How the next id is chosen.

    Yields:
        For every step the n ids chosen, and the nats of each under the network's own distribution, at temperature 1
        and uncut.
    """
    generator = native_generator(model, len(seeds), "float32" if how.exact else "auto")
    if generator is None:
        from lstmlm.evaluation import torch_sampler

        assert not isinstance(model, StoredNetwork)
        yield from torch_sampler.generate(model, prompts, seeds, how)
        return
    choice = Choice(how.temperature, how.top_k, how.top_p, how.greedy)
    try:
        generator.read_each(prompts)
        yield from blocks(Noise(seeds).steps, lambda noise: generator.run(noise, choice))
    finally:
        keep(model, generator)


def probabilities(model: "Network | StoredNetwork", prompt: Sequence[int]) -> list[float]:
    """Return the probability of each id to come next after a prompt, from the weights as they are, at temperature 1. (V)

    Args:
        model: In evaluation mode.
        prompt: At least one id.
    """
    generator = native_generator(model, 1, "float32")
    if generator is None:
        from lstmlm.evaluation import torch_sampler

        assert not isinstance(model, StoredNetwork)
        return torch_sampler.probabilities(model, prompt)
    generator.read(prompt)
    found = generator.probabilities()
    keep(model, generator)
    return found


_kept: "WeakKeyDictionary[Network | StoredNetwork, Generator]" = WeakKeyDictionary()
"""The generator that last ran for a model and is free: short texts would take longer to pack for than to draw."""


def native_generator(model: "Network | StoredNetwork", n: int, storage: str = "auto") -> Generator | None:
    """Pack a model whose kernel is the native one for n streams, or take the one kept if no weight has changed since.

    Args:
        model: In evaluation mode.
        n: Streams.
        storage: Of the weights; see `Generator`.

    Returns:
        A generator that nobody else has; None: the model has another kernel.
    """
    stored = model if isinstance(model, StoredNetwork) else _stored(model)
    if stored is None:
        return None
    key = (n, stored.threads, storage, fingerprint(stored.library, stored.weights(), stored.threads))
    kept = _kept.pop(model, None)
    if kept is not None and kept.key == key:
        return kept
    generator, *others = (
        Generator(stored.library, network, n, threads=stored.threads, storage=storage, separator=stored.separator)
        for network in stored.networks
    )
    for other in others:
        generator.join(other)
    generator.key = key
    return generator


def keep(model: "Network | StoredNetwork", generator: Generator) -> None:
    """Keep a generator for the next who asks for the same, once it is free."""
    _kept[model] = generator


def _stored(model: "Network") -> StoredNetwork | None:
    from lstmlm.evaluation import torch_sampler

    return torch_sampler.native(model)
