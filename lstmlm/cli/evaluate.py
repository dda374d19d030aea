"""The door of `lstmlm eval`."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmlm.console import Console
from lstmlm.errors import CheckFailed, TextError, UsageError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from lstmlm.api import LanguageModel
    from lstmlm.evaluate import Score


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
    json: bool
    quiet: bool
    lines: bool = False
    chars: bool = False
    state: str = "reset"
    sort: str | None = None
    files_from: str | None = None


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
    if request.state not in ("reset", "carried"):
        raise UsageError(f"--state: expected reset or carried, found {printable(request.state)}.")
    if by_line and (request.max_bpc is not None or request.protocol != "warm"):
        raise UsageError("--lines and --chars: expected neither --max-bpc nor --protocol cold, found one of them.")
    if request.sort and not request.lines:
        raise UsageError("--sort: expected --lines too, found it alone.")
    if request.json and request.chars:
        raise UsageError("--chars: expected no --json. `inspect --json` gives the surprise of every character.")
    if request.protocol not in ("warm", "cold"):
        raise UsageError(f"--protocol: expected warm or cold, found {printable(request.protocol)}.")
    if request.max_bpc is not None and not math.isfinite(request.max_bpc):
        raise UsageError(f"--max-bpc: expected a number of bits, found {request.max_bpc}.")  # NaN would pass every text

    if request.files_from and (by_line or request.texts):
        raise UsageError("--files-from: expected neither texts nor --lines or --chars beside it, found one of them.")

    from lstmlm import memory
    from lstmlm.api import LanguageModel

    memory.keep()
    model = LanguageModel.open(request.model, threads=request.threads, report=console.warn)
    if request.model is None:
        console.say(f"model {printable(str(model.path))}")
    if by_line:
        from lstmlm.cli import lines

        lines.run(
            console, model, request.texts, request.encoding, carried=request.state == "carried", chars=request.chars,
            sort=request.sort, json=request.json,
        )  # fmt: skip
        return
    if request.files_from:
        _each(request, model, console)
        return
    score = _score(request, model, request.texts)
    if request.json:
        console.as_json(_as_dict(request, score))
    else:
        console.result(_as_text(request, score), end="")
    if request.max_bpc is not None and score.bits_per_char > request.max_bpc:
        raise CheckFailed(f"eval: expected at most {request.max_bpc:g} bits/char, found {score.bits_per_char:.4f}.")


def _each(request: Request, model: "LanguageModel", console: Console) -> None:
    """Score the files of a list one after another, and write each result before the next file is opened."""
    above = []
    for name in _listed(request.files_from or ""):
        score = _score(request, model, [name])
        if request.json:
            console.as_json({"file": name, **_as_dict(request, score)}, flush=True)
        else:
            console.result(f"{score.bits_per_char:.4f}\t{score.chars}\t{printable(name)}", flush=True)
        if request.max_bpc is not None and score.bits_per_char > request.max_bpc:
            above.append(name)
    if above:
        more = f" and {len(above) - 1} more" if len(above) > 1 else ""
        raise CheckFailed(f"eval: expected at most {request.max_bpc:g} bits/char, found more in {printable(above[0])}{more}.")


def _listed(name: str) -> Iterator[str]:
    """Give the file names of a list, one a line, as they come; empty lines are none.

    Raises:
        TextError: The list cannot be read.
    """
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as lines:
            for line in lines:
                if file := os.fsdecode(line.rstrip(b"\r\n")):
                    yield file
    except OSError as error:
        raise TextError(f"--files-from {printable(name)}: expected a list to read, found: {error.strerror}.") from None


def _score(request: Request, model: "LanguageModel", texts: list[str]) -> "Score":
    """Score texts as one, or, where none is named, the run's validation part.

    Raises:
        TextError: There is nothing to score.
    """
    from lstmlm.evaluate import Scorer

    scorer = Scorer(model.network, model.counts, request.protocol, request.window, request.batch)
    for ids, chars, size in _pieces(request, model, texts):
        scorer.add(ids, chars, size)
    score = scorer.finish()
    if not score.chars:
        what = printable(texts[0]) if request.files_from else "text to score"
        raise TextError(f"{what}: expected at least one character, found none. Name a file that has some.")
    return score


def _pieces(request: Request, model: "LanguageModel", texts: list[str]) -> "Iterator[tuple[Tensor, int, int]]":
    """Give the text piece by piece: known ids, characters, bytes in UTF-8."""
    import torch

    from lstmlm import config as settings
    from lstmlm.decoding import Tally, decode, find_encoding
    from lstmlm.sources import find_sources

    if not texts:
        yield _validation(model)
        return
    sources = find_sources(texts, settings.resource_dir("data"))
    raw = ((source, piece) for source in sources for piece in source.read())
    if model.tokenizer.kind == "byte":
        for _, piece in raw:
            yield torch.frombuffer(bytearray(piece), dtype=torch.uint8).long(), len(piece), len(piece)
        return
    for text in decode(raw, find_encoding(request.encoding), Tally()):
        ids = torch.tensor(model.tokenizer.encode(text, on_unknown="skip"), dtype=torch.int64)
        yield ids, len(text), len(text.encode("utf-8", "surrogatepass"))


def _validation(model: "LanguageModel") -> "tuple[Tensor, int, int]":
    """Return the validation part that the run had, or say why it is not to be had."""
    import torch

    from lstmlm.cli.corpora import open_for

    corpus = open_for(model.meta["corpus"], model.config, model.meta["tokenizer"].get("symbols"), "Name a text to score.")
    if not len(corpus.val):
        raise TextError("eval: expected a validation part in this run, found none. Name a text to score.")
    ids = corpus.val.tensor(0, len(corpus.val))
    lengths = torch.tensor(model.tokenizer.byte_lengths())
    return ids, len(ids), int(lengths[ids].sum())


def _as_dict(request: Request, score: "Score") -> dict[str, object]:
    return {
        "schema": 1,
        "command": "eval",
        "protocol": request.protocol,
        "window": request.window if request.protocol == "cold" else None,
        "chars": score.chars,
        "bytes": score.bytes,
        "unknown": score.unknown,
        "nats_per_char": score.nats_per_char,
        "bits_per_char": score.bits_per_char,
        "bits_per_byte": score.bits_per_byte,
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
        "order0_bits_per_char": score.order0_bits_per_char,
    }


def _as_text(request: Request, score: "Score") -> str:
    how = "state carried through the text" if request.protocol == "warm" else f"windows of {request.window} from an empty state"
    unknown = f", {score.unknown:,} of them unknown" if score.unknown else ""
    return (
        f"{score.bits_per_char:.4f} bits/char   {score.nats_per_char:.4f} nats/char   perplexity {score.perplexity:.2f}   "
        f"first guess right {score.accuracy:.1%}\n"
        f"{score.chars:,} characters{unknown}, {score.bits_per_byte:.4f} bits/byte, {request.protocol}: {how}\n"
        f"by the frequencies of single characters alone it would take {score.order0_bits_per_char:.4f} bits/char\n"
    )
