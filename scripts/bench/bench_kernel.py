"""Time the recurrence, forward and backward: the native kernel against eager and torch.nn.LSTM.

    python scripts/bench/bench_kernel.py [--repeats 7] [--shape 512,64,128]...

The rivals take turns, one repeat each, so that a busy machine slows all of them alike. A kernel does the recurrence
alone; nn.LSTM also multiplies its input, which here is one wide so that this costs next to nothing, and computes dW in
its backward pass: the kernels are therefore given that product too. GFLOP/s count 8 S S operations for each row and
step forward, twice that backward (dH and dW).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from lstmlm.kernels import Kernel, native
from lstmlm.kernels.eager import EagerKernel

SHAPES = ["128,50,50", "256,32,128", "256,64,64", "512,64,128", "1024,64,64", "256,16,64"]


Passes = tuple[Callable[[], object], Callable[[], None], Callable[[], None]]
"""What is to be done before, the forward pass and the backward pass; the first is not timed."""


def kernel_run(kernel: Kernel, S: int, B: int, T: int) -> Passes:
    """Return the passes over fixed inputs."""
    a, dH, W = torch.randn(T, B, 4 * S), torch.randn(T, B, S), torch.randn(S, 4 * S) * S**-0.5
    zeros = torch.zeros(B, S)
    source = a.clone()
    kept: list[Tensor] = []

    def forward() -> None:
        kept[:] = kernel.forward(a, W, zeros, zeros)

    def backward() -> None:
        gates, C, H = kept
        da, _, _ = kernel.backward(dH, zeros, gates, C, zeros, W)
        H[:-1].flatten(0, 1).t() @ da[1:].flatten(0, 1)

    return (lambda: a.copy_(source)), forward, backward


def torch_run(S: int, B: int, T: int) -> Passes:
    """Return the passes of nn.LSTM in float32 over an input of width 1."""
    layer = nn.LSTM(1, S)
    x, dH = torch.randn(T, B, 1), torch.randn(T, B, S)
    kept: list[Tensor] = []

    def forward() -> None:
        kept[:] = [layer(x)[0]]

    def backward() -> None:
        kept.pop().backward(dH)

    return (lambda: None), forward, backward


def main() -> None:
    """Print one table row for each shape and rival."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shape", action="append", help="S,B,T")
    parser.add_argument("--precision", action="append", help="of the native kernel (default: float32)")
    options = parser.parse_args()
    natives = [native.load(precision) for precision in options.precision or ["float32"]]
    print(f"{torch.get_num_threads()} threads; ms: median (best); GFLOP/s of the medians")
    head = "".join(f"{x:>18} {'GFLOP/s':>7}" for x in ("forward", "backward"))
    print(f"{'S':>5} {'B':>3} {'T':>4}  {'kernel':26}{head}  times nn.LSTM")
    for shape in options.shape or SHAPES:
        S, B, T = (int(number) for number in shape.split(","))
        rivals = {kernel.name: kernel_run(kernel, S, B, T) for kernel in natives}
        rivals["eager"] = kernel_run(EagerKernel(), S, B, T)
        rivals["nn.LSTM float32"] = torch_run(S, B, T)
        times: dict[str, list[list[float]]] = {name: [[], []] for name in rivals}
        for _ in range(options.repeats + 1):
            for name, (prepare, *passes) in rivals.items():
                prepare()
                for direction, run in zip(times[name], passes, strict=True):
                    start = time.perf_counter()
                    run()
                    direction.append((time.perf_counter() - start) * 1e3)
        work = 8 * S * S * B * T / 1e6
        total = {name: sum(statistics.median(x[1:]) for x in both) for name, both in times.items()}
        for name, both in times.items():  # the first repeat only warms up
            forward, backward = (statistics.median(x[1:]) for x in both)
            cells = [
                f"{middle:9.2f} ({min(x):5.1f}) {flop / middle:7.0f}"
                for middle, x, flop in ((forward, both[0], work), (backward, both[1], 2 * work))
            ]
            print(f"{S:5} {B:3} {T:4}  {name:26} {cells[0]} {cells[1]}  {total['nn.LSTM float32'] / total[name]:.2f}")


if __name__ == "__main__":
    main()
