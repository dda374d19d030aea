"""The command `lstmlm sample`."""

import os
import re
import secrets
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmlm.cli.text_input import read_text, unknown_rule
from lstmlm.display.console import Console, is_terminal
from lstmlm.errors import UsageError, printable
from lstmlm.training.malloc import freeze_gc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lstmlm.api import Sample

TOGETHER = {"cpu": 64, "cuda": 4096}  # samples drawn as one batch and then written: memory does not grow with their number

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    model: str | None
    prompt: str | None
    prompt_file: str | None
    length: int
    temperature: float
    top_k: int
    top_p: float
    greedy: bool
    exact: bool
    seed: int | None
    stop: list[str]
    count: int
    on_unknown: str
    echo: bool
    threads: int
    device: str
    json: bool
    quiet: bool


def refuse_words(words: list[str], prompt: str | None) -> None:
    """Refuse words without a flag, with the flag that they probably belong to.

    Raises:
        UsageError: There are some.
    """
    if words:
        text = " ".join(words)
        flag = "-m" if os.path.exists(text) else "--prompt"
        help = (
            f"Did you mean {flag} {printable(shlex.quote(text))}?"
            if prompt is None
            else "Put a prompt of several words in quotes."
        )
        raise UsageError(f"sample: expected options alone, found {printable(text)!r}. {help}")


def run(request: Request) -> None:
    """Write samples to stdout, each character as soon as it is drawn.

    Raises:
        LstmlmError: With the exit code of what went wrong.
    """
    console = Console(quiet=request.quiet)
    on_unknown = unknown_rule(request.on_unknown)
    if request.length == 0 and not request.stop and (request.json or request.count > 1):
        raise UsageError(
            "--length 0 writes without end: expected one plain sample, found --json or -n. Give a --length or a --stop."
        )
    prompt = _prompt(request)

    with freeze_gc():
        from lstmlm.api import LanguageModel
        from lstmlm.evaluation.sampler import Sampling

    model = LanguageModel.open(request.model, threads=request.threads, device=request.device, report=console.warn)
    seed = request.seed if request.seed is not None else secrets.randbelow(2**31)
    if request.model is None:
        console.say(f"model {printable(str(model.path))}")
    how = Sampling(request.temperature, request.top_k, request.top_p, request.greedy, request.exact)

    together = TOGETHER[model.device.type]

    def drawn(first: int) -> "Iterator[tuple[int, str, Sample | None]]":
        n = min(together, request.count - first)
        return model.stream(
            prompt, length=request.length, n=n, seed=seed + first, how=how, stop=request.stop, on_unknown=on_unknown
        )

    pieces = drawn(0)  # what is wrong with the prompt is said before anything is written
    if request.seed is None and not request.greedy:
        console.say(f"seed {seed}")
    echo = prompt if request.echo else ""
    live = is_terminal(sys.stdout)
    if request.count == 1 and not request.json:
        console.result(_shown(echo, live), end="", flush=live)
        for _, piece, _ in pieces:
            console.result(_shown(piece, live), end="", flush=live)
        console.result("")
        return
    for first in range(0, request.count, together):
        texts: dict[int, list[str]] = {}
        ended = {}
        for index, piece, end in drawn(first) if first else pieces:
            texts.setdefault(index, []).append(piece)
            if end is not None:
                ended[index] = end
        for index, end in sorted(ended.items()):
            text = "".join(texts[index])
            if request.json:
                facts = {"prompt": prompt, "text": text, "seed": end.seed, "nats": end.nats, "stop": end.stop}
                console.as_json({"schema": 1, "command": "sample", **facts}, flush=True)
            else:
                last = first + index == request.count - 1
                console.result(_shown(f"{echo}{text}", live), end="\n" if last else "\n\n", flush=True)


def _shown(text: str, terminal: bool) -> str:
    """Return a text fit for a terminal: a network may have learnt escape sequences. Pipes and files get it as it is."""
    return CONTROL.sub(lambda match: printable(match[0]), text) if terminal else text


def _prompt(request: Request) -> str:
    if request.prompt is not None and request.prompt_file is not None:
        raise UsageError("--prompt and --prompt-file: expected one of them, found both.")
    return read_text("--prompt-file", request.prompt_file) if request.prompt_file is not None else request.prompt or ""
