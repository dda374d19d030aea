"""Character language models: an LSTM written from scratch, trained, sampled, measured and looked into.

`train(text)` and `load(path)` give a `LanguageModel`: `.sample(prompt)`, `.stream(prompt)`, `.next(prompt, k)`, `.score(text)`,
`.fill(text, choices)`, `.gates(text)`. Nothing is imported before it is asked for. What goes wrong is one of `lstmlm.errors`.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel as LanguageModel
    from lstmlm.api import Sample as Sample
    from lstmlm.api import Stream as Stream
    from lstmlm.training.events import Event

__all__ = ["LanguageModel", "Sample", "Stream", "__version__", "load", "train"]
__version__ = "0.2.0"

# torch says this on import where NumPy is not installed; nothing here needs NumPy.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")


def load(path: "str | os.PathLike[str] | None" = None, *, threads: int | None = None, device: str = "auto") -> "LanguageModel":
    """Open a trained model.

    Args:
        path: A run folder, a checkpoint file, or None for the newest run below `runs/`.
        threads: How many the native kernel may take; None: as many as there are cores. torch's own number stays as it is.
        device: auto (a CUDA device where it works), cpu or cuda.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
        TypeError: The path is neither a string nor a path.
        UsageError: There is no such device.
    """
    from lstmlm import api

    return api.load(path, threads=threads, device=device)


def train(
    text: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    *,
    minutes: float | None = None,
    out: "str | os.PathLike[str] | None" = None,
    val: "str | os.PathLike[str] | None" = None,
    resume: bool = False,
    overwrite: bool = False,
    start_from: "str | os.PathLike[str] | None" = None,
    distill: "str | os.PathLike[str] | None" = None,
    progress: "Callable[[Event], object] | None" = None,
    **settings: str | float | bool | None,
) -> "LanguageModel":
    """Learn a text, and return the best model of the run.

    Args:
        text: Names of files or folders, one or several, or `stories`, as for `lstmlm train`. A string with a line end in it is
            the text itself.
        minutes: How long; 3 where neither steps nor epochs are among the settings.
        out: The run folder, new or empty; None: `runs/<name of the text>`.
        val: A file to validate on; None: a tenth of the text, as `split` says.
        resume: Go on with the run in the folder, which has learnt this text: to the same bits, or with a larger budget further.
        overwrite: Replace the run in the folder once the new one is saved.
        start_from: A trained model, a run folder or a checkpoint file, whose weights and vocabulary the new one starts with.
        distill: A trained model; what it expects after each character is learnt beside the text. It has the text's vocabulary.
        progress: Called with every record of the run (`lstmlm.training.events`): steps, validations, samples, checkpoints. What
            it raises ends the run, whose last checkpoint stays.
        settings: Any setting of configs/README.md by its name: `hidden=256`, `steps=500`, `seed=7`.

    Raises:
        ConfigError: A setting does not exist, or has a value that it may not have.
        CheckpointError: There is no run to go on with, or no model to start from, or it is damaged.
        TextError: The text cannot be read, is too short, or is not that of the run that goes on.
        TypeError: A name is neither a string nor a path.
        UsageError: There is something in the run folder.
        SystemProblem: The disk is full, or the memory too small.
        Diverged: Smaller rates did not help.
    """
    from lstmlm import api_train

    return api_train.train(
        text,
        out=out,
        val=val,
        resume=resume,
        overwrite=overwrite,
        start_from=start_from,
        distill=distill,
        progress=progress,
        settings={"minutes": minutes, **settings},
        version=__version__,
    )


def __getattr__(name: str) -> Any:
    """Import what the package's names stand for when one is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lstmlm import api

    return getattr(api, name)
