"""What `lstmlm eval` says of a text: its score, and what stands beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lstmlm.display.console import Console
from lstmlm.errors import printable
from lstmlm.units import bits, counted

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.api import LanguageModel
    from lstmlm.data.corpus import Corpus
    from lstmlm.evaluation.scoring import Score
    from lstmlm.training.dynamic import Rates


@dataclass(frozen=True)
class Scores:
    """A text's score, and what was asked for beside it.

    words: What stands between white space.
    trained_on: Whether it is the text that the model was trained on.
    dynamic: Of a network that learned as it went, at these rates, chosen on the training text or not.
    baselines: Bits per character by simpler means, by name.
    notes: In what it is unlike the training text, though both look alike.
    utf8: Whether the text is in UTF-8, whose bytes count, as they do for one in another encoding.
    mixed: Of the network that learned, mixed with counts of contexts; those of the training text too if its rates were chosen.
    """

    score: "Score"
    words: int
    trained_on: bool = False
    dynamic: "Score | None" = None
    rates: "Rates | None" = None
    chosen: bool = False
    baselines: "dict[str, float] | None" = None
    notes: "Sequence[str]" = ()
    utf8: bool = True
    mixed: "Score | None" = None

    @property
    def bits_per_word(self) -> float | None:
        """Bits of all characters for each word; None where there is no word."""
        return bits(self.score.nats / self.words) if self.words else None

    @property
    def perplexity_per_word(self) -> float | None:
        """The number of equally likely words that would be as hard to guess; None where there is no word."""
        return math.exp(min(700.0, self.score.nats / self.words)) if self.words else None


def baseline_scores(model: "LanguageModel", corpus: "Corpus", known: list[int], score: "Score") -> dict[str, float]:
    """Return what the text takes by the baselines, in bits per character, unknown characters charged as always."""
    import torch

    from lstmlm.data.tokenizer import ByteTokenizer
    from lstmlm.evaluation import baselines
    from lstmlm.evaluation.scoring import frequencies, which_char

    symbols, ids = model.tokenizer, torch.tensor(known, dtype=torch.int64)
    train = corpus.train.tensor(max(0, len(corpus.train) - baselines.MOST_CHARS), len(corpus.train))

    def raw(part: "Tensor") -> bytes:
        if isinstance(symbols, ByteTokenizer):
            return symbols.decode_bytes(part.tolist())
        return symbols.decode(part.tolist()).encode("utf-8", "surrogatepass")

    of_ids = {
        "order3": bits(baselines.by_counts(train, ids, frequencies(model.counts))),
        "bzip2": baselines.by_bzip2(raw(train), raw(ids)),
        "xz": baselines.by_xz(raw(train), raw(ids)),
    }
    times = (score.chars - score.unknown + score.rare) / max(1, len(ids))  # times as long as what was looked at
    charge = bits(which_char(score.unknown))
    per_char = {name: (found * times + charge) / score.chars for name, found in of_ids.items()}
    return {"order0": score.order0_bits_per_char, **per_char}


def as_dict(scores: Scores, protocol: str, window: int) -> dict[str, object]:
    """Return what --json prints of one model."""
    score, dynamic, rates = scores.score, scores.dynamic, scores.rates
    return {
        "protocol": protocol,
        "window": window if protocol == "cold" else None,
        "chars": score.chars,
        "bytes": score.bytes,
        "unknown": score.unknown,
        "known_bits_per_char": score.known_bits_per_char if _any_read(score) else None,
        "nats_per_char": score.nats_per_char,
        "bits_per_char": score.bits_per_char,
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
        "order0_bits_per_char": score.order0_bits_per_char,
        "words": scores.words,
        "bits_per_word": scores.bits_per_word,
        "perplexity_per_word": scores.perplexity_per_word,
        "trained_on": scores.trained_on,
        "dynamic": {
            "nats_per_char": dynamic.nats_per_char,
            "bits_per_char": dynamic.bits_per_char,
            "accuracy": dynamic.accuracy,
            "rates": asdict(rates),
            "rates_from": "training text" if scores.chosen else "default",
        }
        if dynamic and rates
        else None,
        "mixed": {
            "nats_per_char": mixed.nats_per_char,
            "bits_per_char": mixed.bits_per_char,
            "contexts_from": "training text and this one" if scores.chosen else "this text",
        }
        if (mixed := scores.mixed)
        else None,
        "baselines_bits_per_char": scores.baselines,
    }


def costs(found: dict[str, Scores]) -> dict[str, float]:
    """Return the bits that the text takes by each model, by the model's name."""
    return {name: bits(scores.score.nats) for name, scores in found.items()}


def likeliest(costs: Mapping[str, float]) -> str | None:
    """Return the model to which a text costs least, in all: characters and bytes alike. None: to several alike."""
    least = min(costs.values())
    found = [name for name, cost in costs.items() if cost == least]
    return found[0] if len(found) == 1 else None


def show_models(console: Console, found: dict[str, Scores]) -> None:
    """Print a row for each model, and which of them is the likeliest to have written the text."""
    each = costs(found)
    best, least = likeliest(each), min(each.values())
    rows = [
        (name, each[name], one.score.bits_per_char, one.score.unknown, f"+{each[name] - least:.2f}")
        for name, one in found.items()
    ]
    headers = ("model", "bits of the text", "bits/char", "unknown", "worse by")
    console.table(rows, headers, best=list(found).index(best) if best else None)
    console.result(f"likeliest: {printable(best) if best else 'none, it costs several alike'}")


def show(console: Console, scores: Scores, protocol: str, window: int) -> None:
    """Print the score, and below it what the same text takes by other means."""
    score, dynamic = scores.score, scores.dynamic
    how = "state carried through the text" if protocol == "warm" else f"windows of {window} from an empty state"
    without = f" ({'without saying which' if score.rare else 'without'}: {score.known_bits_per_char:.4f} bits/char)"
    unknown = f", {score.unknown:,} of them unknown{without if _any_read(score) else ''}" if score.unknown else ""
    console.headline(
        f"{score.bits_per_char:.4f} bits/char   {score.nats_per_char:.4f} nats/char   perplexity {score.perplexity:.2f}   "
        f"first guess right {score.accuracy:.1%}",
    )
    size = f"{score.bits_per_byte:.4f} bits/byte{'' if scores.utf8 else ' in UTF-8'}"
    console.result(f"{counted(score.chars, 'character')}{unknown}, {size}, {protocol}: {how}")
    if scores.bits_per_word is not None:
        per_word = f"{scores.bits_per_word:.4f} bits/word, perplexity {_large(score.nats / scores.words)} per word"
        console.result(f"{counted(scores.words, 'word')}, {per_word}")
    if dynamic and not scores.chosen:
        console.say("--dynamic takes its usual rate: the training text, on which it chooses one, was not found")
    if not dynamic and not scores.baselines:
        alone = f"{score.order0_bits_per_char:.4f} bits/char"
        console.result(f"by the frequencies of single characters alone it would take {alone}")
        return
    names = {
        "order0": "frequencies of single characters",
        "order3": "counts of what follows 3 characters",
        "bzip2": "bzip2 after the training text",
        "xz": "xz after the training text",
    }
    rows = [(names[name], value, "") for name, value in (scores.baselines or {"order0": score.order0_bits_per_char}).items()]
    rows.append((f"this network, {protocol}", score.bits_per_char, ""))
    if dynamic:
        gain = 1 - dynamic.nats / score.nats if score.nats else 0.0
        note = f"{abs(gain):.1%} {'less' if gain >= 0 else 'more'}: it learns from the text as it goes, what is scored first"
        rows.append(("this network, dynamic", dynamic.bits_per_char, note))
    if scores.mixed:
        seen = "the training text and this one so far" if scores.chosen else "this text so far"
        rows.append(("dynamic, mixed with counts", scores.mixed.bits_per_char, f"counts of {seen}"))
    best = min(range(len(rows)), key=lambda row: rows[row][1])
    console.table(rows, ("the same text by", "bits/char", ""), best=best)


def _any_read(score: "Score") -> bool:
    """Return whether the network read any character of a text: of none it has no mean."""
    return score.chars - score.unknown + score.rare > 0


def _large(nats: float) -> str:
    """Return e to the power of a number as people read it: the perplexity of a word that is a line has hundreds of digits."""
    tens = nats / math.log(10)
    if tens < 9:
        return f"{math.exp(nats):,.2f}"
    digits = f"{10 ** (tens % 1):.1f}"  # 9.97 would be shown as 10.0
    return f"1.0e+{int(tens) + 1}" if digits == "10.0" else f"{digits}e+{int(tens)}"
