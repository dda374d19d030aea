"""The command `lstmlm sample`."""

import codecs
import contextlib
import os
import re
import secrets
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lstmlm import machine
from lstmlm.cli.options import MODEL, OUTPUT, Device, Json, Model, OnUnknown, Quiet, Threads
from lstmlm.cli.text_input import read_text, standard_input, unknown_rule
from lstmlm.display.console import Console, is_terminal
from lstmlm.errors import TextError, UsageError, printable
from lstmlm.training.malloc import freeze_gc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lstmlm.api import Sample

DRAWN_TOGETHER = {"cpu": 64, "cuda": 4096}  # samples drawn as one batch and then written: memory does not grow with their number

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end


GROUPS = {
    "Text": "--prompt 'Bob is' --length 200",
    "Choice of characters": "--temperature 0.7 --top-p 0.9",
    MODEL: "-m runs/stories --threads 2",
    OUTPUT: "-n 3 --json",
}


def sample(
    bare: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to go on from.", rich_help_panel="Text")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Read the prompt from a file or stdin.", rich_help_panel="Text")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="A prompt a line: a JSON line for each sample, as it comes.", rich_help_panel="Text"),
    ] = None,
    length: Annotated[
        int, typer.Option(metavar="N", min=0, help="Characters to write; 0: until stopped.", rich_help_panel="Text")
    ] = 500,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.", rich_help_panel="Text")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=2**62,
            help="Draws the same text again.",
            show_default="drawn, and said",
            rich_help_panel="Text",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="Below 1 safer, above 1 wilder.", rich_help_panel="Choice of characters")
    ] = 1.0,
    top_k: Annotated[
        int,
        typer.Option(metavar="K", min=0, help="Choose among the k likeliest; 0: all.", rich_help_panel="Choice of characters"),
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="P",
            min=0.0,
            max=1.0,
            help="Choose among the fewest with this probability.",
            rich_help_panel="Choice of characters",
        ),
    ] = 1.0,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="The largest score is the prediction, always.", rich_help_panel="Choice of characters"),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Round no weights: slower; rounding costs some 0.0003 nats a character.",
            rich_help_panel="Choice of characters",
        ),
    ] = False,
    next_: Annotated[
        int | None,
        typer.Option(
            "--next",
            metavar="K",
            min=1,
            help="No text: the K likeliest next characters, each with its probability.",
            rich_help_panel="Choice of characters",
        ),
    ] = None,
    model: Model = None,
    on_unknown: OnUnknown = "error",
    threads: Threads = 0,
    device: Device = "auto",
    count: Annotated[
        int,
        typer.Option(
            "--count",
            "-n",
            metavar="COUNT",
            min=1,
            help="Samples, drawn in batches of 64, on a GPU of 4,096.",
            rich_help_panel=OUTPUT,
        ),
    ] = 1,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Do not write the prompt.", rich_help_panel=OUTPUT)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write text with a model, each character as soon as it is drawn.

    lstmlm sample --prompt "Bob is"

    lstmlm sample -m runs/stories --length 200 --temperature 0.8 --seed 1

    lstmlm sample --prompts questions.txt --length 40 --stop .

    lstmlm sample --prompt "Bob i" --next 5
    """
    _refuse_bare_words(bare or [], prompt)
    if length == 0 and not stop and next_ is None and (json or prompts is not None or count > 1):
        raise UsageError(
            "--length 0 writes without end: expected one plain sample, found --json, --prompts or -n. "
            "Give a --length or a --stop."
        )
    if sum(given is not None for given in (prompt, prompt_file, prompts)) > 1:
        raise UsageError("--prompt, --prompt-file and --prompts: expected one of them, found more.")
    if next_ is not None and (count, temperature, top_k, top_p, greedy, seed, bool(stop)) != (1, 1.0, 0, 1.0, False, None, False):
        raise UsageError(
            "--next draws nothing, and shows the network's own probabilities: expected no --temperature, --top-k, --top-p, "
            "--greedy, --seed, --stop or -n, found one. Leave it out."
        )
    text = read_text("--prompt-file", prompt_file) if prompt_file is not None else prompt or ""

    with freeze_gc():
        from lstmlm.api import LanguageModel
        from lstmlm.evaluation.sampler import Sampling

    console = Console(quiet=quiet)
    opened = LanguageModel.open(model, threads=threads or machine.cpus(), device=device, report=console.warn)
    first_seed = seed if seed is not None else secrets.randbelow(2**31)
    if model is None:
        console.say(f"model {printable(str(opened.path))}")
    how = Sampling(temperature, top_k, top_p, greedy, exact)
    together, rule = DRAWN_TOGETHER[opened.device], unknown_rule(on_unknown)

    def drawn(text: str, first: int) -> "Iterator[tuple[int, str, Sample | None]]":
        n = min(together, count - first)
        return opened.stream(text, length=length, n=n, seed=first_seed + first, how=how, stop=stop or [], on_unknown=rule)

    def finished(text: str, pieces: "Iterator[tuple[int, str, Sample | None]]") -> "Iterator[tuple[str, Sample]]":
        """Give each sample with its text, batch after batch; the pieces are those of the first one."""
        for first in range(0, count, together):
            texts: dict[int, list[str]] = {}
            ended = {}
            for index, piece, end in drawn(text, first) if first else pieces:
                texts.setdefault(index, []).append(piece)
                if end is not None:
                    ended[index] = end
            yield from (("".join(texts[index]), end) for index, end in sorted(ended.items()))

    def print_json(facts: dict[str, object]) -> None:
        console.as_json({"schema": 1, "command": "sample", **facts}, flush=True)

    def answer(text: str, pieces: "Iterator[tuple[int, str, Sample | None]] | None" = None) -> None:
        """Write the JSON lines of a prompt."""
        if next_ is not None:
            likeliest = opened.next(text, next_, on_unknown=rule)
            print_json({"prompt": text, "next": [{"text": symbol, "probability": p} for symbol, p in likeliest]})
            return
        for written, end in finished(text, pieces or drawn(text, 0)):
            print_json({"prompt": text, "text": written, "seed": end.seed, "nats": end.nats, "stop": end.stop})

    live = is_terminal(sys.stdout)
    if next_ is not None and prompts is None:
        if json:
            answer(text)
        else:
            for symbol, p in opened.next(text, next_, on_unknown=rule):
                console.result(f"{p:.6f}\t{printable(symbol)}")
        return
    pieces = drawn(text, 0)  # what is wrong with the prompt is said before anything is written
    if seed is None and not greedy and next_ is None:
        console.say(f"seed {first_seed}")
    if prompts is not None:
        for number, line in _lines(prompts):
            try:
                answer(line)
            except TextError as error:
                raise TextError(f"--prompts {printable(prompts[:200])} line {number}: {error}") from None
        return
    if json:
        answer(text, pieces)
        return
    echo = "" if no_echo else text
    if count == 1:
        console.result(_shown(echo, live), end="", flush=live)
        for _, piece, _ in pieces:
            console.result(_shown(piece, live), end="", flush=live)
        console.result("")
        return
    for number, (written, _) in enumerate(finished(text, pieces), start=1):
        console.result(_shown(f"{echo}{written}", live), end="\n" if number == count else "\n\n", flush=True)


def _lines(name: str) -> "Iterator[tuple[int, str]]":
    """Give the lines of a file, or of standard input as they come, without their ends; each with its number.

    Raises:
        TextError: It cannot be read, or a line is not UTF-8.
    """
    shown = f"--prompts {printable(name[:200])}"
    try:
        with contextlib.nullcontext(standard_input(shown)) if name == "-" else open(name, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").removesuffix(b"\n").removesuffix(b"\r")
                try:
                    yield number, text.decode()
                except UnicodeDecodeError as error:
                    found = f"byte {text[error.start]:#04x} at offset {error.start}"
                    raise TextError(f"{shown} line {number}: expected UTF-8, found {found}. Write the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TextError(f"{shown}: expected a file to read, found: {printable(reason)}. Check its name.") from None


def _refuse_bare_words(words: list[str], prompt: str | None) -> None:
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


def _shown(text: str, terminal: bool) -> str:
    """Return a text fit for a terminal: a network may have learnt escape sequences. Pipes and files get it as it is."""
    return CONTROL.sub(lambda match: printable(match[0]), text) if terminal else text
