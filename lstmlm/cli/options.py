"""Options that several commands share, each declared once; and how a command declares its own."""

import importlib
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lstmlm.cli.text_input import one_of
from lstmlm.errors import UsageError, printable
from lstmlm.model import devices

MODEL, MACHINE, OUTPUT = "Model", "Machine", "Output"
"""Headings of `--help` that most commands have."""


def one_model(command: str, argument: str | None, option: str | None) -> str | None:
    """Return the model that a command's argument or its -m names; None: neither does.

    Raises:
        UsageError: They name two.
    """
    if argument and option and argument != option:
        raise UsageError(
            f"{command}: expected one model, found two: {printable(argument)} and {printable(option)}. Leave one out."
        )
    return argument or option


def require_extra(flag: str, module: str, instead: str) -> None:
    """Make sure that a library is there that only `pip install 'lstmlm[...]'` brings.

    Raises:
        UsageError: It is not, or it does not work here; says what to do instead.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        package = module.rpartition(".")[2]
        raise UsageError(
            f"{flag}: expected the package {package}, found none that works ({printable(str(error)[:120])}). "
            f"Install it (pip install 'lstmlm[{package}]'), or {instead}."
        ) from None


def words(*known: str) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """Return a callback that refuses what is none of some words, before the command does anything."""

    def check(param: typer.CallbackParam, given: str | None) -> str | None:
        return given if given is None else one_of(param.opts[0], given, known)

    return check


def most_bits(heading: str, text: str) -> Any:
    """Return the option --max-bpc of a command that scores `text`, below a heading of its help."""
    return typer.Option(
        "--max-bpc",
        metavar="X",
        min=0.0,
        callback=_finite,
        help=f"Exit 1 if {text} takes more bits/char.",
        rich_help_panel=heading,
    )


def _finite(given: float | None) -> float | None:
    """Refuse NaN, which would pass everything, and infinity."""
    if given is not None and not math.isfinite(given):
        raise UsageError(f"--max-bpc: expected a number of bits, found {given}.")
    return given


def _device(given: str) -> str:
    """Refuse what is no device, before torch is imported, with the word that was probably meant."""
    if given not in devices.DEVICES:
        from lstmlm.config import schema

        schema.KEYS["train.device"].parse(given, "--device")
    return given


def _encoding(given: str | None) -> str | None:
    """Refuse what is no text encoding, before a model is opened, with the one that was probably meant."""
    if given is not None:
        from lstmlm.data.decoding import find_encoding

        find_encoding(given, "--encoding")
    return given


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Run folder or .safetensors file.", show_default="newest run below runs/"),
]
ModelAgain = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="The same.", rich_help_panel=MODEL)]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="Run folder or .safetensors file.", show_default="newest run below runs/",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="Run folder or .safetensors file; of several the likeliest is named.",
        show_default="newest run below runs/", rich_help_panel=MODEL,
    ),
]  # fmt: skip
Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", callback=_encoding, help="Of the text files.", show_default="the model's own", rich_help_panel="Text"
    ),
]
TextPlace = Annotated[
    str | None,
    typer.Option(
        "--corpus", metavar="PLACE", help="Where the text that it was trained on is now, if it was moved.", rich_help_panel=MODEL
    ),
]
Threads = Annotated[int, typer.Option(metavar="N", min=0, max=4096, help="CPU threads; 0: all cores.", rich_help_panel=MACHINE)]
Device = Annotated[
    str,
    typer.Option(
        metavar="|".join(devices.DEVICES), callback=_device, help="Where to compute; auto: on a GPU that works.",
        rich_help_panel=MACHINE,
    ),
]  # fmt: skip
OnUnknown = Annotated[
    str,
    typer.Option(
        metavar="error|skip|replace", callback=words("error", "skip", "replace"),
        help="What to do with characters that the model does not know.", rich_help_panel=MODEL,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, an object a line.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors on stderr.", rich_help_panel=OUTPUT)]
