"""Answer `data/blanks.tsv` four ways: a trained LSTM, the same one without its long memory, a tanh RNN, and counts.

    fill_rivals.py runs/stories [--rnn-hidden 512] [--rnn-lr 0.002] [--epochs 5]

The LSTM is a run of `lstmlm train stories`; without its long memory means that C is set to zero at each full stop. The RNN
is `torch.nn.RNN`, trained here on the same text with the run's own batch, window and schedule; with twice the LSTM's units it
has about as many parameters. The counts are of every six characters in a row, so that five predict the next one.
It prints a table for each kind of blank: the share that is right, by the distance from the last mention; and how far back
LSTM and RNN look, as `reach_rnn.py` does.
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from reach_rnn import BLANKS, LENGTH, PREDICTIONS, PlainRNN, reach_of_rnn, show_reach, train

from lstmlm.analysis.activations import Forgetting
from lstmlm.analysis.gradient_reach import reach
from lstmlm.api import LanguageModel
from lstmlm.cli.corpora import open_for
from lstmlm.data.batches import Streams
from lstmlm.data.corpus import Corpus
from lstmlm.display.text_plots import table
from lstmlm.evaluation.cloze import Asked, Filler, by_distance, chance, parse_set
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.model.char_lm import CharLM
from lstmlm.units import bits

ORDER = 5
SMOOTHING = 0.01


class Counts:
    """Says what a text costs by the characters that followed each five characters in a training text."""

    def __init__(self, text: str) -> None:
        self._symbols = len(set(text))
        self._seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for i in range(ORDER, len(text)):
            self._seen[text[i - ORDER : i]][text[i]] += 1

    def nats(self, text: str) -> float:
        """Return minus the log probability of all characters but the first five."""
        cost = 0.0
        for i in range(ORDER, len(text)):
            seen = self._seen[text[i - ORDER : i]] if text[i - ORDER : i] in self._seen else Counter[str]()
            cost -= math.log((seen[text[i]] + SMOOTHING) / (seen.total() + SMOOTHING * self._symbols))
        return cost

    def right(self, one: Asked) -> float:
        """Return the chance that the likeliest filling is the right one; several that are equally likely share it."""
        costs = {words: self.nats("\n" + one.question.filled(words)) for words in one.question.fillings()}
        best = [words for words, cost in costs.items() if cost <= min(costs.values()) + 1e-9]
        return (one.answer in best) / len(best)


def decoded(model: LanguageModel, corpus: Corpus) -> str:
    """Return the training text."""
    return model.tokenizer.decode(corpus.train.tensor(0, len(corpus.train)).tolist())


def trained_rnn(model: LanguageModel, corpus: Corpus, hidden: int, rate: float, epochs: float) -> PlainRNN:
    """Train a tanh RNN as the run was trained, but for its rate."""
    config = model.config.train
    assert config.batch is not None
    assert config.window is not None
    steps = max(1, int(Streams(corpus.train, config.batch, config.window).steps_per_epoch * epochs))
    torch.manual_seed(config.seed)
    rnn = PlainRNN(hidden, len(model.tokenizer), orthogonal=True)
    score = train(rnn, corpus, replace(config, minutes=None, epochs=None, steps=steps, lr=rate), "tanh RNN")
    print(f"tanh RNN: {hidden} units, {steps} steps at a rate of {rate:g}; last tenth {bits(score):.3f} bits/char in training")
    return rnn.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Open the run, train the RNN, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="of `lstmlm train stories`")
    parser.add_argument("--rnn-hidden", type=int, default=512)
    parser.add_argument("--rnn-lr", type=float, default=0.002)
    parser.add_argument("--epochs", type=float, default=5.0, help="passes of the RNN over the training text")
    parser.add_argument("--every", type=int, default=1, help="ask only each so-many-th blank")
    parser.add_argument("--threads", type=int, default=0)
    asked_for = parser.parse_args(arguments)
    model = LanguageModel.open(asked_for.run, threads=asked_for.threads)
    corpus = open_for(model, "Train it again.")
    blanks = parse_set(BLANKS.read_text(encoding="utf-8"), str(BLANKS))[:: asked_for.every]
    opening = model.tokenizer.encode("\n")
    stop = model.tokenizer.encode(".")[0]
    rnn = trained_rnn(model, corpus, asked_for.rnn_hidden, asked_for.rnn_lr, asked_for.epochs)
    filler = partial(Filler, encode=model.tokenizer.encode, counts=model.counts, opening=opening)
    networks = {
        "LSTM": filler(model.network),
        "C zeroed at each '.'": filler(TorchReader(model.network, run=Forgetting(model.alone, stop))),
        "tanh RNN": filler(TorchReader(cast(CharLM, rnn))),
    }
    right: dict[str, list[float]] = {
        name: [
            float(answers[0].words == one.answer)
            for one, answers in zip(blanks, network.rank([b.question for b in blanks]), strict=True)
        ]
        for name, network in networks.items()
    }
    counts = Counts(decoded(model, corpus))
    right[f"counts of order {ORDER}"] = [counts.right(one) for one in blanks]
    for kind in dict.fromkeys(one.kind for one in blanks):
        rows = [i for i, one in enumerate(blanks) if one.kind == kind]
        asked = [blanks[i] for i in rows]
        cells: list[list[str | int | float]] = []
        for bucket in by_distance(asked, [True] * len(asked)):
            low, high = bucket.low or 0, bucket.high or 0
            inside = [i for i in rows if low <= (blanks[i].distance or 0) < high]
            cells.append([f"{low}-{high - 1}", len(inside), *(_share(hits, inside) for hits in right.values())])
        cells.append(["all", len(rows), *(_share(hits, rows) for hits in right.values())])
        print(f"\n{kind} (guessing: {chance(asked):.1%})")
        print(table(cells, ("characters back", "blanks", *right)))
    ids = corpus.val.tensor(0, min(len(corpus.val), 20_000))
    measured = reach(model.alone, ids, LENGTH, PREDICTIONS)
    state, inputs = reach_of_rnn(rnn, ids)
    layers = {f"LSTM, C {n}": norms for n, norms in enumerate(measured.cell, start=1)}
    layers |= {f"LSTM, H {n}": norms for n, norms in enumerate(measured.hidden, start=1)}
    print()
    show_reach(layers | {"LSTM, x": measured.input, "tanh RNN, h": state, "tanh RNN, x": inputs})


def _share(hits: Sequence[float], rows: Sequence[int]) -> str:
    return f"{math.fsum(hits[i] for i in rows) / len(rows):.1%}"


if __name__ == "__main__":
    main()
