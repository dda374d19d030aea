"""Ids -> B contiguous streams -> windows of T steps, with every position worked out from the step alone.

The trainer takes `Streams.batch` of each step. Training can stop and go on anywhere in a text of any size, because there is
nothing to remember.
"""

from typing import TYPE_CHECKING

from lstmlm.data.ids import Ids

if TYPE_CHECKING:
    from torch import Tensor


def clamped(batch: int, window: int, chars: int) -> tuple[int, int]:
    """Return the batch and window that fit a text: the window shrinks to the text, then the batch to what is left.

    Args:
        batch: Streams wanted.
        window: Time steps wanted.
        chars: Length of the text; at least 2, as one character is a target of nothing.
    """
    window = max(1, min(window, chars - 1))
    return max(1, min(batch, (chars - 1) // window)), window


class Streams:
    """B streams through a text, in windows of T inputs and the T targets one further on.

        n = (len(ids) - 1) // B     inputs of a stream in all
        K = n // T                  steps of a pass (`steps_per_epoch`)
        p, k = divmod(step, K)      pass, and step in the pass
        o_p = (n % T) * (p & 1) + ((len(ids) - 1) % B) * (p >> 1 & 1)

        stream s at `step` reads inputs ids[o_p + s*n + k*T : ... + T], targets the same one further on

    In one pass no character is a target twice, and all are targets once but the first one of the text, n % T at one
    end of each stream and (len(ids) - 1) % B at one end of the text. Which end it is changes from pass to pass (o_p):
    in four passes from a multiple of four on each character but the first is a target. The state is to be fresh where
    k = 0, and carried on everywhere else.

    Args:
        ids: The text.
        batch: B; shrinks if the text is too short for it (`clamped`).
        window: T; likewise.

    Raises:
        ValueError: If the text has fewer than 2 characters, or B or T is less than 1.
    """

    def __init__(self, ids: Ids, batch: int, window: int) -> None:
        if len(ids) < 2 or batch < 1 or window < 1:
            raise ValueError(f"cannot cut {len(ids)} characters into {batch} streams of {window} steps")
        self.batch_size, self.window = clamped(batch, window, len(ids))
        self.length = (len(ids) - 1) // self.batch_size
        self.steps_per_epoch = self.length // self.window
        self._unread = (self.length % self.window, (len(ids) - 1) % self.batch_size)
        self._ids, self._view = ids, ids.view()

    def position(self, step: int) -> tuple[int, bool]:
        """Return the first input of stream 0 at `step` (stream s: s*n further), and whether its state is fresh."""
        p, k = divmod(step, self.steps_per_epoch)
        return self._unread[0] * (p & 1) + self._unread[1] * (p >> 1 & 1) + k * self.window, k == 0

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

        start, fresh = self.position(step)
        count = self.batch_size - first if count is None else count
        # One strided view over the text, copied once: rows are time steps, columns streams.
        block = self._view.as_strided((self.window + 1, count), (1, self.length), start + first * self.length)
        block = torch.empty(block.shape, dtype=torch.int64).copy_(block)
        self._ids.release_after(block.numel())
        return block[:-1], block[1:], fresh
