"""The command `lstmlm eval`."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lstmlm import machine
from lstmlm.cli import eval_report
from lstmlm.cli.eval_report import Scores
from lstmlm.cli.options import MODEL, OUTPUT, Device, Json, Model, Quiet, Threads, words
from lstmlm.cli.text_input import standard_input
from lstmlm.display.console import Console
from lstmlm.errors import CheckFailed, TextError, UsageError, printable
from lstmlm.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.api import LanguageModel
    from lstmlm.data.corpus import Corpus
    from lstmlm.evaluation.dynamic import DynamicEvaluator, Rates


SHOWN = 5  # characters that the model does not know, by name


GROUPS = {
    "Text": "held-out.txt --max-bpc 2.2",
    "Ways of scoring": "--protocol cold --window 128",
    "By line, character or file": "--lines --sort surprise",
    MODEL: "-m runs/stories --threads 2",
    OUTPUT: "--json -q",
}

RULES = """\
The first character is charged at its frequency in the training text (one added to each count). A character that the model
does not know is charged log2(1,114,112) = 20.09 bits, and is not fed to the network. With --protocol cold the text is cut
into windows of N inputs, each from an empty state, and the character after each input is scored. With --dynamic it is also
scored by a copy of the network that learns from each 128 characters once it has been scored on them.

--lines scores every line with its line end, from an empty state after a line end, or with --state carried from where the line
before it ended (then the lines sum to the score of the whole). Lines of a pipe are scored as they come.
"""


def eval(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT...]", help="Files, folders, or - for stdin.", show_default="the run's validation part"),
    ] = None,
    max_bpc: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.0, help="Exit 1 if the text takes more bits/char.", rich_help_panel="Text"),
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of the text files.", rich_help_panel="Text")] = "utf-8",
    protocol: Annotated[
        str,
        typer.Option(
            metavar="warm|cold",
            callback=words("warm", "cold"),
            help="Carry the state through the text, or start each window empty.",
            rich_help_panel="Ways of scoring",
        ),
    ] = "warm",
    window: Annotated[
        int, typer.Option(metavar="N", min=1, help="Inputs of a cold window.", rich_help_panel="Ways of scoring")
    ] = 256,
    batch: Annotated[
        int,
        typer.Option(
            metavar="B", min=1, help="Windows side by side; changes the speed, not the score.", rich_help_panel="Ways of scoring"
        ),
    ] = 64,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Also score a network that learns from the text, each piece once it is scored.",
            rich_help_panel="Ways of scoring",
        ),
    ] = False,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Bits/char by counts, bzip2 and xz too.",
            show_default="if no TEXT is named",
            rich_help_panel="Ways of scoring",
        ),
    ] = None,
    lines: Annotated[
        bool,
        typer.Option(
            "--lines", help="A score for every line, as TSV or --json lines.", rich_help_panel="By line, character or file"
        ),
    ] = False,
    state: Annotated[
        str,
        typer.Option(
            metavar="reset|carried",
            callback=words("reset", "carried"),
            help="With --lines or --chars: between lines.",
            rich_help_panel="By line, character or file",
        ),
    ] = "reset",
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="surprise",
            callback=words("surprise"),
            help="With --lines: the most surprising first, empty ones last.",
            rich_help_panel="By line, character or file",
        ),
    ] = None,
    chars: Annotated[
        bool,
        typer.Option(
            "--chars",
            help="The text, coloured by the surprise of every character.",
            rich_help_panel="By line, character or file",
        ),
    ] = False,
    files_from: Annotated[
        str | None,
        typer.Option(
            metavar="LIST|-",
            help="A score for each file named in LIST, one a line, as it comes.",
            rich_help_panel="By line, character or file",
        ),
    ] = None,
    model: Model = None,
    threads: Threads = 0,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a text: every character is scored exactly once.

    lstmlm eval held-out.txt --max-bpc 2.2

    find texts -name '*.txt' | lstmlm eval --files-from - --json

    tail -f log | lstmlm eval --lines -
    """
    texts = text or []
    beside = dynamic or bool(baselines)
    if lines and chars:
        raise UsageError("eval: expected --lines or --chars, found both.")
    if (lines or chars) and (max_bpc is not None or protocol != "warm" or beside):
        raise UsageError("--lines and --chars: expected no --max-bpc, --protocol cold, --dynamic or --baselines, found one.")
    if sort and not lines:
        raise UsageError("--sort: expected --lines too, found it alone.")
    if json and chars:
        raise UsageError("--chars: expected no --json. `inspect --json` gives the surprise of every character.")
    if max_bpc is not None and not math.isfinite(max_bpc):
        raise UsageError(f"--max-bpc: expected a number of bits, found {max_bpc}.")  # NaN would pass every text
    if files_from == "":
        raise UsageError("--files-from: expected the name of a list, or - for stdin, found nothing.")
    if files_from and (lines or chars or texts or beside):
        raise UsageError("--files-from: expected no texts, --lines, --chars, --dynamic or --baselines beside it, found one.")

    from lstmlm.api import LanguageModel
    from lstmlm.training import malloc

    malloc.tune_malloc()
    console = Console(quiet=quiet)
    opened = LanguageModel.open(model, threads=threads or machine.cpus(), device=device, report=console.warn)
    if model is None:
        console.say(f"model {printable(str(opened.path))}")
    if lines or chars:
        from lstmlm.cli import eval_lines as by_line

        by_line.run(console, opened, texts, encoding, carried=state == "carried", chars=chars, sort=bool(sort), json=json)
        return
    plain = baselines if baselines is not None else not (texts or files_from)
    score = partial(
        _score, opened, encoding=encoding, protocol=protocol, window=window, batch=batch, dynamic=dynamic, plain=plain
    )
    if files_from:
        above = []
        for name in _listed(files_from):
            found = score([name], missing=Counter())
            if json:
                console.as_json({"file": name, **eval_report.as_dict(found, protocol, window)}, flush=True)
            else:
                console.result(f"{found.score.bits_per_char:.4f}\t{found.score.chars}\t{printable(name)}", flush=True)
            if max_bpc is not None and not found.score.bits_per_char <= max_bpc:
                above.append(name)
        if above:
            more = f" and {len(above) - 1} more" if len(above) > 1 else ""
            raise CheckFailed(f"eval: expected at most {max_bpc:g} bits/char, found more in {printable(above[0])}{more}.")
        return
    missing: Counter[str] = Counter()
    found = score(texts, missing=missing)
    if missing:
        console.say(_not_known(missing))
    if json:
        console.as_json(eval_report.as_dict(found, protocol, window))
    else:
        eval_report.show(console, found, protocol, window)
    if max_bpc is not None and not found.score.bits_per_char <= max_bpc:
        raise CheckFailed(f"eval: expected at most {max_bpc:g} bits/char, found {found.score.bits_per_char:.4f}.")


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
    from lstmlm.data.tokenizer import describe

    shown = [f"{describe(char)} {counted(count, 'time')}" for char, count in missing.most_common(SHOWN)]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"not known to the model, 20.09 bits each: {', '.join(shown)}{more}"


def _score(
    model: "LanguageModel",
    texts: list[str],
    *,
    encoding: str,
    protocol: str,
    window: int,
    batch: int,
    dynamic: bool,
    plain: bool,
    missing: Counter[str],
) -> Scores:
    """Score texts as one, or, where none is named, the run's validation part, in all the ways asked for.

    What the model does not know is counted in `missing`.

    Raises:
        TextError: There is nothing to score.
    """
    import torch

    from lstmlm.evaluation import baselines
    from lstmlm.evaluation.dynamic import SEGMENT
    from lstmlm.evaluation.scoring import Scorer

    corpus = _corpus(model, texts) if plain or not texts else None
    scorers = [Scorer(model.network, model.counts, protocol, window, batch)]
    rates = None
    if dynamic:
        evaluator, rates = _evaluator(model, corpus)
        scorers.append(Scorer(model.network, model.counts, window=SEGMENT, read=evaluator.read))
    kept: list[Tensor] = []
    pieces = _pieces(model, texts, encoding, missing) if texts else [_validation(model, corpus)]
    for ids, chars, size in pieces:
        for scorer in scorers:
            scorer.add(ids, chars, size)
        if plain and sum(map(len, kept)) < baselines.MOST:
            kept.append(ids)
    score, *learnt = [scorer.finish() for scorer in scorers]
    if not score.chars:
        what = printable(texts[0]) if len(texts) == 1 and texts != ["-"] else "text to score"
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
    model: "LanguageModel", texts: list[str], encoding: str, missing: Counter[str]
) -> "Iterator[tuple[Tensor, int, int]]":
    """Give the text piece by piece: known ids, characters, bytes in UTF-8."""
    import torch

    from lstmlm.config import run_config
    from lstmlm.data.decoding import decode, find_encoding
    from lstmlm.data.sources import find_sources

    sources = find_sources(texts, run_config.resource_dir("data"))
    raw = ((source, piece) for source in sources for piece in source.read())
    if model.tokenizer.kind == "byte":
        for _, piece in raw:
            yield torch.frombuffer(bytearray(piece), dtype=torch.uint8).long(), len(piece), len(piece)
        return
    for text in decode(raw, find_encoding(encoding)):
        ids = torch.tensor(model.tokenizer.encode(text, on_unknown="skip"), dtype=torch.int64)
        if len(ids) < len(text):
            missing.update(char for _, char in model.tokenizer.unknown(text))
        yield ids, len(text), len(text.encode("utf-8", "surrogatepass"))


def _validation(model: "LanguageModel", corpus: "Corpus | None") -> "tuple[Tensor, int, int]":
    """Return the validation part that the run had, or say that it had none."""
    import torch

    if corpus is None or not len(corpus.val):
        raise TextError("eval: expected a validation part in this run, found none. Name a text to score.")
    ids = corpus.val.tensor(0, len(corpus.val))
    lengths = torch.tensor(model.tokenizer.byte_lengths())
    return ids, len(ids), int(lengths[ids].sum())
