"""What a text takes by plainer means that were given the same training text: counts of characters, bzip2 and xz.

`eval --baselines` shows them beside the model's score.

- counts: P(c | the k characters before) = (n(hc) + u(h) P(c | the k - 1 characters before)) / (n(h) + u(h)), where n counts
  occurrences in the training text and u the different characters that follow h there; k = 3, and for k = 0 the
  frequencies, one added to each count. A context that reaches back before the text is a shorter one.
- bzip2, xz: the size of the compressed training text with the text after it, less that of the training text alone.

Source of the counts' smoothing: Witten and Bell 1991.
"""

import bz2
import lzma
from collections.abc import Sequence

import torch
from torch import Tensor

from lstmlm.data.ids import Ids

ORDER = 3
SAMPLES, SAMPLE = 64, 2048  # stretches of a text, and their characters, by which its parts are compared
MOST_CHARS = 1 << 21  # characters of either text that are looked at: bounds time and memory
_DIRECT = 1 << 22  # numbers up to this are counted as they are, larger ones after they have been ranked


def by_counts(train: Tensor, text: Tensor, frequencies: Sequence[float], order: int = ORDER) -> float:
    """Return the nats of a text by the characters that followed the same `order` characters in the training text.

    Args:
        train: Ids of the training text. (m)
        text: Ids of the text. (n)
        frequencies: Nats of each symbol where nothing is known of what comes before. (V)
        order: Characters before.

    Memory: some ten numbers for each character of both texts.
    """
    ids, start = torch.cat([train, text]).long(), len(train)
    symbols = len(frequencies)
    p = torch.exp(-torch.tensor(frequencies, dtype=torch.float64))[text.long()]
    context = torch.zeros_like(ids)
    for k in range(1, order + 1):
        before = torch.zeros_like(ids)
        before[k:] = ids[:-k]
        context, contexts = _ranked(context * symbols + before)
        pair, pairs = _ranked(context * symbols + ids)
        seen, seen_pairs = context[k:start], pair[k:start]
        n_context = torch.bincount(seen, minlength=contexts)
        n_pair = torch.bincount(seen_pairs, minlength=pairs)
        first = torch.zeros(pairs, dtype=ids.dtype).scatter_(0, seen_pairs, seen)[n_pair > 0]
        followers = torch.bincount(first, minlength=contexts)
        n, u = n_context[context[start:]].double(), followers[context[start:]].double()
        better = (n_pair[pair[start:]].double() + u * p) / (n + u)
        known = n > 0
        known[:k] = False  # what is before the text is not its context
        p = torch.where(known, better, p)
    return float(-p.log().sum())


def unlike(train: Ids, val: Ids, counts: Sequence[int]) -> tuple[float, float]:
    """Return what the validation part takes by counts, and what parts of the training text take that are kept from them.

    Both in nats per character, from a sample of either part. Where the first is far above the second the parts are unlike. Of
    the training text the parts lie everywhere, or are its end, whichever takes more: a text that moves on, such as a log with
    dates, does so there too.

    Args:
        train: The training part.
        val: The validation part.
        counts: Occurrences of each symbol in the training part. (V)
    """
    symbols = torch.tensor(counts, dtype=torch.float64) + 1
    frequencies = torch.log(symbols.sum()) - torch.log(symbols)
    pieces = [_places(train, 2 * SAMPLES, SAMPLE), _places(val, SAMPLES // 4, SAMPLE)]
    everywhere, others = torch.cat(pieces[0][::8]), torch.cat([piece for i, piece in enumerate(pieces[0]) if i % 8])
    end = len(pieces[0]) - len(pieces[0]) // 8
    last, before = torch.cat(pieces[0][end:]), torch.cat(pieces[0][:end])
    asked = (others, torch.cat(pieces[1])), (others, everywhere), (before, last)
    held, *own = (by_counts(seen, part, frequencies.tolist()) / len(part) for seen, part in asked)
    return held, max(own)


def _places(ids: Ids, count: int, length: int) -> list[Tensor]:
    """Return stretches of a text, evenly over it; it is cut whole where it is too short for them."""
    length = max(1, min(length, len(ids) // count))
    return [ids.tensor(start, start + length) for start in (len(ids) * i // count for i in range(count))]


def _ranked(keys: Tensor) -> tuple[Tensor, int]:
    """Return numbers that are equal where the keys are, and how many there may be."""
    most = int(keys.max()) + 1
    if most <= _DIRECT:
        return keys, most
    different, ranks = torch.unique(keys, return_inverse=True)
    return ranks, len(different)


def by_bzip2(train: bytes, text: bytes) -> int:
    """Return the bits that bzip2 needs more for both texts than for the training text; 0 where both take less."""
    return 8 * max(0, len(bz2.compress(train + text)) - len(bz2.compress(train)))


def by_xz(train: bytes, text: bytes) -> int:
    """Return the bits that xz needs more for both texts than for the training text; 0 where both take less."""
    return 8 * max(0, len(lzma.compress(train + text)) - len(lzma.compress(train)))
