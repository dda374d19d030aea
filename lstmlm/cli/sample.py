"""The command `lstmlm sample`."""

import codecs
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lstmlm.cli.options import MACHINE, MODEL, OUTPUT, Device, Json, Model, OnUnknown, Quiet, TextPlace, Threads
from lstmlm.cli.text_input import open_file, open_model, read_text
from lstmlm.data.tokenizer import RARE, readable
from lstmlm.display.console import Console, is_terminal, unicode_allowed
from lstmlm.errors import CheckFailed, TextError, UsageError, in_shell, printable
from lstmlm.evaluation.sampling import DRAWN_TOGETHER
from lstmlm.training.malloc import freeze_gc
from lstmlm.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lstmlm.api import LanguageModel, Sample
    from lstmlm.data.tokenizer import OnUnknown as Rule
    from lstmlm.evaluation.sampler import Sampling

    Pieces = Iterator[tuple[int, str, Sample | None]]

DEFAULT_LENGTH = 500
TRIES = 20  # for each sample that --new is to find
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end


GROUPS = {
    "Text": "--prompt 'Bob is' --length 200",
    MODEL: "-m runs/stories",
    "Choice of characters": "--temperature 0.7 --top-p 0.9",
    OUTPUT: "-n 3 --json",
    MACHINE: "--threads 2",
}


def sample(
    bare: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to go on from.", rich_help_panel="Text")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Read the prompt from a file or stdin.", rich_help_panel="Text")
    ] = None,
    keep_line_end: Annotated[
        bool,
        typer.Option("--keep-line-end", help="Keep the line end at the end of --prompt-file.", rich_help_panel="Text"),
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="A prompt a line: a JSON line for each sample, as it comes.", rich_help_panel="Text"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Characters to write; 0: until stopped.",
            show_default="500, with --lines 500 a line",
            rich_help_panel="Text",
        ),
    ] = None,
    lines: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Write so many whole lines.", rich_help_panel="Text")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.", rich_help_panel="Text")
    ] = None,
    new: Annotated[
        bool,
        typer.Option("--new", help="Leave out samples that the training text has.", rich_help_panel="Text"),
    ] = False,
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
            help="Round no weights: slower; rounding costs less than 0.0001 nats a character.",
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
    corpus: TextPlace = None,
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
            help="Samples to write; 64 are drawn at a time, on a GPU 4,096.",
            rich_help_panel=OUTPUT,
        ),
    ] = 1,
    separator: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Between samples.",
            show_default="an empty line; nothing more where each is one line",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    no_echo: Annotated[bool, typer.Option("--no-echo", help="Do not write the prompt.", rich_help_panel=OUTPUT)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write text with a model, each character as soon as it is drawn.

    lstmlm sample --prompt "Bob is"

    lstmlm sample -m runs/stories --length 200 --temperature 0.8 --seed 1

    lstmlm sample -n 20 --lines 1 --new

    lstmlm sample --prompts questions.txt --length 40 --stop .

    lstmlm sample --prompt "Bob i" --next 5
    """
    _refuse_bare_words(bare or [], prompt)
    ends = bool(stop or lines)
    if length == 0 and not ends and next_ is None and (json or prompts is not None or count > 1 or new):
        raise UsageError(
            "--length 0 writes without end: expected one plain sample, found --json, --prompts, --new or -n. "
            "Give a --length, --lines or a --stop."
        )
    if sum(given is not None for given in (prompt, prompt_file, prompts)) > 1:
        raise UsageError("--prompt, --prompt-file and --prompts: expected one of them, found more.")
    if keep_line_end and prompt_file is None:
        raise UsageError("--keep-line-end: expected --prompt-file too, found it alone.")
    if new and (lines or 1) > 1:
        raise UsageError(f"--new: expected samples that are looked up whole, found --lines {lines}. Use -n {lines} --lines 1.")
    if greedy:
        of_chance = {
            f"--temperature {temperature:g}": temperature not in (0.0, 1.0),
            f"--top-k {top_k}": top_k > 1,
            f"--top-p {top_p:g}": 0.0 < top_p < 1.0,
            f"-n {count}": count > 1,
        }
        if found := " and ".join(flag for flag, given in of_chance.items() if given):
            raise UsageError(
                f"--greedy writes one text, the same always: expected no {found} beside it, found both. Leave one out."
            )
    if next_ is not None:
        of_drawing = {
            "--temperature": temperature != 1.0,
            "--top-k": top_k != 0,
            "--top-p": top_p != 1.0,
            "--greedy": greedy,
            "--seed": seed is not None,
            "--stop": bool(stop),
            "--lines": bool(lines),
            "--new": new,
            "-n": count != 1,
        }
        if found := " and ".join(flag for flag, given in of_drawing.items() if given):
            raise UsageError(
                f"--next draws nothing, and shows the network's own probabilities: expected no {found} beside it, found both. "
                "Leave one out."
            )

    with freeze_gc():
        from lstmlm.evaluation.sampler import Sampling
        from lstmlm.evaluation.text_sampler import drawn_seed

    console = Console(quiet=quiet)
    opened = open_model(console, model, threads, device, corpus)
    first_seed = drawn_seed(seed)
    text = prompt or ""
    if prompt_file is not None:
        text = read_text("--prompt-file", prompt_file, opened.tokenizer.bad_bytes)
        if not keep_line_end and text.endswith("\n"):  # of `echo`, or an editor: nobody means it
            text = text[:-1].removesuffix("\r")
    strange = [] if opened.tokenizer.rare is None or on_unknown != "error" else opened.tokenizer.unknown(text)
    if strange:
        console.say(f"prompt: {counted(len(strange), 'character')} read as the model's symbol for rare ones, U+FFFD")
    samples = _Samples(
        opened,
        Sampling(temperature, top_k, top_p, greedy, exact),
        length=length if length is not None else DEFAULT_LENGTH * (lines or 1),
        count=count,
        seed=first_seed,
        stop=stop or [],
        lines=lines or 0,
        on_unknown=cast("Rule", on_unknown),
        training_text=_TrainingText(opened, stop or [], bool(lines)) if new else None,
    )

    def answer(text: str, pieces: "Pieces | None" = None) -> None:
        """Write the JSON lines of a prompt."""
        for facts in [samples.next(text, next_)] if next_ is not None else samples.facts(text, pieces):
            _print_json(console, {"prompt": readable(text), **facts})

    if next_ is not None and prompts is None:
        if json:
            answer(text)
        else:
            for symbol, p in opened.next(text, next_, on_unknown=samples.on_unknown):
                console.result(f"{p:.6f}\t{printable(symbol)}")
        return
    pieces = samples.drawn(text)  # what is wrong with the prompt is said before anything is written
    for flag, given in (("--stop", stop or []), ("--separator", [separator or ""])):
        if any("\\n" in one for one in given):
            console.warn(f"{flag}: a backslash and an n stand for themselves. Did you mean a line end, {flag} $'\\n'?")
    if seed is None and not greedy and next_ is None:
        console.say(f"seed {first_seed}")
    if prompts is not None:
        _answer_all(console, prompts, opened.tokenizer.bad_bytes, answer)
    elif json:
        answer(text, pieces)
    else:
        _write(console, samples, text, pieces, separator, echo=not no_echo)


@dataclass
class _Samples:
    """The samples that were asked for, of any prompt.

    length: Characters of one, at most.
    seed: Of the first; each has the next one.
    training_text: What the text holds is left out; None: nothing is.
    rare: Characters so far that are the model's symbol for any rare one.
    """

    model: "LanguageModel"
    how: "Sampling"
    length: int
    count: int
    seed: int
    stop: list[str]
    lines: int
    on_unknown: "Rule"
    training_text: "_TrainingText | None"
    rare: int = 0

    @property
    def may_be_cut(self) -> bool:
        """Whether a sample is to end otherwise than by its length."""
        return bool(self.stop or self.lines)

    def drawn(self, text: str, first: int = 0, given: int = 0) -> "Pieces":
        """Return the pieces of the next samples as they are drawn; what is wrong with the prompt is raised at once.

        Args:
            text: The prompt.
            first: How many were drawn before.
            given: How many of them count.
        """
        pieces = self.model.draw(
            text,
            length=self.length,
            n=min(DRAWN_TOGETHER[self.model.device], self.count - given),
            seed=self.seed + first,
            how=self.how,
            stop=self.stop,
            lines=self.lines,
            on_unknown=self.on_unknown,
        )
        return self._watched(pieces)

    def _watched(self, pieces: "Pieces") -> "Pieces":
        for piece in pieces:
            self.rare += self.model.tokenizer.rare is not None and piece[1].count(RARE)
            yield piece

    def whole(self, text: str, pieces: "Pieces | None" = None) -> "Iterator[tuple[str, Sample]]":
        """Give each sample of a prompt with its text, batch after batch.

        Args:
            text: The prompt.
            pieces: Of the first batch, where it has begun.

        Raises:
            CheckFailed: Too few of them are new.
        """
        first = given = 0
        while given < self.count and first < (self.count if self.training_text is None else TRIES * self.count):
            texts: dict[int, list[str]] = {}
            ended: dict[int, Sample] = {}
            n = min(DRAWN_TOGETHER[self.model.device], self.count - given)
            for index, piece, end in self.drawn(text, first, given) if first or pieces is None else pieces:
                texts.setdefault(index, []).append(piece)
                if end is not None:
                    ended[index] = end
            first += n
            for index, end in sorted(ended.items()):
                written = "".join(texts[index])
                if self.training_text is None or not self.training_text.holds(text + written, end):
                    given += 1
                    yield written, end
        if given < self.count:
            raise CheckFailed(
                f"--new: expected {counted(self.count, 'sample')} that the training text does not hold, found {given} in "
                f"{first} that were drawn. Try a higher --temperature."
            )

    def facts(self, text: str, pieces: "Pieces | None" = None) -> "Iterator[dict[str, object]]":
        """Give what --json prints of each sample of a prompt; as `whole`."""
        for written, end in self.whole(text, pieces):
            yield {"text": readable(written), "seed": end.seed, "nats": end.nats, "stop": end.stop}

    def next(self, text: str, most: int) -> dict[str, object]:
        """Return what --next --json prints of a prompt: the likeliest characters after it."""
        likeliest = self.model.next(text, most, on_unknown=self.on_unknown)
        return {"next": [{"text": symbol, "probability": p} for symbol, p in likeliest]}


def _print_json(console: Console, facts: dict[str, object]) -> None:
    console.as_json({"schema": 1, "command": "sample", **facts}, flush=True)


def _write(console: Console, samples: _Samples, text: str, pieces: "Pieces", separator: str | None, *, echo: bool) -> None:
    """Write the samples of a prompt as text: a single one as it is drawn, several one after another.

    Args:
        console: Where to.
        samples: That were asked for.
        text: The prompt.
        pieces: Of the first batch, which has begun.
        separator: Between samples; None: what keeps them apart.
        echo: The prompt stands before each.
    """
    before, live = text if echo else "", is_terminal(sys.stdout)
    mark = "..." if not unicode_allowed(console.stdout) else "…"  # behind what would have gone on
    cut = 0
    if samples.count == 1 and samples.training_text is None:
        console.result(_shown(before, live), end="", flush=live)
        for _, piece, end in pieces:
            cut += samples.may_be_cut and end is not None and end.stop == "length"
            console.result(_shown(piece, live), end="", flush=live or "\n" in piece)  # a pipe's reader sees every line at once
        console.result(mark if cut else "")
    else:
        if separator is None:
            separator = "\n" if samples.lines == 1 or "\n" in samples.stop else "\n\n"
        for number, (written, end) in enumerate(samples.whole(text, pieces)):
            was_cut = samples.may_be_cut and end.stop == "length"
            cut += was_cut
            shown = f"{separator if number else ''}{before}{written}{mark if was_cut else ''}"
            console.result(_shown(shown, live), end="", flush=True)
        console.result("")
    if samples.rare:
        console.say(f"{counted(samples.rare, 'character')} of it U+FFFD, the model's symbol for any rare one")
    if cut:
        told = f"{cut} of {counted(samples.count, 'sample')} cut at {counted(samples.length, 'character')}, marked {mark}"
        console.say(f"{told}: give a longer --length")


class _TrainingText:
    """The text that a model was trained on, to look a sample up in: as a whole line where samples are lines, else anywhere.

    Args:
        model: That wrote the samples.
        stop: The texts that end one.
        lines: Whether a line end ends one.

    Raises:
        TextError: The text is gone or has changed.
    """

    def __init__(self, model: "LanguageModel", stop: list[str], lines: bool) -> None:
        from lstmlm.cli.corpora import training_text

        self._lines = lines or (bool(stop) and all("\n" in text for text in stop))
        self._text = "\n" + training_text(model, "Leave out --new.").replace("\r\n", "\n") + "\n"

    def holds(self, sample: str, end: "Sample") -> bool:
        """Say whether the text holds a sample, prompt included; of a line that was cut its beginning counts."""
        if self._lines:
            sample = f"\n{sample}" + ("" if end.stop == "length" else "\n")
        return sample in self._text


def _answer_all(console: Console, prompts: str, errors: str, answer: "Callable[[str], None]") -> None:
    """Answer each line of a file or pipe as it comes; one that cannot be answered gets an error record, and the others go on.

    Raises:
        CheckFailed: Some have no answer, all of them because --new found too few samples.
        TextError: Others have none, or the file cannot be read.
    """
    failed: list[Exception] = []
    number = 0
    for number, (line, problem) in enumerate(_lines(prompts, errors), start=1):
        try:
            if problem:
                raise TextError(problem)
            answer(line)
        except (TextError, CheckFailed) as error:
            failed.append(error)
            said = TextError(f"--prompts {printable(prompts[:200])} line {number}: {error}")
            _print_json(console, {"prompt": readable(line), "error": str(said)})
            console.error(said)
    if failed:
        asked = f"--prompts {printable(prompts[:200])}"
        kind = CheckFailed if all(isinstance(error, CheckFailed) for error in failed) else TextError
        raise kind(f"{asked}: expected an answer to {counted(number, 'line')}, found {len(failed)} without; see above.")


def _lines(name: str, errors: str) -> "Iterator[tuple[str, str]]":
    """Give the lines of a file, or of standard input as they come, without their ends; each with what is wrong with it, if any.

    Raises:
        TextError: It cannot be read.
    """
    with open_file("--prompts", name) as lines:
        for number, line in enumerate(lines):
            text = line.removeprefix(b"" if number else codecs.BOM_UTF8).removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield text.decode("utf-8", errors), ""
            except UnicodeDecodeError as error:
                found = f"byte {text[error.start]:#04x} at offset {error.start}"
                yield text.decode("utf-8", "replace"), f"expected UTF-8, found {found}. Write it as UTF-8."


def _refuse_bare_words(words: list[str], prompt: str | None) -> None:
    """Refuse words without a flag, with the flag that they probably belong to.

    Raises:
        UsageError: There are some.
    """
    if words:
        text = " ".join(words)
        flag = "-m" if os.path.exists(text) else "--prompt"
        help = f"Did you mean {flag} {in_shell(text)}?" if prompt is None else "Put a prompt of several words in quotes."
        raise UsageError(f"sample: expected options alone, found {printable(text)!r}. {help}")


def _shown(text: str, terminal: bool) -> str:
    """Return a text fit for a terminal: a network may have learnt escape sequences. Pipes and files get it as it is."""
    return CONTROL.sub(lambda match: printable(match[0]), readable(text)) if terminal else text
