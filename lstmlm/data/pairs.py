"""The pairs of characters that a text has most often: `launch` gives them rows of their own in the network.

`frequent` is the entry point.
"""

from lstmlm.data.ids import Ids

MOST = 600  # pairs; of English letters they are 97 of 100 characters
RAREST = 100  # times that a pair occurs at least: what is read less often learns little, and is learnt by heart
SEARCHED = 4 << 20  # characters in which pairs are counted; of a larger text, in pieces from all over it
PIECE = 1 << 16


def frequent(ids: Ids, vocabulary: int, most: int = MOST) -> list[tuple[int, int]]:
    """Return the most frequent pairs of ids in a text, in ascending order: the same ones for the same text.

    Args:
        ids: The text.
        vocabulary: V: ids are below.
        most: Pairs that are wanted; fewer where others are rare.
    """
    import torch

    if not most or len(ids) < 2:
        return []
    step = max(1, -(-len(ids) // SEARCHED))
    pieces = [ids.tensor(start, start + PIECE + 1) for start in range(0, len(ids), step * PIECE)]
    found = torch.cat([piece[:-1] * vocabulary + piece[1:] for piece in pieces])
    if vocabulary**2 <= len(found):  # several times as quick as to sort them
        counts = found.bincount(minlength=vocabulary**2)
        keys = torch.arange(len(counts))
    else:
        keys, counts = found.unique(return_counts=True)
    often = (counts >= RAREST).nonzero().flatten()
    chosen = often[counts[often].argsort(descending=True, stable=True)[:most]]
    return [divmod(key, vocabulary) for key in sorted(keys[chosen].tolist())]
