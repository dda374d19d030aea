"""What a fine-tuned model starts from: the weights of its parent, with rows for the characters that are new to it.

`weights_of` is the entry point, for `train` and the processes that train along.
"""

import torch
from torch import Tensor

from lstmlm.config.run_config import RunConfig
from lstmlm.data.saved_model import parts
from lstmlm.data.tokenizer import CharTokenizer, Tokenizer
from lstmlm.errors import UsageError
from lstmlm.model import weights
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint


def weights_of(parent: Checkpoint, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Return the weights that a fine-tuned model starts from.

    Every weight of the parent is kept. A character that is new to it has a row of zeros in the input tables and in the readout,
    and there the smallest bias of all: at first it is as unlikely as the rarest, and changes next to nothing.

    Args:
        parent: The trained model.
        tokenizer: Of the new one: it has all characters of the parent's.

    Raises:
        CheckpointError: See `weights.check_pairs`.
        UsageError: There are new characters, and the parent's last layer is its readout.
    """
    found = checkpoint.to_tensors(parent.part("model."))
    config, old = parts(parent.meta, [])
    if len(old) == len(tokenizer):
        return found
    if config.model.readout == "direct":
        raise UsageError(
            "--on-unknown grow: the last layer of the model of --from is its readout, as wide as its vocabulary, and cannot "
            "grow. Take --on-unknown skip or --on-unknown replace, or train without --from."
        )
    assert isinstance(old, CharTokenizer)  # bytes are all known
    assert isinstance(tokenizer, CharTokenizer)
    paired = [name for name in found if name.endswith(weights.PAIRS)]
    weights.check_pairs([found[name].flatten().tolist() for name in paired], len(old))
    place = {symbol: row for row, symbol in enumerate(tokenizer.symbols)}
    rows = [place[symbol] for symbol in old.symbols]  # one by one: a Unicode form would join and reorder the marks among them
    for name, tensor in _tables(config, found):
        pairs = len(tensor) - len(old)  # behind the characters, if any
        grown = tensor.new_full((len(tokenizer) + pairs, *tensor.shape[1:]), float(tensor.min()) if tensor.dim() == 1 else 0.0)
        grown[[*rows, *range(len(tokenizer), len(grown))]] = tensor
        found[name] = grown
    for name in paired:
        found[name] = torch.tensor(rows)[found[name].to(torch.int64)].to(found[name])  # in the same order: symbols are sorted
    return found


def _tables(config: RunConfig, found: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the weights that have a row for each character, by name."""
    each = ("layers.0.U", *(["layers.0.M"] if config.model.multiplicative else []), "readout.weight", "readout.bias")
    names = [weights.prefix(config.model, member) + name for member in range(config.model.members) for name in each]
    return [(name, found[name]) for name in names]
