"""Time training with one process and with several under torchrun, one thread each, with the same global batch.

    python scripts/bench/bench_scale.py --rounds 3

Whole steps, the exchange of gradients included, as rank 0 measures them; validating and saving apart. The two are run in turns,
and the median of each is compared. With it come the bytes that a process sends and receives in a step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def trained(processes: int, flags: list[str]) -> dict[str, float]:
    """Train in processes of their own; return what --json says."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["-m", "lstmlm", "train", "stories", *flags, "--threads", "1", "--out", f"{folder}/run", "--json", "-q"]
        several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *several, *train], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        told: dict[str, float] = json.loads(done.stdout)
        return told


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    sizes = {name: str(getattr(given, name)) for name in ("steps", "hidden", "layers", "batch", "window", "precision")}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    flags += ["--dropout", "0", "--val-fraction", "0.001", "--set", f"train.eval_every={given.steps + 1}"]
    speeds: dict[int, list[float]] = {1: [], given.processes: []}
    parameters = 0.0
    for _ in range(given.rounds):
        for processes, found in speeds.items():
            told = trained(processes, flags)
            parameters = told["parameters"]
            found.append(told["chars_seen"] / told["train_seconds"])
    one, several = (statistics.median(found) for found in speeds.values())
    share = 1 - 1 / given.processes
    shape = f"{given.layers} x {given.hidden} units, batch {given.batch}, window {given.window}, {given.precision}"
    print(f"{shape}, {parameters:,} parameters")
    for processes, found in speeds.items():
        each = ", ".join(f"{speed:,.0f}" for speed in found)
        print(f"{processes} process{'es' * (processes > 1):2}  {statistics.median(found):9,.0f} chars/s   ({each})")
    print(f"ratio {several / one:.2f}; in a step each process sends and receives {8 * parameters * share / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
