"""The same work again and again on a device, without the host telling it each part of it anew.

`Graph` records a function as a CUDA graph and replays it, for `training.train_step` and the sampler; on the CPU it calls it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, Multiplied
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
        self._left = WARM
        self._replay: Work | None = None

    def __call__(self) -> None:
        """Do the work."""
        if self._record is None:
            self._run()
        elif self._left:
            self._left -= 1
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


class Lanes:
    """Streams of a device, in which work goes on side by side; elsewhere what is called first is done first.

    A recording (`Graph`) takes them in: what is in different lanes are different branches of the graph.

    Args:
        device: Where.
        count: How many.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" and count > 1 else []

    def __call__(self, lane: int) -> AbstractContextManager[Any]:
        """Let what is called meanwhile go into a lane."""
        return torch.cuda.stream(self._streams[lane]) if self._streams else nullcontext()

    def part(self) -> None:
        """Let each lane begin after what was called so far."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream())

    def join(self) -> None:
        """Let what follows begin after all lanes."""
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)

    def follow(self, lane: int, other: int) -> None:
        """Let what follows in a lane begin after what was called in another one so far."""
        if self._streams:
            self._streams[lane].wait_stream(self._streams[other])


def speed_of(kernel: Kernel, device: torch.device, T: int = 64, B: int = 16, S: int = 512, runs: int = 5) -> float:
    """Measure a recurrence of a middling size, forward and back, FLOP/s: where steps wait for each other, no product tells it.

    Narrower networks are hardly faster there and wider ones hardly slower: what is told of them by this number errs towards
    seeing less of a text than they will. It is run as training runs it, as a graph, and multiplicative, as the first layer is.

    Args:
        kernel: What runs it.
        device: Where.
        T: Time steps.
        B: Rows.
        S: Units.
        runs: How many are timed, after those in which the graph is made.
    """
    shapes = [(S, 4 * S), (B, S), (B, S), (T, B, 4 * S), (T, B, S), (T, B, S), (T, B, S), (B, S)]
    W, H_0, C_0, a, C, H, dH, found = (torch.zeros(*shape, device=device) for shape in shapes)
    W = W if kernel.factors is None else W.to(kernel.factors)
    by = Multiplied(torch.zeros_like(H), torch.zeros_like(H))

    def both_ways() -> None:
        kernel.forward(a, W, H_0, C_0, into=Activations(a, C, H), multiplied=by)
        found.copy_(kernel.backward(dH, C_0, a, C, C_0, W, multiplied=by)[1])

    graph = Graph(both_ways, device)
    began = 0.0
    for run in range(WARM + 1 + runs):
        if run == WARM + 1:
            float(found.sum())
            began = time.perf_counter()
        graph()
    float(found.sum())  # wait for it
    return 24 * T * B * S * S * runs / (time.perf_counter() - began)
