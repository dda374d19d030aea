"""Ids as they are drawn -> texts, each of which ends at its length, after some lines, or before a stop text.

`draw` is the entry point, for `api`.
"""

import math
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from lstmlm.data.tokenizer import Tokenizer, describe
from lstmlm.errors import UsageError, not_finite, printable
from lstmlm.evaluation.sampler import Sampling, generate_each
from lstmlm.model.weights import StoredNetwork

if TYPE_CHECKING:
    from lstmlm.model.ensemble import Network


@dataclass(frozen=True)
class Sample:
    """A text that the network wrote after a prompt.

    text: Without the prompt, and without the stop text.
    seed: Draws the same text again.
    nats: Minus the log probability of its characters under the network, at temperature 1 and uncut.
    stop: Why it ended: length, lines or stop.
    prompt: What it goes on from.
    """

    text: str
    seed: int
    nats: float
    stop: str
    prompt: str = ""


class Ends(NamedTuple):
    """Where a sample ends: at what comes first.

    length: Characters; 0: not by its length.
    stop: Before the first of these texts.
    lines: Before the line end of so many lines; 0: not by them.
    """

    length: int
    stop: tuple[str, ...] = ()
    lines: int = 0


def drawn_seed(given: int | None) -> int:
    """Return a seed, drawn where none is given.

    Raises:
        UsageError: It is out of range.
    """
    if given is None:
        return int.from_bytes(os.urandom(4), "big") >> 1  # `secrets` takes 5 ms to import
    if not isinstance(given, SupportsIndex) or not 0 <= operator.index(given) <= 2**62:  # NumPy's numbers are some too
        raise UsageError(f"seed: expected a whole number from 0 to 2**62, or None, found {printable(repr(given)[:40])}.")
    return operator.index(given)


def refuse_endless(tokenizer: Tokenizer, ends: Ends) -> None:
    """Refuse what would never end a sample: a text that the model cannot write.

    Raises:
        UsageError: With what was perhaps meant.
    """
    for text in ends.stop:
        if not text:
            raise UsageError("--stop: expected a text of at least one character, found none.")
        if unknown := tokenizer.unknown(text):
            hint = "Did you mean a line end, --stop $'\\n'?" if "\\n" in text else "It would never come: leave it out."
            found = describe(unknown[0][1])
            raise UsageError(f"--stop '{printable(text[:40])}': expected characters that the model knows, found {found}. {hint}")
    if ends.lines < 0 or (ends.lines and tokenizer.unknown("\n")):
        found = "one that does not" if ends.lines > 0 else str(ends.lines)
        raise UsageError(f"--lines: expected a number from 1 on and a model that knows the line end, found {found}.")


def draw(
    model: "Network | StoredNetwork",
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    how: Sampling,
    ends: Ends,
) -> Iterator[tuple[int, str, Sample | None]]:
    """Go on after prompts, side by side, until each sample has ended.

    Args:
        model: In evaluation mode.
        tokenizer: The model's own.
        prompts: For each sample at least one id.
        seeds: One for each sample.
        how: How the next id is chosen.
        ends: Where a sample ends.

    Yields:
        The number of the sample, a piece of its text as soon as it cannot be part of a stop text, and, with the last piece, the
        sample with an empty text. Bytes that are no UTF-8 come as the characters that stand for them (`surrogateescape`).

    Raises:
        CheckpointError: The weights give values that are not finite.
    """
    n = len(seeds)
    decoders = [tokenizer.stream_decoder() for _ in range(n)]
    held = [""] * n
    chars_left, lines_left = [ends.length] * n, [ends.lines] * n
    nats = [0.0] * n
    open_ = set(range(n))
    for chosen, costs in generate_each(model, prompts, seeds, how):
        for index in sorted(open_):
            nats[index] += costs[index]
            if not math.isfinite(nats[index]):
                raise not_finite()
            reason = ""
            for char in decoders[index].push([chosen[index]]):  # of a model of bytes sometimes none, or two
                lines_left[index] -= char == "\n"
                if ends.lines and not lines_left[index]:
                    reason = "lines"
                    break
                held[index] += char
                chars_left[index] -= 1
                if not chars_left[index]:  # never, where there was none at the start
                    reason = "length"
                    break
            if hit := first_stop(held[index], ends.stop):
                held[index], reason = held[index][: hit[0]], "stop"
            keep = 0 if reason else stop_begun(held[index], ends.stop)
            piece, held[index] = held[index][: len(held[index]) - keep], held[index][len(held[index]) - keep :]
            if reason:
                open_.discard(index)
                yield index, piece, Sample("", seeds[index], nats[index], reason)
            elif piece:
                yield index, piece, None
        if not open_:
            return


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Return where the first stop text begins, and which it is."""
    hits = [(position, s) for s in stop if (position := text.find(s)) >= 0]
    return min(hits) if hits else None


def stop_begun(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return max((k for s in stop for k in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:k])), default=0)
