"""What a checkpoint's description says of the model: its configuration and its tokenizer, of this version or an earlier one.

The entry points are `check`, for whoever loads a model or goes on with a run, and `parts`, for `info` too. They need no torch.
"""

import hashlib
import os
from dataclasses import replace
from typing import Any

from lstmlm.config.run_config import RunConfig, from_dict
from lstmlm.data import tokenizer
from lstmlm.data.tokenizer import Tokenizer
from lstmlm.errors import CheckpointError, ConfigError, UsageError, printable
from lstmlm.model import weights
from lstmlm.storage.header import Header

LONGEST_NAMES, FEW_NAMES = 4096, 3  # characters of the names of its texts that a model keeps, and names where there are more
_ANOTHER = "Take another copy of the model, or train it again."


def parts(meta: dict[str, Any], ignored: list[str] | None = None) -> tuple[RunConfig, Tokenizer]:
    """Return the configuration and the tokenizer in a checkpoint's description, checked.

    Args:
        meta: As `header.META` has it.
        ignored: Takes the settings of training that this version does not know: for reading a model they play no part. None:
            they are refused, as for going on with its training.

    Raises:
        CheckpointError: They do not make sense, alone or together.
    """
    try:
        config = from_dict(meta["config"], ignored=ignored)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint: its configuration is refused: {error}{_writer(meta)} {_ANOTHER}") from None
    if config.data.split == "auto":  # it was saved by a version that knew the end alone
        config = replace(config, data=replace(config.data, split="tail"))
    if "multiplicative" not in meta["config"].get("model", {}):  # likewise one that knew no such layer
        config = replace(config, model=replace(config.model, multiplicative=False))
    if config.model.pairs is None:  # nor such rows
        config = replace(config, model=replace(config.model, pairs=0))
    if "rename" not in meta["config"].get("train", {}):  # and one that read each text as it is
        config = replace(config, train=replace(config.train, rename=0.0))
    symbols = tokenizer.from_dict(meta["tokenizer"], config.data.normalize)
    if (symbols.rare is not None) != (config.data.min_count > 1 and symbols.kind == "char"):
        raise CheckpointError(
            f"checkpoint: expected a symbol of rare characters where data.min_count asks for one, found otherwise. {_ANOTHER}"
        )
    try:
        tokenizer.separator_ids(config.model.document_separator, symbols)
    except UsageError as error:
        raise CheckpointError(f"checkpoint: {error}") from None
    counts = meta["counts"]
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
    if len(counts) != len(symbols) or not whole:
        raise CheckpointError(
            f"checkpoint: counts: expected {len(symbols)} whole numbers, one for each symbol, found others. {_ANOTHER}"
        )
    return config, symbols


def check(header: Header, *, resumes: bool = False) -> None:
    """Compare the weights that a file says it has with those that its configuration asks for, before they are read.

    Args:
        header: Of the file.
        resumes: Its training is to go on: every setting of it has to be known.

    Raises:
        CheckpointError: They differ, or the configuration is refused.
    """
    config, symbols = parts(header.meta, None if resumes else [])
    if config.model.hidden is None or config.model.layers is None or config.model.dropout is None:
        raise CheckpointError(f"checkpoint: expected the size of the network in its configuration, found none. {_ANOTHER}")
    expected = weights.shapes(config.model, len(symbols))
    found = {k.removeprefix("model."): e.shape for k, e in header.entries.items() if k.startswith("model.")}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"checkpoint: weight {printable(name)}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}. "
                + _ANOTHER
            )


def with_few_names(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what a run says of where it came from, fit for its model: of thousands of names a few, and a digest.

    Args:
        identity: With `corpus` and `command`, as `header.META` has them.
    """
    names, command = identity["corpus"].get("sources"), identity["command"]
    if not isinstance(names, list) or sum(map(len, names)) <= LONGEST_NAMES:
        return identity
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    corpus = {**identity["corpus"], "sources": names[:FEW_NAMES], "count": len(names), "digest": digest}
    return {**identity, "corpus": corpus, "command": [*command[: 2 + FEW_NAMES], "..."]}


def without_places(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what a run says of where it came from without the folders of its texts: a model is given to others.

    Args:
        identity: With `corpus` and `command`, as `header.META` has them.
    """
    corpus = dict(identity["corpus"])
    if isinstance(corpus.get("sources"), list):
        corpus["sources"] = [os.path.basename(name) or name for name in corpus["sources"]]
    if isinstance(corpus.get("val"), str):
        corpus["val"] = os.path.basename(corpus["val"])
    return {**identity, "corpus": corpus, "command": [_without_folder(word) for word in identity["command"]]}


def _without_folder(word: str) -> str:
    """Return a word of a command line with an absolute path in it cut to its last part."""
    flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    return f"{flag}{equals}{os.path.basename(value.rstrip(os.sep))}" if os.path.isabs(value) else word


def note(meta: dict[str, Any], ignored: list[str]) -> str:
    """Say which settings of a model's training were ignored."""
    names = ", ".join(printable(key[:60]) for key in ignored[:5])
    return f"settings of its training that this version does not know are left out: {names}.{_writer(meta)}"


def _writer(meta: dict[str, Any]) -> str:
    """Say which version wrote a checkpoint, where it says so."""
    wrote = meta["versions"].get("lstmlm")
    return f" It was written by lstmlm {printable(wrote[:20])}." if isinstance(wrote, str) else ""
