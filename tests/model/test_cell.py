"""The reference: the article's equations, and the same numbers as `nn.LSTM`."""

import pytest
import torch
from torch import nn

from lstmlm.model import cell
from lstmlm.model.cell import GATES, LSTMState
from tests.helpers import assert_close, from_torch_order, normal, state, to_torch_order

T, B, E, S = 5, 3, 6, 7


def test_gates_are_named_in_one_tuple() -> None:
    """The state of four gates carries the names of `GATES`, in its order."""
    assert cell.Gates._fields == GATES


@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_the_articles_equations(bias: bool) -> None:
    """`layer` equals the six equations written out gate by gate, with U_f, W_f, b_f and so on as separate matrices."""
    U = {gate: normal(E, S) for gate in GATES}
    W = {gate: normal(S, S) for gate in GATES}
    b = {gate: normal(S) if bias else torch.zeros(S, dtype=torch.float64) for gate in GATES}
    x, before = normal(T, B, E), state(B, S)

    H_prev, C_prev = before
    expected = []
    for t in range(T):
        f_t = torch.sigmoid(x[t] @ U["forget"] + H_prev @ W["forget"] + b["forget"])
        i_t = torch.sigmoid(x[t] @ U["input"] + H_prev @ W["input"] + b["input"])
        N_t = torch.tanh(x[t] @ U["new"] + H_prev @ W["new"] + b["new"])
        C_prev = f_t * C_prev + i_t * N_t
        o_t = torch.sigmoid(x[t] @ U["output"] + H_prev @ W["output"] + b["output"])
        H_prev = o_t * torch.tanh(C_prev)
        expected.append(H_prev)

    def side_by_side(blocks: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([blocks[gate] for gate in GATES], dim=-1)

    H, last = cell.layer(x, side_by_side(U), side_by_side(W), side_by_side(b) if bias else None, before)

    assert_close(H, torch.stack(expected), "H")
    assert_close(last.hidden, H_prev, "last H")
    assert_close(last.cell, C_prev, "last C")


@pytest.mark.parametrize("bias", [True, False])
def test_layer_equals_torch(bias: bool) -> None:
    """`layer` equals `nn.LSTM` with the same weights: outputs, last state, and every gradient."""
    rival = nn.LSTM(E, S, bias=bias, dtype=torch.float64)
    x, before = normal(T, B, E), state(B, S)
    pull_H, pull_h, pull_c = normal(T, B, S), normal(B, S), normal(B, S)

    x_r, h_r, c_r = (t.clone().requires_grad_() for t in (x, *before))
    Y, (h_n, c_n) = rival(x_r, (h_r[None], c_r[None]))
    ((Y * pull_H).sum() + (h_n[0] * pull_h).sum() + (c_n[0] * pull_c).sum()).backward()

    theirs = dict(rival.named_parameters())
    U = from_torch_order(theirs["weight_ih_l0"].detach()).requires_grad_()
    W = from_torch_order(theirs["weight_hh_l0"].detach()).requires_grad_()
    b = None
    if bias:
        b = from_torch_order((theirs["bias_ih_l0"] + theirs["bias_hh_l0"]).detach()).requires_grad_()
    x_o, h_o, c_o = (t.clone().requires_grad_() for t in (x, *before))
    H, last = cell.layer(x_o, U, W, b, LSTMState(h_o, c_o))
    ((H * pull_H).sum() + (last.hidden * pull_h).sum() + (last.cell * pull_c).sum()).backward()

    assert_close(H, Y, "H")
    assert_close(last.hidden, h_n[0], "last H")
    assert_close(last.cell, c_n[0], "last C")
    pairs = [("dx", x_o, x_r), ("dH_0", h_o, h_r), ("dC_0", c_o, c_r)]
    for what, one, other in pairs:
        assert_close(one.grad, other.grad, what)
    assert U.grad is not None
    assert W.grad is not None
    assert_close(to_torch_order(U.grad), theirs["weight_ih_l0"].grad, "dU")
    assert_close(to_torch_order(W.grad), theirs["weight_hh_l0"].grad, "dW")
    if b is not None:
        assert b.grad is not None
        assert_close(to_torch_order(b.grad), theirs["bias_ih_l0"].grad, "db")


def test_a_forget_gate_at_one_forgets_nothing_and_at_zero_everything() -> None:
    """With the input gate shut, f = 1 keeps the cell state bit for bit, and f = 0 empties it."""
    before = state(B, S)
    ones, zeros = torch.ones(B, S, dtype=torch.float64), torch.zeros(B, S, dtype=torch.float64)

    kept = cell.update(cell.Gates(ones, zeros, ones, ones), before)
    emptied = cell.update(cell.Gates(zeros, zeros, ones, ones), before)

    assert torch.equal(kept.cell, before.cell)
    assert torch.equal(emptied.cell, zeros)
    assert torch.equal(kept.hidden, torch.tanh(before.cell))
