"""Measure a bare machine with a CUDA device in minutes: every part in a child process with a time limit of its own.

`bash scripts/bench/gpu_first_hour.sh OUT [TEXT]` writes OUT/gpu.jsonl, a line for each part, as it comes; a part that hangs is
killed and said to have, and the next one goes on. torch is imported once, before the children are forked; CUDA is started in
each.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_gpu
import torch
from bench import VOCABULARY

from lstmlm.config.run_config import DataConfig, ModelConfig, RunConfig, TrainConfig
from lstmlm.data.corpus import open_corpus
from lstmlm.errors import Stopped
from lstmlm.kernels import Activations, Kernel, fused, triton_kernel
from lstmlm.kernels.cuda_graph import Graph
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.triton_kernel import TritonKernel
from lstmlm.model import devices
from lstmlm.model.char_lm import CharLM
from lstmlm.storage import checkpoint
from lstmlm.training import backprop
from lstmlm.training.events import Clock
from lstmlm.training.optim import Optimizer
from lstmlm.training.train_step import TrainStep
from lstmlm.training.trainer import Trainer

Row = dict[str, Any]
CUDA = torch.device("cuda")
STEPS = 60


def kernel_of(mode: str) -> Kernel:
    """Return a kernel by mode: eager, triton, or triton with norm and dropout by torch (unfused)."""
    if mode.startswith("eager"):
        return EagerKernel(fast=True)
    strict = TritonKernel(torch.float32, fused="unfused" not in mode)
    return TritonKernel(torch.bfloat16, strict, fused="unfused" not in mode)


def check() -> Row:
    """Compare all device code with eager in float64, and time the compilation with it."""
    began = time.perf_counter()
    kernel = kernel_of("triton")
    assert isinstance(kernel, TritonKernel)
    errors = {
        f"{one.name} {case}": triton_kernel.disagreement(one, CUDA, *case)
        for one in (kernel, kernel.strict)
        for case in triton_kernel.CASES
    }
    rows = fused.disagreement(fused.TritonPointwise("cuda"), "cuda")
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    try:
        triton_kernel.load()
        loaded = "loaded"
    except triton_kernel.Unavailable as error:
        loaded = str(error)
    child = time.perf_counter() - began
    return {"disagreement": errors, "fused": rows, "seconds": seconds, "child": loaded, "child seconds": child}


def train(L: int, S: int, B: int, T: int) -> Row:
    """Time training steps beside nn.LSTM, layers side by side and one after another."""
    own = {name: kernel_of(name) for name in ("triton", "triton in one lane", "eager")}
    chunks = {"triton in one lane": 1}
    return bench_gpu.train((L, S, B, T), CUDA, 3, own, bench_gpu.DTYPES, bench_gpu.CARDS["NVIDIA H200"], 5, chunks)


def whole(L: int, S: int, B: int, T: int) -> Row:
    """Time training steps as the command line takes them, with norm, dropout of all kinds, residuals and averages."""
    config = ModelConfig(hidden=S, layers=L, dropout=0.3, weight_dropout=0.2)
    ids, targets = torch.randint(VOCABULARY, (2, T, B)).to(CUDA)
    sides: dict[str, Callable[[], object]] = {}
    for name in ("triton", "triton in one lane", "triton unfused", "eager"):
        torch.manual_seed(0)
        kernel = kernel_of(name)
        model = CharLM(config, VOCABULARY, kernel).to(CUDA)
        optimizer = Optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.01, average=0.2), kernel.pointwise)
        way = backprop.Backprop(model, B, T, chunks=1 if "one lane" in name else None)
        step = TrainStep(model, way, [optimizer], T, B, 1 / ids.numel())

        def take(step: TrainStep = step, optimizer: Optimizer = optimizer) -> object:
            optimizer.prepare(1e-4)
            return step(ids, targets, None, [Dropout(0.3, 0, optimizer.step_count, B, 0, 0.2)])[0]

        sides[name] = take
    median = bench_gpu.alternate(sides, 3, 5, CUDA)
    return {"shape": f"{L}x{S} B{B} T{T}"} | {f"{name} us/step": seconds / T * 1e6 for name, seconds in median.items()}


def profile(L: int, S: int, B: int, T: int) -> Row:
    """Say where the device spends a training step: microseconds of all launches of a function together, the most first."""
    config = ModelConfig(hidden=S, layers=L, dropout=0.3, weight_dropout=0.2)
    kernel = kernel_of("triton")
    model = CharLM(config, VOCABULARY, kernel).to(CUDA)
    optimizer = Optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.01, average=0.2), kernel.pointwise)
    step = TrainStep(model, backprop.Backprop(model, B, T), [optimizer], T, B, 1 / (T * B))
    ids, targets = torch.randint(VOCABULARY, (2, T, B)).to(CUDA)

    def take() -> None:
        optimizer.prepare(1e-4)
        step(ids, targets, None, [Dropout(0.3, 0, optimizer.step_count, B, 0, 0.2)])

    for _ in range(4):
        take()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        take()
        torch.cuda.synchronize()
    rows = [(one.key[:90], one.count, round(one.self_device_time_total, 1)) for one in seen.key_averages()]
    return {"shape": f"{L}x{S} B{B} T{T}", "launches": sorted(rows, key=lambda row: -row[2])[:40]}


def anatomy(S: int, B: int, T: int) -> Row:
    """Time what a time step is made of, as graphs: passes of one layer, and their products alone."""
    kernel = kernel_of("triton")
    assert isinstance(kernel, TritonKernel)
    X, W, dA = (torch.zeros(*shape, device=CUDA).bfloat16() for shape in ((B, S), (S, 4 * S), (B, 4 * S)))
    out, dX = torch.zeros(B, 4 * S, device=CUDA), torch.zeros(B, S, device=CUDA)
    shapes = [(T, B, 4 * S), (T, B, S), (T, B, S), (B, S)]
    gates, C, H, state = (torch.zeros(*shape, device=CUDA) for shape in shapes)

    def repeated(one: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(T):
                one()

        return run

    parts: dict[str, Callable[[], object]] = {
        "forward": lambda: kernel.forward(gates, W, state, state, into=Activations(gates, C, H)),
        "backward": lambda: kernel.backward(H, state, gates, C, state, W),
        "forward product": repeated(lambda: kernel._multiply(X, W, out)),
        "backward product": repeated(lambda: kernel._multiply(dA, W.t(), dX)),
        "backward product of a copy": repeated(lambda: kernel._multiply(dA, X.new_empty(4 * S, S), dX)),
        "small operation": repeated(lambda: dX.add_(1.0)),
        "small operation of 4": repeated(lambda: out.add_(1.0)),
    }
    graphs = {name: Graph(_nothing(run), CUDA) for name, run in parts.items()}
    median = bench_gpu.alternate(dict(graphs), 3, 10, CUDA)
    return {"shape": f"{S} B{B} T{T}"} | {f"{name} us": seconds / T * 1e6 for name, seconds in median.items()}


def _nothing(run: Callable[[], object]) -> Callable[[], None]:
    """Return the same without a result."""

    def alone() -> None:
        run()

    return alone


def sample(mode: str, L: int, S: int, n: int) -> Row:
    """Time sampling beside a loop over nn.LSTM."""
    return {"mode": mode} | bench_gpu.sample((L, S, n), CUDA, 3, kernel_of(mode).strict, 2048)


def text(mode: str, path: str, minutes: float) -> Row:
    """Train by the command line and report its own JSON."""
    out = str(Path(tempfile.mkdtemp()) / mode)
    command = [sys.executable, "-m", "lstmlm", "train", path, "--minutes", str(minutes), "--device", "cuda"]
    began = time.perf_counter()
    command += ["--out", out, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LSTMLM_KERNEL": mode}, check=False)
    lines = done.stdout.strip().splitlines()
    return {
        "mode": mode, "minutes": minutes, "rc": done.returncode, "wall": time.perf_counter() - began,
        "result": json.loads(lines[-1]) if lines else None, "stderr": done.stderr[-1500:],
    }  # fmt: skip


def resumed(path: str) -> Row:
    """Compare the bits of a run of 60 steps with those of one that was stopped after 30 and went on, in memory of its own."""
    device, kernel, why = devices.with_kernel("cuda")
    corpus = open_corpus([path], cache_dir=Path(tempfile.mkdtemp()))
    config = RunConfig(
        ModelConfig(hidden=256, layers=2, dropout=0.3, weight_dropout=0.2),
        DataConfig(),
        TrainConfig(steps=STEPS, batch=32, window=64, lr=0.01, warmup=5, weight_decay=0.01, average=0.2, state_dropout=0.1),
    )
    config = replace(config, train=replace(config.train, eval_every=STEPS))
    about = {"name": "text", "fingerprint": corpus.fingerprint, "chars": corpus.chars}
    identity = {"corpus": about, "versions": {}, "command": []}

    def trainer(folder: Path, stops: int) -> Trainer:
        made: list[Trainer] = []

        def stop() -> int | None:
            return 15 if made and made[0].progress.step >= stops else None

        made.append(Trainer(config, corpus, kernel, folder, identity, lambda record: None, Clock(0.0), stop, None, device))
        return made[0]

    def end(folder: Path) -> dict[str, str]:
        last = checkpoint.read(folder / "last.safetensors")
        return {name: hashlib.sha256(blob.data).hexdigest() for name, blob in last.tensors.items()}

    one, two, again = (Path(tempfile.mkdtemp()) for _ in range(3))
    for folder in (one, again):
        run = trainer(folder, STEPS + 1)
        run.begin()
        run.run()
    run = trainer(two, STEPS // 2)
    run.begin()
    with contextlib.suppress(Stopped):
        run.run()
    stopped = run.progress.step
    run = trainer(two, STEPS + 1)
    run.restore(checkpoint.read(two / "last.safetensors"))
    run.begin()
    run.run()
    a, b, c = end(one), end(two), end(again)
    return {
        "kernel": kernel.name, "why": why, "stopped at": stopped, "tensors": len(a),
        "differ after resuming": [name for name in a if a[name] != b.get(name)],
        "differ in a second run": [name for name in a if a[name] != c.get(name)],
    }  # fmt: skip


def _child(part: Callable[..., Row], arguments: tuple[Any, ...], pipe: Any) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        pipe.send(part(*arguments))
    except BaseException:
        pipe.send({"error": traceback.format_exc()[-1500:]})


def limited(part: Callable[..., Row], *arguments: Any, seconds: float) -> Row:
    """Run a part in a child, and kill it when its time is over."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(part, arguments, theirs))
    began = time.perf_counter()
    child.start()
    theirs.close()
    found: Row = {"error": f"no answer in {seconds:.0f} s: killed"}
    if ours.poll(seconds):
        try:
            found = ours.recv()
        except EOFError:
            found = {"error": "the process died"}
    child.kill()
    child.join(10)
    return {"part": part.__name__, "arguments": arguments, "took": time.perf_counter() - began} | found


def main() -> None:
    """Run all parts, the ones that decide first, until the time is over."""
    out, corpus = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    total = float(os.environ.get("SECONDS_ALL", "190"))
    began = time.monotonic()
    parts: list[tuple[Callable[..., Row], tuple[Any, ...], float]] = [
        (check, (), 60), (train, (2, 512, 64, 128), 40), (whole, (2, 512, 64, 128), 30), (anatomy, (512, 64, 128), 30),
        (profile, (2, 512, 64, 128), 30),
        (sample, ("triton", 2, 512, 1), 20),
    ]  # fmt: skip
    if corpus:
        parts += [(resumed, (corpus,), 30)]
    parts += [(train, (3, 1024, 64, 128), 40)]
    if corpus:
        parts += [(text, ("triton", corpus, 0.5), 60)]
    parts += [
        (sample, ("triton", 2, 512, 4096), 20), (train, (2, 512, 256, 128), 40), (train, (3, 1024, 256, 128), 40),
        (anatomy, (1024, 64, 128), 20), (sample, ("eager", 2, 512, 1), 20), (whole, (3, 1024, 64, 128), 30),
    ]  # fmt: skip
    with (out / "gpu.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"python": platform.python_version(), "torch": torch.__version__}) + "\n")
        for part, arguments, seconds in parts:
            left = total - (time.monotonic() - began)
            if left < 12:
                break
            row = limited(part, *arguments, seconds=min(seconds, left))
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
