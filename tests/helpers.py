"""What several test files share: a text, comparing tensors, drawing weights, and the recurrence by the reference."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lstmlm.config.run_config import ModelConfig
from lstmlm.data.ids import Ids
from lstmlm.evaluation import scoring
from lstmlm.kernels import Kernel
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import cell
from lstmlm.model.cell import GATES, LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import TORCH_ORDER, LSTMLayer, multiplying, to_order

TEXT = "Où est Bob? Bob est là; Ann le voit.\n" * 5  # 185 characters
EXACT = 1e-10  # float64: a few hundred roundings of 1e-16 in a chain, with a margin


def assert_close(actual: Tensor | None, expected: Tensor | None, what: str, tolerance: float = EXACT) -> None:
    """Compare shape and values; on failure say where the largest difference is."""
    assert actual is not None, f"{what}: missing"
    assert expected is not None, f"{what}: nothing to compare with"
    assert tuple(actual.shape) == tuple(expected.shape), f"{what}: shape"
    actual, expected = actual.detach(), expected.detach()
    difference = (actual.double() - expected.double()).abs()
    worst = int(difference.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
    largest = float(difference.reshape(-1)[worst])
    got, wanted = float(actual.reshape(-1)[worst]), float(expected.reshape(-1)[worst])

    assert largest <= tolerance, f"{what}{place}: {got!r} is not {wanted!r}, off by {largest:.3g} > {tolerance:.3g}"


class Scores(NamedTuple):
    """What `scoring` says of characters, as tensors to be compared."""

    nats: Tensor
    correct: Tensor
    state: Any


def scores(found: scoring.Scored) -> Scores:
    """Return scores as tensors, the nats as float64."""
    return Scores(torch.tensor(found.nats, dtype=torch.float64), torch.tensor(found.correct).bool(), found.state)


def warm(model: Network, ids: Tensor, *given: Any, **named: Any) -> Scores:
    """Score ids[1:] by `scoring.warm`."""
    return scores(scoring.warm(model, ids.tolist(), *given, **named))


def cold(model: Network, ids: Tensor, *given: Any, **named: Any) -> Scores:
    """Score ids[1:] by `scoring.cold`."""
    return scores(scoring.cold(model, ids.tolist(), *given, **named))


def to_torch_order(weight: Tensor) -> Tensor:
    """Return (E, 4S) columns or (4S) biases as the (4S, E) rows or (4S) biases of `nn.LSTM`."""
    return to_order(weight, TORCH_ORDER)


def from_torch_order(weight: Tensor) -> Tensor:
    """Return the inverse of `to_torch_order`."""
    blocks = dict(zip(TORCH_ORDER, weight.chunk(4), strict=True))
    return torch.cat([blocks[gate] for gate in GATES]).t().contiguous()


@torch.no_grad()
def load_torch(layer: LSTMLayer, rival: nn.LSTM, index: int = 0) -> None:
    """Copy layer `index` of an `nn.LSTM` into `layer`; the two bias vectors there are one here, their sum."""
    theirs = dict(rival.named_parameters())
    layer.U.copy_(from_torch_order(theirs[f"weight_ih_l{index}"]))
    layer.W.copy_(from_torch_order(theirs[f"weight_hh_l{index}"]))
    assert rival.bias == (layer.b is not None)
    if layer.b is not None:
        layer.b.copy_(from_torch_order(theirs[f"bias_ih_l{index}"] + theirs[f"bias_hh_l{index}"]))


def normal(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    """Draw a normal tensor from the test's seed."""
    return torch.randn(*shape, dtype=torch.float64).mul_(scale).to(dtype)


def state(batch: int, width: int, dtype: torch.dtype = torch.float64) -> LSTMState:
    """Draw a state that training could have left behind: |H| below 1, C of any size."""
    return LSTMState(normal(batch, width, dtype=dtype).tanh(), normal(batch, width, dtype=dtype))


def grown(layer: LSTMLayer) -> LSTMLayer:
    """Give a layer biases that differ everywhere, so that no gate can stand in for another."""
    with torch.no_grad():
        if layer.b is not None:
            layer.b.add_(torch.randn_like(layer.b))
    return layer


def recurrence(
    kernel: Kernel, a: Tensor, W: Tensor, H_0: Tensor, C_0: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a kernel's forward pass on copies; return H and the last cell state."""
    _, C, H = kernel.forward(a.clone(), W, H_0, C_0, multiplied=multiplying(scale))
    return H, C[-1].clone()


def reference(a: Tensor, W: Tensor, H_0: Tensor, C_0: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run the reference on given pre-activations: the input weights are the identity."""
    H, last = cell.layer(a, torch.eye(a.shape[-1], dtype=a.dtype), W, None, LSTMState(H_0, C_0), scale)
    return H, last.cell


def kernel_gradients(
    kernel: Kernel, inputs: tuple[Tensor, Tensor, Tensor, Tensor], dH: Tensor, dC_T: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return da, dH_0, dC_0 of a kernel for the inputs (a, W, H_0, C_0), and with a scale that one's gradient."""
    a, W, H_0, C_0 = inputs
    by = None if scale is None else multiplying(scale.clone())
    gates, C, H = kernel.forward(a.clone(), W, H_0, C_0, multiplied=by)
    back = kernel.backward(dH.clone(), dC_T.clone(), gates, C, C_0, W, multiplied=by)
    return back if by is None else (*back, by.scale * torch.cat([H_0[None], H[:-1]]))


def reference_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], dH: Tensor, dC_T: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the same as autograd finds it through the reference."""
    a, W, H_0, C_0, *by = (t.detach().clone().requires_grad_() for t in (*inputs, *([] if scale is None else [scale])))
    H, C_T = reference(a, W, H_0, C_0, *by)
    return torch.autograd.grad((H * dH).sum() + (C_T * dC_T).sum(), (a, H_0, C_0, *by))


def small_model(
    vocabulary: int = 11, dtype: torch.dtype = torch.float64, separator: Sequence[int] = (), **changes: Any
) -> CharLM:
    """Make an untrained model, all of its options on, in evaluation mode.

    Its weights are drawn larger than they start, so that what it predicts depends on what it read.
    """
    config = ModelConfig(**{"hidden": 7, "layers": 2, "dropout": 0.0, **changes})
    model = CharLM(config, vocabulary, EagerKernel(), separator).to(dtype)
    model.give_rows([divmod(number, vocabulary) for number in range(0, vocabulary**2, 3)][: config.pairs or 0])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    return model.eval()


def some_ids(length: int, vocabulary: int = 11) -> Tensor:
    """Draw a text whose characters are not equally frequent."""
    return (torch.rand(length) ** 2 * vocabulary).long()


def ids_of(values: Iterable[int]) -> Ids:
    """Return ids of four bytes each, in memory, as `corpus` gives them."""
    values = list(values)
    return Ids(bytearray(b"".join(value.to_bytes(4, sys.byteorder) for value in values)), 4, 0, len(values))
