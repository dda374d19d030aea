"""Compare what `train` makes of texts with counts, compressors and a plain `torch.nn.LSTM` that had the same time.

    rivals.py FILE ... [--minutes 1 10] [--seed 1] [--threads 0]

The first nine tenths of each text are learnt, the last tenth is scored, every character of it with the state carried along, in
bits per character. `lstmlm train FILE --minutes M` chooses for itself. The rival is an embedding, one layer of 256 units and a
linear readout, batch 32, windows of 64 with the state carried on, Adam at 0.004 falling to 0 with the time, gradients clipped
at 1. Its time is that of its steps alone; lstmlm's is that of the whole process. Counts of what follows three characters, and
bzip2 of the last tenth after the first nine, are those of `eval`, and so are *dynamic* and *mixed* (`--mix`), which go on
learning as a compressor does. zpaq, where the program is installed, has what it adds to an archive for the last tenth. Run it
with nothing else on the machine.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lstmlm.display.text_plots import table

HIDDEN, BATCH, WINDOW, RATE = 256, 32, 64, 4e-3
State = tuple[Tensor, Tensor]


class PlainLSTM(nn.Module):
    """An embedding, `nn.LSTM` and a linear readout."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.table = nn.Embedding(symbols, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, symbols)

    def forward(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the scores (T, B, V) and the state after ids (T, B)."""
        hidden, after = self.lstm(self.table(ids), state)
        return self.readout(hidden), after


def trained(ids: Tensor, symbols: int, seconds: float, seed: int) -> PlainLSTM:
    """Train for so many seconds on ids (N,), cut into streams that go on from window to window."""
    torch.manual_seed(seed)
    model = PlainLSTM(symbols)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    length = (len(ids) - 1) // BATCH
    inputs, targets = (ids[start : start + BATCH * length].view(BATCH, length).t().contiguous() for start in (0, 1))
    state: State | None = None
    began, at = time.perf_counter(), 0
    while (spent := (time.perf_counter() - began) / seconds) < 1:
        if at >= length:
            at, state = 0, None
        optimizer.param_groups[0]["lr"] = RATE * (1 - spent)
        scores, after = model(inputs[at : at + WINDOW], state)
        state = (after[0].detach(), after[1].detach())
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores.flatten(0, 1), targets[at : at + WINDOW].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        at += WINDOW
    return model


@torch.no_grad()
def bits(model: PlainLSTM, before: Tensor, ids: Tensor) -> float:
    """Return the bits per character of ids (N,), each predicted once, after 1,024 others that are read first."""
    whole = torch.cat([before[-1024:], ids])
    first, state, cost = len(whole) - len(ids) - 1, None, 0.0
    for start in range(0, len(whole) - 1, 4096):
        targets = whole[start + 1 : start + 4097]
        scores, state = model(whole[start : start + len(targets), None], state)
        nats = nn.functional.cross_entropy(scores[:, 0], targets, reduction="none")
        cost += nats[max(0, first - start) :].double().sum().item()
    return cost / len(ids) / math.log(2)


def printed(*words: object) -> dict[str, Any]:
    """Run a command of lstmlm; return the object that it prints."""
    done = subprocess.run([sys.executable, "-m", "lstmlm", *map(str, words), "--json", "-q"], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def zpaq(text: str, cut: int) -> float:
    """Return the bits per character that `zpaq -method 5` takes for the text from `cut` on, after all before; NaN without it."""
    program = shutil.which("zpaq")
    if program is None:
        return math.nan
    sizes = []
    with tempfile.TemporaryDirectory() as scratch:
        for length in (cut, len(text)):
            source, archive = Path(scratch, "text"), Path(scratch, f"{length}.zpaq")
            source.write_bytes(text[:length].encode())
            subprocess.run([program, "add", archive, source, "-method", "5"], check=True, capture_output=True)
            sizes.append(archive.stat().st_size)
    return 8 * (sizes[1] - sizes[0]) / (len(text) - cut)


def measure(file: Path, minutes: float, seed: int, threads: int) -> list[str]:
    """Return the row of a text and a time."""
    machine = ("--threads", threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "run")
        began = time.perf_counter()
        run = printed("train", file, "--minutes", minutes, "--seed", seed, "--out", out, *machine)
        seconds = time.perf_counter() - began
        own = printed("eval", "-m", out, "--mix", *machine)
    text = file.read_bytes().decode("utf-8-sig")
    cut = len(text) - own["chars"]
    if threads:
        torch.set_num_threads(threads)
    symbols = {char: at for at, char in enumerate(sorted(set(text)))}
    ids = torch.tensor([symbols[char] for char in text])
    rival = trained(ids[:cut], len(symbols), minutes * 60, seed)
    plain = own["baselines_bits_per_char"]
    found = [plain["order3"], plain["bzip2"], zpaq(text, cut), bits(rival, ids[:cut], ids[cut:])]
    found += [own["bits_per_char"], own["dynamic"]["bits_per_char"], own["mixed"]["bits_per_char"]]
    cells = [file.stem, f"{len(text):,}", f"{minutes:g}", f"{seconds:.1f}", f"{run['parameters']:,}"]
    return [*cells, *(f"{one:.4f}" for one in found)]


def main() -> None:
    """Measure each text for each time and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    rows = []
    for minutes in asked.minutes:
        for file in asked.files:
            rows.append(measure(file, minutes, asked.seed, asked.threads))
            print(table(rows[-1:]), file=sys.stderr)
    rivals = ("order 3", "bzip2", "zpaq", "nn.LSTM")
    print(table(rows, ("text", "chars", "minutes", "seconds", "parameters", *rivals, "lstmlm", "dynamic", "mixed")))


if __name__ == "__main__":
    main()
