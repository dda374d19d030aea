"""The loss of a window and its gradient, by hand from the logits back to the input rows, in memory that is allocated once.

It knows the model's layers, the kernel and dropout. It does not know optimizers, texts or files. `CharLM.forward` and
autograd compute the same, more slowly.
"""

import torch
from torch import Tensor, nn

from lstmlm.cell import LSTMState
from lstmlm.dropout import Dropout
from lstmlm.kernels import Activations
from lstmlm.kernels.pointwise import Norm, Number
from lstmlm.lstm import LSTMLayer, StackState, input_part
from lstmlm.model import CharLM


class _Layer:
    """A layer and what is kept of T steps: gates, C, H with H_0 before them, and x, its output after norm and dropout."""

    def __init__(self, layer: LSTMLayer, norm: Norm | None, T: int, B: int, *, dressed: bool, thinned: bool) -> None:
        S, like = layer.width, layer.W.data
        self.U, self.W, self.b = layer.U, layer.W, layer.b
        self.width, self.norm, self.dressed = S, norm, dressed
        self.H = like.new_zeros(T + 1, B, S)
        self.kept = Activations(like.new_empty(T, B, 4 * S), like.new_empty(T, B, S), self.H[1:])
        self.x = like.new_empty(T, B, S) if dressed else self.kept.H
        self.stats = like.new_empty(T, B, 2) if norm is not None else like.new_empty(0)
        self.thinned = like.new_empty(2, *self.W.shape) if thinned else None  # W with its dropout, and that one's gradient

    @property
    def recurrent(self) -> Tensor:
        """Return the recurrent weights of this step. (S, 4S)"""
        return self.W.data if self.thinned is None else self.thinned[0]

    @property
    def drecurrent(self) -> Tensor:
        """Return where their gradient is added up. (S, 4S)"""
        return _grad(self.W) if self.thinned is None else self.thinned[1]

    def activations(self, T: int) -> Activations:
        """Return the memory of the first T steps."""
        return Activations(*(part[:T] for part in self.kept))


class Backprop:
    """Backpropagation through a window of T steps and B rows.

    Args:
        model: Every parameter has a gradient, which is added to.
        batch: B.
        window: T.
        segment: Steps whose activations are kept at a time; 0 keeps all T. Of the others only the state before each segment is
            kept, and the forward pass is run again when their turn comes (Chen et al. 2016).
    """

    def __init__(self, model: CharLM, batch: int, window: int, segment: int = 0) -> None:
        config = model.config
        self._model, self._batch = model, batch
        steps = min(segment, window) or window
        self._segments = [slice(start, min(start + steps, window)) for start in range(0, window, steps)]
        stack = model.stack()
        self._kernel = stack[0].kernel
        hidden = len(stack) if model.readout is not None else len(stack) - 1
        self._layers = []
        for index, layer in enumerate(stack):
            norm = _norm(model, index) if model.norms is not None and index < hidden else None
            residual = config.residual and index > 0
            dressed = index < hidden and (norm is not None or residual or bool(config.dropout))
            self._layers.append(_Layer(layer, norm, steps, batch, dressed=dressed, thinned=bool(config.weight_dropout)))
        last = self._layers[-1]
        like = last.W.data
        vocabulary = last.width if model.readout is None else model.readout.out_features
        self._logits = like.new_empty(steps * batch, vocabulary)
        widest = max(layer.width for layer in self._layers)
        self._gradients = [like.new_empty(steps * batch * widest) for _ in range(2)]
        self._nothing = tuple(LSTMState(*like.new_zeros(2, batch, layer.width)) for layer in self._layers)

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, targets: Tensor, state: StackState, scale: float, drop: Dropout | None = None
    ) -> tuple[Number, StackState]:
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
        self._thin(drop)
        before = [state]
        for steps in self._segments[:-1]:
            self._read(ids[steps], before[-1], _since(drop, steps))
            before.append(self._state())
        nats: Number = 0.0
        last, dstate = state, self._nothing
        for steps, start in zip(reversed(self._segments), reversed(before), strict=True):
            there = _since(drop, steps)
            x = self._read(ids[steps], start, there)
            if steps is self._segments[-1]:
                last = self._state()
            more, d = self._loss(x, targets[steps].reshape(-1).contiguous(), scale)
            nats = nats + more
            dstate = self._backward(ids[steps], start, d, dstate, there)
        self._thicken(drop)
        return nats, last

    def _thin(self, drop: Dropout | None) -> None:
        """Drop recurrent weights."""
        for index, layer in enumerate(self._layers):
            if layer.thinned is None:
                continue
            thin, dW = layer.thinned.unsqueeze(2)
            weights = layer.W.data.unsqueeze(1)
            if drop is None:
                thin.copy_(weights)
            else:
                self._kernel.pointwise.dress(weights, None, None, drop.of_weights(), index, thin, thin[0])
            dW.zero_()

    def _thicken(self, drop: Dropout | None) -> None:
        """Add the gradient of the weights that were left."""
        for index, layer in enumerate(self._layers):
            if layer.thinned is None:
                continue
            room, dW = layer.thinned.unsqueeze(2)
            if drop is not None:
                self._kernel.pointwise.undress(dW, dW, None, drop.of_weights(), index, room, room[0])
                dW = room
            _grad(layer.W).add_(dW.squeeze(1))

    def _read(self, ids: Tensor, state: StackState, drop: Dropout | None) -> Tensor:
        """Run a segment forward and return what the readout reads. (T, B, S)"""
        kernel, T = self._kernel, len(ids)
        self._steps = T
        x = ids
        for index, (layer, before) in enumerate(zip(self._layers, state, strict=True)):
            layer.H[0] = before.hidden
            kept = layer.activations(T)
            part = input_part(kernel, x, layer.U.data, kept.gates)
            bias = None if layer.b is None else layer.b.data
            kernel.forward(part, layer.recurrent, layer.H[0], before.cell, bias=bias, into=kept)
            if layer.dressed:
                residual = self._residual(index, x)
                kernel.pointwise.dress(kept.H, residual, layer.norm, drop, index, layer.x[:T], layer.stats[:T])
            x = layer.x[:T]
        return x

    def _state(self) -> StackState:
        """Return a copy of the state after the segment that was read."""
        T = self._steps
        return tuple(LSTMState(layer.H[T].clone(), layer.kept.C[T - 1].clone()) for layer in self._layers)

    def _loss(self, x: Tensor, targets: Tensor, scale: float) -> tuple[Number, Tensor]:
        """Return the summed nats, and the gradient of the logits. (T B, V)"""
        readout, pointwise = self._model.readout, self._kernel.pointwise
        rows = x.view(len(targets), -1)
        logits = self._logits[: len(targets)]
        if readout is None:
            logits.copy_(rows)
            return pointwise.loss(logits, None, targets, scale, None), logits
        torch.mm(rows, readout.weight.data.t(), out=logits)
        return pointwise.loss(logits, readout.bias.data, targets, scale, _grad(readout.bias)), logits

    def _backward(self, ids: Tensor, state: StackState, d: Tensor, dstate: StackState, drop: Dropout | None) -> StackState:
        """Run the segment back that was read last.

        Args:
            ids: (T, B)
            state: Before the segment.
            d: Gradient of the logits. (T B, V)
            dstate: Gradient of the state after the segment, from the segments behind it.
            drop: Of the segment.

        Returns:
            Gradient of the state before the segment.
        """
        kernel, readout = self._kernel, self._model.readout
        T, N = len(ids), len(d)
        dx = self._room(0, T, self._layers[-1].width)
        if readout is None:
            dx.view_as(d).copy_(d)
        else:
            _grad(readout.weight).addmm_(d.t(), self._layers[-1].x[:T].view(N, -1))
            torch.mm(d, readout.weight.data, out=dx.view(N, -1))
        before = []
        for index in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[index]
            kept = layer.activations(T)
            dH = self._room(1, T, layer.width)
            if layer.norm is not None or (drop is not None and layer.dressed):
                kernel.pointwise.undress(dx, kept.H, layer.norm, drop, index, dH, layer.stats[:T])
            else:
                dH.copy_(dx)
            dH[-1] += dstate[index].hidden
            da, *first = kernel.backward(dH, dstate[index].cell, kept.gates, kept.C, state[index].cell, layer.recurrent)
            before.append(LSTMState(*first))
            rows = da.view(N, -1)
            kernel.product(layer.H[:T].view(N, -1).t(), rows, layer.drecurrent, add=True)
            db = None if layer.b is None else _grad(layer.b)
            if index == 0:
                kernel.pointwise.scatter(ids.reshape(-1).contiguous(), rows, _grad(layer.U), db)
                break
            kernel.pointwise.scatter(None, rows, None, db)
            below = self._layers[index - 1]
            kernel.product(below.x[:T].view(N, -1).t(), rows, _grad(layer.U), add=True)
            residual = self._residual(index, below.x) is not None
            dx = dx if residual else self._room(0, T, below.width)
            kernel.product(rows, layer.U.data.t(), dx.view(N, -1), add=residual)
        return tuple(reversed(before))

    def _residual(self, index: int, x: Tensor) -> Tensor | None:
        """Return what is added to a layer's output, if anything."""
        direct = self._model.readout is None and index == len(self._layers) - 1
        return x if self._model.config.residual and index and not direct else None

    def _room(self, which: int, T: int, width: int) -> Tensor:
        """Return memory for a gradient. (T, B, width)"""
        return self._gradients[which][: T * self._batch * width].view(T, self._batch, width)


def _since(drop: Dropout | None, steps: slice) -> Dropout | None:
    """Return the dropout of a segment's values, if any are dropped."""
    return drop.since(steps.start) if drop is not None and drop.rate else None


def _norm(model: CharLM, index: int) -> Norm:
    assert model.norms is not None
    norm = model.norms[index]
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight.data, norm.bias.data, _grad(norm.weight), _grad(norm.bias))


def _grad(parameter: Tensor) -> Tensor:
    """Return where a parameter's gradient is added up."""
    assert parameter.grad is not None
    return parameter.grad
