"""Character language models from the command line: an LSTM written from scratch, trained, sampled, measured and looked into.

`load(path)` gives a model with `.score(text)` and `.sample(prompt, ...)`; nothing is imported before it is asked for.
"""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel

__all__ = ["__version__", "load"]
__version__ = "0.2.0"

# torch says this on import where NumPy is not installed; nothing here needs NumPy.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")


def load(path: str | None = None, *, device: str = "auto") -> "LanguageModel":
    """Open a trained model: a run folder, a checkpoint file, or None for the newest run below `runs/`.

    Args:
        path: See above.
        device: auto (a CUDA device where it works), cpu or cuda.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
        UsageError: There is no such device.
    """
    from lstmlm.api import LanguageModel

    return LanguageModel.open(path, device=device)
