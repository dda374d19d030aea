"""The same work again and again on a device, without the host telling it each part of it anew.

`Graph` records a function as a CUDA graph and replays it, for `training.train_step` and the sampler; on the CPU it calls it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lstmlm.kernels.pointwise import Number

WARM = 2  # calls before the work is recorded: libraries set themselves up in the first ones, which a recording cannot hold

Work = Callable[[], None]
"""Reads and writes tensors that stay in their places, waits for none of them, and does the same operations in each call."""

Recorder = Callable[[Work], Work]
"""Returns what does again what a function does, without calling it; may call it or not, but has no effect of its own."""


class Graph:
    """A function whose work is recorded once and then replayed.

    Every call counts, the first ones too: they run as they are. On the CPU all of them do, as calling costs little there.

    Args:
        run: See `Work`. What changes from call to call it finds in tensors that are written before the call.
        device: Where its tensors are.
        record: How its work is recorded; None: as a CUDA graph on such a device, and not at all elsewhere.
    """

    def __init__(self, run: Work, device: torch.device, record: Recorder | None = None) -> None:
        self._run, self._on_cuda = run, device.type == "cuda"
        self._record = record or (_cuda_graph if self._on_cuda else None)
        self._calls = 0
        self._replay: Work | None = None

    def __call__(self) -> None:
        """Do the work."""
        if self._record is None:
            self._run()
        elif self._calls < WARM:
            self._calls += 1
            if self._on_cuda:
                _aside(self._run)
            else:
                self._run()
        else:
            if self._replay is None:
                self._replay = self._record(self._run)
            self._replay()


def _aside(run: Work) -> None:
    """Run on another stream, as the recording will, and let what follows wait for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


def _cuda_graph(run: Work) -> Work:
    """Record a CUDA graph; while it is recorded nothing is computed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Work = graph.replay
    return replay


def read_back(*numbers: Number) -> list[float]:
    """Return numbers as the host has them: one wait for all that are still being computed."""
    waiting = [number for number in numbers if isinstance(number, Tensor)]
    came = iter(torch.stack([number.double() for number in waiting]).tolist() if waiting else ())
    return [next(came) if isinstance(number, Tensor) else float(number) for number in numbers]
