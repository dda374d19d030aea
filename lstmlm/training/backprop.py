"""The loss of a window and its gradient, by hand from the logits back to the input rows, in memory that is allocated once.

`Backprop` is what a training step calls. `CharLM.forward` and autograd compute the same, more slowly, and a test compares the
two. In which order recurrences run is up to `wavefront`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lstmlm.kernels import Rows
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Norm, Number
from lstmlm.model import ensemble
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import LSTMLayer, StackState, input_part
from lstmlm.training.wavefront import Band, Part, depth


class _Layer:
    """A layer of one network and what is kept of T steps: its part of a band, and x, its output after norm and dropout."""

    def __init__(self, layer: LSTMLayer, norm: Norm | None, T: int, B: int, *, transformed: bool, dropped_weights: bool) -> None:
        S, like = layer.width, layer.W.data
        self.U, self.W, self.b = layer.U, layer.W, layer.b
        self.width, self.norm, self.transformed = S, norm, transformed
        self._x = like.new_empty(T, B, S) if transformed else None
        self.stats = like.new_empty(T, B, 2) if norm is not None else like.new_empty(0)
        self.dropped_weights = (
            like.new_empty(2, *self.W.shape) if dropped_weights else None
        )  # W with its dropout, and that one's gradient

    def place(self, band: Band, network: int, number: int) -> None:
        """Say where its recurrence is."""
        self.gates, self.H = band.gates[network, number], band.H[network, number]

    @property
    def x(self) -> Tensor:
        """Return what the layer above reads. (T, B, S)"""
        return self.H[1:] if self._x is None else self._x

    @property
    def recurrent(self) -> Tensor:
        """Return the recurrent weights of this step. (S, 4S)"""
        return self.W.data if self.dropped_weights is None else self.dropped_weights[0]

    @property
    def drecurrent(self) -> Tensor:
        """Return where their gradient is added up. (S, 4S)"""
        return _grad(self.W) if self.dropped_weights is None else self.dropped_weights[1]


class Backprop:
    """Backpropagation through a window of T steps and B rows, for one network or several that read the same ids.

    Args:
        network: Every parameter has a gradient, which is added to.
        batch: B.
        window: T.
        segment: Steps whose activations are kept at a time; 0 keeps all T. Of the others only the state before each segment is
            kept, and the forward pass is run again when their turn comes (Chen et al. 2016).
    """

    def __init__(self, network: Network, batch: int, window: int, segment: int = 0) -> None:
        self._models = ensemble.members(network)
        self._batch = batch
        steps = min(segment, window) or window
        self._segments = [slice(start, min(start + steps, window)) for start in range(0, window, steps)]
        self._layers = [_layers_of(model, steps, batch) for model in self._models]
        first = self._models[0]
        self._kernel, like = first.stack()[0].kernel, first.stack()[0].W.data
        widths, count = [layer.width for layer in self._layers[0]], len(self._models)
        bounds = _bounds(widths, [depth(self._kernel, count, len(widths), batch, width) for width in widths])
        self._bands = [
            (range(low, high), Band(self._kernel, count, high - low, steps, batch, widths[low], like))
            for low, high in pairwise(bounds)
        ]
        for here, band in self._bands:
            for number, layers in enumerate(self._layers):
                for place, index in enumerate(here):
                    layers[index].place(band, number, place)
        self._logits = like.new_empty(steps * batch, widths[-1] if first.readout is None else first.readout.out_features)
        self._dx = like.new_empty(count, steps * batch * max(widths))
        self._dH = like.new_empty(count * steps * batch * max(len(here) * widths[here[0]] for here, _ in self._bands))

    @torch.no_grad()
    def __call__(
        self, ids: Tensor, targets: Tensor, state: StackState, scale: float, *drops: Dropout | None
    ) -> tuple[Number, StackState]:
        """Read a window and add the gradient of scale x the summed nats to every parameter's.

        Args:
            ids: (T, B)
            targets: The id after each. (T, B)
            state: Before the first step; no gradient goes further back. Of several networks, those of all of them.
            scale: One over the number of predictions of the whole batch, for their mean.
            drops: The step's dropout, of each network.

        Returns:
            nats: Minus log probability, summed over the T x B targets and the networks.
            last: State after step T, in memory of its own.
        """
        drops = drops or (None,) * len(self._models)
        self._drop_weights(drops)
        before = [state]
        for steps in self._segments[:-1]:
            self._read(ids[steps], before[-1], _since(drops, steps))
            before.append(self._state())
        nats: Number = 0.0
        last = state
        for _, band in self._bands:
            band.dhidden.zero_()
            band.dcell.zero_()
        for steps, start in zip(reversed(self._segments), reversed(before), strict=True):
            there = _since(drops, steps)
            self._read(ids[steps], start, there)
            if steps is self._segments[-1]:
                last = self._state()
            for network in range(len(self._models)):
                nats = nats + self._loss(network, targets[steps].reshape(-1).contiguous(), scale)
            self._backward(ids[steps], there)
        self._accumulate_dropped_grad(drops)
        return nats, last

    def _drop_weights(self, drops: Sequence[Dropout | None]) -> None:
        """Drop recurrent weights, and say which ones are left."""
        for layers, drop in zip(self._layers, drops, strict=True):
            for index, layer in enumerate(layers):
                if layer.dropped_weights is None:
                    continue
                dropped, dW = layer.dropped_weights.unsqueeze(2)
                weights = layer.W.data.unsqueeze(1)
                if drop is None:
                    dropped.copy_(weights)
                else:
                    self._kernel.pointwise.norm_dropout_residual(
                        weights, None, None, drop.of_weights(), index, dropped, dropped[0]
                    )
                dW.zero_()
        for here, band in self._bands:
            own = [[layers[index] for index in here] for layers in self._layers]
            band.load(
                [[layer.recurrent for layer in some] for some in own],
                [[None if layer.b is None else layer.b.data for layer in some] for some in own],
            )

    def _accumulate_dropped_grad(self, drops: Sequence[Dropout | None]) -> None:
        """Add the gradient of the weights that were left."""
        for layers, drop in zip(self._layers, drops, strict=True):
            for index, layer in enumerate(layers):
                if layer.dropped_weights is None:
                    continue
                scratch, dW = layer.dropped_weights.unsqueeze(2)
                if drop is not None:
                    self._kernel.pointwise.norm_dropout_residual_backward(
                        dW, dW, None, drop.of_weights(), index, scratch, scratch[0]
                    )
                    dW = scratch
                _grad(layer.W).add_(dW.squeeze(1))

    def _read(self, ids: Tensor, state: StackState, drops: Sequence[Dropout | None]) -> None:
        """Run a segment forward."""
        self._steps = len(ids)
        states = ensemble.parted(state, len(self._models))
        for here, band in self._bands:
            for network, own in enumerate(states):
                for number, index in enumerate(here):
                    band.H[network, number, 0], band.C[network, number, 0] = own[index]
            for wave in band.waves(len(ids)):
                networks = range(len(states))
                band.forward(
                    wave, [[self._input(network, here[part.layer], ids, band, part) for part in wave] for network in networks]
                )
                for network, drop in enumerate(drops):
                    for part in wave:
                        self._norm_dropout_residual(network, here[part.layer], part, drop)

    def _input(self, network: int, index: int, ids: Tensor, band: Band, part: Part) -> Tensor | Rows:
        """Return what a layer's input adds before the activation."""
        layers, steps = self._layers[network], slice(part.start, part.end)
        x = layers[index - 1].x if index else ids
        return input_part(self._kernel, x[steps], layers[index].U.data, band.input_buffer(network, part))

    def _norm_dropout_residual(self, network: int, index: int, part: Part, drop: Dropout | None) -> None:
        """Make what the layer above reads from a layer's output."""
        layers, steps = self._layers[network], slice(part.start, part.end)
        layer, below = layers[index], layers[index - 1]
        if layer.transformed:
            residual = below.x[steps] if self._residual(index) else None
            drop = drop and drop.since(part.start)
            H = layer.H[part.start + 1 : part.end + 1]
            self._kernel.pointwise.norm_dropout_residual(H, residual, layer.norm, drop, index, layer.x[steps], layer.stats[steps])

    def _state(self) -> StackState:
        """Return a copy of the state after the segment that was read."""
        T = self._steps
        return ensemble.joined(
            tuple(
                LSTMState(band.H[network, number, T].clone(), band.C[network, number, T].clone())
                for here, band in self._bands
                for number in range(len(here))
            )
            for network in range(len(self._models))
        )

    def _loss(self, network: int, targets: Tensor, scale: float) -> Number:
        """Return the summed nats of one network; leave the gradient of what its readout read."""
        readout, pointwise, last = self._models[network].readout, self._kernel.pointwise, self._layers[network][-1]
        N = len(targets)
        rows, logits, dx = last.x[: self._steps].view(N, -1), self._logits[:N], self._gradient(network, last.width).view(N, -1)
        if readout is None:
            logits.copy_(rows)
            nats = pointwise.loss(logits, None, targets, scale, None)
            dx.copy_(logits)
            return nats
        torch.mm(rows, readout.weight.data.t(), out=logits)
        nats = pointwise.loss(logits, readout.bias.data, targets, scale, _grad(readout.bias))
        _grad(readout.weight).addmm_(logits.t(), rows)
        torch.mm(logits, readout.weight.data, out=dx)
        return nats

    def _backward(self, ids: Tensor, drops: Sequence[Dropout | None]) -> None:
        """Run the segment back that was read last; its bands hold the gradient of the state behind it, then of the one before."""
        for here, band in reversed(self._bands):
            for wave in reversed(band.waves(len(ids))):
                t, S = wave[0].end - wave[0].start, self._layers[0][here[0]].width
                size = len(self._layers), len(here), t, self._batch, S
                dH = self._dH[: torch.Size(size).numel()].view(size)
                for network, drop in enumerate(drops):
                    for part in wave:
                        self._norm_dropout_residual_backward(network, here[part.layer], part, drop, dH[network, part.layer])
                        dH[network, part.layer, -1] += band.dhidden[network, part.layer]
                band.backward(wave, dH)
                for network in range(len(self._layers)):
                    for part in reversed(wave):
                        self._add(network, here[part.layer], ids, part)

    def _norm_dropout_residual_backward(self, network: int, index: int, part: Part, drop: Dropout | None, dH: Tensor) -> None:
        """Work out the gradient that reaches a layer's output from above."""
        layer, steps = self._layers[network][index], slice(part.start, part.end)
        dx = self._gradient(network, layer.width)[steps]
        drop = drop and drop.since(part.start)
        if layer.norm is not None or (drop is not None and layer.transformed):
            H = layer.H[part.start + 1 : part.end + 1]
            self._kernel.pointwise.norm_dropout_residual_backward(dx, H, layer.norm, drop, index, dH, layer.stats[steps])
        else:
            dH.copy_(dx)

    def _add(self, network: int, index: int, ids: Tensor, part: Part) -> None:
        """Add a layer's part to the gradients: of its weights when all its steps are done, of the output below at once."""
        kernel, layers, T = self._kernel, self._layers[network], self._steps
        layer, below = layers[index], layers[index - 1]
        if part.start == 0:
            rows = layer.gates[:T].view(T * self._batch, -1)
            kernel.product(layer.H[:T].view(len(rows), -1).t(), rows, layer.drecurrent, add=True)
            db = None if layer.b is None else _grad(layer.b)
            if index == 0:
                kernel.pointwise.scatter(ids.reshape(-1).contiguous(), rows, _grad(layer.U), db)
            else:
                kernel.pointwise.scatter(None, rows, None, db)
                kernel.product(below.x[:T].view(len(rows), -1).t(), rows, _grad(layer.U), add=True)
        if index:
            steps = slice(part.start, part.end)
            rows = layer.gates[steps].view((part.end - part.start) * self._batch, -1)
            # Added to where it is read: a chunk's gradient is needed by nobody else any more.
            dx = self._gradient(network, below.width)[steps].view(len(rows), -1)
            kernel.product(rows, layer.U.data.t(), dx, add=self._residual(index))

    def _residual(self, index: int) -> bool:
        """Say whether a layer's input is added to its output."""
        model = self._models[0]
        return model.config.residual and index > 0 and (model.readout is not None or index < len(self._layers[0]) - 1)

    def _gradient(self, network: int, width: int) -> Tensor:
        """Return the gradient of what the layer above reads, or the readout. (T, B, width)"""
        return self._dx[network, : self._steps * self._batch * width].view(self._steps, self._batch, width)


def _layers_of(model: CharLM, T: int, B: int) -> list[_Layer]:
    """Return the layers of a network."""
    config, stack = model.config, model.stack()
    hidden = len(stack) if model.readout is not None else len(stack) - 1
    found = []
    for index, layer in enumerate(stack):
        norm = _norm(model, index) if model.norms is not None and index < hidden else None
        transformed = index < hidden and (norm is not None or (config.residual and index > 0) or bool(config.dropout))
        found.append(_Layer(layer, norm, T, B, transformed=transformed, dropped_weights=bool(config.weight_dropout)))
    return found


def _bounds(widths: Sequence[int], depths: Sequence[int]) -> list[int]:
    """Return where bands begin, and where the last one ends: as deep as may be, of one width.

    Only the last layer may have another width than the one below; so no chunk of one width is written among those of another.
    """
    bounds = [0]
    for index in range(1, len(widths)):
        if widths[index] != widths[index - 1] or index - bounds[-1] == depths[index]:
            bounds.append(index)
    return [*bounds, len(widths)]


def _since(drops: Sequence[Dropout | None], steps: slice) -> list[Dropout | None]:
    """Return the dropout of a segment's values, if any are dropped."""
    return [drop.since(steps.start) if drop is not None and drop.rate else None for drop in drops]


def _norm(model: CharLM, index: int) -> Norm:
    assert model.norms is not None
    norm = model.norms[index]
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight.data, norm.bias.data, _grad(norm.weight), _grad(norm.bias))


def _grad(parameter: Tensor) -> Tensor:
    """Return where a parameter's gradient is added up."""
    assert parameter.grad is not None
    return parameter.grad
