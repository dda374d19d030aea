"""How the commands open a corpus: bundled names, and the text that an earlier run was trained on."""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm.cli.text_reader import Text
from lstmlm.config import run_config
from lstmlm.config.run_config import RunConfig
from lstmlm.data.corpus import Corpus, open_configured
from lstmlm.data.sources import find_sources
from lstmlm.errors import TextError, UsageError, printable
from lstmlm.machine import cache_folder

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel

LOOKED_AT, SHOWN = 4000, 20  # characters at the beginning of standard input, and lines in them, that may be names of files


def open_named(
    names: list[str],
    config: RunConfig,
    *,
    val: str | None = None,
    symbols: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Corpus:
    """Open what the command line names, as the configuration says."""
    corpus = open_configured(
        names, config, val=val, cache_dir=cache_folder() or Path(".cache", "lstmlm"), symbols=symbols, progress=progress
    )
    if "-" in names:
        _refuse_names(corpus)
    return corpus


def _refuse_names(corpus: Corpus) -> None:
    """Refuse the names of files in place of their texts, which is what `find` and `ls` print."""
    *lines, _ = corpus.tokenizer.decode(corpus.train.tensor(0, LOOKED_AT).tolist()).split("\n")
    if lines and all(0 < len(line) < 4096 and "\0" not in line and os.path.lexists(line) for line in lines[:SHOWN]):
        raise UsageError(
            f"corpus -: expected a text on standard input, found names of files, such as {printable(lines[0][:80])}. To learn "
            "what is in the files: --files-from -. To learn the names: put them into a file first."
        )


def seen_in_training(names: list[str], val: str) -> str | None:
    """Return the name of a validation file that is in the corpus too, if there is one: its score would say nothing."""
    bundled = run_config.resource_dir("data")
    trained = {source.identity for source in find_sources(names, bundled) if source.identity}
    return next((source.name for source in find_sources([val], bundled) if source.identity in trained), None)


def open_for(was: dict[str, Any], config: RunConfig, symbols: str | None, advice: str) -> Corpus:
    """Open the text that a run was trained on, as its checkpoint names it, and make sure that it is the same.

    Args:
        was: What the checkpoint says of its corpus.
        config: The run's.
        symbols: The run's vocabulary.
        advice: What the user can do where it is not to be had, as a sentence.

    Raises:
        TextError: It is gone or has changed.
    """
    names, val = _sources(was, advice)
    try:
        corpus = open_named(names, config, val=val, symbols=symbols)
    except TextError as error:
        raise TextError(f"the text that the run was trained on: {error} {advice}") from None
    if corpus.fingerprint != was.get("fingerprint"):
        raise _has_changed(names, advice)
    return corpus


def training_text(model: "LanguageModel", advice: str) -> str:
    """Return the training part of the text that a model was trained on, without torch; bytes that are no UTF-8 escaped.

    Args:
        model: That was trained on it.
        advice: As in `open_for`.

    Raises:
        TextError: As `open_for`.
    """
    if model.config.data.split != "tail":  # it is not the beginning: what is drawn is found as training found it
        corpus = open_for(model.meta["corpus"], model.config, model.meta["tokenizer"].get("symbols"), advice)
        ids = corpus.train.tensor(0, len(corpus.train)).tolist()
        if model.tokenizer.kind == "byte":
            return bytes(ids).decode("utf-8", "surrogateescape")
        return model.tokenizer.decode(ids)
    names, val = _sources(model.meta["corpus"], advice)
    try:
        texts = [Text(part, [model], None, by_line=False) for part in (names, [val] if val else []) if part]
        written, *_ = ["".join(text) for text in texts]
    except TextError as error:
        raise TextError(f"the text that the run was trained on: {error} {advice}") from None
    if not Text.of_model(model, texts):
        raise _has_changed(names, advice)
    if model.tokenizer.kind == "byte":
        return written.encode("utf-8", "surrogateescape")[: sum(model.counts)].decode("utf-8", "surrogateescape")
    return written[: sum(model.counts)]


def _sources(was: dict[str, Any], advice: str) -> tuple[list[str], str | None]:
    """Return the names of the text that a checkpoint says it was trained on, and of its validation text.

    Raises:
        TextError: There is none, or one cannot be read again.
    """
    # The checkpoint may be a stranger's: what it names is opened only if that cannot wait for ever or do something.
    sources = was.get("sources")
    names = [str(s) for s in sources] if isinstance(sources, list) else []
    if not names or "-" in names:
        raise TextError(f"corpus: expected the text that the run was trained on, found none: it was standard input. {advice}")
    if was.get("count"):
        raise TextError(
            f"corpus: expected the names of the texts that the run was trained on, found {len(names)} of "
            f"{printable(str(was['count']))}. {advice}"
        )
    val = was.get("val")
    if val == "-":
        raise TextError(f"corpus: expected the validation text that the run had, found none: it was standard input. {advice}")
    for name in [*names, *([str(val)] if val else [])]:
        _refuse_special(name, advice)
    return names, str(val) if val else None


def _has_changed(names: list[str], advice: str) -> TextError:
    return TextError(
        f"corpus {printable(' '.join(names))}: expected the text that the run was trained on, found one that has changed. "
        f"{advice}"
    )


def _refuse_special(name: str, advice: str) -> None:
    """Refuse a FIFO, device or socket that a checkpoint names as its text."""
    with contextlib.suppress(OSError, ValueError):  # what is missing is said later
        mode = os.stat(name).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise TextError(
                f"corpus {printable(name)}: expected the text that the run was trained on, found a pipe or device. {advice}"
            )
