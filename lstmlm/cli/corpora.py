"""How the commands open a corpus: bundled names, and the text that an earlier run was trained on."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm.cli.text_input import written
from lstmlm.cli.text_reader import Text
from lstmlm.config import run_config
from lstmlm.config.run_config import RunConfig
from lstmlm.data.corpus import Corpus, open_configured
from lstmlm.data.sources import find_sources
from lstmlm.errors import TextError, UsageError, in_shell, printable
from lstmlm.machine import ids_folder

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel

LOOKED_AT, SHOWN = 4000, 20  # characters at the beginning of standard input, and lines in them, that may be names of files


def open_named(
    names: list[str],
    config: RunConfig,
    *,
    val: str | None = None,
    symbols: str | None = None,
    advice: str = "",
    begins: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Corpus:
    """Open what the command line names, as the configuration says; see `open_configured`."""
    corpus = open_configured(
        names, config, cache_dir=ids_folder(), val=val, symbols=symbols, advice=advice, begins=begins, progress=progress
    )
    if "-" in names:
        _refuse_names(corpus)
    return corpus


def _refuse_names(corpus: Corpus) -> None:
    """Refuse the names of files in place of their texts, which is what `find` and `ls` print."""
    train, val = (part.tensor(0, min(LOOKED_AT, len(part))).tolist() for part in (corpus.train, corpus.val))
    for ids in (train, train + val):  # one name alone ends in the validation part
        *lines, _ = corpus.tokenizer.decode(ids).split("\n")
        if lines and all(0 < len(line) < 4096 and "\0" not in line and os.path.lexists(line) for line in lines[:SHOWN]):
            raise UsageError(
                f"text -: expected a text on standard input, found names of files, such as {printable(lines[0][:80])}. To "
                "learn what is in the files: --files-from -. To learn the names: put them into a file first."
            )


def seen_in_training(names: list[str], val: str) -> str | None:
    """Return the name of a validation file that is in the corpus too, if there is one: its score would say nothing."""
    bundled = run_config.resource_dir("data")
    trained = {source.identity for source in find_sources(names, bundled) if source.identity}
    return next((source.name for source in find_sources([val], bundled) if source.identity in trained), None)


def known_texts(
    was: dict[str, Any], named: list[str], val: str | None, folder: Path | None = None
) -> tuple[list[str], str | None]:
    """Return the names of a run's texts: those that are named, or, of a run that goes on, those that it was begun with.

    Where a folder is named in which all of them are found by their names, it is where they have been moved to.

    Args:
        was: What the run's checkpoint says of its corpus; empty of a new run.
        named: The texts on the command line; none: the run knows them.
        val: The validation text on the command line.
        folder: Of the run, for messages.

    Raises:
        TextError: The run's texts are not known, or were standard input.
    """
    sources, old_val = _recorded(was)
    if not named:
        again = "" if folder is None else f" It goes on with: {going_on(['TEXT'], folder)}"
        if not sources:
            raise TextError(f"text: expected the place of the text that the run learns, found none written down.{again}")
        if "-" in [*sources, val or old_val]:
            raise TextError(f"text: expected the text that the run learns, found none: it was standard input.{again}")
        for name in [*sources, *([old_val] if old_val else [])]:
            _refuse_special(name, f"Name the text itself.{again}")
        return sources, val or old_val
    moved = _moved(named[0], sources, old_val) if len(named) == 1 else None
    if moved:
        return moved[0], val or moved[1]
    return named, val or (old_val if old_val != "-" else None)


@contextlib.contextmanager
def may_have_moved(folder: Path) -> Iterator[None]:
    """Add to what is wrong with a text that only the run in a folder has named how to say where it is now."""
    try:
        yield
    except TextError as error:
        raise TextError(f"{error} If it was moved, say where it is now: {going_on(['PLACE'], folder)}") from None


def going_on(texts: list[str], folder: Path) -> str:
    """Return the command that goes on with the run in a folder, on these texts."""
    return in_shell("lstmlm", "train", *texts, "--resume", "--out", str(folder))


def _recorded(was: dict[str, Any]) -> tuple[list[str], str | None]:
    """Return the names of a run's texts, training and validation, as its checkpoint has them: it may be a stranger's."""
    sources, val = was.get("sources"), was.get("val")
    return [str(s) for s in sources] if isinstance(sources, list) else [], str(val) if val else None


def _moved(place: str, sources: list[str], val: str | None) -> tuple[list[str], str | None] | None:
    """Return where a run's texts are in a folder, each by its name; None where they are not."""
    if "-" in [*sources, val] or not os.path.isdir(place):
        return None
    found = [os.path.join(place, os.path.basename(name)) for name in [*sources, *([val] if val else [])]]
    if not sources or not all(map(os.path.exists, found)):
        return None
    return found[: len(sources)], found[-1] if val else None


def open_for(model: "LanguageModel", advice: str) -> Corpus:
    """Open the text that a model was trained on, and make sure that it is the same.

    Args:
        model: The model.
        advice: What the user can do where it is gone, as a sentence.

    Raises:
        TextError: It is gone or has changed.
    """
    names, val, advice = _sources(model, advice)
    try:
        corpus = open_named(names, model.config, val=val, symbols=model.meta["tokenizer"].get("symbols"), begins=False)
    except TextError as error:
        raise TextError(f"the text that the run was trained on: {error} {advice}") from None
    if corpus.fingerprint != model.meta["corpus"].get("fingerprint"):
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
        corpus = open_for(model, advice)
        return written(model, corpus.train.tensor(0, len(corpus.train)).tolist())
    names, val, advice = _sources(model, advice)
    try:
        texts = [Text(part, [model], None, by_line=False) for part in (names, [val] if val else []) if part]
        text, *_ = ["".join(part) for part in texts]
    except TextError as error:
        raise TextError(f"the text that the run was trained on: {error} {advice}") from None
    if not Text.of_model(model, texts):
        raise _has_changed(names, advice)
    if model.tokenizer.kind == "byte":
        return written(model, model.tokenizer.encode(text)[: sum(model.counts)])
    return text[: sum(model.counts)]


def _sources(model: "LanguageModel", advice: str) -> tuple[list[str], str | None, str]:
    """Return the names of the text that a model was trained on and of its validation text, and the advice where they are not it.

    Raises:
        TextError: There is none, or one cannot be read again.
    """
    # The checkpoint may be a stranger's: what it names is opened only if that cannot wait for ever or do something.
    sources, val = _recorded(model.corpus)
    if model.text_place is not None:
        sources, val = known_texts(model.corpus, [model.text_place], None)
    if not sources:
        raise TextError(f"text: expected the place of the text that the run was trained on, found none written down. {advice}")
    if "-" in sources:
        raise TextError(f"text: expected the text that the run was trained on, found none: it was standard input. {advice}")
    if model.text_place is None and model.corpus.get("count"):
        raise TextError(
            f"text: expected the names of the texts that the run was trained on, found {len(sources)} of "
            f"{printable(str(model.corpus['count']))}. {advice}"
        )
    if val == "-":
        raise TextError(f"text: expected the validation text that the run had, found none: it was standard input. {advice}")
    for name in [*sources, *([val] if val else [])]:
        _refuse_special(name, advice)
    if model.text_place is None:
        advice = f"If it was moved, say with --corpus where it is; else {advice[0].lower()}{advice[1:]}"
    return sources, val, advice


def _has_changed(names: list[str], advice: str) -> TextError:
    return TextError(
        f"text {printable(' '.join(names))}: expected the text that the run was trained on, found one that has changed. {advice}"
    )


def _refuse_special(name: str, advice: str) -> None:
    """Refuse a FIFO, device or socket that a checkpoint names as its text."""
    with contextlib.suppress(OSError, ValueError):  # what is missing is said later
        mode = os.stat(name).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise TextError(
                f"text {printable(name)}: expected the text that the run was trained on, found a pipe or device. {advice}"
            )
