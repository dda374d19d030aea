"""The command `lstmlm eval`."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmlm.cli import eval_report
from lstmlm.cli.eval_report import Scores
from lstmlm.cli.text_input import one_of, standard_input
from lstmlm.data.tokenizer import describe
from lstmlm.display.console import Console
from lstmlm.errors import CheckFailed, TextError, UsageError, printable
from lstmlm.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.api import LanguageModel
    from lstmlm.data.corpus import Corpus
    from lstmlm.evaluation.dynamic import DynamicEvaluator, Rates


SHOWN = 5  # characters that the model does not know, by name


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    texts: list[str]
    model: str | None
    protocol: str
    window: int
    batch: int
    max_bpc: float | None
    encoding: str
    threads: int
    device: str
    json: bool
    quiet: bool
    lines: bool = False
    chars: bool = False
    state: str = "reset"
    sort: str | None = None
    files_from: str | None = None
    dynamic: bool = False
    baselines: bool | None = None


def run(request: Request) -> None:
    """Score a text and print the result.

    Raises:
        CheckFailed: The text takes more bits/char than --max-bpc allows; the result is printed all the same.
        LstmlmError: With the exit code of what went wrong.
    """
    console = Console(quiet=request.quiet)
    by_line = request.lines or request.chars
    if request.lines and request.chars:
        raise UsageError("eval: expected --lines or --chars, found both.")
    one_of("--state", request.state, ("reset", "carried"))
    beside = request.dynamic or bool(request.baselines)
    if by_line and (request.max_bpc is not None or request.protocol != "warm" or beside):
        raise UsageError("--lines and --chars: expected no --max-bpc, --protocol cold, --dynamic or --baselines, found one.")
    if request.sort and not request.lines:
        raise UsageError("--sort: expected --lines too, found it alone.")
    if request.json and request.chars:
        raise UsageError("--chars: expected no --json. `inspect --json` gives the surprise of every character.")
    one_of("--protocol", request.protocol, ("warm", "cold"))
    if request.max_bpc is not None and not math.isfinite(request.max_bpc):
        raise UsageError(f"--max-bpc: expected a number of bits, found {request.max_bpc}.")  # NaN would pass every text

    if request.files_from == "":
        raise UsageError("--files-from: expected the name of a list, or - for stdin, found nothing.")
    if request.files_from and (by_line or request.texts or beside):
        raise UsageError("--files-from: expected no texts, --lines, --chars, --dynamic or --baselines beside it, found one.")

    from lstmlm.api import LanguageModel
    from lstmlm.training import malloc

    malloc.tune_malloc()
    model = LanguageModel.open(request.model, threads=request.threads, device=request.device, report=console.warn)
    if request.model is None:
        console.say(f"model {printable(str(model.path))}")
    if by_line:
        from lstmlm.cli import eval_lines

        eval_lines.run(
            console, model, request.texts, request.encoding, carried=request.state == "carried", chars=request.chars,
            sort=request.sort, json=request.json,
        )  # fmt: skip
        return
    if request.files_from:
        _each(request, model, console)
        return
    missing: Counter[str] = Counter()
    found = _score(request, model, request.texts, missing)
    if missing:
        console.say(_not_known(missing))
    if request.json:
        console.as_json(eval_report.as_dict(found, request.protocol, request.window))
    else:
        console.result(eval_report.as_text(found, request.protocol, request.window), end="")
    score = found.score
    if request.max_bpc is not None and not score.bits_per_char <= request.max_bpc:
        raise CheckFailed(f"eval: expected at most {request.max_bpc:g} bits/char, found {score.bits_per_char:.4f}.")


def _each(request: Request, model: "LanguageModel", console: Console) -> None:
    """Score the files of a list one after another, and write each result before the next file is opened."""
    above = []
    for name in _listed(request.files_from or ""):
        found = _score(request, model, [name], Counter())
        score = found.score
        if request.json:
            console.as_json({"file": name, **eval_report.as_dict(found, request.protocol, request.window)}, flush=True)
        else:
            console.result(f"{score.bits_per_char:.4f}\t{score.chars}\t{printable(name)}", flush=True)
        if request.max_bpc is not None and not score.bits_per_char <= request.max_bpc:
            above.append(name)
    if above:
        more = f" and {len(above) - 1} more" if len(above) > 1 else ""
        raise CheckFailed(f"eval: expected at most {request.max_bpc:g} bits/char, found more in {printable(above[0])}{more}.")


def _listed(name: str) -> Iterator[str]:
    """Give the file names of a list, one a line, as they come; empty lines are none.

    Raises:
        TextError: The list cannot be read, or there is no name in it: a check of nothing would pass.
    """
    listed = 0
    try:
        with contextlib.nullcontext(standard_input("--files-from -")) if name == "-" else open(name, "rb") as lines:
            for line in lines:
                if file := os.fsdecode(line.rstrip(b"\r\n")):
                    listed += 1
                    yield file
    except OSError as error:
        raise TextError(f"--files-from {printable(name)}: expected a list to read, found: {error.strerror}.") from None
    if not listed:
        raise TextError(f"--files-from {printable(name)}: expected the name of a file, found none. Put one in a line.")


def _not_known(missing: Counter[str]) -> str:
    """Say which characters the model lacks, the commonest first: a CRLF for a line end looks like any other text."""
    shown = [f"{describe(char)} {counted(count, 'time')}" for char, count in missing.most_common(SHOWN)]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"not known to the model, 20.09 bits each: {', '.join(shown)}{more}"


def _score(request: Request, model: "LanguageModel", texts: list[str], missing: Counter[str]) -> Scores:
    """Score texts as one, or, where none is named, the run's validation part, in all the ways asked for.

    What the model does not know is counted in `missing`.

    Raises:
        TextError: There is nothing to score.
    """
    import torch

    from lstmlm.evaluation import baselines, dynamic
    from lstmlm.evaluation.scoring import Scorer

    plain = request.baselines if request.baselines is not None else not (texts or request.files_from)
    corpus = _corpus(model, texts) if plain or not texts else None
    scorers = [Scorer(model.network, model.counts, request.protocol, request.window, request.batch)]
    rates = None
    if request.dynamic:
        evaluator, rates = _evaluator(model, corpus)
        scorers.append(Scorer(model.network, model.counts, window=dynamic.SEGMENT, read=evaluator.read))
    kept: list[Tensor] = []
    for ids, chars, size in _pieces(request, model, texts, corpus, missing):
        for scorer in scorers:
            scorer.add(ids, chars, size)
        if plain and sum(map(len, kept)) < baselines.MOST:
            kept.append(ids)
    score, *learnt = [scorer.finish() for scorer in scorers]
    if not score.chars:
        what = printable(texts[0]) if request.files_from else "text to score"
        raise TextError(f"{what}: expected at least one character, found none. Name a file that has some.")
    means = eval_report.plain_means(model, corpus, torch.cat(kept)[: baselines.MOST], score) if plain and corpus else None
    return Scores(score, learnt[0] if learnt else None, rates, means)


def _evaluator(model: "LanguageModel", corpus: "Corpus | None") -> "tuple[DynamicEvaluator, Rates]":
    """Return what learns as it reads, at rates chosen by the end of the training text, or at the usual ones if that is gone."""
    from lstmlm.evaluation import dynamic

    rates = dynamic.Rates()
    evaluator = dynamic.DynamicEvaluator(model.network, model.start(), rates)
    with contextlib.suppress(TextError):
        train = (corpus or _corpus(model, [])).train
        rates = evaluator.choose(train.tensor(max(0, len(train) - dynamic.CHOICE_CHARS - 1), len(train)))
    return evaluator, rates


def _corpus(model: "LanguageModel", texts: list[str]) -> "Corpus":
    """Return the text that the run was trained on: its validation part is scored, or plainer means learn from it."""
    from lstmlm.cli.corpora import open_for

    advice = "Leave out --baselines." if texts else "Name a text to score."
    return open_for(model.meta["corpus"], model.config, model.meta["tokenizer"].get("symbols"), advice)


def _pieces(
    request: Request, model: "LanguageModel", texts: list[str], corpus: "Corpus | None", missing: Counter[str]
) -> "Iterator[tuple[Tensor, int, int]]":
    """Give the text piece by piece: known ids, characters, bytes in UTF-8."""
    import torch

    from lstmlm.config import run_config
    from lstmlm.data.decoding import decode, find_encoding
    from lstmlm.data.sources import find_sources

    if not texts:
        assert corpus is not None
        yield _validation(model, corpus)
        return
    sources = find_sources(texts, run_config.resource_dir("data"))
    raw = ((source, piece) for source in sources for piece in source.read())
    if model.tokenizer.kind == "byte":
        for _, piece in raw:
            yield torch.frombuffer(bytearray(piece), dtype=torch.uint8).long(), len(piece), len(piece)
        return
    for text in decode(raw, find_encoding(request.encoding)):
        ids = torch.tensor(model.tokenizer.encode(text, on_unknown="skip"), dtype=torch.int64)
        if len(ids) < len(text):
            missing.update(char for _, char in model.tokenizer.unknown(text))
        yield ids, len(text), len(text.encode("utf-8", "surrogatepass"))


def _validation(model: "LanguageModel", corpus: "Corpus") -> "tuple[Tensor, int, int]":
    """Return the validation part that the run had, or say that it had none."""
    import torch

    if not len(corpus.val):
        raise TextError("eval: expected a validation part in this run, found none. Name a text to score.")
    ids = corpus.val.tensor(0, len(corpus.val))
    lengths = torch.tensor(model.tokenizer.byte_lengths())
    return ids, len(ids), int(lengths[ids].sum())
