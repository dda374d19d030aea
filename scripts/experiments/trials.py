"""Compare settings at equal steps: one training each, scored with its last weights and with averages over shares of the steps.

    trials.py --text FILE [--steps 2800] [key=value,key=value ...]    e.g. hidden=512,lr=0.0055 hidden=384,lr=0.0065

Only the first nine tenths of the text are used: trained on nine tenths of them and scored on the rest, warm and cold256, so that
no reported figure is made of what is chosen on. Results are appended to results/trials.jsonl here: [warm, cold256] in nats
a character for each share. `experiment.py` compares at equal wall time; this needs no quiet machine.

With rotate=1 each pass begins at another character of the text, so that no window is read twice. With grow=1 the last third of
the characters is read by twice as many streams at half as many steps, with beta2 over as many characters as before.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lstmlm.config.run_config import ModelConfig, TrainConfig
from lstmlm.data.batches import Streams
from lstmlm.data.corpus import open_corpus
from lstmlm.evaluation import scoring
from lstmlm.kernels import choose
from lstmlm.kernels.dropout import Dropout
from lstmlm.machine import cpu_name
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.training import malloc
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import Optimizer, learning_rate

RECORD = Path(__file__).parent / "results" / "trials.jsonl"
SHARES = (0.02, 0.04, 0.08, 0.15, 0.25)
DEFAULTS: dict[str, float] = {
    "hidden": 256, "layers": 1, "batch": 16, "window": 64, "lr": 8e-3, "final": 1.0, "warmup": 100, "seed": 0, "decay": 0.01,
    "dropout": 0.0, "weight_dropout": 0.0, "state_dropout": 0.0, "beta1": 0.9, "beta2": 0.99, "clip": 1.0,
    "rotate": 0.0, "grow": 0.0, "multiplicative": 0.0,
}  # fmt: skip


def trial(text: Path, steps: int, changes: dict[str, float]) -> dict[str, Any]:
    """Train once; return [warm, cold256] of the last weights and of each average."""
    asked = DEFAULTS | changes
    whole = text.read_text(encoding="utf-8")
    kernel, _ = choose()
    torch.manual_seed(int(asked["seed"]))
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, text.name)
        part.write_text(whole[: int(len(whole) * 0.9)], encoding="utf-8", newline="")
        corpus = open_corpus([str(part)], cache_dir=Path(folder, "cache"))
    sizes = ModelConfig(
        hidden=int(asked["hidden"]),
        layers=int(asked["layers"]),
        dropout=asked["dropout"],
        weight_dropout=asked["weight_dropout"],
        multiplicative=bool(asked["multiplicative"]),
    )
    rates = replace(
        TrainConfig(),
        lr=asked["lr"],
        warmup=int(asked["warmup"]),
        weight_decay=asked["decay"],
        final_lr=asked["final"],
        beta1=asked["beta1"],
        beta2=asked["beta2"],
        clip=asked["clip"],
        average=0.0,
    )
    model = CharLM(sizes, len(corpus.tokenizer), kernel)
    optimizer = Optimizer(model, rates, kernel.pointwise)
    kind = Rotated if asked["rotate"] else Streams
    streams = kind(corpus.train, int(asked["batch"]), int(asked["window"]))
    B, T = streams.batch_size, streams.window
    backprop, state = Backprop(model, B, T), model.initial_state(B)
    grows_at, whole_steps, seen, first = (steps * 2 // 3 if asked["grow"] else steps), steps, 0, 0
    steps = grows_at + (steps - grows_at) // 2
    weights = list(model.parameters())
    averages = {share: [w.detach().clone() for w in weights] for share in SHARES}
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        if step == grows_at:
            streams = kind(corpus.train, 2 * B, T)
            B, first = streams.batch_size, step
            backprop, state = Backprop(model, B, T), model.initial_state(B)
            optimizer.config = replace(rates, beta2=rates.beta2**2)
        ids, targets, fresh = streams.batch(step - first)
        seen += B * T
        drop = Dropout(asked["dropout"], int(asked["seed"]), step, B, 0, asked["weight_dropout"])
        if fresh:
            state = model.initial_state(B)
        elif asked["state_dropout"]:
            kept = ~drop.emptied(asked["state_dropout"], B)[:, None]
            state = tuple(LSTMState(layer.hidden * kept, layer.cell * kept) for layer in state)
        nats, state = backprop(ids, targets, state, 1 / (B * T), drop)
        optimizer.prepare(learning_rate(rates, step, steps))
        norm, finite = optimizer.step(nats)
        if not (math.isfinite(nats + norm) and finite):
            raise SystemExit(f"trials: {changes} diverged at step {step}")
        seconds.append(time.perf_counter() - began)
        with torch.no_grad():
            for share, average in averages.items():
                for mean, w in zip(average, weights, strict=True):
                    mean.lerp_(w, min(1.0, B * T / (share * seen)))
    found: dict[str, Any] = {
        "text": text.stem,
        "machine": cpu_name(),
        "steps": whole_steps,
        **changes,
        "passes": round(seen / len(corpus.train), 2),
        "seconds": round(sum(seconds), 1),
        "ms_per_step": round(statistics.median(seconds) * 1e3, 2),
        "last": scores(model, corpus.val.tensor(0, len(corpus.val)), corpus.counts),
    }
    for share, average in averages.items():
        with torch.no_grad():
            for w, mean in zip(weights, average, strict=True):
                w.copy_(mean)
        found[f"average {share}"] = scores(model, corpus.val.tensor(0, len(corpus.val)), corpus.counts)
    return found


class Rotated(Streams):
    """The text as a ring, which each pass begins to read at a place of its own."""

    def batch(self, step: int, first: int = 0, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """See `Streams.batch`."""
        starts, fresh = self.starts(step, first, count)
        turned = random.Random(f"rotate {step // self.steps_per_epoch}").randrange(len(self._ids))
        places = torch.arange(self.window + 1)[:, None] + torch.tensor(starts) + turned
        block = self._view[places % len(self._ids)].to(torch.int64)
        return block[:-1], block[1:], fresh


def scores(model: CharLM, ids: torch.Tensor, counts: Any) -> list[float]:
    """Return nats a character, warm and cold256."""
    text = ids.tolist()
    warm = scoring.score_ids(model, text, counts, byte_length=len(ids)).nats_per_char
    cold = scoring.score_ids(model, text, counts, byte_length=len(ids), protocol="cold", window=256).nats_per_char
    return [round(warm, 4), round(cold, 4)]


def main() -> None:
    """Run every setting that was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=[""], help=f"key=value,...; keys: {', '.join(DEFAULTS)}")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=2800)
    asked = parser.parse_args()
    malloc.tune_malloc()
    for setting in asked.settings:
        changes = {key: float(value) for key, _, value in (pair.partition("=") for pair in setting.split(",") if pair)}
        if unknown := changes.keys() - DEFAULTS.keys():
            sys.exit(f"trials: {', '.join(sorted(unknown))}: expected one of {', '.join(DEFAULTS)}.")
        line = json.dumps(trial(asked.text, asked.steps, changes))
        print(line, flush=True)
        with RECORD.open("a", encoding="utf-8") as record:
            record.write(line + "\n")


if __name__ == "__main__":
    main()
