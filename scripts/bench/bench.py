"""Measure lstmlm beside torch.nn.LSTM, in one process and in strict alternation.

Every figure is a ratio of medians, printed after both sides have been shown to compute the same thing. Nothing else may
run on the machine meanwhile.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lstmlm import kernels
from lstmlm.config.run_config import ModelConfig, TrainConfig
from lstmlm.kernels import build, native
from lstmlm.machine import cpu_name
from lstmlm.model.char_lm import CharLM, StackState, nats
from lstmlm.model.lstm import LSTMLayer
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers import load_torch  # the checkout is not installed

VOCABULARY = 65
# L, S, B, T; the second is the shape of short runs with default settings
SHAPES = [(1, 128, 50, 50), (1, 384, 16, 64), (1, 256, 32, 128), (2, 256, 64, 64), (2, 512, 64, 128), (3, 1024, 64, 64)]
SAMPLED = [(1, 256), (2, 512), (3, 1024)]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""What holds each of torch's libraries to AVX2; they read it when they are loaded."""
Row = dict[str, Any]


class Rival(nn.Module):
    """An embedding of width S, `nn.LSTM` and a linear readout: the network that most people write."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, layers)
        self.readout = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return logits (T, B, V) and the last state."""
        H, last = self.lstm(self.embedding(ids), state)
        return self.readout(H), last


def ours_like(rival: Rival, layers: int, width: int, kernel: kernels.Kernel, *, multiplicative: bool = False) -> CharLM:
    """Make our network with the rival's weights: the first layer's table is its embedding times its input weights.

    The rival has no factors for H; where ours has, they are 1, and so it computes the same and works more.
    """
    config = ModelConfig(hidden=width, layers=layers, dropout=0.0, layer_norm=False, residual=False)
    model = CharLM(replace(config, multiplicative=multiplicative), VOCABULARY, kernel)
    with torch.no_grad():
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, LSTMLayer)
            if index:
                load_torch(layer, rival.lstm, index)
                continue
            dense = LSTMLayer(width, width, kernel)
            load_torch(dense, rival.lstm, 0)
            layer.U.copy_(rival.embedding.weight @ dense.U)
            layer.W.copy_(dense.W)
            assert layer.b is not None
            assert dense.b is not None
            layer.b.copy_(dense.b)
        assert model.readout is not None
        model.readout.load_state_dict(rival.readout.state_dict())
    return model


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each side, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, run in sides.items():
        run()
        run()
        del name
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def machine() -> str:
    """Return the CPU's name, the threads, and what a 2048^3 product of each kind of the native kernel reaches."""
    words = [cpu_name(), f"{torch.get_num_threads()} threads"]
    A, B, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    try:
        kinds = native.every_kind(native.load("float32"))
    except native.Unavailable as error:
        return ", ".join([*words, f"no native kernel: {error}"])
    for kernel in kinds:
        seconds = min(alternate({"product": partial(kernel.product, A, B, out)}, 5).values())
        words.append(f"{kernel.name} {2 * 2048**3 / seconds / 1e9:.0f} GFLOP/s")
    return ", ".join(words)


def peak() -> float:
    """Return the machine's float32 matrix-product speed at 2048^3, FLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    out = torch.empty(2048, 2048)
    seconds = min(alternate({"mm": lambda: torch.mm(a, b, out=out)}, 7).values())
    return 2 * 2048**3 / seconds


def train(rounds: int, reduced: bool) -> list[Row]:
    """Compare training steps: forward, backward, clipping, AdamW."""
    rows = []
    best = peak()
    for layers, width, B, T in SHAPES:
        torch.manual_seed(0)
        x = torch.randint(VOCABULARY, (T, B))
        y = torch.randint(VOCABULARY, (T, B))
        rival = Rival(layers, width)
        sides: dict[str, Callable[[], object]] = {}
        losses: dict[str, float] = {}
        kinds = [("float32", False), ("auto", False), ("auto", True)] if reduced else [("float32", False)]
        for precision, multiplicative in kinds:
            name = f"{precision} with factors" if multiplicative else precision
            kernel, why = kernels.choose("auto", precision, keep="" if precision == "auto" else None)
            if why:
                print(why, file=sys.stderr)
            model = ours_like(rival, layers, width, kernel, multiplicative=multiplicative)
            optimizer = Optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.01), kernel.pointwise)
            backprop, empty = Backprop(model, B, T), model.initial_state(B)
            losses[name] = float(nats(model(x)[0], y).detach().mean())

            def ours(
                backprop: Backprop = backprop,
                optimizer: Optimizer = optimizer,
                state: StackState = empty,
                x: Tensor = x,
                y: Tensor = y,
            ) -> None:
                backprop(x, y, state, 1 / y.numel())
                optimizer.prepare(1e-4)
                optimizer.step()

            sides[f"lstmlm {name}"] = ours
        adam = torch.optim.AdamW(rival.parameters(), lr=1e-4, fused=True)
        losses["nn.LSTM"] = float(nats(rival(x)[0], y).detach().mean())

        def theirs(low: bool, rival: Rival = rival, adam: torch.optim.AdamW = adam, x: Tensor = x, y: Tensor = y) -> None:
            adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits, _ = rival(x)
            nats(logits.float(), y).mean().backward()
            nn.utils.clip_grad_norm_(rival.parameters(), 1.0)
            adam.step()

        sides["nn.LSTM float32"] = lambda: theirs(False)
        if reduced:
            sides["nn.LSTM bfloat16"] = lambda: theirs(True)
        for name, loss in losses.items():
            bound = 5e-3 if name.startswith("auto") else 1e-5
            if not math.isclose(loss, losses["nn.LSTM"], rel_tol=bound):
                raise SystemExit(f"bench: {name} computes {loss}, nn.LSTM {losses['nn.LSTM']}: nothing to compare")
        median = alternate(sides, rounds)
        flops = 6 * (4 * width * width * (2 * layers - 1) + width * VOCABULARY) * B * T
        row: Row = {"shape": f"{layers}x{width} B{B} T{T}"}
        for name, seconds in median.items():
            row[f"{name} chars/s"] = round(B * T / seconds)
        row["float32 vs float32"] = median["nn.LSTM float32"] / median["lstmlm float32"]
        row["share of peak"] = flops / median["lstmlm float32"] / best
        if reduced:
            row["default vs default"] = median["nn.LSTM float32"] / median["lstmlm auto"]
            row["default vs bfloat16"] = median["nn.LSTM bfloat16"] / median["lstmlm auto"]
            row["with factors vs without"] = median["lstmlm auto with factors"] / median["lstmlm auto"]
        rows.append(row)
    return [*rows, _means(rows, [key for key in rows[0] if " vs " in key], "geometric mean")]


@torch.inference_mode()
def sample(rounds: int) -> list[Row]:
    """Compare samplers, one stream and 64: characters a second from a prompt on, at temperature 1.

    A rival draws 200 characters, we draw more where it takes less than that: a start-up is part of both.
    """
    from lstmlm.evaluation.sampler import Sampling, generate

    rows = []
    for layers, width in SAMPLED:
        torch.manual_seed(0)
        rival = Rival(layers, width).eval()
        model = ours_like(rival, layers, width, kernels.choose("auto", "float32")[0]).eval()
        cells = [nn.LSTMCell(width, width) for _ in range(layers)]
        for index, cell in enumerate(cells):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).copy_(getattr(rival.lstm, f"{name}_l{index}"))

        def pick(logits: Tensor) -> Tensor:
            return torch.multinomial(torch.softmax(logits, -1), 1)

        def by_lstm(rival: Rival = rival, count: int = 200) -> None:
            ids, state = torch.zeros(1, 1, dtype=torch.int64), None
            for _ in range(count):
                logits, state = rival(ids, state)
                ids = pick(logits[0]).view(1, 1)
                ids.tolist()

        def by_cell(rival: Rival = rival, cells: list[nn.LSTMCell] = cells, n: int = 1, count: int = 200) -> None:
            width = cells[0].hidden_size
            ids = torch.zeros(n, dtype=torch.int64)
            states = [(torch.zeros(n, width), torch.zeros(n, width)) for _ in cells]
            for _ in range(count):
                x = rival.embedding(ids)
                for index, cell in enumerate(cells):
                    states[index] = cell(x, states[index])
                    x = states[index][0]
                ids = pick(rival.readout(x)).view(n)
                ids.tolist()

        def by_us(model: CharLM = model, n: int = 1, count: int = 200) -> None:
            stream = generate(model, [0], list(range(n)), Sampling())
            for _ in range(count):
                next(stream)

        check = model(torch.zeros(3, 1, dtype=torch.int64))[0] - rival(torch.zeros(3, 1, dtype=torch.int64))[0]
        if float(check.abs().max()) > 1e-4:
            raise SystemExit("bench: the samplers' networks differ: nothing to compare")
        long = max(1000, 2000 * 512**2 // (layers * width**2))
        sides: dict[str, tuple[Callable[[], object], int]] = {
            "lstmlm": (partial(by_us, count=long), long),
            "nn.LSTM": (by_lstm, 200),
            "nn.LSTMCell": (by_cell, 200),
            "lstmlm 64": (partial(by_us, n=64, count=long // 5), 64 * (long // 5)),
            "nn.LSTMCell 64": (partial(by_cell, n=64, count=40), 64 * 40),
        }
        rates: dict[str, float] = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, seconds in alternate({name: run for name, (run, _) in sides.items()}, rounds).items():
                rates[name] = max(rates.get(name, 0), sides[name][1] / seconds)
        ratios = [("lstmlm", "nn.LSTM"), ("lstmlm", "nn.LSTMCell"), ("lstmlm 64", "nn.LSTMCell 64"), ("lstmlm 64", "lstmlm")]
        rows.append(
            {"shape": f"{layers}x{width}"}
            | {f"{name} chars/s": round(rate) for name, rate in rates.items()}
            | {f"{one} : {other}": rates[one] / rates[other] for one, other in ratios}
        )
    return rows


def start(rounds: int) -> list[Row]:
    """Time whole processes, from help to a first step of training; with their processor time and the most memory that they had.

    What is asked through a pipe is timed until its first line is there. A fresh machine is one whose cache is empty: its first
    training compiles the kernel, compares it with torch and times it.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("Bob is a sailor. He lives in Dover.\n" * 500)
        short = Path(folder, "10kB.txt")
        short.write_text(text.read_text()[:10_000])
        run, model = [sys.executable, "-m", "lstmlm"], f"{folder}/run"
        trained = [*run, "train", str(text), "--steps", "3", "--hidden", "256", "--out", model, "-q"]
        subprocess.run(trained, check=True)
        used: dict[str, list[float]] = {}
        most: dict[str, float] = {}

        def process(name: str, *command: str) -> tuple[str, Callable[[], object]]:
            # A process begins with the memory of the one that starts it: this one's is measured below a small one.
            small = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3, stderr=-3)"
            small += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            asked = [sys.executable, "-c", small, *command]
            most[name] = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) / 1024

            def once() -> None:
                with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
                    _, status, usage = os.wait4(child.pid, 0)
                    child.returncode = os.waitstatus_to_exitcode(status)
                used.setdefault(name, []).append(usage.ru_utime + usage.ru_stime)

            return name, once

        def to_first_line(name: str, asked: str, *command: str) -> tuple[str, Callable[[], object]]:
            def once() -> None:
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
                    assert child.stdin is not None
                    assert child.stdout is not None
                    child.stdin.write(asked.encode())
                    child.stdin.flush()
                    if not child.stdout.readline():
                        raise SystemExit(f"bench: {name}: no line came")
                    child.kill()

            return name, once

        def first_training(name: str, *, fresh: bool) -> tuple[str, Callable[[], object]]:
            begins = [*run, "train", str(text), "--steps", "1", "--hidden", "128"]

            def once() -> None:
                with tempfile.TemporaryDirectory() as empty:
                    environment = {**os.environ, "LSTMLM_CACHE": f"{empty}/cache"} if fresh else os.environ
                    subprocess.run([*begins, "--out", f"{empty}/run", "-q"], check=True, env=environment)

            return name, once

        sample = [*run, "sample", "-m", model]
        fill = [*run, "fill", "-m", model, "____ is a sailor.", "--choice", "Bob", "--choice", "He"]
        sides = [
            process("python -c pass", sys.executable, "-c", "pass"),
            process("lstmlm --help", *run, "--help"),
            process("a usage error", *run, "train", "--promt"),
            process("import torch", sys.executable, "-W", "ignore", "-c", "import torch"),
            process("info", *run, "info", model),
            process("sample one character", *sample, "--prompt", "B", "--length", "1"),
            process("500 prompts, 40 characters each", *sample, "--prompts", str(text), "--length", "40"),
            process("eval of 10 kB", *run, "eval", "-m", model, str(short)),
            to_first_line("eval --lines -, to its first line", "Bob is.\n", *run, "eval", "-m", model, "--lines", "--json", "-"),
            process("fill", *fill),
            first_training("train, one step", fresh=False),
            first_training("train, one step, on a fresh machine", fresh=True),
        ]
        median = alternate(dict(sides), rounds)
    rows: list[Row] = [
        {"process": name, "seconds": seconds}
        | ({"user + sys": statistics.median(used[name]), "MiB": most[name]} if name in used else {})
        for name, seconds in median.items()
    ]
    first = median["train, one step, on a fresh machine"] - median["train, one step"]
    rows.append({"process": "of the last, compiling and examining the kernel", "seconds": first})
    rows.append({"process": "sample / import torch", "seconds": median["sample one character"] / median["import torch"]})
    return rows


def beside(rounds: int) -> list[Row]:
    """Time whole trainings beside two busy loops: with as many threads as `train` takes by itself, and with one."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("Bob is a sailor. He lives in Dover.\n" * 2000)
        run = [sys.executable, "-m", "lstmlm", "train", str(text), "--hidden", "512", "--steps", "100", "--seed", "1", "-q"]

        def training(threads: int) -> None:
            subprocess.run([*run, "--threads", str(threads), "--out", f"{folder}/run", "--overwrite"], check=True)

        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            median = alternate({"threads auto": partial(training, 0), "one thread": partial(training, 1)}, rounds)
        finally:
            for loop in loops:
                loop.kill()
    ratio = median["one thread"] / median["threads auto"]
    return [{"beside": "2 busy loops"} | {f"{name}, s": seconds for name, seconds in median.items()} | {"one : auto": ratio}]


def memory(rounds: int) -> list[Row]:
    """Compare the memory that a training step needs for activations and their gradients at 2x512, B 64, T 128, and its time."""
    layers, width, B, T = 2, 512, 64, 128
    steps = {"nn.LSTM": "net", "lstmlm": "0", "lstmlm --segment 16": "16", "lstmlm --segment 8": "8"}
    rows: list[Row] = []
    for name, segment in steps.items():
        code = (
            "import warnings; warnings.simplefilter('ignore'); import sys; sys.path.insert(0, 'scripts/bench');"
            "from bench import *;"
            f"step = training_step({layers}, {width}, {B}, '{segment}'); step(2); before = resident();"
            f"step({T}); print(resident('VmHWM') - before)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows.append({"step of": name, "MiB": float(done.stdout)})
    run = {name: training_step(layers, width, B, segment) for name, segment in steps.items()}
    seconds = alternate({name: partial(step, T) for name, step in run.items()}, rounds)
    for row in rows:
        row["MiB vs nn.LSTM"] = float(row["MiB"]) / float(rows[0]["MiB"])
        row["time vs lstmlm"] = seconds[str(row["step of"])] / seconds["lstmlm"]
    return rows


def resident(field: str = "VmRSS") -> float:
    """Return the MiB that this process occupies, or with VmHWM the most since this was last asked without."""
    if field == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def training_step(layers: int, width: int, B: int, how: str) -> Callable[[int], object]:
    """Return a function that runs one window of T steps forward and back: `net` by nn.LSTM, else in segments of so many steps."""
    rival = Rival(layers, width)
    if how == "net":
        return lambda T: (
            nats(rival(torch.zeros(T, B, dtype=torch.int64))[0], torch.zeros(T, B, dtype=torch.int64)).mean().backward()
        )
    model = ours_like(rival, layers, width, kernels.choose("auto", "auto")[0])
    Optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.01), model.stack()[0].kernel.pointwise)  # lays the gradients out
    made: dict[int, Backprop] = {}

    def step(T: int) -> None:
        backprop = made[T] = made.get(T) or Backprop(model, B, T, int(how))
        ids = torch.zeros(T, B, dtype=torch.int64)
        backprop(ids, ids, model.initial_state(B), 1 / ids.numel())

    return step


def _means(rows: list[Row], keys: list[str], name: str) -> Row:
    return {"shape": name} | {key: math.exp(statistics.fmean(math.log(row[key]) for row in rows)) for key in keys}


def show(rows: list[Row]) -> None:
    """Print rows as a table in markdown."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(keys) + " |")
    print("|" + " --- |" * len(keys))
    for row in rows:
        cells = [row.get(key, "") for key in keys]
        print(
            "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else f"{c:,}" if isinstance(c, int) else c for c in cells) + " |"
        )
    print()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "sample", "start", "beside", "memory", "gpu", "all"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--strict", action="store_true", help="leave reduced precision out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--isa", choices=["avx2"], help="compute with no more than AVX2, torch too, in float32")
    asked = parser.parse_args()
    if asked.isa:
        if not AVX2.items() <= os.environ.items():
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2})
        build.FOR_THIS_CPU = (("-march=x86-64-v3",),)
        asked.strict = True
    every: dict[str, Callable[[], list[Row]]] = {
        "train": lambda: train(asked.rounds, not asked.strict),
        "sample": lambda: sample(asked.rounds),
        "start": lambda: start(asked.rounds),
        "beside": lambda: beside(asked.rounds),
        "memory": lambda: memory(asked.rounds),
    }
    tables: Iterator[tuple[str, list[Row]]]
    if asked.what == "gpu":  # no part of all: most machines have none
        import bench_gpu

        tables = iter(zip(("gpu train", "gpu members", "gpu sample"), bench_gpu.measure(asked.rounds), strict=True))
    else:
        print(machine(), file=sys.stderr)
        tables = ((name, measure()) for name, measure in every.items() if asked.what in (name, "all"))
    for name, rows in tables:
        if asked.json:
            print(json.dumps({"bench": name, "rows": rows}))
        else:
            show(rows)


if __name__ == "__main__":
    main()
