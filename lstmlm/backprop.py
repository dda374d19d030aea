"""The loss of a window and its gradient, by hand from the logits back to the input rows, in memory that is allocated once.

It knows the model's layers, the kernel and dropout. It does not know optimizers, texts or files. `CharLM.forward` and
autograd compute the same, more slowly.
"""

import torch
from torch import Tensor, nn

from lstmlm.cell import LSTMState
from lstmlm.dropout import Dropout
from lstmlm.kernels import Activations
from lstmlm.kernels.pointwise import Norm
from lstmlm.lstm import LSTMLayer, StackState, input_part
from lstmlm.model import CharLM


class _Layer:
    """A layer and what is kept of its window: gates, C, H with H_0 before them, and x, its output after norm and dropout."""

    def __init__(self, layer: LSTMLayer, norm: Norm | None, T: int, B: int, *, dressed: bool) -> None:
        S, like = layer.width, layer.W.data
        self.U, self.W, self.b = layer.U, layer.W, layer.b
        self.width, self.norm, self.dressed = S, norm, dressed
        self.H = like.new_zeros(T + 1, B, S)
        self.kept = Activations(like.new_empty(T, B, 4 * S), like.new_empty(T, B, S), self.H[1:])
        self.x = like.new_empty(T, B, S) if dressed else self.kept.H
        self.stats = like.new_empty(T, B, 2) if norm is not None else like.new_empty(0)
        self.no_gradient = like.new_zeros(B, S)


class Backprop:
    """Backpropagation through a window of T steps and B rows.

    Args:
        model: Every parameter has a gradient, which is added to.
        batch: B.
        window: T.
    """

    def __init__(self, model: CharLM, batch: int, window: int) -> None:
        config = model.config
        self._model, self._shape = model, (window, batch)
        stack = model.stack()
        self._kernel = stack[0].kernel
        hidden = len(stack) if model.readout is not None else len(stack) - 1
        self._layers = []
        for index, layer in enumerate(stack):
            norm = _norm(model, index) if model.norms is not None and index < hidden else None
            residual = config.residual and index > 0
            dressed = index < hidden and (norm is not None or residual or bool(config.dropout))
            self._layers.append(_Layer(layer, norm, window, batch, dressed=dressed))
        last = self._layers[-1]
        like = last.W.data
        vocabulary = last.width if model.readout is None else model.readout.out_features
        self._logits = like.new_empty(window * batch, vocabulary)
        widest = max(layer.width for layer in self._layers)
        self._gradients = [like.new_empty(window * batch * widest) for _ in range(2)]

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, targets: Tensor, state: StackState, scale: float, drop: Dropout | None = None
    ) -> tuple[float, StackState]:
        """Read a window and add the gradient of scale x the summed nats to every parameter's.

        Args:
            ids: (T, B)
            targets: The id after each. (T, B)
            state: Before the first step; no gradient goes further back.
            scale: One over the number of predictions of the whole batch, for their mean.
            drop: The step's dropout.

        Returns:
            nats: Minus log probability, summed over the T x B targets.
            last: State after step T, in memory of its own.
        """
        logits = self._forward(ids, state, drop)
        readout, pointwise = self._model.readout, self._kernel.pointwise
        flat = targets.reshape(-1).contiguous()
        if readout is None:
            nats = pointwise.loss(logits, None, flat, scale, None)
        else:
            nats = pointwise.loss(logits, readout.bias.data, flat, scale, _grad(readout.bias))
        last = tuple(LSTMState(layer.H[-1].clone(), layer.kept.C[-1].clone()) for layer in self._layers)
        self._backward(ids, state, logits, drop)
        return nats, last

    def _forward(self, ids: Tensor, state: StackState, drop: Dropout | None) -> Tensor:
        """Return the logits without their bias. (T B, V)"""
        kernel, readout = self._kernel, self._model.readout
        x = ids
        for index, (layer, before) in enumerate(zip(self._layers, state, strict=True)):
            layer.H[0] = before.hidden
            part = input_part(kernel, x, layer.U.data, layer.kept.gates)
            bias = None if layer.b is None else layer.b.data
            kernel.forward(part, layer.W.data, layer.H[0], before.cell, bias=bias, into=layer.kept)
            if layer.dressed:
                kernel.pointwise.dress(layer.kept.H, self._residual(index, x), layer.norm, drop, index, layer.x, layer.stats)
            x = layer.x
        rows = x.reshape(len(self._logits), -1)
        if readout is None:
            return self._logits.copy_(rows)
        return torch.mm(rows, readout.weight.data.t(), out=self._logits)

    def _backward(self, ids: Tensor, state: StackState, d: Tensor, drop: Dropout | None) -> None:
        kernel, readout = self._kernel, self._model.readout
        T, B = self._shape
        dx, dy = (self._room(which, self._layers[-1].width) for which in range(2))
        if readout is None:
            dx.view_as(d).copy_(d)
        else:
            rows = self._layers[-1].x.reshape(T * B, -1)
            _grad(readout.weight).addmm_(d.t(), rows)
            torch.mm(d, readout.weight.data, out=dx.view(T * B, -1))
        for index in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[index]
            H, C_0 = layer.kept.H, state[index].cell
            through = dx
            if layer.norm is not None or (drop is not None and layer.dressed):
                kernel.pointwise.undress(dx, H, layer.norm, drop, index, dy, layer.stats)
                through = dy
            da, _, _ = kernel.backward(through, layer.no_gradient, layer.kept.gates, layer.kept.C, C_0, layer.W.data)
            rows = da.view(T * B, -1)
            kernel.product(layer.H[:-1].view(T * B, -1).t(), rows, _grad(layer.W), add=True)
            db = None if layer.b is None else _grad(layer.b)
            if index == 0:
                kernel.pointwise.scatter(ids.reshape(-1).contiguous(), rows, _grad(layer.U), db)
                return
            kernel.pointwise.scatter(None, rows, None, db)
            below = self._layers[index - 1]
            kernel.product(below.x.reshape(T * B, -1).t(), rows, _grad(layer.U), add=True)
            residual = self._residual(index, below.x) is not None
            out = dx if residual else self._room(0, below.width)
            kernel.product(rows, layer.U.data.t(), out.view(T * B, -1), add=residual)
            dx, dy = out, self._room(1, below.width)

    def _residual(self, index: int, x: Tensor) -> Tensor | None:
        """Return what is added to a layer's output, if anything."""
        direct = self._model.readout is None and index == len(self._layers) - 1
        return x if self._model.config.residual and index and not direct else None

    def _room(self, which: int, width: int) -> Tensor:
        """Return memory for a gradient. (T, B, width)"""
        T, B = self._shape
        return self._gradients[which][: T * B * width].view(T, B, width)


def _norm(model: CharLM, index: int) -> Norm:
    assert model.norms is not None
    norm = model.norms[index]
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight.data, norm.bias.data, _grad(norm.weight), _grad(norm.bias))


def _grad(parameter: Tensor) -> Tensor:
    """Return where a parameter's gradient is added up."""
    assert parameter.grad is not None
    return parameter.grad
