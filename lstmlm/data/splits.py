"""Which part of a text is held out for validation: its end, or lines, paragraphs or files drawn by a seed.

`prepare` counts the units of a text in its first pass, draws some of them, and tells them apart in its second pass.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import AnyStr

MANY_FILES = 20  # from so many on a text is held out by files, where nothing else is said


def units(texts: Iterable[tuple[int, AnyStr]], split: str) -> Iterator[tuple[int, AnyStr]]:
    """Give a text with the numbers of its units instead of its documents; no unit is part of two documents.

    Args:
        texts: Piece by piece, each with the number of its document, which rises.
        split: `lines`, `paragraphs` (between which there is an empty line) or `files`.
    """
    if split == "files":
        yield from texts
        return
    unit, before, line_end = -1, -1, None
    begins, blank, full = True, False, False  # a line begins; an empty one came before; something is in this one
    for document, text in texts:
        line_end = line_end or _line_end(text)
        for part in _lines(text, line_end):
            something = bool(part.strip())
            if document != before or (begins if split == "lines" else something and blank):
                unit, before, blank = unit + 1, document, False
            full = (full and not begins) or something
            begins = part.endswith(line_end)
            blank = (blank and not something) or (begins and not full)
            yield unit, part


def draw(count: int, fraction: float, seed: int) -> Iterator[int]:
    """Draw a share of some units, evenly over the text: one from each of equal stretches. They rise; one is left at least."""
    drawn = min(max(1, round(count * fraction)), count - 1) if fraction else 0
    source = random.Random(seed)
    for stretch in range(drawn):
        yield source.randrange(stretch * count // drawn, (stretch + 1) * count // drawn)


def draw_files(lengths: Sequence[int], fraction: float, seed: int) -> Iterator[int]:
    """Draw files that together are nearly a share of the text. They rise; one is drawn and one is left, where there are two."""
    wanted, order = fraction * sum(lengths), list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    drawn: list[int] = []
    held = 0
    for file in order if fraction else ():
        if held + lengths[file] <= wanted:
            drawn.append(file)
            held += lengths[file]
    if not drawn and fraction and len(lengths) > 1:
        drawn = [min(order, key=lambda file: abs(lengths[file] - wanted))]
    return iter(sorted(drawn))


def parted(texts: Iterable[tuple[int, AnyStr]], drawn: Iterator[int], most: int) -> Iterator[tuple[bool, AnyStr]]:
    """Say of each piece of a text whether it is of a drawn unit; pieces of one kind are joined to some `most` characters."""
    parts: list[AnyStr] = []
    held_out, size, wanted = False, 0, next(drawn, -1)
    for unit, text in texts:
        while 0 <= wanted < unit:
            wanted = next(drawn, -1)
        if parts and ((unit == wanted) != held_out or size >= most):
            yield held_out, parts[0][:0].join(parts)
            parts, size = [], 0
        held_out = unit == wanted
        parts.append(text)
        size += len(text)
    if parts:
        yield held_out, parts[0][:0].join(parts)


def _line_end(text: AnyStr) -> AnyStr:
    """Return what ends lines in a text that begins like this: CR where it is the only one."""
    lf, cr = ("\n", "\r") if isinstance(text, str) else (b"\n", b"\r")
    return cr if cr in text and lf not in text else lf


def _lines(text: AnyStr, line_end: AnyStr) -> Iterator[AnyStr]:
    lines = text.split(line_end)
    for line in lines[:-1]:
        yield line + line_end
    if lines[-1]:
        yield lines[-1]
