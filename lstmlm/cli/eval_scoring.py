"""How `lstmlm eval` scores texts: by every model at once, and beside it as it learns, mixed with counts, and by simpler means.

`Scoring.score` is the entry point.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmlm.cli import eval_report, text_reader
from lstmlm.cli.eval_report import Scores
from lstmlm.cli.text_input import validation_text
from lstmlm.errors import TextError, printable

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel
    from lstmlm.data.corpus import Corpus
    from lstmlm.evaluation.scoring import Score, Scorer
    from lstmlm.kernels.contexts import Mixer
    from lstmlm.training.dynamic import DynamicEvaluator, Rates


@dataclass(frozen=True)
class Scoring:
    """How texts are scored.

    models: By the names that they were given.
    encoding: Of the texts; None: that of the model's own.
    protocol: warm, or cold in windows of `window`, `batch` side by side.
    dynamic: By a network that learns as it goes too.
    mix: By that network mixed with counts of contexts too.
    baselines: By simpler means too, which learn from the training text.
    after: For each model the ids of a text that is read first.
    say: Called with a line where what mixes is slow.
    """

    models: "dict[str, LanguageModel]"
    encoding: str | None
    protocol: str
    window: int
    batch: int
    dynamic: bool
    mix: bool
    baselines: bool
    after: list[list[int]] | None
    say: Callable[[str], None]

    def score(self, texts: list[str], missing: Counter[str], *, alone: bool = True) -> dict[str, Scores]:
        """Score texts as one by every model, or, where none is named, the run's validation part, in all the ways asked for.

        What a model does not know is counted in `missing`. Of many texts that are scored alike none is `alone`.

        Raises:
            TextError: There is nothing to score.
        """
        from lstmlm.evaluation.scoring import Scorer

        models = list(self.models.values())
        corpus = _corpus(models[0], texts) if self.baselines or not texts else None
        batch = self.batch if self.protocol == "cold" else None
        scorers = [
            Scorer(model.readable, model.counts, self.protocol, self.window, batch, after=ids, rare=model.tokenizer.rare)
            for model, ids in zip(models, self.after or [[]] * len(models), strict=True)
        ]
        learning, rates, chosen = self._learning(corpus)
        text = text_reader.Text(texts, models, self.encoding, by_line=False, alone=alone) if texts else None
        learnt: list[Score | None] = [None, None]
        own = "" if corpus is None or text else validation_text(models[0], corpus, None, "Name a text to score.")
        kept = self._read(text or [own], scorers, learning, missing)
        found = [scorer.finish() for scorer in scorers]
        if not found[0].chars:
            what = printable(texts[0]) if len(texts) == 1 and texts != ["-"] else "text to score"
            raise TextError(f"{what}: expected at least one character, found none. Name a file that has some.")
        learnt[: len(learning)] = [scorer.finish() for scorer in learning]
        means = eval_report.baseline_scores(models[0], corpus, kept, found[0]) if self.baselines and corpus else None
        return {
            name: Scores(
                score,
                words=text.words if text else len(own.split()),
                trained_on=text is not None and text.trained_on(model),
                dynamic=learnt[0],
                rates=rates,
                chosen=chosen,
                baselines=means,
                notes=text.notes(model) if text else (),
                utf8=text is None or text.encoding in (None, "utf-8") or score.chars == score.bytes,
                mixed=learnt[1],
            )
            for (name, model), score in zip(self.models.items(), found, strict=True)
        }

    def _learning(self, corpus: "Corpus | None") -> "tuple[list[Scorer], Rates | None, bool]":
        """Return what scores as the first model learns, then by the mixture, its rates, and whether they were chosen.

        What is not asked for is not there.
        """
        if not self.dynamic:
            return [], None, False
        from lstmlm.evaluation.scoring import Scorer
        from lstmlm.training.dynamic import LEARN_EVERY

        model = next(iter(self.models.values()))
        if corpus is None:
            with contextlib.suppress(TextError):  # it is gone
                corpus = _corpus(model, [])
        evaluator, rates, chosen = _evaluator(model, corpus)
        reads = [evaluator.read]
        if self.mix:
            evaluator.mix(_mixer(model, corpus, self.say))
            reads.append(evaluator.mixed)
        rare = model.tokenizer.rare
        scorers = [Scorer(model.readable, model.counts, window=LEARN_EVERY, read=read, rare=rare) for read in reads]
        return scorers, rates, chosen

    def _read(
        self, text: "text_reader.Text | list[str]", scorers: "list[Scorer]", learning: "list[Scorer]", missing: Counter[str]
    ) -> list[int]:
        """Read a text once, by the scorer of each model and by what learns; return the ids that the baselines look at."""
        from lstmlm.data.tokenizer import in_form

        kept: list[int] = []
        most = 0
        if self.baselines:
            from lstmlm.evaluation import baselines

            most = baselines.MOST_CHARS
        for piece in text:
            size = len(piece.encode("utf-8", "surrogateescape"))
            for model, scorer in zip(self.models.values(), scorers, strict=True):
                ids = model.tokenizer.encode_scored(piece)
                chars = len(in_form(piece, model.tokenizer.form)) if model.tokenizer.kind == "char" else len(ids)
                if len(ids) < chars or model.tokenizer.rare in ids:
                    missing.update(char for _, char in model.tokenizer.unknown(piece))
                    if isinstance(text, text_reader.Text) and scorer is scorers[0]:  # whose notes are said
                        text.form = text.form or model.tokenizer.other_form(piece)
                scorer.add(ids, chars, size)
            for scorer in learning:
                scorer.add(ids, chars, size)
            if len(kept) < most:
                kept.extend(ids)
        return kept[:most]

    def as_dict(self, found: dict[str, Scores]) -> dict[str, object]:
        """Return what --json prints: one object, with a part for each model where there are several."""
        dicts = {name: eval_report.as_dict(scores, self.protocol, self.window) for name, scores in found.items()}
        if len(dicts) == 1:
            return {"schema": 1, "command": "eval", **next(iter(dicts.values()))}
        each = [{"model": name, **facts} for name, facts in dicts.items()]
        return {"schema": 1, "command": "eval", "likeliest": eval_report.likeliest(eval_report.costs(found)), "models": each}


def _evaluator(model: "LanguageModel", corpus: "Corpus | None") -> "tuple[DynamicEvaluator, Rates, bool]":
    """Return what learns as it reads, its rates, and whether they were chosen by the end of the training text, or are the usual.

    They are the usual ones where that text is gone.
    """
    from lstmlm.training import dynamic

    rates = dynamic.Rates()
    evaluator = dynamic.DynamicEvaluator(model.network, model.start(), rates)
    if corpus is None:
        return evaluator, rates, False
    train = corpus.train
    rates = evaluator.choose(train.tensor(max(0, len(train) - dynamic.CHOICE_CHARS - 1), len(train)).tolist())
    return evaluator, rates, True


def _mixer(model: "LanguageModel", corpus: "Corpus | None", say: Callable[[str], None]) -> "Mixer":
    """Return what mixes, with the end of the training text read where it is at hand."""
    from lstmlm.evaluation import baselines
    from lstmlm.kernels.contexts import open_mixer

    symbols = (model.tokenizer.decode([id_]) for id_ in range(len(model.counts)))
    mixer, note = open_mixer(model.counts, [symbol.isalnum() or symbol == "'" for symbol in symbols])
    if note:
        say(note)
    if corpus is not None:
        mixer.learn(corpus.train.tensor(max(0, len(corpus.train) - baselines.MOST_CHARS), len(corpus.train)))
    return mixer


def _corpus(model: "LanguageModel", texts: list[str]) -> "Corpus":
    """Return the text that the run was trained on: its validation part is scored, or baselines learn from it."""
    from lstmlm.cli.corpora import open_for

    advice = "Leave out --baselines." if texts else "Name a text to score."
    return open_for(model, advice)
