"""The character language model: ids -> logits, and logits -> nats per character.

`CharLM` is the stack with its readout, read by autograd; training computes the same by hand in `training.backprop`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lstmlm.config.run_config import ModelConfig
from lstmlm.errors import CheckpointError, ConfigError
from lstmlm.kernels import Kernel
from lstmlm.kernels.dropout import Dropout
from lstmlm.model.cell import LSTMState
from lstmlm.model.lstm import LSTMLayer, Readout, StackState
from lstmlm.model.weights import PAIRS, check_pairs

__all__ = ["CharLM", "StackState", "load_weights", "nats", "steps_at_once"]

PIECE = 1 << 11  # characters in one call of a model that scores, and ...
PIECE_SCORES = 1 << 20  # ... scores of next characters, 4 MiB: both bound memory, whatever text, window and vocabulary


Recurrence: TypeAlias = Callable[[LSTMLayer, Tensor, LSTMState, Tensor | None], tuple[Tensor, LSTMState]]
"""Runs a layer in place of its kernel: layer, x (T, B, E) or ids (T, B), state before, where documents end (T, B) or None ->
H (T, B, S), state after."""


class CharLM(nn.Module):
    """A stack of LSTM layers from ids to logits.

        Y_0 = layer_0(ids),  Y_l = layer_l(X_{l-1})
        X_l = dropout(norm(Y_l)),  + X_{l-1} with `residual`
        logits = X_L R + r                            readout: linear
        logits = H_t of the last layer, as wide as V  readout: direct, the article's Softmax(H_t)

    After an id with which the separator of documents ends, all H and C are zero, the empty state: what comes next is predicted
    from it, and so knows nothing of what was before.

    An id that makes a pair with the one before it, one of N, reads that pair's row of the first layer's U and M in place of its
    own: ids 0 to V - 1 have the first V rows, pairs the next N. Each begins as a copy of the row of its second id. `pairs` has
    them in ascending order, and is kept with the weights. (N, 2)

    To see a separator or a pair that began in an earlier call, the state of such a network has another part behind those of the
    layers: as `hidden`, and as `cell` again, the last ids, each with one added, so that 0 is none: k - 1 for a separator of k
    ids; where there are pairs, k, or 1. (B, .)

    Args:
        config: Sizes and options; no size may be None any more.
        vocabulary: V.
        kernel: What runs the recurrence.
        separator: Ids of what parts documents; none: nothing does.
        start: False leaves the layers' weights unset: `load_weights` comes next.

    Raises:
        ConfigError: A size is still open.
    """

    _separator: Tensor
    pairs: Tensor

    def __init__(
        self, config: ModelConfig, vocabulary: int, kernel: Kernel, separator: Sequence[int] = (), *, start: bool = True
    ) -> None:
        super().__init__()
        if config.hidden is None or config.layers is None or config.dropout is None:
            raise ConfigError("model: expected hidden, layers and dropout as numbers, found auto. Choose them first.")
        self.config = config
        self.separator = tuple(separator)
        if separator:  # on the network's device, and not among its weights
            self.register_buffer("_separator", torch.tensor(self.separator, dtype=torch.int64), persistent=False)
        self.vocabulary = vocabulary
        if config.pairs:
            self.register_buffer(PAIRS, torch.zeros(config.pairs, 2))
        direct = config.readout == "direct"
        widths = [config.hidden] * config.layers
        if direct:
            widths[-1] = vocabulary
        self.layers = nn.ModuleList(
            LSTMLayer(
                widths[index - 1] if index else vocabulary + (config.pairs or 0),
                width,
                kernel,
                bias=config.bias,
                ids=index == 0,
                forget_bias=config.forget_bias,
                forget_span=config.forget_span or 0.0,
                forget_share=1.0 if config.forget_share is None else config.forget_share,
                orthogonal=config.orthogonal,
                multiplicative=config.multiplicative,
                start=start,
            )
            for index, width in enumerate(widths)
        )
        hidden = widths[:-1] if direct else widths  # what direct reads out is H_t itself, untouched
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden) if config.layer_norm else None
        self.readout = None if direct else Readout(widths[-1], vocabulary, kernel)

    def initial_state(self, batch: int) -> StackState:
        """Return the empty state of every layer."""
        layers = [layer.initial_state(batch) for layer in self.stack()]
        if self._seen:
            none = self.stack()[0].W.new_zeros(batch, self._seen)
            layers.append(LSTMState(none, none.clone()))
        return tuple(layers)

    @property
    def _seen(self) -> int:
        """Return how many ids of before a state has."""
        k = len(self.separator)
        return max(k, 1) if self.config.pairs else max(k - 1, 0)

    def give_rows(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Say which pairs have rows of their own, and let each begin with that of its second id.

        Args:
            pairs: Ids, in ascending order. (N, 2)

        Raises:
            ValueError: They are more or fewer than `config.pairs`.
        """
        if len(pairs) != (self.config.pairs or 0):
            raise ValueError(f"pairs: expected {self.config.pairs or 0}, found {len(pairs)}.")
        if not pairs:
            return
        with torch.no_grad():
            self.pairs.copy_(torch.tensor(pairs))
            first, second = self.stack()[0], torch.tensor([id_ for _, id_ in pairs], device=self.pairs.device)
            for table in (first.U, first.M):
                if table is not None:
                    table[self.vocabulary :] = table[second]

    def inputs(self, ids: Tensor, state: StackState) -> tuple[Tensor, Tensor | None, StackState]:
        """Find out which rows of the first layer's tables are read, and after which ids the state is empty.

        Args:
            ids: (T, B)
            state: Before the first of them.

        Returns:
            rows: Of U and M. (T, B)
            ends: Where a separator ends, (T, B); None: nothing parts documents.
            last: What the state after the ids has behind those of the layers: nothing, or one part.
        """
        k, count = len(self.separator), self._seen
        if not k and not count:
            return ids, None, ()
        T = len(ids)
        seen = torch.cat([state[-1].hidden.t().to(torch.int64) - 1, ids]) if count else ids
        ends = (seen.unfold(0, k, 1) == self._separator).all(-1) if k else None  # of a pair the one before the first id too
        rows = ids
        if self.config.pairs:
            before = seen[-T - 1 : -1]
            if ends is not None:  # what is read behind a separator knows nothing of it
                before = before.masked_fill(ends[-T - 1 : -1], -1)
            rows = self._rows(before, ids)
        if not count:
            return rows, ends, ()
        last = (seen[-count:] + 1).t().to(state[-1].hidden.dtype, memory_format=torch.contiguous_format)
        return rows, None if ends is None else ends[len(ends) - T :], (LSTMState(last, last.clone()),)

    def _rows(self, before: Tensor, ids: Tensor) -> Tensor:
        """Return the row of each id after another one, or after none, -1."""
        first, second = self.pairs.to(torch.int64).unbind(1)
        keys, wanted = first * self.vocabulary + second, before * self.vocabulary + ids
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[place] == wanted, place + self.vocabulary, ids)

    def forward(
        self,
        ids: Tensor,
        state: StackState | None = None,
        drop: Dropout | None = None,
        recurrence: Recurrence | None = None,
    ) -> tuple[Tensor, StackState]:
        """Predict the character after each of T characters.

        This is the network's one forward pass in torch; by hand, for training, it stands in `training.backprop`, and for
        sampling in `kernels/generate.c`.

        Args:
            ids: (T, B)
            state: State before the first step; None is the empty one.
            drop: The dropout of a training step; evaluating has none.
            recurrence: What runs each layer; None: its kernel. Whoever looks inside keeps what passes through here.

        Returns:
            logits: Unnormalised log probabilities of the next character. (T, B, V)
            last: State after step T.
        """
        if state is None:
            state = self.initial_state(ids.shape[1])
        x, ends, seen = self.inputs(ids, state)
        last = []
        for index, layer in enumerate(self.stack()):
            W: Tensor = layer.W
            if drop is not None and drop.weights:
                W = W * drop.of_weights().mask(index, W[:, None]).squeeze(1)
            y, after = layer(x, state[index], W, ends) if recurrence is None else recurrence(layer, x, state[index], ends)
            last.append(after)
            if self.readout is None and index == len(self.layers) - 1:
                return y, (*last, *seen)
            if self.norms is not None:
                y = self.norms[index](y)
            if drop is not None and drop.rate:
                y = y * drop.mask(index, y)
            x = x + y if self.config.residual and index else y
        assert self.readout is not None  # a stack has at least one layer
        return self.readout(x), (*last, *seen)

    def parameter_count(self) -> int:
        """Count the trained numbers."""
        return sum(p.numel() for p in self.parameters())

    def stack(self) -> list[LSTMLayer]:
        """Return the layers, the first one first."""
        return [layer for layer in self.layers if isinstance(layer, LSTMLayer)]


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model, every one or none; it may be several networks in one.

    Raises:
        CheckpointError: A weight is missing, unknown or of another shape; and see `check_pairs`.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        expected = tuple(own[name].shape) if name in own else None
        found = tuple(weights[name].shape) if name in weights else None
        if expected != found:
            raise CheckpointError(f"checkpoint: weight {name}: expected {expected}, found {found}.")
    pairs = [weights[name].flatten().tolist() for name in own if name.endswith(PAIRS)]
    if pairs:
        check_pairs(pairs, next(one.vocabulary for one in model.modules() if isinstance(one, CharLM)))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def steps_at_once(rows: int, vocabulary: int) -> int:
    """Return how many time steps of so many rows a model that scores is to read in one call, at least 1.

    Of one row that is also how many rows a step may have: whoever has more of them reads some after the others.
    """
    return max(1, min(PIECE, PIECE_SCORES // vocabulary) // rows)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return minus the log probability of each target, in nats.

    Args:
        logits: (T, B, V)
        targets: (T, B)

    Returns:
        (T, B)
    """
    each = functional.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction="none")
    return each.view(targets.shape)
