"""Run a named comparison: settings x seeds at equal wall time, one after the other, nothing else on the machine.

    experiment.py LIST --text FILE [--minutes M] [--seeds 3] [--choose]     e.g. LIST = rate

Every run is the command `lstmlm train`, whole process, and is scored on the last tenth of its text. With --choose the text is
first cut to the training part's first nine tenths, so that what is compared is chosen on characters that no reported
figure is made of. Results are appended to results/<LIST>.jsonl here, and the table is printed from there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lstmlm.machine import cpu_name, cpus
from lstmlm.units import counted

RESULTS = Path(__file__).parent / "results"

# name -> label -> flags of `lstmlm train`; the first is what the others are compared with.
COMPARISONS: dict[str, dict[str, list[str]]] = {
    "minute": {
        "1x384": ["--hidden", "384"],
        "lr 0.008": ["--hidden", "384", "--lr", "0.008"],
        "dropout 0.15": ["--hidden", "384", "--lr", "0.0065", "--dropout", "0.15"],
        "batch 32, lr 0.008": ["--hidden", "384", "--batch", "32", "--lr", "0.008"],
        "no norm": ["--hidden", "384", "--set", "model.layer_norm=false"],
        "beta1 0.5": ["--hidden", "384", "--set", "train.beta1=0.5"],
        "beta2 0.999": ["--hidden", "384", "--set", "train.beta2=0.999"],
        "decay 0.1": ["--hidden", "384", "--set", "train.weight_decay=0.1"],
    },
    "recipe": {"default": []},
    "quality": {"one network": [], "three networks": ["--members", "3"], "five networks": ["--members", "5"]},
    "three": {
        "1x384": ["--hidden", "384", "--dropout", "0", "--lr", "0.0065"],
        "1x512, dropout 0.1": ["--hidden", "512", "--dropout", "0.1", "--lr", "0.0055"],
        "1x512, dropout 0.3": ["--hidden", "512", "--dropout", "0.3", "--lr", "0.0055"],
    },
    "rate": {f"lr {lr}": ["--lr", lr] for lr in ("0.006", "0.004", "0.008", "0.012")},
    "size": {
        f"{layers}x{hidden}": ["--layers", layers, "--hidden", hidden]
        for layers, hidden in (("1", "256"), ("1", "384"), ("1", "512"), ("2", "256"))
    },
    "batch": {f"batch {b}": ["--batch", b] for b in ("16", "8", "32")},
    "window": {f"window {t}": ["--window", t] for t in ("64", "32", "128")},
    "beta1": {f"beta1 {b}": ["--set", f"train.beta1={b}"] for b in ("0.9", "0.5", "0.0")},
    "beta2": {f"beta2 {b}": ["--set", f"train.beta2={b}"] for b in ("0.99", "0.999", "0.95")},
    "decay": {f"decay {d}": ["--set", f"train.weight_decay={d}"] for d in ("0.01", "0.1", "0")},
    "dropout": {f"dropout {d}": ["--dropout", d] for d in ("0", "0.1", "0.2")},
    "norm": {f"norm {n}": ["--set", f"model.layer_norm={n}"] for n in ("true", "false")},
    "clip": {f"clip {c}": ["--set", f"train.clip={c}"] for c in ("1", "0.25", "5")},
    "forget": {f"forget bias {b}": ["--set", f"model.forget_bias={b}"] for b in ("1", "0", "2")},
    "start": {f"orthogonal {o}": ["--set", f"model.orthogonal={o}"] for o in ("true", "false")},
    "precision": {p: ["--precision", p] for p in ("auto", "float32")},
    "members": {
        "one": [],
        "3 members": ["--members", "3"],
        **{f"3 x 1x{hidden}": ["--members", "3", "--hidden", hidden] for hidden in ("384", "512")},
    },
}


def measure(text: Path, flags: list[str], minutes: float, seed: int) -> dict[str, Any]:
    """Train once and score the validation part warm and cold."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "lstmlm"]
        began = time.perf_counter()
        trained = _json(
            [*run, "train", str(text), "--out", f"{folder}/run", "--minutes", str(minutes), "--seed", str(seed), *flags]
        )
        seconds = time.perf_counter() - began
        result = {
            "seconds": round(seconds, 2),
            "steps": trained["steps"],
            "chars": trained["chars_seen"],
            "parameters": trained["parameters"],
        }
        for name, how in (
            ("warm", []),
            ("cold64", ["--protocol", "cold", "--window", "64"]),
            ("cold256", ["--protocol", "cold"]),
        ):
            result[name] = _json([*run, "eval", "-m", f"{folder}/run", "--no-baselines", *how])["nats_per_char"]
    return result


def _json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([*command, "--json", "-q"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(records: list[dict[str, Any]]) -> None:
    """Print mean and worst of the seeds for each label."""
    print("| setting | minutes | seeds | parameters | passes | warm | worst | cold64 | cold256 | worst | seconds |")
    print("|" + " --- |" * 11)
    for key in dict.fromkeys((r["label"], r["minutes"], r["text"]) for r in records):
        mine = [r for r in records if (r["label"], r["minutes"], r["text"]) == key]
        mean = {name: statistics.fmean(r[name] for r in mine) for name in ("warm", "cold64", "cold256", "seconds", "chars")}
        print(
            f"| {key[0]} | {key[1]:g} | {len(mine)} | {mine[0]['parameters']:,} | {mean['chars'] / mine[0]['text_chars']:.1f} "
            f"| {mean['warm']:.4f} | {max(r['warm'] for r in mine):.4f} | {mean['cold64']:.4f} "
            f"| {mean['cold256']:.4f} | {max(r['cold256'] for r in mine):.4f} | {mean['seconds']:.1f} |"
        )


def main() -> None:
    """Run one comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=sorted(COMPARISONS))
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=71 / 60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--also", nargs="*", default=[], help="flags for every run, such as --also=--hidden --also=256")
    parser.add_argument("--only", help="run just this label")
    parser.add_argument("--show", action="store_true", help="print what is recorded; run nothing")
    asked = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    record = RESULTS / f"{asked.comparison}.jsonl"
    if not asked.show:
        text = asked.text.read_text(encoding="utf-8")
        if asked.choose:
            text = text[: int(len(text) * 0.9)]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, asked.text.name)
            file.write_text(text, encoding="utf-8", newline="")
            for seed in range(asked.seeds):
                for label, flags in COMPARISONS[asked.comparison].items():
                    if asked.only not in (None, label):
                        continue
                    result = measure(file, [*flags, *asked.also], asked.minutes, seed)
                    facts = {
                        "label": label,
                        "machine": f"{cpu_name()}, {counted(cpus(), 'core')}",
                        "minutes": round(asked.minutes, 4),
                        "seed": seed,
                        "text": asked.text.stem + (" (choosing)" if asked.choose else ""),
                    }
                    line = facts | {"text_chars": int(len(text) * 0.9), "also": asked.also} | result
                    print(json.dumps(line), file=sys.stderr)
                    with record.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(line) + "\n")
    show([json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
