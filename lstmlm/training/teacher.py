"""A trained model that a run learns from too: what it expects after each character of a window.

`of` makes the `Teacher` of a checkpoint, for `launch` and the processes that train along; the run's `Members` ask it.
"""

import torch
from torch import Tensor

from lstmlm.config.run_config import ModelConfig
from lstmlm.data.saved_model import parts
from lstmlm.data.tokenizer import Tokenizer, separator_ids
from lstmlm.errors import UsageError
from lstmlm.kernels import Kernel
from lstmlm.kernels.pointwise import Taught
from lstmlm.model import ensemble
from lstmlm.model.char_lm import load_weights
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import StackState
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint


class Teacher:
    """One trained network, or several as one, read with nothing dropped; it never changes.

    Args:
        network: What reads.
        config: Of it.
        weight: How much of the loss it is; see `Taught`.
        digest: Of its checkpoint.
    """

    def __init__(self, network: Network, config: ModelConfig, weight: float, digest: str = "") -> None:
        self.network, self.config, self.digest = network, config, digest
        self._weight = weight
        self._device = network.stack()[0].W.device

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: StackState) -> tuple[Taught, StackState]:
        """Read a window.

        Args:
            ids: (T, B), on any device.
            state: Its own before the window; a stream that begins empty by `state_dropout` does not empty it.

        Returns:
            What it expects after each character, (T, B, V), and its state after the window.
        """
        logits, after = self.network(ids.to(self._device), state)
        return Taught(torch.softmax(logits, dim=-1), self._weight), after


def of(saved: Checkpoint, tokenizer: Tokenizer, kernel: Kernel, device: torch.device, weight: float) -> Teacher:
    """Return the teacher that a checkpoint holds.

    Args:
        saved: Of any size, and of one network or several.
        tokenizer: Of the run.
        kernel: What runs its recurrence.
        device: Where.
        weight: See `Teacher`.

    Raises:
        UsageError: It has another vocabulary.
    """
    config, own = parts(saved.meta, [])
    if own.to_dict() != tokenizer.to_dict():
        raise UsageError(
            f"--distill: expected a model with the vocabulary of this run ({len(tokenizer)} {tokenizer.kind}s), found one with "
            f"another ({len(own)} {own.kind}s). Name one that has learnt the same characters."
        )
    separator = separator_ids(config.model.document_separator, own)
    network = ensemble.build(config.model, len(own), kernel, separator).to(device)
    load_weights(network, checkpoint.to_tensors(saved.part("model.")))
    return Teacher(network.requires_grad_(requires_grad=False), config.model, weight, checkpoint.digest(saved))
