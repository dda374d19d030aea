"""How the next id is chosen, and how many are drawn at a time: what `sampler`, in C, and `torch_sampler` share.

Temperature, top-k and top-p are in these three alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from lstmlm.errors import UsageError

NOISE_BLOCK = 256  # steps of noise drawn at once; the stream of a seed does not depend on it
SECONDS = 0.05  # about how long a block of characters may take before its first one is seen
DRAWN_TOGETHER = {"cpu": 64, "cuda": 4096}  # samples drawn as one batch and then written: memory does not grow with their number

_Numbers = TypeVar("_Numbers")


def twister_seed(seed: int) -> int:
    """Return the 32 bits with which a Mersenne Twister begins, torch's too: a seed below 2**32, or all bits of a larger one.

    Seeds in a row differ: the upper half is multiplied by an odd number, and added without carry.
    """
    return (seed ^ (seed >> 32) * 0x9E3779B9) & 0xFFFFFFFF


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen.

    temperature: Divides the logits; 0 is `greedy`.
    top_k: Keep the k likeliest (0: all).
    top_p: Keep the fewest that together have at least this probability (1: all).
    greedy: The article's rule: the largest score is the prediction.
    exact: From the weights as they are, not from bytes where those are quicker (`kernels/products.h`).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    exact: bool = False

    def refuse(self) -> None:
        """Refuse what is no probability or temperature; NaN is neither.

        Raises:
            UsageError: Says which.
        """
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature: expected a number from 0 on, found {self.temperature}.")
        if not 0 <= self.top_p <= 1:
            raise UsageError(f"--top-p: expected a number from 0 to 1, found {self.top_p}.")
        if self.top_k < 0:
            raise UsageError(f"--top-k: expected a whole number from 0 on (0: all), found {self.top_k}.")


def blocks(
    noise: Callable[[int], _Numbers], run: Callable[[_Numbers], tuple[list[list[int]], list[list[float]]]]
) -> Iterator[tuple[list[int], list[float]]]:
    """Draw block after block: noise of some steps -> ids and nats, of each step and stream.

    The first block is one character, so that it is seen at once; the next ones grow as long as they take no longer than
    `SECONDS`.

    Args:
        noise: Gives that of the next steps, at most so many.
        run: Draws as many.
    """
    most = 1
    while True:
        numbers = noise(most)
        began = time.perf_counter()
        ids, nats = run(numbers)
        if time.perf_counter() - began < SECONDS / 2 and most < NOISE_BLOCK:
            most *= 2
        yield from zip(ids, nats, strict=True)
