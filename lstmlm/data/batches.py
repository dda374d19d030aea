"""Ids -> B contiguous streams -> windows of T steps, with every position worked out from the step alone.

The trainer takes `Streams.batch` of each step. Training can stop and go on anywhere in a text of any size, because there is
nothing to remember.
"""

import random
from typing import TYPE_CHECKING

from lstmlm.config.auto_tune import clamped
from lstmlm.data.ids import Ids
from lstmlm.data.names import Renaming

if TYPE_CHECKING:
    from torch import Tensor


SECTION_CHARS = 4096  # of a stream that are read one after another, before it goes on elsewhere in the text ...
FEWEST_CHARS = 1024  # ... or fewer, but so many, where the text is short ...
SECTIONS = 8  # ... as a stream of a pass has at least so many sections, or it is read in the text's order
MOST_SECTIONS = 1 << 16  # of a pass
RENAMED = 8192  # characters in which a name is the same other one: a section, or a part of one, where the text is large ...
RENAMED_AT_ONCE = 1 << 24  # ... or fewer, of very many streams


class Streams:
    """B streams through a text, in windows of T inputs and the T targets one further on.

        n = (len(ids) - 1) // B     inputs of a stream in all
        K = n // T                  steps of a pass (`steps_per_epoch`)
        p, k = divmod(step, K)      pass, and step in the pass
        o_p = (n % T) * (p & 1) + ((len(ids) - 1) % B) * (p >> 1 & 1)

        stream s at `step` reads inputs ids[o_p + s*n + k'*T : ... + T], targets the same one further on

    Of a short text k' = k. In a long one each stream is cut into R sections of G windows, and reads them in an order that is
    drawn for each pass: read in the text's own, the last tenth of a pass, over which weights are averaged, would be B places in
    it. As each stream keeps to its own part of the text, all parts are read at any time. What R sections leave over of a stream
    is read at the end of the pass.

    In one pass no character is a target twice, and all are targets once but the first one of the text, n % T at one
    end of each stream and (len(ids) - 1) % B at one end of the text. Which end it is changes from pass to pass (o_p):
    in four passes from a multiple of four on each character but the first is a target. The state is to be fresh where
    a pass or a section begins, and carried on everywhere else.

    Args:
        ids: The text.
        batch: B; shrinks if the text is too short for it (`clamped`).
        window: T; likewise.
        renaming: Gives each section other names, from the second pass on: in the first one all of them are new. None: each pass
            reads the text as it is.

    Raises:
        ValueError: If the text has fewer than 2 characters, or B or T is less than 1.
    """

    def __init__(self, ids: Ids, batch: int, window: int, renaming: Renaming | None = None) -> None:
        if len(ids) < 2 or batch < 1 or window < 1:
            raise ValueError(f"cannot cut {len(ids)} characters into {batch} streams of {window} steps")
        self.batch_size, self.window = clamped(batch, window, len(ids))
        self.length = (len(ids) - 1) // self.batch_size
        self.steps_per_epoch = self.length // self.window
        self._unread = (self.length % self.window, (len(ids) - 1) % self.batch_size)
        self._ids, self._view = ids, ids.view()
        self.section = _section(self.batch_size, self.window, self.steps_per_epoch)
        self._sections = self.steps_per_epoch // self.section if self.section < self.steps_per_epoch else 0  # of a stream
        self._drawn = -1  # the pass for which the order was drawn last
        self._orders: list[list[int]] = []
        self._renaming = renaming
        self._part = max(1, min(RENAMED, RENAMED_AT_ONCE // self.batch_size) // self.window)  # windows that are renamed at once
        self._renamed: dict[int, tuple[tuple[int, ...], Tensor]] = {}  # what is being read, of streams from there on

    def starts(self, step: int, first: int = 0, count: int | None = None) -> tuple[list[int], bool]:
        """Return the first input of each stream at `step`, and whether their states are fresh.

        Args:
            step: The step of the run; 0 is the first.
            first: The first stream wanted.
            count: How many streams; None: all from `first` on.
        """
        p, turn, window = self._place(step)
        offset = self._unread[0] * (p & 1) + self._unread[1] * (p >> 1 & 1)
        streams = range(first, self.batch_size if count is None else first + count)
        if turn == self._sections:
            k = turn * self.section + window
            return [offset + stream * self.length + k * self.window for stream in streams], window == 0
        if self._drawn != p:
            drawn = random.Random(p)
            self._orders = [drawn.sample(range(self._sections), self._sections) for _ in range(self.batch_size)]
            self._drawn = p
        return [
            offset + stream * self.length + (self._orders[stream][turn] * self.section + window) * self.window
            for stream in streams
        ], window == 0

    def batch(self, step: int, first: int = 0, count: int | None = None) -> "tuple[Tensor, Tensor, bool]":
        """Return what the model reads at `step`.

        Args:
            step: The step of the run; 0 is the first.
            first: The first stream wanted: a process that owns some of the streams reads no others.
            count: How many streams; None: all from `first` on.

        Returns:
            inputs:  (T, B) int64.
            targets: (T, B) int64, the inputs one character further on.
            fresh:   Whether all streams start again here, so that the state is to be the initial one.
        """
        import torch

        starts, fresh = self.starts(step, first, count)
        # Rows are time steps, columns streams.
        if step >= self.steps_per_epoch and self._renaming and self._renaming.names:
            block = self._other_names(step, starts, first)
        else:
            block = self._view[torch.arange(self.window + 1)[:, None] + torch.tensor(starts)]
        block = block.to(torch.int64)
        self._ids.release_after(block.numel())
        return block[:-1], block[1:], fresh

    def _place(self, step: int) -> tuple[int, int, int]:
        """Return pass, section of the pass, and window of the section; the last section is what the others leave over."""
        p, k = divmod(step, self.steps_per_epoch)
        turn = min(k // self.section, self._sections)
        return p, turn, k - turn * self.section

    def _other_names(self, step: int, starts: list[int], first: int) -> "Tensor":
        """Return what the streams from `first` on read at `step`, and one character more, with other names. (T + 1, B)"""
        import torch

        assert self._renaming
        p, turn, window = self._place(step)
        part, at = divmod(window, self._part)
        if self._renamed.get(first, ((),))[0] != (p, turn, part, len(starts)):
            windows = self.section if turn < self._sections else self.steps_per_epoch - turn * self.section
            length = min(self._part, windows - part * self._part) * self.window + 1
            texts = [self._view[start - at * self.window :][:length] for start in starts]
            renamed = [self._renaming.replaced(text, (p, stream, turn, part)) for stream, text in enumerate(texts, first)]
            self._renamed[first] = (p, turn, part, len(starts)), torch.stack(renamed)
        return self._renamed[first][1][:, at * self.window :][:, : self.window + 1].t().contiguous()


def _section(batch: int, window: int, windows: int) -> int:
    """Return how many windows of a stream are read one after another; all, where the text is too short for another order."""
    found = min(max(1, SECTION_CHARS // window), windows // SECTIONS)
    found = max(found, -(-batch * windows // MOST_SECTIONS))
    return found if found * window >= FEWEST_CHARS and windows // found >= SECTIONS else windows
