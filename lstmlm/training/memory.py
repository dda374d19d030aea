"""How much memory a run takes, worked out from its sizes: `train` refuses what does not fit, and `--dry-run` says it."""

from lstmlm.config.run_config import RunConfig
from lstmlm.model.char_lm import steps_at_once

OTHER = 3_000_000  # bytes: the validation text, what is read of files, records


def memory_bytes(config: RunConfig, vocabulary: int, parameters: int) -> int:
    """Return about how much memory a run takes at most beside its text and torch itself, on a CPU.

    For each parameter weights, gradient, both moments, the average and its twin while it is read (24 bytes, or 16), and a copy of
    weights, moments and averages while a checkpoint is written (16 bytes, or 12). For each member, layer and character that is
    kept at a time: four gates, C, H, what the layer above reads, and the gradients of the last two; W as the kernel and its
    dropout need it; the logits. Validating reads `char_lm.steps_at_once`.

    Args:
        config: As `choose` returned it.
        vocabulary: V.
        parameters: Of all members.
    """
    model, train = config.model, config.train
    assert model.hidden is not None
    assert model.layers is not None
    assert train.batch is not None
    assert train.window is not None
    kept = train.batch * (min(train.segment, train.window) or train.window)
    widths = [model.hidden] * model.layers
    if model.readout == "direct":
        widths[-1] = vocabulary
    each = 40 if train.average else 28
    recurrent = sum(4 * width * width for width in widths)
    # Packed for the forward and the backward pass, of all layers in turn; dropped, and that one's gradient, of each.
    weights = 4 * (2 * max(4 * width * width for width in widths) + model.members * 2 * recurrent * bool(model.weight_dropout))
    values = 4 * kept * (model.members * (8 * sum(widths) + max(widths)) + vocabulary)
    read = steps_at_once(1, vocabulary)
    reading = 4 * read * (9 * max(widths) + 3 * vocabulary)
    return OTHER + each * parameters + weights + values + reading
