"""What a shell offers behind an option, where only some words are right; where none of them begins as typed, it offers files.

Nothing here imports torch: a key was pressed, and somebody waits.
"""

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterable

FIXED = re.compile(r"[a-z0-9|-]+")  # a metavar that is the words themselves: `torch|onnx`


def offer(command: Callable[..., None]) -> None:
    """Give each parameter of a command that takes a few words what a shell offers for it; its metavar says which."""
    for one in inspect.signature(command).parameters.values():
        for info in getattr(one.annotation, "__metadata__", ()):
            info.autocompletion = _offered(str(info.metavar))


def _offered(metavar: str) -> Callable[..., list[str]] | None:
    """Return what gives the words that may stand for a metavar; None: there is none to offer."""
    known: dict[str, Callable[..., list[str]]] = {
        "NAME|FILE": _configurations,
        "CORPUS...": _texts,
        "MODEL": _runs,
        "[MODEL]": _runs,
        "WHAT,...": _shows,
    }

    def fixed() -> list[str]:
        return metavar.split("|")

    return fixed if FIXED.fullmatch(metavar) else known.get(metavar)


def _configurations(incomplete: str) -> list[str]:
    from lstmlm.config import run_config

    return _with_files(run_config.presets(), incomplete, (".yaml", ".yml"))


def _texts(incomplete: str) -> list[str]:
    from lstmlm.config import run_config

    return _with_files((path.stem for path in run_config.resource_dir("data").glob("*.txt")), incomplete, ("",))


def _runs(incomplete: str) -> list[str]:
    from lstmlm.storage import run_dir

    with contextlib.suppress(OSError):
        return _with_files((str(run.folder) for run in run_dir.found()), incomplete, (".safetensors",))
    return []


def _shows(incomplete: str) -> list[str]:
    from lstmlm.cli.inspect import SHOWS

    before = incomplete[: incomplete.rfind(",") + 1]
    return [before + name for name in SHOWS if name not in before.split(",")]


def _with_files(words: Iterable[str], incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Return the words that begin as typed and, beside them, the files here that do; nothing where the shell alone knows more."""
    right = [word for word in words if word.startswith(incomplete)]
    if right:
        with contextlib.suppress(OSError):
            names = sorted(name for name in os.listdir() if name.endswith(endings) and not name.startswith("."))
            right += [name for name in names if name.startswith(incomplete) and name not in right]
    return [word for word in right if word.isprintable()]
