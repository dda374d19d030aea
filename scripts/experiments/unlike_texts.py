"""Train with the automatic choices on unlike texts, and print what it chose and what came out.

    unlike_texts.py [--steps 400] [--only NAME ...] [--keep DIR] [--also=--threads --also=1]

The texts are made here, from what Python brings along and from fixed seeds: sources of the standard library, the topics of
Python's help, the bundled stories, a server's log, a Greek tale, 2,000 characters, names, two symbols, two thousand symbols. Of
each, the first nine tenths are learnt and the last tenth is scored: by counts (of single characters, and of what follows
three), by bzip2, and by the network, warm and dynamic. Numbers are bits per character.
"""

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

from lstmlm.display.text_plots import table

LONG = 400_000  # characters of a text, at most
STORIES = Path(__file__).resolve().parents[2] / "data" / "stories.txt"


def python_sources() -> str:
    """Return the standard library's modules, one after another by name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*.py")))


def help_topics() -> str:
    """Return the texts behind Python's `help("topics")`."""
    return "".join(text for _, text in sorted(topics.topics.items()))


def stories() -> str:
    """Return the bundled stories."""
    return STORIES.read_text(encoding="utf-8")


def log() -> str:
    """Return a server's log: times that go on, levels, addresses, paths, and now and then an error."""
    rng = random.Random(1)
    paths = ["/", "/login", "/api/users", "/api/orders", "/static/main.css", "/health"]
    lines: list[str] = []
    now = 0.0
    while len(lines) < 6000:
        now += rng.expovariate(2.0)
        time = f"{int(now // 3600) % 24:02}:{int(now // 60) % 60:02}:{now % 60:06.3f}"
        level, path = rng.choices(["INFO", "WARN", "ERROR"], [90, 8, 2])[0], rng.choice(paths)
        address = f"10.0.{rng.randrange(4)}.{rng.randrange(256)}"
        if level == "INFO":
            lines.append(f"{time} INFO  [web-{rng.randrange(4)}] {address} GET {path} 200 {rng.randrange(1, 90)}ms")
        elif level == "WARN":
            lines.append(f"{time} WARN  [web-{rng.randrange(4)}] {address} GET {path} 404 {rng.randrange(1, 9)}ms")
        else:
            request = f"{rng.getrandbits(32):08x}"
            lines.append(f"{time} ERROR [db] connection lost after {rng.randrange(10, 5000)}ms, request {request}")
    return "\n".join(lines) + "\n"


def greek() -> str:
    """Return short Greek sentences: someone, somewhere, does something to something."""
    rng = random.Random(2)
    who = ["Ο ψαράς", "Η γιαγιά", "Ο Νίκος", "Η Ελένη", "Το παιδί", "Ο δάσκαλος"]
    where = ["στο λιμάνι", "στην αυλή", "στο χωριό", "στη θάλασσα", "κάτω από το δέντρο"]
    does = ["κρατάει", "ψάχνει", "πουλάει", "βλέπει", "θυμάται"]
    what = ["ένα καΐκι", "το παλιό σπίτι", "τρία πορτοκάλια", "ένα μεγάλο ψάρι", "τα κλειδιά", "ένα γράμμα"]
    ends = [".", ".", "!", ", και γελάει.", ", μα δεν μιλάει."]
    rows = [[rng.choice(words) for words in (who, where, does, what, ends)] for _ in range(5000)]
    return "".join(" ".join(row[:-1]) + row[-1] + ("\n" if rng.random() < 0.2 else " ") for row in rows)


def short() -> str:
    """Return 2,000 characters of English."""
    return help_topics()[:2000]


def names() -> str:
    """Return invented names, one a line: two or three syllables, some of each far more frequent than others."""
    rng = random.Random(5)
    begins, middles = (
        ["b", "d", "h", "j", "k", "l", "m", "n", "r", "s", "th", "br", "ch", ""],
        ["a", "e", "i", "o", "u", "ai", "ea"],
    )
    ends = ["n", "", "r", "l", "s", "nna", "th", "tte", "ck", "ra"]

    def pick(parts: list[str]) -> str:
        return rng.choices(parts, [1 / (rank + 1) for rank in range(len(parts))])[0]

    made = ["".join(pick(begins) + pick(middles) for _ in range(rng.choice([1, 2, 2]))) + pick(ends) for _ in range(30_000)]
    return "".join(name.capitalize() + "\n" for name in made)


def two_symbols() -> str:
    """Return runs of a and b whose lengths depend on the run before."""
    rng = random.Random(3)
    runs: list[str] = []
    length = 1
    for i in range(30_000):
        length = (length + rng.choice([1, 1, 1, 2])) % 5 + 1
        runs.append("ab"[i % 2] * length)
    return "".join(runs)


def many_symbols() -> str:
    """Return words of one to three of some two thousand Chinese characters, the first words by far the most frequent."""
    rng = random.Random(4)
    signs = [chr(0x4E00 + i) for i in range(2000)]
    words = ["".join(rng.choices(signs, k=rng.choice([1, 2, 2, 3]))) for _ in range(4000)]
    said = rng.choices(words, [1 / (rank + 3) for rank in range(len(words))], k=100_000)
    return "".join(word + rng.choice(["", "", "", "，", "。\n"]) for word in said)


TEXTS: dict[str, Callable[[], str]] = {
    "python": python_sources,
    "topics": help_topics,
    "stories": stories,
    "log": log,
    "greek": greek,
    "short": short,
    "names": names,
    "two": two_symbols,
    "many": many_symbols,
}


def measure(name: str, folder: Path, steps: int, also: list[str]) -> list[str | int | float]:
    """Train once on a text; return its row of the table."""
    text = TEXTS[name]()[:LONG]
    file = folder / f"{name}.txt"
    file.write_text(text, encoding="utf-8", newline="")
    out = str(folder / name)
    trained = _json(["train", str(file), "--out", out, "--steps", str(steps), "--overwrite", *also])
    scored = _json(["eval", "-m", out, "--dynamic", *also])
    chosen = _json(["info", out])["config"]
    plain = scored["baselines_bits_per_char"]
    choice = f"{chosen['model']['layers']}x{chosen['model']['hidden']} drop {chosen['model']['dropout']:g}"
    return [
        name, len(text), len(set(text)), choice, trained["best"]["step"], plain["order0"], plain["order3"], plain["bzip2"],
        scored["bits_per_char"], scored["dynamic"]["bits_per_char"],
    ]  # fmt: skip


def _json(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "lstmlm", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Train on each text and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="*", choices=sorted(TEXTS), default=list(TEXTS))
    parser.add_argument("--keep", type=Path, help="leave texts and runs in this folder")
    parser.add_argument("--also", action="append", default=[], help="a flag of train and eval, such as --also=--threads")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for name in asked.only:
            rows.append(measure(name, folder, asked.steps, asked.also))
            print(table(rows[-1:]), file=sys.stderr)
    print(table(rows, ("text", "chars", "symbols", "chosen", "best step", "order 0", "order 3", "bzip2", "warm", "dynamic")))


if __name__ == "__main__":
    main()
