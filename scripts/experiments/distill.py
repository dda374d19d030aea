"""Compare networks that learn from a teacher too with the same ones alone, at equal steps on one thread.

    distill.py --text FILE [--steps 1900] [--teacher "--hidden 384"] [--weights 0.45] [--seeds 2] [--longer] [--chain 2]

Every run is the command `lstmlm train`. Only the first nine tenths of the text are used, so that no reported figure is made of
what is chosen on: trained on nine tenths of them and scored on the rest, warm. Results are appended to results/distill.jsonl
here. With --longer the student alone also takes a third more steps, which is about what the teacher costs. With --chain N the
last student teaches the next one, N times.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lstmlm.machine import cpu_name

RECORD = Path(__file__).parent / "results" / "distill.jsonl"
OF_TEACHER = 100  # its seed


def run(*words: str | Path) -> dict[str, Any]:
    """Run a command of lstmlm and return what it says as JSON."""
    command = [sys.executable, "-m", "lstmlm", *map(str, words), "--json", "-q", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Train the teacher, then each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--hidden", type=int, default=256, help="of the students")
    parser.add_argument("--teacher", default="", help="its flags; without any it has the students' size and steps. Or a model")
    parser.add_argument("--weights", nargs="*", default=["0.45"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--longer", action="store_true")
    parser.add_argument("--taught-only", action="store_true", help="no student alone")
    parser.add_argument("--chain", type=int, default=0)
    parser.add_argument("--also", default="", help="flags for every run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, asked.text.name)
        whole = asked.text.read_text(encoding="utf-8")
        text.write_text(whole[: int(len(whole) * 0.9)], encoding="utf-8", newline="")
        known = Path(asked.teacher or "-").exists()
        teacher = Path(asked.teacher) if known else Path(folder, "teacher")

        def trained(label: str, out: Path, seed: int, flags: list[str], steps: int = asked.steps) -> None:
            sizes = ["--hidden", str(asked.hidden), "--steps", str(steps), *shlex.split(asked.also), *flags]
            began = time.perf_counter()
            told = run("train", text, "--out", out, "--seed", str(seed), "--set", "train.patience=0", *sizes)
            facts = {
                "text": asked.text.stem,
                "machine": cpu_name(),
                "label": label,
                "teacher": teacher.name if known else asked.teacher,
                "hidden": asked.hidden,
                "steps": steps,
                "seed": seed,
                "also": asked.also,
                "seconds": round(time.perf_counter() - began, 1),
                "train_seconds": told["train_seconds"],
                "warm": round(run("eval", "-m", out, "--no-baselines")["nats_per_char"], 4),
            }
            print(json.dumps(facts), flush=True)
            with RECORD.open("a", encoding="utf-8") as record:
                record.write(json.dumps(facts) + "\n")

        if not known:
            trained("teacher", teacher, OF_TEACHER, shlex.split(asked.teacher))
        for seed in range(1, asked.seeds + 1):
            if not asked.taught_only:
                trained("alone", Path(folder, f"alone-{seed}"), seed, [])
            if asked.longer:
                trained("alone, longer", Path(folder, f"longer-{seed}"), seed, [], asked.steps * 4 // 3)
            for weight in asked.weights:
                flags = ["--distill", str(teacher), "--set", f"train.distill_weight={weight}"]
                trained(f"weight {weight}", Path(folder, f"{weight}-{seed}"), seed, flags)
        weight = asked.weights[-1]
        last = Path(folder, f"{weight}-1")
        for number in range(1, asked.chain + 1):
            out, flags = Path(folder, f"chain-{number}"), ["--distill", str(last), "--set", f"train.distill_weight={weight}"]
            trained(f"chain {number + 1}, weight {weight}", out, OF_TEACHER + number, flags)
            last = out


if __name__ == "__main__":
    main()
