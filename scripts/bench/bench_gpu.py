"""Measure whole training steps and sampling on a CUDA device, beside `torch.nn.LSTM` at its best.

    python scripts/bench/bench.py gpu

Both sides train the same weights on the same ids in one process, in strict alternation, timed by CUDA events after their losses
have been compared. nn.LSTM runs in float32 with TF32 products, in bfloat16 and in float16, weights and all, called and as a CUDA
graph; the fastest of these counts. What a step cannot be faster than is worked out first, from bytes and operations.
"""

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from bench import VOCABULARY, Rival, Row, ours_like
from torch import Tensor, nn

from lstmlm import kernels
from lstmlm.config.run_config import TrainConfig
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.kernels import Kernel
from lstmlm.kernels.cuda_graph import WARM, Graph
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import devices, ensemble
from lstmlm.model.char_lm import nats
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer
from lstmlm.training.train_step import TrainStep

SHAPES = [(1, 512, 64, 128), (2, 512, 64, 128), (2, 512, 256, 128), (3, 1024, 64, 128), (3, 1024, 256, 128)]  # L, S, B, T
MEMBERS = [(1, 512, 64, 128), (2, 512, 64, 128)]
COUNTS = (1, 2, 4, 8)
SAMPLED = [(2, 512, 1), (2, 512, 4096), (3, 1024, 1)]  # L, S, streams
DTYPES = {"TF32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHIN = {torch.float32: 5e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of the loss; TF32 keeps 10 bits
STRICT = 1e-5
STEPS = 10  # between two events
BARRIER = 1e-6  # seconds, assumed: until a time step has what the one before it gives, in each pass


class Card(NamedTuple):
    """What a device can do at most, from its maker's data sheet: bytes and bfloat16 operations a second."""

    bytes: float
    operations: float


CARDS = {"NVIDIA H200": Card(4.8e12, 989e12), "NVIDIA H100 80GB HBM3": Card(3.35e12, 989e12)}


class Floor(NamedTuple):
    """What a training step moves and computes at least.

    operations: Two for each weight and character forward, four backward, of all products.
    bytes: Weights, gradients and moments once in and once out, and the activations that the backward pass needs likewise, all
        float32; what stays on the chip in between is not counted.
    meetings: Steps that wait for the one before, forward and back, were the layers one step apart: T + L - 1 each.
    """

    operations: float
    bytes: float
    meetings: int

    def seconds(self, card: Card) -> float:
        """Return how long that takes at least: the longest of the three, with the assumed time of a meeting."""
        return max(self.operations / card.operations, self.bytes / card.bytes, self.meetings * BARRIER)


def floor(L: int, S: int, B: int, T: int) -> Floor:
    """Work the floor of a shape out."""
    products = 4 * S * S * (2 * L - 1) + S * VOCABULARY  # the first layer's input is a row of a table
    parameters = products + 4 * S * VOCABULARY + 4 * S * L + VOCABULARY
    kept = 6 * L * S * B * T + VOCABULARY * B * T
    return Floor(6 * products * B * T, 4 * (8 * parameters + 2 * kept), 2 * (T + L - 1))


def ours(
    rival: Rival, kernel: Kernel, ids: Tensor, targets: Tensor, count: int = 1, chunks: int | None = None
) -> tuple[float, Callable[[], object]]:
    """Return the loss before the first step, and a function that takes one; the rival's weights are on the CPU.

    Args:
        rival: Its weights are ours.
        kernel: What runs the recurrence.
        ids: (T, B)
        targets: Likewise.
        count: Networks that learn from the same ids, all with the same weights.
        chunks: See `Backprop`.
    """
    (T, B), width, layers = ids.shape, rival.lstm.hidden_size, rival.lstm.num_layers
    models = [ours_like(rival, layers, width, kernel).to(ids.device) for _ in range(count)]
    config = TrainConfig(lr=1e-3, weight_decay=0.01, average=0.0)
    optimizers = [Optimizer(model, config, kernel.pointwise) for model in models]
    network = ensemble.of(models)
    step = TrainStep(network, Backprop(network, B, T, chunks=chunks), optimizers, T, B, 1 / ids.numel())
    drops = [Dropout(0.0, 0, 0, B)] * count

    def take() -> Tensor:
        for optimizer in optimizers:
            optimizer.prepare(1e-4)
        return step(ids, targets, None, drops)[0]

    with torch.no_grad():
        loss = float(nats(models[0](ids)[0], targets).mean())
    first = float(take())
    if not math.isclose(first, loss, rel_tol=WITHIN[torch.bfloat16]):
        raise SystemExit(f"bench: a step of {kernel.name} computes {first}, the model {loss}: nothing to compare")
    return first, take


def theirs(rival: Rival, dtype: torch.dtype, ids: Tensor, targets: Tensor, *, graph: bool) -> tuple[float, Callable[[], object]]:
    """Return the loss before the first step, and a function that takes one, with everything in one type."""
    twin = copy.deepcopy(rival).to(ids.device, dtype)
    twin.lstm.flatten_parameters()
    cuda = ids.device.type == "cuda"
    adam = torch.optim.AdamW(twin.parameters(), lr=1e-4, eps=1e-4, fused=True, capturable=cuda)
    loss = torch.zeros((), device=ids.device)
    for p in twin.parameters():
        p.grad = torch.zeros_like(p)

    def take() -> None:
        adam.zero_grad(set_to_none=False)
        with products("tf32"):
            found = nats(twin(ids)[0].float(), targets).mean()
            found.backward()
        loss.copy_(found.detach())
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0, foreach=True)
        adam.step()

    run = Graph(take, ids.device) if graph else take
    run()
    return float(loss), run


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Let float32 products, cuDNN's too, round to TF32 (tf32) or not (ieee)."""
    switches: Any = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = precision
    try:
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.fp32_precision = was


def timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the seconds of one call: by events on a CUDA device, by the clock on the CPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - began) / times
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / times


def alternate(sides: dict[str, Callable[[], object]], rounds: int, times: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of a call of each side, run in turn; the first ones, in which graphs are made, do not count."""
    for run in sides.values():
        for _ in range(4):
            run()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            found[name].append(timed(run, times, device))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def train(
    shape: tuple[int, int, int, int],
    device: torch.device,
    rounds: int,
    own: dict[str, Kernel],
    dtypes: dict[str, torch.dtype],
    card: Card | None = None,
    times: int = STEPS,
    chunks: dict[str, int] | None = None,
) -> Row:
    """Compare training steps of a shape: forward, backward, clipping, AdamW; `chunks` of `Backprop` are by the name of a side."""
    L, S, B, T = shape
    torch.manual_seed(0)
    ids, targets = torch.randint(VOCABULARY, (2, T, B)).to(device)
    rival = Rival(L, S)
    with torch.no_grad(), products("ieee"):
        expected = float(nats(copy.deepcopy(rival).to(device)(ids)[0], targets).mean())
    sides: dict[str, Callable[[], object]] = {}
    for name, kernel in own.items():
        loss, sides[name] = ours(rival, kernel, ids, targets, chunks=(chunks or {}).get(name))
        _agree(name, loss, expected, STRICT if kernel.strict.name == kernel.name else WITHIN[torch.bfloat16])
    for name, dtype in dtypes.items():
        for graph in (False, True) if device.type == "cuda" else (False,):
            label = f"nn.LSTM {name}{' graph' if graph else ''}"
            try:
                loss, run = theirs(rival, dtype, ids, targets, graph=graph)
                for _ in range(WARM):  # until the graph is there
                    run()
            except RuntimeError as error:  # what it cannot do here counts for nobody
                print(f"{label}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
                continue
            sides[label] = run
            _agree(label, loss, expected, WITHIN[dtype])
    median = alternate(sides, rounds, times, device)
    best = min(seconds for name, seconds in median.items() if name not in own)
    row: Row = {"shape": f"{L}x{S} B{B} T{T}"} | {f"{name} us/step": seconds / T * 1e6 for name, seconds in median.items()}
    for name in own:
        row[f"{name} vs best nn.LSTM"] = best / median[name]
        if card is not None:
            row[f"{name} share of floor"] = floor(*shape).seconds(card) / median[name]
    return row


def members(
    shape: tuple[int, int, int, int], device: torch.device, rounds: int, kernel: Kernel, counts: Sequence[int] = COUNTS
) -> list[Row]:
    """Compare training steps of some networks with that of the first number of them."""
    L, S, B, T = shape
    torch.manual_seed(0)
    ids, targets = torch.randint(VOCABULARY, (2, T, B)).to(device)
    sides = {str(count): ours(Rival(L, S), kernel, ids, targets, count)[1] for count in counts}
    median = alternate(sides, rounds, STEPS if device.type == "cuda" else 1, device)
    least = median[str(counts[0])]
    return [
        {"shape": f"{L}x{S} B{B} T{T}", "members": int(count), "us/step": seconds / T * 1e6, f"vs {counts[0]}": seconds / least}
        for count, seconds in median.items()
    ]


def sample(shape: tuple[int, int, int], device: torch.device, rounds: int, kernel: Kernel, chars: int = 256) -> Row:
    """Compare sampling at temperature 1: characters a second of so many streams, against a loop over nn.LSTM."""
    L, S, n = shape
    torch.manual_seed(0)
    rival = Rival(L, S).eval()
    model = ours_like(rival, L, S, kernel).to(device).eval()
    rival.to(device)

    def by_us() -> None:
        stream = generate(model, [0], range(n), Sampling())
        for _ in range(chars):
            next(stream)

    @torch.inference_mode()
    def by_lstm() -> None:
        ids, state = torch.zeros(1, n, dtype=torch.int64, device=device), None
        for _ in range(chars):
            logits, state = rival(ids, state)
            ids = torch.multinomial(torch.softmax(logits[0], -1), 1).t()
            ids.tolist()

    median = alternate({"lstmlm": by_us, "nn.LSTM": by_lstm}, rounds, 1, device)
    rates = {f"{name} chars/s": round(chars * n / seconds) for name, seconds in median.items()}
    return {"shape": f"{L}x{S}", "streams": n, **rates, "vs nn.LSTM": median["nn.LSTM"] / median["lstmlm"]}


def _agree(name: str, loss: float, expected: float, within: float) -> None:
    if not math.isclose(loss, expected, rel_tol=within):
        raise SystemExit(f"bench: {name} computes {loss}, nn.LSTM {expected}: nothing to compare")


def measure(rounds: int) -> tuple[list[Row], ...]:
    """Print what is expected at best, then measure: training steps, those of members, and sampling.

    Raises:
        SystemExit: There is no GPU, which is said in a line (exit 2), or the two sides do not compute the same.
    """
    wrong = devices.missing() or devices.broken(torch.device("cuda"))
    if wrong:
        print(f"bench gpu: expected a working CUDA device, found: {wrong}. Nothing was measured.", file=sys.stderr)
        raise SystemExit(2)
    device = devices.choose("cuda")
    card = CARDS.get(devices.name(device))
    print(f"{devices.name(device)}: {card or 'no data sheet here, so no floor'}", file=sys.stderr)
    for shape in SHAPES:
        least = floor(*shape)
        at_least = f", at least {least.seconds(card) / shape[3] * 1e6:.2f} us a step" if card else ""
        print(f"{shape}: {least}{at_least}", file=sys.stderr)
    own: dict[str, Kernel] = {}
    for precision in ("auto", "float32"):
        kernel, why = kernels.choose("auto", precision, "cuda")
        if why:
            print(why, file=sys.stderr)
        own[kernel.name] = kernel
        eager = EagerKernel(fast=precision == "auto")
        own[eager.name] = eager
    trained = [train(shape, device, rounds, own, DTYPES, card) for shape in SHAPES]
    strict = kernels.choose("auto", "float32", "cuda")[0]
    fastest = kernels.choose("auto", "auto", "cuda")[0]
    together = [row for shape in MEMBERS for row in members(shape, device, rounds, fastest)]
    return trained, together, [sample(shape, device, rounds, strict) for shape in SAMPLED]
