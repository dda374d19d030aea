"""Text in pieces -> its lines, each with its line end. `records` and `eval --lines` call `whole_lines`."""

from collections.abc import Iterable, Iterator


def whole_lines(pieces: Iterable[str], *, cr: bool = False) -> Iterator[list[str]]:
    """Give the lines that each piece completes, and at the end what has no line end.

    Args:
        pieces: Of any length: a line may have many, and is joined once.
        cr: Whether CR ends lines in a text whose first piece has no other line end; else LF alone does.
    """
    begun: list[str] = []
    end = "" if cr else "\n"
    for piece in pieces:
        end = end or ("\r" if "\r" in piece[:-1] and "\n" not in piece else "\n")
        *whole, rest = piece.split(end)
        if whole:
            whole[0] = "".join([*begun, whole[0]])
            begun = []
            yield [line + end for line in whole]
        begun += [rest] if rest else []
    if begun:
        yield ["".join(begun)]
