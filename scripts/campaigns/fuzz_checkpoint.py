"""Damage, kill and starve checkpoints for a while, and say how many survived.

    python scripts/campaigns/fuzz_checkpoint.py --seconds 60 --seed 1

Campaigns: every bit of a checkpoint flipped; headers mutated with their digest made right again; bytes spliced; disks
that fail at random calls; SIGKILL at random moments of a process that saves without pause; reads beside it. Ends with
exit 1 and the input's name in the temporary folder if anything but a refusal or a sound checkpoint came out.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lstmlm.errors import CheckpointError, LstmlmError, SystemProblem  # noqa: E402  # as above
from lstmlm.storage import atomic, checkpoint  # noqa: E402  # the checkout may not be installed
from lstmlm.storage.checkpoint import Blob, Checkpoint  # noqa: E402  # as above

Outcome = tuple[int, int]  # cases tried, cases survived

META: dict[str, Any] = {
    "config": {"model": {"hidden": 7, "bias": True}, "train": {"lr": 3e-4}},
    "tokenizer": {"kind": "char", "symbols": "\n abcé"},
    "counts": [3, 14, 15, 9, 2, 6],
    "step": 0,
    "scores": {"validation_nats_per_char": 1.5},
    "corpus": {"name": "text", "fingerprint": "00ff", "chars": 54},
    "versions": {"lstmlm": "0.1.0"},
    "command": ["lstmlm", "train", "text"],
    "parameters": 25,
    "training": {"metrics_bytes": 0},
}
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**63,
    2**64,
    10**30,
    "",
    "\x1b]52;c;x\x07",
    "F32",
    [],
    {},
    [0],
    [[]],
]
PIECES = [b"", b"\0", b"\xff", b'"', b"{", b"]", b"\\u001b", b"NaN", b"1e999", b"9" * 40, b"[" * 50, b",", b"\x80\x04"]


def state(step: int, size: int = 300) -> Checkpoint:
    """Return a training state that differs with the step."""
    values = struct.pack(f"<{size}f", *(float(step + i) for i in range(size)))
    tensors = {
        "model.W": Blob("float32", (size // 3, 3), values),
        "model.b": Blob("bfloat16", (7,), b"\x80\x3f" * 7),
        "optimizer.step": Blob("int64", (), struct.pack("<q", step)),
        "random": Blob("uint8", (2000,), bytes((step + i) % 256 for i in range(2000))),
    }
    return Checkpoint("last", META | {"step": step}, tensors)


def refused(path: Path) -> bool:
    """Read a file; say whether it was refused as it should be: exit 4, a few printable lines."""
    try:
        checkpoint.read(path)
    except CheckpointError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 6, "a long message"
        assert all(line.isprintable() for line in lines), "a message with escapes"
        return True
    return False


def flips(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Flip every bit of a checkpoint, one at a time, however long it takes."""
    path = folder / "flip.safetensors"
    checkpoint.write(path, state(dice.randrange(100)))
    content = path.read_bytes()
    survived = 0
    with path.open("r+b", buffering=0) as file:
        for at in range(len(content)):
            for bit in range(8):
                file.seek(at)
                file.write(bytes([content[at] ^ 1 << bit]))
                survived += refused(path)
            file.seek(at)
            file.write(content[at : at + 1])
    return 8 * len(content), survived


def headers(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Change a header's meaning in a few places, make the digest right again, and read it."""
    path, cases = folder / "header.safetensors", 0
    content = b"".join(bytes(piece) for piece in checkpoint.pack(state(3)))
    length = int.from_bytes(content[:8], "little")
    original, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    while time.monotonic() < until:
        header = json.loads(json.dumps(original))
        meta = json.loads(header["__metadata__"]["meta"])
        for _ in range(dice.randint(1, 3)):
            _mutate(dice.choice([header, header, meta]), dice)
        texts = header.get("__metadata__")
        if isinstance(texts, dict):
            if isinstance(texts.get("meta"), str) and dice.random() < 0.7:
                texts["meta"] = json.dumps(meta)
            if isinstance(texts.get("sha256"), str) and dice.random() < 0.95:
                texts["sha256"] = "0" * 64
        text = json.dumps(header).encode()
        if dice.random() < 0.3:
            text = _spliced(text, dice)
        path.write_bytes(_signed(len(text).to_bytes(8, "little") + text + data))
        refused(path)
        cases += 1
    return cases, cases


def splices(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Replace, remove and put in bytes anywhere in a file; whatever differs has to be refused."""
    path, cases, survived = folder / "splice.safetensors", 0, 0
    content = b"".join(bytes(piece) for piece in checkpoint.pack(state(5)))
    while time.monotonic() < until:
        damaged = content
        for _ in range(dice.randint(1, 4)):
            damaged = _spliced(damaged, dice)
        path.write_bytes(damaged)
        survived += refused(path) or damaged == content
        cases += 1
    return cases, survived


class Moody(atomic.Disk):
    """A disk of which any call may fail, or write less than asked."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.rate = dice.choice([0.02, 0.1, 0.5])

    def __getattribute__(self, name: str) -> Any:
        """Give the call, perhaps with a failure in front of it or, for `close`, behind it."""
        call = super().__getattribute__(name)
        if not callable(call) or name.startswith("_"):
            return call

        def moody(*arguments: Any) -> Any:
            fails = self.dice.random() < self.rate
            if name == "write" and self.dice.random() < 0.3:
                arguments = (arguments[0], arguments[1][: self.dice.randint(1, len(arguments[1]))])
            if name == "close":
                call(*arguments)
            if fails:
                number = self.dice.choice([5, 13, 28, 30, 122])
                raise OSError(number, os.strerror(number))
            return None if name == "close" else call(*arguments)

        return moody


def failures(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Save again and again on disks that fail; the file is always one of those whose save was tried since the last."""
    path, cases, survived, step = folder / "fail.safetensors", 0, 0, 0
    checkpoint.write(path, state(0))
    possible = {0}
    while time.monotonic() < until:
        step += 1
        atomic.calls = Moody(dice)
        try:
            checkpoint.write(path, state(step))
            possible = {step}
        except SystemProblem:
            possible.add(step)
        finally:
            atomic.calls = atomic.Disk()
        survived += checkpoint.read(path).meta["step"] in possible
        atomic.clean(folder)
        cases += 1
    return cases, survived


def save_for_ever(folder: Path) -> None:
    """Resume from what is there and go on: a record, a sync, a checkpoint; what `kills` runs as a process."""
    path = folder / "last.safetensors"
    atomic.clean(folder)
    before = checkpoint.read(path).meta if path.exists() else META
    journal = atomic.Journal.open(folder / "metrics.jsonl", before["training"]["metrics_bytes"])
    step = before["step"]
    print("saving", flush=True)
    while True:
        step += 1
        journal.append({"step": step})
        journal.sync()
        saved = state(step)
        saved.meta["training"] = {"metrics_bytes": journal.size}
        checkpoint.write(path, saved)


def kills(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Kill a process that saves without pause, read beside it, and look at what it left."""
    path, cases, survived, step, reads = folder / "last.safetensors", 0, 0, 0, 0
    command = [sys.executable, __file__, "--save-in", str(folder)]
    while time.monotonic() < until:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            if dice.random() < 0.8 and process.stdout:  # else it is killed while it starts
                process.stdout.readline()
            end = time.monotonic() + dice.uniform(0, 0.2)
            while time.monotonic() < end:
                if path.exists():
                    checkpoint.read(path)
                    reads += 1
            process.send_signal(signal.SIGKILL)
        cases += 1
        if not path.exists():
            survived += step == 0
            continue
        meta = checkpoint.read(path).meta
        kept = (folder / "metrics.jsonl").read_bytes()[: meta["training"]["metrics_bytes"]].splitlines()
        survived += meta["step"] >= step and [json.loads(line)["step"] for line in kept] == [*range(1, meta["step"] + 1)]
        step = meta["step"]
    assert step, "nothing was saved: this machine is too slow for these kills"
    print(f"{'':24}{step:>9} saves and {reads} reads beside them")
    return cases, survived


def _signed(content: bytes) -> bytes:
    """Put the right digest where its place is still there."""
    if content.count(b"0" * 64) != 1:
        return content
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode())


def _spliced(content: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(content) + 1)
    if dice.random() < 0.5:
        at = min(at, dice.randrange(1500))
    new = dice.choice(PIECES) if dice.random() < 0.5 else dice.randbytes(dice.randint(0, 8))
    return content[:at] + new + content[at + dice.choice([0, 1, 1, 2, 8, 100]) :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every container with every key in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _mutate(value: Any, dice: random.Random) -> None:
    """Change, remove, double or rename one thing somewhere inside."""
    places = list(_places(value))
    if not places:
        return
    container, key = dice.choice(places)
    match dice.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container[key], int):
            container[key] += dice.choice([-1, 1, 8, 2**32, 2**63])
        case 2 if isinstance(container, dict):
            container[dice.choice(["\x1b[2J", "", "x" * 300, "dtype", "meta", "step"])] = copy.deepcopy(container[key])
        case 3 if isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        case _:
            container[key] = copy.deepcopy(dice.choice(VALUES))


CAMPAIGNS: dict[str, tuple[str, Callable[[Path, random.Random, float], Outcome]]] = {
    "flips": ("every bit flipped", flips),
    "headers": ("headers mutated, signed", headers),
    "splices": ("bytes spliced", splices),
    "failures": ("saves on failing disks", failures),
    "kills": ("kill -9 while saving", kills),
}


def main() -> int:
    """Run the campaigns and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60, help="for all campaigns together (the flips take what they take)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CAMPAIGNS, help="run one campaign")
    parser.add_argument("--save-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_in:
        save_for_ever(arguments.save_in)
    chosen = [arguments.only] if arguments.only else [name for name in CAMPAIGNS if name != "kills" or os.name != "nt"]
    folder = Path(tempfile.mkdtemp(prefix="lstmlm-fuzz-"))
    failed = False
    print(f"{'campaign':24}{'cases':>9}{'survived':>10}{'seconds':>9}")
    for name in chosen:
        title, campaign = CAMPAIGNS[name]
        start = time.monotonic()
        below = folder / name
        below.mkdir()
        try:
            cases, survived = campaign(below, random.Random(f"{arguments.seed} {name}"), start + arguments.seconds / len(chosen))
        except (Exception, LstmlmError) as error:
            print(f"{title}: {type(error).__name__}: {error}; the input is in {below}")
            failed = True
            continue
        failed |= survived < cases
        print(f"{title:24}{cases:>9}{survived:>10}{time.monotonic() - start:>9.1f}")
    if not failed:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
