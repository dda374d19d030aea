"""What `lstmlm train` does with what was typed."""

import os
from pathlib import Path

from lstmlm.config import run_config
from lstmlm.config.run_config import Layer
from lstmlm.config.setting import Located
from lstmlm.data.corpus import name_of
from lstmlm.errors import UsageError
from lstmlm.storage import run_dir


def named(corpus: list[str], out: str | None, resume: bool) -> tuple[list[str], Path]:
    """Return the texts that the command line names, and the folder of the run that it means.

    A run that goes on may be named in the place of its text, or not at all: then it is the newest one.

    Raises:
        UsageError: Nothing is named.
        CheckpointError: There is no run.
    """
    if resume and out is None:
        if not corpus:
            return [], run_dir.find(None).parent
        if len(corpus) == 1 and any((Path(corpus[0]) / name).is_file() for name in ("last.safetensors", "config.yaml")):
            return [], Path(corpus[0])
    if not corpus and not resume:
        raise UsageError(
            "train: expected a CORPUS to learn, found none. Name a file or a folder, - for standard input, or `stories`. "
            "`lstmlm train --resume` goes on with the newest run."
        )
    return corpus, Path(out or f"runs/{name_of(corpus[0])}")


def layers_of(presets: list[str], assignments: list[str], flags: dict[str, str | None]) -> list[Layer]:
    """Return the layers of the configuration, the later over the earlier: files, environment, --set and flags.

    Args:
        presets: What --config names.
        assignments: What --set says.
        flags: The settings' own flags, by the setting's name; None where the flag was not given.
    """
    given = [(one, text) for one in run_config.keys().values() if one.group and (text := flags.get(one.name)) is not None]
    set_, assigned = run_config.parse_assignments(assignments)
    return [
        *(run_config.load_preset(name) for name in presets),
        run_config.parse_environment(os.environ),
        (set_, {**assigned, **{one.key: Located(one.parse(text, one.flag), None, one.flag) for one, text in given}}),
    ]
