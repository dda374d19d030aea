"""Several networks that are read as one: the mean of their probabilities.

`of` builds the network of a configuration, a `CharLM` or an `Ensemble`, for `api` and training; the functions take either.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lstmlm.config.run_config import ModelConfig
from lstmlm.kernels import Kernel
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import LSTMLayer, StackState


class Ensemble(nn.Module):
    """Networks of one shape, read side by side.

        p = (p_1 + ... + p_N) / N,  logits = ln p

    It is read as a `CharLM` is; its state is the first member's, then the second's, and so on.

    Args:
        models: At least two.
    """

    def __init__(self, models: Sequence[CharLM]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    def initial_state(self, batch: int) -> StackState:
        """Return the empty state of every layer of every member."""
        return joined(model.initial_state(batch) for model in members(self))

    def forward(self, ids: Tensor, state: StackState | None = None) -> tuple[Tensor, StackState]:
        """Predict the character after each of T characters.

        Args:
            ids: (T, B)
            state: State before the first step; None is the empty one.

        Returns:
            logits: Log probabilities of the next character. (T, B, V)
            last: State after step T.
        """
        return read(members(self), ids, self.initial_state(ids.shape[1]) if state is None else state)

    @property
    def vocabulary(self) -> int:
        """Return V."""
        return members(self)[0].vocabulary

    def parameter_count(self) -> int:
        """Count the trained numbers of all members."""
        return sum(model.parameter_count() for model in members(self))

    def stack(self) -> list[LSTMLayer]:
        """Return the layers of all members, those of the first one first."""
        return [layer for model in members(self) for layer in model.stack()]


Network: TypeAlias = CharLM | Ensemble
"""What reads ids and gives logits: one network, or several as one."""


def of(models: Sequence[CharLM]) -> Network:
    """Return networks as one; of one, that one itself."""
    return models[0] if len(models) == 1 else Ensemble(models)


def build(config: ModelConfig, vocabulary: int, kernel: Kernel, separator: Sequence[int] = ()) -> Network:
    """Return the networks of a configuration as one, in evaluation mode; their weights are unset: `load_weights` comes next."""
    return of([CharLM(config, vocabulary, kernel, separator, start=False) for _ in range(config.members)]).eval()


def members(network: Network) -> list[CharLM]:
    """Return the networks that are read; of one alone, itself."""
    if isinstance(network, CharLM):
        return [network]
    return [model for model in network.members if isinstance(model, CharLM)]


def joined(states: Iterable[StackState]) -> StackState:
    """Return the members' states as one."""
    return tuple(layer for state in states for layer in state)


def parted(state: StackState, count: int) -> list[StackState]:
    """Return the inverse of `joined` for so many members."""
    layers = len(state) // count
    return [state[index * layers : (index + 1) * layers] for index in range(count)]


def average(logits: Iterable[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities that logits stand for; a single tensor as it is.

    Args:
        logits: (..., V) each
    """
    total, count = torch.empty(0), 0
    for one in logits:
        if count == 1:
            total = torch.log_softmax(total, dim=-1)
        total = torch.logaddexp(total, torch.log_softmax(one, dim=-1)) if count else one
        count += 1
    return total - math.log(count) if count > 1 else total


def read(
    runs: Sequence[Callable[[Tensor, StackState], tuple[Tensor, StackState]]], ids: Tensor, state: StackState
) -> tuple[Tensor, StackState]:
    """Let each of several networks read ids from its part of a state; return the averaged logits and the state after them.

    Args:
        runs: Networks, or what reads as they do.
        ids: (T, B)
        state: Of all of them.
    """
    last: list[StackState] = []

    def each() -> Iterator[Tensor]:
        for run, own in zip(runs, parted(state, len(runs)), strict=True):
            logits, after = run(ids, own)
            last.append(after)
            yield logits

    return average(each()), joined(last)
