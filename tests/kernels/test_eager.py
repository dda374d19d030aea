"""The recurrence by hand, in torch calls: tied to the reference forward and backward."""

import pytest
import torch
from torch import Tensor

from lstmlm.kernels.eager import EagerKernel
from lstmlm.model.cell import LSTMState
from lstmlm.model.lstm import LSTMLayer
from tests.helpers import (
    assert_close,
    grown,
    kernel_gradients,
    normal,
    recurrence,
    reference,
    reference_gradients,
    state,
)

SIZES = [(5, 3, 7), (1, 3, 7), (5, 1, 7), (5, 3, 1), (1, 1, 1), (2, 9, 17)]
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}


def drawn(T: int, B: int, S: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a, W, H_0, C_0 of the sizes that training sees."""
    return (normal(T, B, 4 * S), normal(S, 4 * S, scale=S**-0.5), *state(B, S))


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize(("T", "B", "S"), SIZES)
def test_forward_equals_the_reference(T: int, B: int, S: int, multiplicative: bool) -> None:
    """Hidden and cell states are those of the equations in float64, down to one step, one stream, one unit."""
    inputs = drawn(T, B, S)
    scale = normal(T, B, S) if multiplicative else None

    H, C_T = recurrence(EagerKernel(), *inputs, scale)
    expected_H, expected_C = reference(*inputs, scale)

    assert_close(H, expected_H, "H")
    assert_close(C_T, expected_C, "C_T")


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize(("T", "B", "S"), SIZES)
def test_backward_equals_the_reference(T: int, B: int, S: int, multiplicative: bool) -> None:
    """The gradients of a, H_0, C_0 and the scale are autograd's in float64, with one arriving at every H_t and at the last C."""
    inputs = drawn(T, B, S)
    dH, dC_T = normal(T, B, S), normal(B, S)
    scale = normal(T, B, S) if multiplicative else None

    actual = kernel_gradients(EagerKernel(), inputs, dH, dC_T, scale)
    expected = reference_gradients(inputs, dH, dC_T, scale)

    for what, one, other in zip(("da", "dH_0", "dC_0", "dscale")[: len(expected)], actual, expected, strict=True):
        assert_close(one, other, what)


def test_backward_writes_only_where_it_may() -> None:
    """The incoming gradients, the weights and the states come out of a backward pass as they went in."""
    a, W, H_0, C_0 = drawn(5, 3, 7)
    dH, dC_T = normal(5, 3, 7), normal(3, 7)
    kernel = EagerKernel()
    gates, C, H = kernel.forward(a, W, H_0, C_0)
    watched = [dH, dC_T, C, C_0, H_0, W, H]
    copies = [t.clone() for t in watched]

    kernel.backward(dH, dC_T, gates, C, C_0, W)

    assert all(torch.equal(one, other) for one, other in zip(watched, copies, strict=True))


def test_activations_are_kept_in_the_memory_that_came_in() -> None:
    """`gates` is a's memory, and da that of `gates`: a window costs 6 TBS values and no more."""
    a, W, H_0, C_0 = drawn(5, 3, 7)
    kernel = EagerKernel()

    gates, C, _ = kernel.forward(a, W, H_0, C_0)
    da, _, _ = kernel.backward(normal(5, 3, 7), normal(3, 7), gates, C, C_0, W)

    assert gates.data_ptr() == a.data_ptr() == da.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_piece_equals_three_pieces(dtype: torch.dtype) -> None:
    """A text read in three pieces with the state passed on gives, bit for bit, what it gives in one."""
    T, B, S = 11, 3, 7
    a, W, H_0, C_0 = (t.to(dtype) for t in drawn(T, B, S))
    kernel = EagerKernel()

    whole, C_T = recurrence(kernel, a, W, H_0, C_0)
    pieces = []
    for piece in a.split([2, 6, 3]):
        H, C_0 = recurrence(kernel, piece, W, H_0, C_0)
        H_0 = H[-1]
        pieces.append(H)

    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(C_0, C_T)


@pytest.mark.parametrize("dtype", EPSILON)
def test_lower_precision_stays_within_its_epsilon(dtype: torch.dtype) -> None:
    """In float32 and bfloat16, T steps err by at most 4T epsilon, and their gradients by 16T epsilon of the largest."""
    T, B, S = 9, 5, 17
    inputs = tuple(t.to(dtype) for t in drawn(T, B, S))
    a, W, H_0, C_0 = inputs
    exact = (a.double(), W.double(), H_0.double(), C_0.double())
    dH, dC_T = normal(T, B, S, dtype=dtype), normal(B, S, dtype=dtype)

    H, C_T = recurrence(EagerKernel(), a, W, H_0, C_0)
    actual = kernel_gradients(EagerKernel(), (a, W, H_0, C_0), dH, dC_T)

    expected_H, expected_C = reference(*exact)
    bound = 4 * T * EPSILON[dtype]
    assert H.dtype == dtype
    assert_close(H, expected_H, "H", bound)
    assert_close(C_T, expected_C, "C_T", bound * float(expected_C.abs().max()))
    for what, one, other in zip(
        ("da", "dH_0", "dC_0"), actual, reference_gradients(exact, dH.double(), dC_T.double()), strict=True
    ):
        assert one.dtype == dtype
        assert_close(one, other, what, 4 * bound * float(other.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("T", [1, 3])
def test_gradcheck(T: int, bias: bool) -> None:
    """Differences of the forward pass agree with the backward pass for all inputs and weights, the last states used."""
    B, E, S = 2, 3, 5
    layer = grown(LSTMLayer(E, S, EagerKernel(), bias=bias).double())
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, H_0: Tensor, C_0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(names, weights, strict=True))
        H, last = torch.func.functional_call(layer, given, (x, LSTMState(H_0, C_0)))
        return H, last.hidden, last.cell

    inputs = (normal(T, B, E), *state(B, S), *(p.detach().clone() for p in layer.parameters()))

    assert torch.autograd.gradcheck(run, tuple(t.requires_grad_() for t in inputs))


def test_a_second_backward_pass_over_the_same_graph() -> None:
    """The activations that the first backward pass used up are made again: further ones give the same gradients."""
    dense = grown(LSTMLayer(6, 7, EagerKernel()).double())
    by_id = grown(LSTMLayer(6, 7, EagerKernel(), ids=True, multiplicative=True).double())
    assert by_id.M is not None
    by_id.M.data.copy_(normal(6, 7))
    x = normal(5, 3, 6).requires_grad_()
    for layer, given, wanted in ((dense, x, [x]), (by_id, torch.randint(6, (5, 3)), [])):
        H, last = layer(given, LSTMState(*state(3, 7)))
        total = (H * normal(5, 3, 7)).sum() + (last.cell * normal(3, 7)).sum()
        wanted += layer.parameters()

        first, *others = (torch.autograd.grad(total, wanted, retain_graph=True) for _ in range(3))

        for other in others:
            assert all(torch.equal(one, again) for one, again in zip(first, other, strict=True))


def test_second_derivatives_are_refused() -> None:
    """The kernel has no second derivative, and says so rather than return a wrong one."""
    layer = LSTMLayer(6, 7, EagerKernel()).double()
    x = normal(5, 3, 6).requires_grad_()
    H, _ = layer(x, layer.initial_state(3))
    (dx,) = torch.autograd.grad((H * H).sum(), x, create_graph=True)

    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()
