"""One layer and its weights: ids as one-hot vectors, other gate orders, where the weights start."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lstmlm.kernels.eager import EagerKernel
from lstmlm.model.cell import GATES, LSTMState
from lstmlm.model.lstm import TORCH_ORDER, LSTMLayer, input_product
from tests.helpers import assert_close, from_torch_order, grown, load_torch, normal, state, to_torch_order

T, B, E, S, V = 5, 3, 6, 7, 11


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_equal_torch(bias: bool, layers: int) -> None:
    """Layers with the weights of an `nn.LSTM` copied in give its outputs, last states and every gradient, to 1e-10."""
    rival = nn.LSTM(E, S, num_layers=layers, bias=bias, dtype=torch.float64)
    ours = [LSTMLayer(E if i == 0 else S, S, EagerKernel(), bias=bias).double() for i in range(layers)]
    for index, layer in enumerate(ours):
        load_torch(layer, rival, index)
    before = [state(B, S) for _ in range(layers)]
    x, pull = normal(T, B, E), normal(T, B, S)
    pulls = [state(B, S) for _ in range(layers)]

    def total(H: torch.Tensor, hidden: list[torch.Tensor], cells: list[torch.Tensor]) -> torch.Tensor:
        ends = [(h * p.hidden).sum() + (c * p.cell).sum() for h, c, p in zip(hidden, cells, pulls, strict=True)]
        return (H * pull).sum() + torch.stack(ends).sum()

    x_r = x.clone().requires_grad_()
    h_r, c_r = (torch.stack([s[part] for s in before]).requires_grad_() for part in (0, 1))
    Y, (h_n, c_n) = rival(x_r, (h_r, c_r))
    total(Y, list(h_n), list(c_n)).backward()

    x_o = x.clone().requires_grad_()
    entries = [LSTMState(s.hidden.clone().requires_grad_(), s.cell.clone().requires_grad_()) for s in before]
    H, lasts = x_o, []
    for layer, entry in zip(ours, entries, strict=True):
        H, last = layer(H, entry)
        lasts.append(last)
    total(H, [last.hidden for last in lasts], [last.cell for last in lasts]).backward()

    assert_close(H, Y, "H")
    assert_close(x_o.grad, x_r.grad, "dx")
    assert h_r.grad is not None
    assert c_r.grad is not None
    theirs = dict(rival.named_parameters())
    for i, (layer, entry, last) in enumerate(zip(ours, entries, lasts, strict=True)):
        assert_close(last.hidden, h_n[i], f"last H of layer {i}")
        assert_close(last.cell, c_n[i], f"last C of layer {i}")
        assert_close(entry.hidden.grad, h_r.grad[i], f"dH_0 of layer {i}")
        assert_close(entry.cell.grad, c_r.grad[i], f"dC_0 of layer {i}")
        for ours_name, theirs_name in (("U", "weight_ih_l"), ("W", "weight_hh_l"), ("b", "bias_ih_l")):
            weight = getattr(layer, ours_name)
            if weight is not None:
                actual = to_torch_order(weight.grad)
                assert_close(actual, theirs[f"{theirs_name}{i}"].grad, f"d{ours_name} of layer {i}")


def test_factors_start_at_one() -> None:
    """A multiplicative layer begins as the plain one of its seed; a factor other than 1 counts from where its id is read on."""
    layers = []
    for multiplicative in (False, True):
        torch.manual_seed(5)
        layers.append(LSTMLayer(V, S, EagerKernel(), ids=True, multiplicative=multiplicative))
    plain, scaled = layers
    ids, before = torch.tensor([1, 2, 3, 4])[:, None], state(1, S, torch.float32)
    expected = plain(ids, before)[0]

    assert torch.equal(scaled(ids, before)[0], expected)
    assert scaled.M is not None
    scaled.M.data[3] = 0.5
    assert torch.equal(scaled(ids, before)[0][:2], expected[:2])
    assert not torch.allclose(scaled(ids, before)[0][2:], expected[2:])
    assert LSTMLayer(V, S, EagerKernel(), multiplicative=True).M is None  # what it reads is no id


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [1, T])  # fewer ids than rows in the table, and more
def test_ids_equal_one_hot_vectors(bias: bool, steps: int) -> None:
    """A layer that reads ids gives the values and gradients of the same layer that reads one-hot vectors."""
    by_id = grown(LSTMLayer(V, S, EagerKernel(), bias=bias, ids=True).double())
    dense = LSTMLayer(V, S, EagerKernel(), bias=bias).double()
    dense.load_state_dict(by_id.state_dict())
    ids = torch.randint(V, (steps, B))
    pull, before = normal(steps, B, S), state(B, S)

    H, last = by_id(ids, before)
    (H * pull).sum().backward()
    H_dense, last_dense = dense(functional.one_hot(ids, V).double(), before)
    (H_dense * pull).sum().backward()

    assert_close(H, H_dense, "H")
    assert_close(last.cell, last_dense.cell, "last C")
    for (name, p), q in zip(by_id.named_parameters(), dense.parameters(), strict=True):
        assert_close(p.grad, q.grad, f"d{name}")


@pytest.mark.parametrize("bias", [True, False])
def test_the_input_product_does_not_depend_on_how_many_ids_there_are(bias: bool) -> None:
    """A row of U plus b is the same, bit for bit, whether one id is asked for or more than the table has rows."""
    U, b = normal(V, 4 * S, dtype=torch.float32), normal(4 * S, dtype=torch.float32) if bias else None
    ids = torch.randint(V, (V, B))

    whole = input_product(EagerKernel(), ids, U, b)
    single = torch.stack([input_product(EagerKernel(), row[None], U, b)[0] for row in ids])

    assert torch.equal(single, whole)


def test_the_order_of_torch() -> None:
    """`nn.LSTM` stores i, f, g, o: each block comes from where that order names it, of weights and of biases."""
    blocks = {gate: torch.full((E, S), float(i)) for i, gate in enumerate(GATES)}
    theirs = torch.cat([blocks[gate].t() for gate in ("input", "forget", "new", "output")])
    U = from_torch_order(theirs)

    assert torch.equal(U, torch.cat([blocks[gate] for gate in GATES], dim=1))
    assert torch.equal(from_torch_order(theirs[:, 0]), U[0])
    assert torch.equal(to_torch_order(U), theirs)
    assert sorted(TORCH_ORDER) == sorted(GATES)


def test_recurrent_blocks_start_orthogonal() -> None:
    """Each gate's block of W starts as a rotation of its own: its columns are orthonormal."""
    layer = LSTMLayer(E, S, EagerKernel())
    blocks = layer.W.detach().double().split(S, dim=1)

    for block in blocks:
        assert_close(block.t() @ block, torch.eye(S, dtype=torch.float64), "W_g' W_g", 1e-5)
    assert not torch.allclose(blocks[0], blocks[1])


def test_recurrent_weights_may_start_uniform() -> None:
    """Without `orthogonal` W starts within 1/sqrt(S), and fills that range."""
    W = LSTMLayer(E, 33, EagerKernel(), orthogonal=False).W.detach()

    assert 0.95 * 33**-0.5 < float(W.abs().max()) <= 33**-0.5


@pytest.mark.parametrize("forget_bias", [1.0, -2.5])
def test_biases_start_at_zero_but_for_the_forget_gate(forget_bias: float) -> None:
    """`forget_bias` is where the forget gate's bias starts, and no other's."""
    b = LSTMLayer(E, S, EagerKernel(), forget_bias=forget_bias).b
    assert b is not None
    starts = dict(zip(GATES, b.detach().split(S), strict=True))

    assert {gate: block.unique().tolist() for gate, block in starts.items()} == {
        "forget": [forget_bias],
        "input": [0.0],
        "output": [0.0],
        "new": [0.0],
    }


def test_forget_biases_may_start_spread() -> None:
    """With `forget_span` memories 1 / (1 - f) of a share of the units grow geometrically from 2 steps to it, b_i = -b_f."""
    b = LSTMLayer(E, 20, EagerKernel(), forget_bias=3.0, forget_span=162.0, forget_share=0.25).b
    assert b is not None
    starts = dict(zip(GATES, b.detach().split(20), strict=True))
    memories = 1 / (1 - starts["forget"][:5].sigmoid())

    assert_close(memories, torch.tensor([2.0, 6.0, 18.0, 54.0, 162.0]), "memories", 0.01)
    assert torch.equal(starts["input"][:5], -starts["forget"][:5])
    assert (starts["forget"][5:] == 3.0).all()
    assert not starts["input"][5:].any()
    assert not starts["output"].any()
    assert not starts["new"].any()


def test_the_empty_state_is_two_tensors() -> None:
    """Writing into the empty state's cell part leaves its hidden part alone."""
    empty = LSTMLayer(E, S, EagerKernel()).initial_state(B)

    empty.cell.fill_(1.0)

    assert torch.equal(empty.hidden, torch.zeros(B, S))


def test_an_expanded_state_is_read_as_what_it_says() -> None:
    """A state repeated for B streams without copying gives what its copy gives, also in the gradients' shapes."""
    layer = grown(LSTMLayer(E, S, EagerKernel()).double())
    x, one = normal(T, B, E), LSTMState(*(t.requires_grad_() for t in state(1, S)))

    H, _ = layer(x, LSTMState(one.hidden.expand(B, S), one.cell.expand(B, S)))
    H_copied, _ = layer(x, LSTMState(one.hidden.repeat(B, 1), one.cell.repeat(B, 1)))

    assert torch.equal(H, H_copied)
    first = torch.autograd.grad(H.sum(), list(one))
    for got, wanted in zip(first, torch.autograd.grad(H_copied.sum(), list(one)), strict=True):
        assert_close(got, wanted, "gradient of the repeated state")


def test_a_residual_branch_keeps_its_gradient() -> None:
    """Where H is added to the layer's own input, both branches hold one gradient: the layer leaves it as it is."""
    layer = LSTMLayer(S, S, EagerKernel()).double()
    x = normal(T, B, S).requires_grad_()
    pull = normal(T, B, S)

    (dx,) = torch.autograd.grad(((x + layer(x, layer.initial_state(B))[0]) * pull).sum(), x)
    (through,) = torch.autograd.grad((layer(x, layer.initial_state(B))[0] * pull).sum(), x)

    assert_close(dx - through, pull, "the branch around the layer")
