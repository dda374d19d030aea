"""How much memory a run takes, worked out from its sizes: `train` refuses what does not fit, and `--dry-run` says it."""

from lstmlm.config.run_config import ModelConfig, RunConfig
from lstmlm.evaluation.scoring import STREAMS
from lstmlm.model.char_lm import steps_at_once
from lstmlm.training import backprop

OTHER = 12_000_000  # bytes: what of the libraries is loaded when it is used first, the validation text, records
BETWEEN = 1.1  # times what is asked for is taken: what was freed does not always fit what comes next


def memory_bytes(
    config: RunConfig, vocabulary: int, parameters: int, used: tuple[int, int], teacher: ModelConfig | None = None
) -> int:
    """Return about how much memory this process takes at most, on a CPU: what it has (torch, the text), and training.

    Args:
        config: See `training_bytes`.
        vocabulary: Likewise.
        parameters: Likewise.
        used: What `machine.memory_used` says, with the weights of the teacher, if there is one.
        teacher: See `training_bytes`.
    """
    now, most = used
    return max(most, now + training_bytes(config, vocabulary, parameters, teacher))


def training_bytes(config: RunConfig, vocabulary: int, parameters: int, teacher: ModelConfig | None = None) -> int:
    """Return about how much memory training takes at most beside the text and what is loaded, on a CPU.

    For each parameter weight, gradient, both moments and the average (20 bytes, or 16). For each layer and character that is kept
    at a time four gates, C, H and what the layer above reads; for each character the gradients of the last two; logits,
    `backprop.SCORES` at most. Members work in the same memory, one after another. W as the kernel and its dropout need it. And
    either a checkpoint's copy of weights, moments and averages (16 bytes, or 12), or what scoring takes: the pieces of
    `char_lm.steps_at_once`, and three copies of the weights. A teacher reads a whole window, a layer after the other, and what it
    expects is there four times at most.

    Args:
        config: As `choose` returned it.
        vocabulary: V.
        parameters: Of all members.
        teacher: A model that is learnt from too.
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
    copies = 4 if train.average else 3  # in a checkpoint; the gradient is in none
    recurrent = sum(4 * width * width for width in widths)
    # Packed for the forward and the backward pass, of all layers in turn; dropped, and that one's gradient, of each.
    weights = 2 * max(4 * width * width for width in widths) + 2 * recurrent * bool(model.weight_dropout)
    multiplied = 2 * widths[0] * bool(model.multiplicative)  # the scale and m
    values = kept * (7 * sum(widths) + 2 * max(widths) + multiplied) + min(kept * vocabulary, backprop.SCORES)
    reading = max(STREAMS, steps_at_once(1, vocabulary)) * (9 * max(widths) + 3 * vocabulary)
    taught = train.batch * train.window * (9 * (teacher.hidden or vocabulary) + 4 * vocabulary) if teacher else 0
    last = max(copies * parameters, 3 * parameters + reading)
    return OTHER + int(4 * BETWEEN * ((copies + 1) * parameters + weights + values + taught + last))
