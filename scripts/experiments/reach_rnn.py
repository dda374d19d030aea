"""Set an LSTM beside a plain tanh RNN of equal size: how far back each looks, and which names each still knows.

    reach_rnn.py [--text stories] [--steps 600] [--hidden 96] [--window 100] [--forget-bias 4]

Both are trained here, on the same windows of the same text for the same number of steps, and answer with the same layer norm
and readout; what differs is the recurrence, and the rate if so asked. The RNN is `torch.nn.RNN`:
h_t = tanh(x_t U + h_{t-1} W + b).
It prints the mean norm of the gradient of the nats of a character with respect to the state (and the input) k characters
before it, where that falls to a hundredth of its largest value for good, and the accuracy for the blanks by distance.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lstmlm import kernels
from lstmlm.analysis.boundaries import spread
from lstmlm.analysis.gradient_reach import fades, reach
from lstmlm.config import run_config
from lstmlm.config.run_config import ModelConfig, TrainConfig
from lstmlm.data.batches import Streams
from lstmlm.data.corpus import Corpus, open_corpus
from lstmlm.display.text_plots import table
from lstmlm.evaluation.cloze import Bucket, Filler, by_distance, chance, parse_set
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.kernels.pointwise import TorchPointwise
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, StackState, nats
from lstmlm.training.optim import Optimizer, learning_rate
from lstmlm.units import bits

BLANKS = Path(__file__).resolve().parents[2] / "data" / "blanks.tsv"
LENGTH = 200  # characters back
ROWS = (0, 1, 2, 5, 10, 20, 50, 100, LENGTH - 1)
PREDICTIONS = 64


class PlainRNN(nn.Module):
    """`CharLM` with one layer whose recurrence is `torch.nn.RNN`; its state has an H, and a C of zeros that nothing reads."""

    def __init__(self, hidden: int, vocabulary: int, orthogonal: bool) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rnn = nn.RNN(vocabulary, hidden)
        if orthogonal:
            nn.init.orthogonal_(self.weights()[1])
        self.norm = nn.LayerNorm(hidden)
        self.readout = nn.Linear(hidden, vocabulary)

    def initial_state(self, batch: int) -> StackState:
        """Return the empty state."""
        zeros = torch.zeros(batch, self.rnn.hidden_size)
        return (LSTMState(zeros, zeros),)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input weights (S, V), the recurrent ones (S, S) and the sum of both biases (S)."""
        named = {name: weight.detach() for name, weight in self.rnn.named_parameters()}
        return named["weight_ih_l0"], named["weight_hh_l0"], named["bias_ih_l0"] + named["bias_hh_l0"]

    def forward(self, ids: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """Predict the character after each of T characters: ids (T, B) -> logits (T, B, V), and the state after them."""
        before = (state or self.initial_state(ids.shape[1]))[0].hidden
        x = functional.one_hot(ids, self.vocabulary).float()
        H, last = self.rnn(x, before[None].contiguous())
        return self.readout(self.norm(H)), (LSTMState(last[0], torch.zeros_like(last[0])),)


def train(model: CharLM | PlainRNN, corpus: Corpus, config: TrainConfig, name: str) -> float:
    """Train a network with the trainer's own optimizer, schedule and windows; return the nats of the last tenth of its steps."""
    assert config.batch is not None
    assert config.window is not None
    assert config.steps is not None
    streams, optimizer = Streams(corpus.train, config.batch, config.window), Optimizer(model, config, TorchPointwise())
    state: StackState | None = None
    values = []
    began = time.perf_counter()
    for step in range(config.steps):
        inputs, targets, fresh = streams.batch(step)
        optimizer.zero()
        logits, after = model(inputs, None if fresh else state)
        loss = nats(logits, targets).mean()
        loss.backward()
        optimizer.prepare(learning_rate(config, step, config.steps))
        optimizer.step()
        state = tuple(LSTMState(s.hidden.detach(), s.cell.detach()) for s in after)
        values.append(float(loss.detach()))
    last = values[-max(1, len(values) // 10) :]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name}: {parameters:,} parameters, {time.perf_counter() - began:.1f} s of training", file=sys.stderr)
    return sum(last) / len(last)


def reach_of_rnn(model: PlainRNN, ids: Tensor) -> tuple[list[float], list[float]]:
    """Return what `lstmlm.analysis.gradient_reach.reach` measures, at the same places of a text."""
    starts = spread(torch.arange(len(ids) - LENGTH - 1), PREDICTIONS)
    U, W, b = model.weights()
    with torch.no_grad():  # one long reading gives the state before each place
        x = functional.one_hot(ids[: starts[-1] + 1, None], model.vocabulary).float()
        H, _ = model.rnn(x)
    hidden = torch.stack([H[start - 1, 0] if start else torch.zeros_like(H[0, 0]) for start in starts])
    text = torch.stack([ids[start : start + LENGTH + 1] for start in starts]).t()
    rows = [U.t()[step].clone().requires_grad_() for step in text[:-1]]
    states = []
    for row in rows:
        hidden = torch.tanh(row + hidden @ W.t() + b)
        states.append(hidden)
    total = nats(model.readout(model.norm(hidden))[None], text[-1:]).sum()
    gradients = torch.autograd.grad(total, [*states, *rows])
    norms = [float(gradient.double().norm(dim=-1).mean()) for gradient in gradients]
    return norms[:LENGTH][::-1], norms[LENGTH:][::-1]


def show_reach(lines: dict[str, list[float]]) -> None:
    """Print the norms by distance, and where each falls to a hundredth of its largest value and stays there."""
    cells: list[list[str | int | float]] = []
    for name, norms in lines.items():
        faded = fades(norms)
        cells.append([name, *(f"{norms[k]:.1e}" for k in ROWS), f"k = {faded}" if faded else f"not within {LENGTH}"])
    print("gradient of the nats of a character with respect to what was k characters before, mean norm")
    print(table(cells, ("k", *map(str, ROWS), "falls to a hundredth at")))


def answer(models: dict[str, CharLM | PlainRNN], corpus: Corpus, most: int) -> None:
    """Print the share of names that each network fills in rightly, by the distance from their last mention."""
    asked = parse_set(BLANKS.read_text(encoding="utf-8"), str(BLANKS))
    asked = [one for one in asked if one.kind.startswith("name")]
    asked = asked[:: max(1, -(-len(asked) // most))]
    opening = corpus.tokenizer.encode("\n")
    found: dict[str, list[Bucket]] = {}
    for name, model in models.items():
        filler = Filler(TorchReader(cast(CharLM, model)), corpus.tokenizer.encode, corpus.counts, opening)
        right = [
            answers[0].words == one.answer
            for one, answers in zip(asked, filler.rank([one.question for one in asked]), strict=True)
        ]
        found[name] = by_distance(asked, right)
    print(f"\nnames filled in, of {len(asked)} blanks, by characters back (guessing: {chance(asked):.1%})")
    one, *others = found.values()
    cells = [
        [f"{row.low}-{(row.high or 0) - 1}", row.count, *(f"{found.accuracy:.1%}" for found in (row, *rest))]
        for row, *rest in zip(one, *others, strict=True)
    ]
    print(table(cells, ("characters back", "blanks", *found)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both, measure both, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stories", help="a file, or stories, whose blanks are filled then")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.006)
    parser.add_argument("--rnn-lr", type=float, help="of the RNN, if it is to have another one")
    parser.add_argument("--rnn-hidden", type=int, help="of the RNN: twice the LSTM's gives about as many parameters")
    parser.add_argument("--rnn-orthogonal", action="store_true", help="let its W start as the LSTM's does, not as torch's")
    parser.add_argument("--forget-bias", type=float, default=1.0, help="b_f at the start; at 4 a gate begins at 0.98")
    parser.add_argument("--blanks", type=int, default=160, help="0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args(arguments)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    warmup = min(100, asked.steps // 10)
    config = TrainConfig(steps=asked.steps, batch=asked.batch, window=asked.window, warmup=warmup, weight_decay=0.01)
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus([asked.text], cache_dir=Path(folder), bundled=run_config.resource_dir("data"))
        if len(corpus.val) < LENGTH + 2:
            sys.exit(f"{asked.text}: expected {10 * (LENGTH + 2):,} characters or more, found {corpus.chars:,}.")
        torch.manual_seed(asked.seed)
        network = ModelConfig(hidden=asked.hidden, layers=1, dropout=0.0, forget_bias=asked.forget_bias, multiplicative=False)
        lstm = CharLM(network, len(corpus.tokenizer), kernels.choose()[0])
        torch.manual_seed(asked.seed)
        rnn = PlainRNN(asked.rnn_hidden or asked.hidden, len(corpus.tokenizer), asked.rnn_orthogonal)
        models: dict[str, CharLM | PlainRNN] = {"LSTM": lstm, "tanh RNN": rnn}
        rates = {"LSTM": asked.lr, "tanh RNN": asked.rnn_lr or asked.lr}
        scores = {name: train(model, corpus, replace(config, lr=rates[name]), name) for name, model in models.items()}
        for model in models.values():
            model.eval().requires_grad_(False)
        ids = corpus.val.tensor(0, min(len(corpus.val), 20_000))
    for name, score in scores.items():
        print(f"{name}: {asked.steps} steps at a rate of {rates[name]:g}; last tenth {bits(score):.3f} bits/char in training")
    print()
    measured = reach(lstm, ids, LENGTH, PREDICTIONS)
    state, inputs = reach_of_rnn(rnn, ids)
    by_name = {"LSTM, C": measured.cell[0], "LSTM, H": measured.hidden[0], "LSTM, x": measured.input}
    show_reach(by_name | {"tanh RNN, h": state, "tanh RNN, x": inputs})
    if asked.blanks and asked.text == "stories":
        answer(models, corpus, asked.blanks)


if __name__ == "__main__":
    main()
