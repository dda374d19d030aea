"""The equations of the LSTM, once, differentiated by autograd: the reference that every kernel is tested against.

`layer` runs one layer over T steps. `LSTMState`, (H, C), is what every other module passes on as state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GATES = ("forget", "input", "output", "new")
"""Order of the four blocks of S columns in U, W, b and every pre-activation: the three sigmoid gates side by side."""


class LSTMState(NamedTuple):
    """What an LSTM layer carries from one time step to the next.

    hidden: H_t, the short-term memory. (B, S)
    cell:   C_t, the long-term memory. (B, S)
    """

    hidden: Tensor
    cell: Tensor


class Gates(NamedTuple):
    """What the gates decided at one time step or more. Each (..., S)."""

    forget: Tensor
    input: Tensor
    output: Tensor
    new: Tensor


def gates(a: Tensor) -> Gates:
    """Open the gates: f, i, o = sigmoid(a_f, a_i, a_o) and N = tanh(a_c).

    Args:
        a: Pre-activations in `GATES` order. (..., 4S)
    """
    forget, input_, output, new = a.chunk(4, dim=-1)
    return Gates(torch.sigmoid(forget), torch.sigmoid(input_), torch.sigmoid(output), torch.tanh(new))


def update(gate: Gates, state: LSTMState) -> LSTMState:
    """Let go of the old and take in the new.

        C_t = f_t * C_{t-1} + i_t * N_t
        H_t = o_t * tanh(C_t)

    Args:
        gate: What the gates decided at step t. (B, S) each
        state: State after step t - 1. (B, S) each

    Returns:
        State after step t.
    """
    cell = gate.forget * state.cell + gate.input * gate.new
    return LSTMState(gate.output * torch.tanh(cell), cell)


def layer(
    x: Tensor, U: Tensor, W: Tensor, b: Tensor | None, state: LSTMState, scale: Tensor | None = None
) -> tuple[Tensor, LSTMState]:
    """Run one LSTM layer over T steps, equation by equation.

        m_t = H_{t-1},  of a multiplicative layer scale_t * H_{t-1}
        a_t = x_t U + m_t W + b
        f_t, i_t, o_t = sigmoid(a_t's first three blocks),  N_t = tanh(a_t's last block)
        C_t = f_t * C_{t-1} + i_t * N_t
        H_t = o_t * tanh(C_t)

    Args:
        x: Inputs. (T, B, E)
        U: Input weights, blocks in `GATES` order. (E, 4S)
        W: Recurrent weights, the same order. (S, 4S)
        b: Biases, or None for the article's equations to the letter. (4S)
        state: Hidden and cell state before the first step. (B, S) each
        scale: Of a multiplicative layer. (T, B, S)

    Returns:
        H: Hidden state after every step. (T, B, S)
        last: State after step T; gradients flow through it.

    Source: the six equations of the article (README, "The equations"); Hochreiter and Schmidhuber 1997,
        Gers et al. 2000; for m_t Krause et al. 2016.
    """
    hidden = []
    for t, x_t in enumerate(x.unbind(0)):
        m_t = state.hidden if scale is None else scale[t] * state.hidden
        a_t = x_t @ U + m_t @ W
        if b is not None:
            a_t = a_t + b
        state = update(gates(a_t), state)
        hidden.append(state.hidden)
    return torch.stack(hidden), state
