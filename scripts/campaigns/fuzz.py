"""Damage, forge and starve what the program reads for a while, and say how many cases survived.

    python scripts/campaigns/fuzz.py                           # every target, a minute together
    python scripts/campaigns/fuzz.py models yaml --seconds 600 --seed 7

The targets. Checkpoints: every bit flipped; headers mutated with their digest made right again; bytes spliced; disks that fail
at random calls; SIGKILL at random moments of a process that saves without pause, and reads beside it. Models: what a real one
says of itself and its weights mutated and signed, then opened, sampled from, scored with, shown and trained on. Settings: YAML
mutated. Texts: bytes in any encoding, packed or not, cut, spliced and read. Tokenizers: any text to ids and back, and their
descriptions mutated. A case survives if it is done, rightly where that is known, or refused with a few printable lines, within
two minutes. The input of each that does not is kept (--keep), once for each fault. Ends with exit 1 if there was any.
"""

import argparse
import bz2
import contextlib
import copy
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lstmlm.config import run_config  # noqa: E402  # the checkout may not be installed
from lstmlm.data import tokenizer as tokenizers  # noqa: E402  # as above
from lstmlm.data.corpus import open_corpus  # noqa: E402  # as above
from lstmlm.errors import CheckpointError, LstmlmError, SystemProblem  # noqa: E402  # as above
from lstmlm.storage import atomic, checkpoint  # noqa: E402  # as above
from lstmlm.storage.checkpoint import Blob, Checkpoint  # noqa: E402  # as above
from lstmlm.storage.journal import Journal  # noqa: E402  # as above
from tests.cli.conftest import TEXT, TINY, call  # noqa: E402  # as above

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
YAML_PIECES = [
    *":-[]{}&*!|>#%@'\",?~\n\t\0\r\x85\ufeff\ud800é", "<<", "---", "...", "  ", "\x1b[2J", "\\U00110000", "9" * 30, "1e999",
    "0x10", "1_0", "0o7", "1:30", ".inf", ".nan", "null", "yes", "5%", "3m", "2026-01-01", "&a", "*a",
    "!!python/object/apply:os.system", "model:", "train:\n  lr: ", "\U0001f600",
]  # fmt: skip


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
    journal = Journal.open(folder / "metrics.jsonl", before["training"]["metrics_bytes"])
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


class TooSlowError(BaseException):
    """A case took too long; no handler of the program catches it."""


class Trials:
    """Cases one after another until the time is up; what is not refused as it should be is kept."""

    def __init__(self, folder: Path, until: float) -> None:
        self._folder, self._until = folder, until
        self._seen: set[str] = set()
        self.cases = self.survived = 0

    def more(self) -> bool:
        """Whether there is time for another case."""
        return time.monotonic() < self._until

    @contextlib.contextmanager
    def case(self, content: bytes) -> Iterator[None]:
        """Try one input: whatever the block raises but a refusal is a fault."""
        self.cases += 1
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(120)
        try:
            yield
            self.survived += 1
        except LstmlmError as error:
            lines = str(error).split("\n")
            if len(lines) <= 6 and all(line.isprintable() for line in lines):
                self.survived += 1
            else:
                self._found(content, f"message: {str(error)[:300]!r}")
        except (Exception, TooSlowError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._found(content, f"{type(error).__name__} at {where.filename}:{where.lineno}: {str(error)[:300]}")
        finally:
            signal.alarm(0)

    def _found(self, content: bytes, what: str) -> None:
        if what[:90] not in self._seen:
            self._seen.add(what[:90])
            kept = self._folder / f"kept-{len(self._seen)}"
            kept.write_bytes(content)
            print(f"  {what}\n  the input is {kept}", flush=True)


def _too_slow(*_: object) -> None:
    raise TooSlowError


def models(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Mutate what a model says of itself, and its weights, sign it, and do with it all that can be done."""
    trials, text, run = Trials(folder, until), folder / "text.txt", folder / "run"
    text.write_text(TEXT, encoding="utf-8")
    assert call("train", text, *TINY, "--out", run, "-q").code == 0
    files = {kind: (run / f"{kind}.safetensors").read_bytes() for kind in ("best", "last")}
    model = folder / "run" / "last.safetensors"
    lines = [
        ["info", model],
        ["info", run, "--json"],
        ["sample", "-m", model, "--length", "5", "--prompt", "Bob", "--seed", "1"],
        ["sample", "-m", model, "--length", "5", "-n", "3", "--json", "--seed", "1"],
        ["eval", "-m", model, text, "--json"],
        ["eval", "-m", model, "--lines", text],
        ["eval", "-m", model],
        ["inspect", "-m", model, "Bob"],
        ["fill", "-m", model, "____ob", "--choice", "B", "--choice", "A"],
        ["train", text, "--out", run, "--resume", "-q"],
        ["train", text, "--out", folder / "tuned", "--from", run, "--overwrite", "--steps", "2", "-q"],
    ]
    while trials.more():
        kind = dice.choice(list(files))
        content = files[kind]
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
        meta = json.loads(header["__metadata__"]["meta"])
        for _ in range(dice.choice([0, 1, 1, 2])):
            _mutate(dice.choice([header, *[meta] * 4, dice.choice([v for v in meta.values() if isinstance(v, dict)])]), dice)
        for _ in range(dice.choice([0, 0, 1, 2])):
            number = dice.choice([math.inf, math.nan, 3.4e38, -3.4e38, 1e-45, 0.0])
            start = dice.randrange(len(data) // 4) * 4
            many = dice.choice([1, 10, 1000])
            data[start : start + 4 * many] = struct.pack("<f", number) * len(range(start, min(len(data), start + 4 * many), 4))
        texts = header.get("__metadata__")
        if isinstance(texts, dict):
            texts |= {"meta": json.dumps(meta), "sha256": "0" * 64}
        said = json.dumps(header).encode()
        forged = _signed(len(said).to_bytes(8, "little") + said + bytes(data))
        shutil.rmtree(run)
        run.mkdir()
        model.write_bytes(forged)
        line = dice.choice(lines)
        with trials.case(forged):
            result = call(*line)
            assert result.code in (0, 1, 2, 3, 4, 5, 6), f"{line[0]}: exit {result.code}: {result.err.strip()[-600:]}"
            said_ = result.stdout + result.stderr
            assert b"\x1b" not in said_, f"{line[0]}: an escape"
            assert len(result.err.splitlines()) < 40, f"{line[0]}: a long message"
    return trials.cases, trials.survived


def settings(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Mutate YAML files of settings, and resolve them."""
    trials, path = Trials(folder, until), folder / "settings.yaml"
    originals = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "configs").glob("*.yaml"))]
    originals.append(run_config.to_yaml(run_config.RunConfig()))
    while trials.more():
        text = dice.choice(originals)
        for _ in range(dice.randint(1, 5)):
            at = dice.randrange(len(text) + 1)
            new = dice.choice([dice.choice(YAML_PIECES) * dice.choice([1, 1, 1, 50]), *text.split("\n")[: dice.randint(1, 9)]])
            text = text[:at] + new + text[at + dice.choice([0, 0, 1, 3, 20]) :]
        content = text.encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        with trials.case(content):
            name, given = run_config.load_preset(str(path))
            found = run_config.resolve([(name, given)]).config
            assert run_config.from_dict(run_config.to_dict(found), "again") == found, "not what was written"
    return trials.cases, trials.survived


def texts(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Read bytes in any encoding, packed or not, cut and spliced; a text in UTF-8 comes back as it is."""
    import torch  # noqa: F401  # by no case, which would be charged for it

    trials = Trials(folder, until)
    packings: dict[str, Callable[[bytes], bytes]] = {
        ".txt": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
        ".tar": _tar,
        ".tar.gz": lambda content: gzip.compress(_tar(content)),
        ".zip": _zip,
    }
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis", "gbk", "utf-7", "hz"]
    encodings += ["iso2022_jp", "big5", "koi8-r", "euc_kr", "cp037", "rot13", "hex", "nosuch", "", "\0", "utf_8_sig", "mbcs"]
    while trials.more():
        text = "".join(
            dice.choice(["a", "é", "\n", "\r\n", "\r", "\0", " ", "語", "\U0001f600", "\ufeff", "\x85"]) for _ in range(50)
        )
        written = dice.choice(encodings[:11])
        content = text.encode(written, "replace") * dice.choice([1, 1, 2, 40])
        suffix = dice.choice(list(packings))
        content = packings[suffix](content) + (packings[suffix](content) if dice.random() < 0.3 else b"")
        whole = dice.random() < 0.3
        for _ in range(0 if whole else dice.randint(1, 3)):
            content = _spliced(content, dice)
        content = content[: dice.randrange(len(content) + 1)] if not whole and dice.random() < 0.3 else content
        path = folder / f"text{suffix}"
        path.write_bytes(content)
        named, kind = dice.choice(["utf-8", written, dice.choice(encodings)]), dice.choice(["char", "char", "byte"])
        with trials.case(content):
            corpus = open_corpus([str(path)], tokenizer=kind, encoding=named, cache_dir=folder / "cache", val_fraction=0.1)
            ids = [id_ for part in (corpus.train, corpus.val) for id_ in part.tensor(0, len(part)).tolist()]
            if suffix == ".txt" and named == "utf-8":
                expected = content if kind == "byte" else content.decode("utf-8-sig").encode()
                assert corpus.tokenizer.decode(ids).encode() == expected or kind == "byte", "another text"
                assert len(ids) == len(expected if kind == "byte" else expected.decode()), "another length"
    return trials.cases, trials.survived


def _tar(content: bytes) -> bytes:
    """Return an archive of two members."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name in ("a.txt", "b/c.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def _zip(content: bytes) -> bytes:
    """Return an archive of two members."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.txt", "b/c.txt"):
            archive.writestr(name, content)
    return written.getvalue()


def vocabularies(folder: Path, dice: random.Random, until: float) -> Outcome:
    """Turn any text into ids and back, in pieces too, and mutate what a model says of its tokenizer."""
    trials = Trials(folder, until)
    odd = "aé\n\r\0 \u0301\ufeff\u202e\u2028\U0001f600\U0010ffff\x85ßſİıΣςﬁ①½“”—\ud800\udc80\udfff"

    def drawn(most: int) -> str:
        count = dice.randint(0, most)
        return "".join(dice.choice(odd) if dice.random() < 0.5 else chr(dice.randrange(0x110000)) for _ in range(count))

    while trials.more():
        symbols, text = drawn(20), drawn(40)
        with trials.case(f"{symbols!r} {text!r}".encode()):
            made = tokenizers.ByteTokenizer() if dice.random() < 0.2 else tokenizers.CharTokenizer(symbols)
            assert tokenizers.from_dict(json.loads(json.dumps(made.to_dict()))) == made, "another tokenizer"
            known = "".join(c for c in text if made.kind == "byte" or c in symbols)
            for mode in ("skip", "replace", "error"):
                ids = made.encode(text, mode)
                assert all(0 <= id_ < len(made) for id_ in ids), "no id"
                stream = made.stream_decoder()
                pieces = [stream.push([id_]) for id_ in ids]
                joined = "".join(pieces)
                if isinstance(made, tokenizers.ByteTokenizer):  # what is no whole character at the end is held back
                    assert made.decode_bytes(ids).startswith(joined.encode("utf-8", "surrogateescape")), "other bytes in pieces"
                else:
                    assert made.decode(ids) == joined, "another text in pieces"
                if mode == "skip" and made.kind == "char":
                    assert made.decode(ids) == known, "another text"
            for position, char in made.unknown(text):
                assert text[position] == char, "another place"
        described: Any = {"kind": dice.choice(["char", "byte"]), "symbols": "".join(sorted(set(symbols)))}
        for _ in range(dice.randint(1, 3)):
            _mutate(described, dice)
        with trials.case(repr(described).encode()):
            tokenizers.from_dict(described)
    return trials.cases, trials.survived


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
    "models": ("models forged, used", models),
    "settings": ("settings in YAML", settings),
    "texts": ("texts, packed or not", texts),
    "vocabularies": ("tokenizers", vocabularies),
}


def main() -> int:
    """Run the campaigns and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(CAMPAIGNS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (the flips take what they take)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what did not survive (default: a new one)")
    parser.add_argument("--save-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_in:
        save_for_ever(arguments.save_in)
    chosen = arguments.targets or list(CAMPAIGNS)
    if unknown := set(chosen) - set(CAMPAIGNS):
        parser.error(f"expected {', '.join(CAMPAIGNS)}, found {', '.join(unknown)}")
    folder = Path(tempfile.mkdtemp(prefix="lstmlm-fuzz-"))
    os.environ.update({"LSTMLM_CACHE": str(folder / "cache"), "LSTMLM_KERNEL": "eager", "OMP_NUM_THREADS": "1"})
    failed, total = False, 0
    print(f"seed {arguments.seed}\n{'campaign':24}{'cases':>9}{'survived':>10}{'seconds':>9}", flush=True)
    for name in chosen:
        title, campaign = CAMPAIGNS[name]
        start = time.monotonic()
        below = (arguments.keep or folder) / name
        below.mkdir(parents=True, exist_ok=True)
        try:
            cases, survived = campaign(below, random.Random(f"{arguments.seed} {name}"), start + arguments.seconds / len(chosen))
        except (Exception, LstmlmError) as error:
            print(f"{title}: {type(error).__name__}: {error}; the input is in {below}")
            failed = True
            continue
        failed |= survived < cases
        total += cases
        print(f"{title:24}{cases:>9}{survived:>10}{time.monotonic() - start:>9.1f}", flush=True)
    if not failed:
        shutil.rmtree(folder)
    print(f"{total:,} cases, {'NOT ALL' if failed else 'all'} of them used rightly or refused")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
