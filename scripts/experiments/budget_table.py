"""Measure what a budget promises: wall time and score of unlike texts and times, on a busy machine, and estimates before a run.

    budget_table.py texts --text tinyshakespeare.txt [--minutes 0.1 0.3 1 3] [--only NAME ...] [--seeds 1] [--together 2]
    budget_table.py busy --text FILE [--minutes 1]
    budget_table.py estimates [--only ROW ...]

`texts`: some of `unlike_texts.py`, and files: the first nine tenths are trained on, the last tenth is scored by `eval`, in bits
per character; the last column says by how much that is worse than with less time. With `--together` so many runs are made side by
side, each on its share of the cores. `busy`: a text on the machine as it is, and beside loops that take processors from a moment
on. `estimates`: what `--dry-run` says of steps and of the memory of the whole process, and what a run then takes. Times and steps
mean something on a machine with nothing else to do, memory on any.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unlike_texts import TEXTS, stories

UNLIKE = ("short", "log", "python", "many", "names", "two", "stories")
LSTMLM = (sys.executable, "-m", "lstmlm")
BUSY = (
    ("quiet", 0, 0),
    ("2 from second 0", 2, 0),
    ("2 from second 10", 2, 10),
    ("2 from second 40", 2, 40),
    ("6 all the time", 6, 0),
)
ESTIMATES: dict[str, tuple[int, int, tuple[str, ...]]] = {  # characters, vocabulary, flags
    "200 characters": (200, 30, ("--minutes", "0.1")),
    "20 kB": (20_000, 60, ("--minutes", "0.2")),
    "1 MB": (1_000_000, 65, ("--minutes", "0.5")),
    "1 MB, 32 units": (1_000_000, 65, ("--minutes", "0.2", "--hidden", "32")),
    "1 MB, 64 units": (1_000_000, 65, ("--minutes", "0.2", "--hidden", "64")),
    "1 MB, 256 units": (1_000_000, 65, ("--minutes", "0.3", "--hidden", "256")),
    "1 MB, 1024 units": (1_000_000, 65, ("--minutes", "0.5", "--hidden", "1024")),
    "1 MB, 2 x 256 units": (1_000_000, 65, ("--minutes", "0.3", "--hidden", "256", "--layers", "2")),
    "1 MB, 3 x 128 units": (1_000_000, 65, ("--minutes", "0.3", "--hidden", "128", "--layers", "3")),
    "1 MB, 3 members": (1_000_000, 65, ("--minutes", "0.3", "--hidden", "128", "--members", "3")),
    "1 MB, batch 64": (1_000_000, 65, ("--minutes", "0.3", "--hidden", "256", "--batch", "64", "--window", "128")),
    "two symbols": (200_000, 2, ("--minutes", "0.2")),
    "5,000 symbols": (1_000_000, 5000, ("--minutes", "0.3")),
    "100 MB": (100_000_000, 65, ("--minutes", "0.5")),
}


def run(*words: object) -> tuple[dict[str, Any], float, int]:
    """Run a command; return the object that it prints, the seconds that it took, and the most memory that it had, in bytes."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*LSTMLM, *map(str, words), "--json", "-q"], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(process.returncode)
        out.seek(0)
        return json.loads(out.read()), seconds, usage.ru_maxrss * 1024


def trained(folder: Path, minutes: float, seed: int, threads: int) -> list[str | float]:
    """Train on a folder's text for so long, and score the one that was kept from it; return the cells of a row."""
    out = folder / f"{minutes:g}-{seed}"
    told, seconds, _ = run(
        "train", folder / "text.txt", "--minutes", minutes, "--seed", seed, "--threads", threads, "--out", out, "--overwrite"
    )
    held, _, _ = run("eval", folder / "held.txt", "-m", out, "--no-baselines", "--threads", threads)
    off = "stopped early" if told["stopped_early"] else f"{seconds / minutes / 60 - 1:+.1%}"
    return [f"{seconds:.1f}", off, f"{told['steps']:,}", f"{told['parameters']:,}", float(held["bits_per_char"])]


def texts(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of unlike texts and times."""
    found = {name: TEXTS[name]().encode() for name in UNLIKE}
    found |= {Path(name).stem: Path(name).read_bytes() for name in asked.text}
    found = {name: data for name, data in found.items() if not asked.only or name in asked.only}
    threads = max(1, len(os.sched_getaffinity(0)) // asked.together)
    waiting = [(name, minutes, seed) for minutes in sorted(asked.minutes) for name in found for seed in range(asked.seeds)]
    with ThreadPoolExecutor(asked.together) as pool:
        for name, data in found.items():
            cut = data.find(b"\n", len(data) * 9 // 10) + 1 or len(data) * 9 // 10
            (folder / name).mkdir()
            (folder / name / "text.txt").write_bytes(data[:cut])
            (folder / name / "held.txt").write_bytes(data[cut:])
        made = {
            job: pool.submit(trained, folder / job[0], job[1], job[2], threads) for job in reversed(waiting)
        }  # long ones first
        for name, data in found.items():
            best = dict.fromkeys(range(asked.seeds), math.inf)
            for minutes in sorted(asked.minutes):
                for seed in range(asked.seeds):
                    *cells, held = made[name, minutes, seed].result()
                    assert isinstance(held, float)
                    worse = f"{held - best[seed]:.4f}" if held > best[seed] else ""
                    best[seed] = min(best[seed], held)
                    yield [name, f"{len(data):,}", f"{minutes:g}", str(seed), *map(str, cells), f"{held:.4f}", worse]


@contextlib.contextmanager
def loops(count: int, wait: float) -> Iterator[None]:
    """Keep so many processors busy from a moment on."""
    code = f"import time; time.sleep({wait})\nwhile True: pass"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def busy(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of a machine that is busy from some moment on."""
    for name, count, wait in BUSY:
        with loops(count, wait):
            words = ("--minutes", asked.minutes[0], "--seed", 1, "--out", folder / "run", "--overwrite")
            told, seconds, _ = run("train", *asked.text, *words)
        scored, _, _ = (
            run("eval", asked.val or asked.text[0], "-m", folder / "run", "--no-baselines") if asked.val else (None, 0, 0)
        )
        nats = (scored or told["best"])["nats_per_char"]
        yield [name, f"{seconds:.1f}", f"{told['steps']:,}", f"{told['parameters']:,}", f"{nats:.4f}"]


def drawn(chars: int, symbols: int) -> str:
    """Return a text of so many characters and symbols, cut out of the stories where these are few."""
    base = stories()
    if symbols < 100:
        kept = sorted(set(base))[:symbols] or ["a"]
        base = "".join(kept[hash_of(one, symbols) % len(kept)] for one in base[:200_000])
    else:
        base = "".join(chr(0x4E00 + (index * index + 7 * index) % symbols) for index in range(symbols * 4))
    return (base * (chars // len(base) + 1))[:chars]


def hash_of(symbol: str, symbols: int) -> int:
    """Return a number of a symbol, the same in every process."""
    return ord(symbol) * 2654435761 % 2**32 % symbols


def estimates(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """Yield the rows of what is said before a run, and what it then is."""
    path = folder / "text.txt"
    for name, (chars, symbols, flags) in ESTIMATES.items():
        if asked.only and name not in asked.only:
            continue
        path.write_text(drawn(chars, symbols), encoding="utf-8")
        said, _, _ = run("train", path, *flags, "--dry-run")
        told, _, most = run("train", path, *flags, "--out", folder / "run", "--overwrite", "--set", "train.patience=0")
        steps, memory = said["steps"] / told["steps"], said["memory_bytes"] / most
        yield [
            name, f"{said['layers']}x{said['hidden']}", f"{said['steps']:,}", f"{told['steps']:,}", f"{steps:.2f}",
            f"{said['memory_bytes'] / 1e6:.0f}", f"{most / 1e6:.0f}", f"{memory:.2f}",
        ]  # fmt: skip


HEADS = {
    texts: ["text", "bytes", "minutes", "seed", "seconds", "off by", "steps", "parameters", "held out", "worse by"],
    busy: ["machine", "seconds", "steps", "parameters", "nats"],
    estimates: ["run", "network", "steps said", "made", "ratio", "MB said", "taken", "ratio"],
}


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[one.__name__ for one in HEADS])
    parser.add_argument("--text", nargs="+", default=[])
    parser.add_argument("--val")
    parser.add_argument("--minutes", nargs="+", type=float)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--together", type=int, default=1, help="runs of `texts` side by side")
    asked = parser.parse_args()
    make = next(one for one in HEADS if one.__name__ == asked.table)
    asked.minutes = asked.minutes or ([0.1, 0.3, 1, 3] if make is texts else [1])
    print("| " + " | ".join(HEADS[make]) + " |\n" + "|---" * len(HEADS[make]) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for row in make(asked, Path(folder)):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
