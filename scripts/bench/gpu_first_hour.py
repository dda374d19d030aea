"""Measure a bare machine with a CUDA device in minutes: every part in a child process with a time limit of its own.

`bash scripts/bench/gpu_first_hour.sh OUT [TEXT]` writes OUT/gpu.jsonl, a line a part; a part that hangs is killed and
said to have, and the next one goes on. torch is imported once, before the children are forked; CUDA is started in each.
"""

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
from pathlib import Path
from typing import Any

import bench_gpu
import torch

from lstmlm.kernels import Kernel, persistent
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.persistent_tiles import Chip

Row = dict[str, Any]


def kernel_of(mode: str) -> Kernel:
    """Return a kernel by mode: eager, step (one launch a step) or waiting (one launch for all steps)."""
    if mode == "eager":
        return EagerKernel(fast=True)
    properties = torch.cuda.get_device_properties()
    memory = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    chip = Chip(0 if mode == "step" else properties.multi_processor_count, memory)
    strict = persistent.PersistentKernel(torch.float32, chip)
    return persistent.PersistentKernel(torch.bfloat16, chip, strict)


def check(mode: str) -> Row:
    """Compare a mode with eager in float64, and time the compilation with it."""
    kernel = kernel_of(mode)
    began = time.perf_counter()
    errors = {"bfloat16": persistent.disagreement(kernel, "cuda"), "float32": persistent.disagreement(kernel.strict, "cuda")}  # type: ignore[arg-type]
    return {"mode": mode, "disagreement": errors, "seconds": time.perf_counter() - began}


def train(mode: str, *shape: int, rivals: bool = True) -> Row:
    """Time training steps of a mode and eager, beside nn.LSTM where wanted."""
    own = {name: kernel_of(name) for name in dict.fromkeys((mode, "eager"))}
    dtypes = bench_gpu.DTYPES if rivals else {"float16": torch.float16}
    row = bench_gpu.train(shape, torch.device("cuda"), 3, own, dtypes, bench_gpu.CARDS["NVIDIA H200"], 5)  # type: ignore[arg-type]
    return {"mode": mode} | row


def sample(mode: str, *shape: int) -> Row:
    """Time sampling beside a loop over nn.LSTM."""
    return {"mode": mode} | bench_gpu.sample(shape, torch.device("cuda"), 3, kernel_of(mode))  # type: ignore[arg-type]


def text(mode: str, path: str, minutes: float) -> Row:
    """Train by the command line and report its own JSON."""
    code = "import sys; from lstmlm.__main__ import main; sys.exit(main())"
    if mode == "step":
        code = "from lstmlm.kernels import persistent as p; C = p.Chip; p.Chip = lambda n, m: C(0, m); " + code
    env = os.environ | {"LSTMLM_KERNEL": "eager" if mode == "eager" else "triton"}
    out = str(Path(tempfile.mkdtemp()) / mode)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "train", path, "--minutes", str(minutes), "--device", "cuda", "--out", out, "--json"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return {
        "mode": mode,
        "minutes": minutes,
        "rc": done.returncode,
        "wall": time.perf_counter() - began,
        "result": json.loads(lines[-1]) if lines else None,
        "stderr": done.stderr[-1500:],
    }


def _child(part: Callable[..., Row], arguments: tuple[Any, ...], pipe: Any) -> None:
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
    total = float(os.environ.get("SECONDS_ALL", "420"))
    began = time.monotonic()
    parts: list[tuple[Callable[..., Row], tuple[Any, ...], float]] = [
        (check, ("step",), 60),
        (check, ("waiting",), 60),
        (train, ("step", 2, 512, 64, 128), 60),
        (train, ("waiting", 2, 512, 64, 128), 60),
        (sample, ("waiting", 2, 512, 1), 40),
        (sample, ("eager", 2, 512, 1), 40),
        (train, ("step", 3, 1024, 64, 128), 60),
        (train, ("waiting", 3, 1024, 64, 128), 60),
    ]
    if corpus:
        parts += [(text, (mode, corpus, 0.5), 75) for mode in ("step", "eager", "waiting")]
    parts += [
        (train, ("step", 2, 512, 256, 128), 60),
        (train, ("waiting", 2, 512, 256, 128), 60),
        (train, ("step", 3, 1024, 256, 128), 60),
        (train, ("waiting", 3, 1024, 256, 128), 60),
        (sample, ("eager", 3, 1024, 1), 40),
        (sample, ("eager", 2, 512, 4096), 40),
    ]
    with (out / "gpu.jsonl").open("a", buffering=1) as log:
        log.write(json.dumps({"python": platform.python_version(), "torch": torch.__version__}) + "\n")
        for part, arguments, seconds in parts:
            left = total - (time.monotonic() - began)
            if left < 20:
                break
            row = limited(part, *arguments, seconds=min(seconds, left))
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
