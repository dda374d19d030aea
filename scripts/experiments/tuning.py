"""Compare a tuned model with its parent and with a new one: three pairs of texts, three sizes of the new text, equal steps.

    tuning.py [--steps 400] [--hidden 128] [--factors 1 0.5 0.25] [--pairs near far other] [--keep DIR] [--threads 1]

The parent learns a part of the topics of Python's help. The new text is more of them (near), sources of the standard library
(far), or those sources in letters of another alphabet (other, `--on-unknown grow`); of each a beginning of 3,000, 30,000 and
200,000 characters. Each new text is learnt anew, and from the parent at several factors of the rate that a new model has. All are
scored on the validation part of the new text, by which the program chooses, and on the 20,000 characters after the text (after).
The last columns say which step was kept (0: the parent) and whether that was right: after the text the tuned model is better than
the parent, or the parent was kept. Numbers are bits per character.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlike_texts import LONG, help_topics, python_sources

import lstmlm
from lstmlm.config.auto_tune import TUNING
from lstmlm.display.text_plots import table

PARENT, TEST, SIZES = 240_000, 20_000, (3_000, 30_000, 200_000)
LETTERS = {ord("a") + i: 0x430 + i for i in range(26)} | {ord("A") + i: 0x410 + i for i in range(26)}
PAIRS: dict[str, Callable[[], str]] = {
    "near": lambda: help_topics()[PARENT:],
    "far": python_sources,
    "other": lambda: python_sources()[:LONG].translate(LETTERS),
}


def texts_of(pair: str, chars: int) -> tuple[str, str]:
    """Return the text that is learnt, and the one after it, that all are scored on."""
    whole = PAIRS[pair]()
    return whole[:chars], whole[chars : chars + TEST]


def train(*arguments: object) -> dict[str, Any]:
    """Run `lstmlm train` and return what it prints."""
    command = [sys.executable, "-m", "lstmlm", "train", *map(str, arguments), "--json", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(folder: Path, pair: str, chars: int, asked: argparse.Namespace) -> list[list[str | int | float]]:
    """Return the rows of a pair and a size: one for each factor."""
    new, after = texts_of(pair, chars)
    parts = new[len(new) - len(new) // 10 :], after
    text = folder / f"{pair}-{chars}.txt"
    text.write_text(new, encoding="utf-8", newline="")
    run = ["--overwrite", "--steps", asked.steps, "--threads", asked.threads]

    def scores(model: Path) -> list[float]:
        opened = lstmlm.load(str(model))
        return [opened.score(part).bits_per_char for part in parts]

    parent = folder / f"parent-{asked.hidden}"
    train(text, "--out", folder / "fresh", "--hidden", asked.hidden, *run)
    before, fresh, lr = scores(parent), scores(folder / "fresh"), lstmlm.load(str(folder / "fresh")).config.train.lr or 0.0
    rows: list[list[str | int | float]] = []
    for factor in asked.factors:
        own = ["--on-unknown", "grow", "--lr", f"{factor * lr:.3g}", *asked.also]
        kept = train(text, "--out", folder / "tuned", "--from", parent, *run, *own)["best"]["step"]
        tuned = scores(folder / "tuned")
        right = "parent kept" if not kept else "yes" if tuned[1] < before[1] else "NO"
        figures = [score for each in zip(before, fresh, tuned, strict=True) for score in each]
        rows.append([pair, chars, asked.hidden, f"{factor:g}", *figures, kept, right])
        print(table(rows[-1:]), file=sys.stderr)
    return rows


def main() -> None:
    """Train the parent, then each pair and size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--parent-steps", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--factors", nargs="*", type=float, default=[TUNING], help="of the rate of a new model")
    parser.add_argument("--pairs", nargs="*", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="leave texts and runs in this folder; a parent that is there is used")
    parser.add_argument("--also", action="append", default=[], help="a flag for every tuned run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        parent = folder / f"parent-{asked.hidden}"
        if not (parent / "best.safetensors").exists():
            (folder / "parent.txt").write_text(help_topics()[:PARENT], encoding="utf-8", newline="")
            steps = ["--steps", asked.parent_steps, "--hidden", asked.hidden, "--threads", asked.threads]
            train(folder / "parent.txt", "--out", parent, *steps)
        rows = [row for pair in asked.pairs for chars in asked.sizes for row in measure(folder, pair, chars, asked)]
    scored = ("parent", "fresh", "tuned", "parent after", "fresh after", "tuned after")
    columns = ("pair", "chars", "hidden", "factor", *scored, "kept step", "right")
    print(table(rows, columns))


if __name__ == "__main__":
    main()
