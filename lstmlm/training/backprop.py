"""The loss of a window and its gradient, by hand from the logits back to the input rows, in memory that is allocated once.

`Backprop` is the entry point; a training step calls it. `CharLM.forward` and autograd compute the same, more slowly, and a test
compares the two.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lstmlm.kernels import Activations, Multiplied
from lstmlm.kernels.cuda_graph import Lanes
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.pointwise import Norm, Number, Taught
from lstmlm.model import ensemble
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network
from lstmlm.model.lstm import LSTMLayer, StackState, input_part, with_end

CHUNKS = 8
"""Into which a device cuts a window: while a layer reads one, the layer below reads the next one."""

SCORES = 1 << 24
"""Scores of next characters that are there at once, 64 MiB: of a large vocabulary the readout takes some rows after others."""

SHORTEST = 8
"""Steps of a chunk: in shorter ones what lies between the layers takes longer than the steps."""


class _Part(NamedTuple):
    """Views of some of the steps that are kept of a layer: t of them.

    kept: Gates, C and H after each. (t, B, .)
    H_0: Before the first of them. (B, S)
    C_0: Likewise.
    x: What the layer above reads. (t, B, S)
    stats: Of the norm. (t, B, 2)
    da: The gates, of which the gradient takes the place. (t B, 4S)
    before: H before each. (t, B, S)
    multiplied: Of a multiplicative layer.
    m_t: What the product with W took, turned. (S, t B)
    x_t: x, turned. (S, t B)
    """

    kept: Activations
    H_0: Tensor
    C_0: Tensor
    x: Tensor
    stats: Tensor
    da: Tensor
    before: Tensor
    multiplied: Multiplied | None
    m_t: Tensor
    x_t: Tensor


class _Memory:
    """What is kept of T steps of a layer, in which one network after another works."""

    def __init__(
        self,
        layer: LSTMLayer,
        factors: torch.dtype | None,
        T: int,
        B: int,
        *,
        normed: bool,
        transformed: bool,
        dropped_weights: bool,
    ) -> None:
        S, like = layer.width, layer.W.data
        self.gates = like.new_empty(T, B, 4 * S)
        self.H, self.C = (like.new_zeros(T + 1, B, S) for _ in range(2))  # the state before the first step in front
        self.x = like.new_empty(T, B, S) if transformed else self.H[1:]  # what the layer above reads
        self.multiplied = None if layer.M is None else Multiplied(*(like.new_empty(T, B, S) for _ in range(2)))
        self.stats = like.new_empty(T, B, 2) if normed else like.new_empty(0)
        self.dhidden, self.dcell = (like.new_zeros(B, S) for _ in range(2))  # of the state behind the steps not yet run back
        self.dropped_weights = (
            like.new_empty(2, *layer.W.shape) if dropped_weights else None
        )  # W with its dropout, and that one's gradient
        self.rounded = None if factors is None else [like.new_empty(w.shape, dtype=factors) for w in (layer.U, layer.W)]
        self._parts: dict[tuple[int, int], _Part] = {}

    def part(self, steps: slice) -> _Part:
        """Return views of some steps, made once: in a small network a step of training has time for few of them."""
        found = self._parts.get((steps.start, steps.stop))
        if found is None:
            H, C = (whole[steps.start : steps.stop + 1] for whole in (self.H, self.C))
            gates, x = self.gates[steps], self.x[steps]
            rows = gates.view(-1, gates.shape[2])
            multiplied = self.multiplied and Multiplied(*(whole[steps] for whole in self.multiplied))
            m = H[:-1] if multiplied is None else multiplied.m
            turned = m.view(len(rows), -1).t(), x.view(len(rows), -1).t()
            kept = Activations(gates, C[1:], H[1:])
            found = _Part(kept, H[0], C[0], x, self.stats[steps], rows, H[:-1], multiplied, *turned)
            self._parts[steps.start, steps.stop] = found
        return found


class _Layer:
    """A layer of one network, and the memory that it works in."""

    def __init__(self, layer: LSTMLayer, norm: Norm | None, memory: _Memory, *, transformed: bool) -> None:
        self.U, self.W, self.b, self.M = layer.U, layer.W, layer.b, layer.M
        self.width, self.norm, self.memory, self.transformed = layer.width, norm, memory, transformed

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return U and the recurrent weights of this step, without dropout's if there is any. (E, 4S), (S, 4S)"""
        return self.U.data, self.W.data if self.memory.dropped_weights is None else self.memory.dropped_weights[0]

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the same as the kernel likes them best."""
        return self.weights if self.memory.rounded is None else (self.memory.rounded[0], self.memory.rounded[1])

    @property
    def drecurrent(self) -> Tensor:
        """Return where the gradient of the recurrent weights is added up. (S, 4S)"""
        return _grad(self.W) if self.memory.dropped_weights is None else self.memory.dropped_weights[1]


class Backprop:
    """Backpropagation through a window of T steps and B rows, for one network or several that read the same ids.

    On a device layers work side by side, each a chunk of time behind the one below: T + T/n (L - 1) steps follow one another
    there, not T L, where n is the number of chunks.

    Args:
        network: Every parameter has a gradient, which is added to.
        batch: B.
        window: T.
        segment: Steps whose activations are kept at a time; 0 keeps all T. Of the others only the state before each segment is
            kept, and the forward pass is run again when their turn comes (Chen et al. 2016).
        chunks: Into how many parts a window is cut; None: into `CHUNKS` on a CUDA device, and not at all elsewhere.
    """

    def __init__(self, network: Network, batch: int, window: int, segment: int = 0, chunks: int | None = None) -> None:
        self._models = ensemble.members(network)
        self._batch = batch
        steps = min(segment, window) or window
        self._segments = [slice(start, min(start + steps, window)) for start in range(0, window, steps)]
        first = self._models[0]
        stack = first.stack()
        self._kernel, like = stack[0].kernel, stack[0].W.data
        memories = _memories(first, steps, batch)
        self._networks = [_layers_of(model, memories) for model in self._models]
        widths = [layer.width for layer in stack]
        if len(set(widths)) > 1 or len(widths) == 1:  # gradients of two widths do not lie chunk by chunk in one memory
            chunks = 1
        elif chunks is None:
            chunks = CHUNKS if like.device.type == "cuda" else 1
        self._chunk = max(-(-steps // chunks), min(steps, SHORTEST))
        self._lanes = Lanes(like.device, len(widths) if self._chunk < steps else 1)
        symbols = first.vocabulary
        self._rows = max(1, min(steps * batch, SCORES // symbols))  # of the readout at once
        self._logits = like.new_empty(self._rows, symbols)
        self._ends: Tensor | None = None  # where documents end in the window
        self._table = self._logits[:0]  # then the first layer's U with a row for that
        self._dx = like.new_empty(steps * batch * max(widths))
        self._dH = like.new_empty(len(widths) if self._chunk < steps else 1, self._chunk * batch * max(widths))

    @torch.no_grad()
    def __call__(
        self,
        ids: Tensor,
        targets: Tensor,
        state: StackState,
        scale: float,
        *drops: Dropout | None,
        taught: Taught | None = None,
        logits: Tensor | None = None,
    ) -> tuple[Number, StackState]:
        """Read a window, or without segments a shorter one, and add the gradient of scale x the summed nats to every parameter's.

        Args:
            ids: (T, B)
            targets: The id after each. (T, B)
            state: Before the first step; no gradient goes further back, nor through the end of a document. Of several networks,
                those of all of them.
            scale: One over the number of predictions of the whole batch, for their mean.
            drops: The step's dropout, of each network.
            taught: What a teacher expects after each character; the gradient is then that of `Pointwise.loss`. (T, B, V)
            logits: Where those of a single network are written. (T B, V)

        Returns:
            nats: Minus log probability, summed over the T x B targets and the networks.
            last: State after step T, in memory of its own.
        """
        nats: Number = 0.0
        last = []
        self._read_out = logits
        self._taught = taught and Taught(taught.probabilities.flatten(0, 1), taught.weight)
        states = ensemble.parted(state, len(self._models))
        for model, layers, own, drop in zip(self._models, self._networks, states, drops or [None] * len(states), strict=True):
            self._layers, self._model = layers, model
            more, after = self._window(ids, targets, own, scale, drop)
            nats = nats + more
            last.append(after)
        return nats, ensemble.joined(last)

    def _window(
        self, ids: Tensor, targets: Tensor, state: StackState, scale: float, drop: Dropout | None
    ) -> tuple[Number, StackState]:
        """Do so for one network."""
        self._drop_weights(drop)
        ids, self._ends, seen = self._model.inputs(ids, state)
        if self._ends is not None:
            self._table = with_end(self._layers[0].U.data)
        before = [state[: len(self._layers)]]
        for steps in self._segments[:-1]:
            self._read(ids, steps, before[-1], _since(drop, steps))
            before.append(self._state())
        nats: Number = 0.0
        last = state
        for layer in self._layers:
            layer.memory.dhidden.zero_()
            layer.memory.dcell.zero_()
        for steps, start in zip(reversed(self._segments), reversed(before), strict=True):
            there = _since(drop, steps)
            self._read(ids, steps, start, there)
            if steps is self._segments[-1]:
                last = self._state()
            nats = nats + self._loss(steps, targets[steps].reshape(-1).contiguous(), scale)
            self._backward(ids[steps], there)
        self._accumulate_dropped_grad(drop)
        return nats, (*last, *seen)

    def _drop_weights(self, drop: Dropout | None) -> None:
        """Drop recurrent weights, and round all of them where the kernel does."""
        for index, layer in enumerate(self._layers):
            if layer.memory.dropped_weights is not None:
                dropped, dW = layer.memory.dropped_weights.unsqueeze(2)
                weights = layer.W.data.unsqueeze(1)
                if drop is None:
                    dropped.copy_(weights)
                else:
                    self._kernel.pointwise.norm_dropout_residual(
                        weights, None, None, drop.of_weights(), index, dropped, dropped[0]
                    )
                dW.zero_()
            if layer.memory.rounded is not None:
                for to, weights in zip(layer.memory.rounded, layer.weights, strict=True):
                    to.copy_(weights)

    def _accumulate_dropped_grad(self, drop: Dropout | None) -> None:
        """Add the gradient of the weights that were left."""
        for index, layer in enumerate(self._layers):
            if layer.memory.dropped_weights is None:
                continue
            scratch, dW = layer.memory.dropped_weights.unsqueeze(2)
            if drop is not None:
                self._kernel.pointwise.norm_dropout_residual_backward(dW, dW, None, drop.of_weights(), index, scratch, scratch[0])
                dW = scratch
            _grad(layer.W).add_(dW.squeeze(1))

    def _chunks(self) -> list[slice]:
        """Return the parts of the segment that was read last."""
        return [slice(start, min(start + self._chunk, self._steps)) for start in range(0, self._steps, self._chunk)]

    def _waves(self, chunks: list[slice]) -> Iterator[tuple[int, slice]]:
        """Yield what each layer does, counted from where the pass begins: a chunk after the one before has done that one."""
        count = len(self._layers)
        for wave in range(len(chunks) + count - 1):
            # The furthest first: what it follows has then done no more than it needs.
            for place in range(count - 1, -1, -1):
                if 0 <= wave - place < len(chunks):
                    if place:
                        self._lanes.follow(place, place - 1)
                    with self._lanes(place):
                        yield place, chunks[wave - place]

    def _read(self, window: Tensor, segment: slice, state: StackState, drop: Dropout | None) -> None:
        """Run a segment of a window of ids forward."""
        ids, ends = window[segment], None if self._ends is None else self._ends[segment]
        rows = ids
        self._steps = len(ids)
        table = self._layers[0].U.data
        if ends is not None:
            table = self._table
            ids = ids.masked_fill(ends, len(table) - 1)
        for layer, before in zip(self._layers, state, strict=True):
            layer.memory.H[0], layer.memory.C[0] = before
        self._lanes.part()
        for index, steps in self._waves(self._chunks()):
            layer, here = self._layers[index], self._layers[index].memory.part(steps)
            below = self._layers[index - 1].memory.part(steps).x if index else ids[steps]
            U, W = layer.factors
            ended = ends[steps] if index and ends is not None else None
            part = input_part(self._kernel, below, U if index else table, here.kept.gates, ended)
            bias = None if layer.b is None else layer.b.data
            if layer.M is not None:
                assert here.multiplied is not None
                scale = here.multiplied.scale
                torch.index_select(layer.M.data, 0, rows[steps].reshape(-1), out=scale.view(-1, layer.width)).add_(1)
            self._kernel.forward(part, W, here.H_0, here.C_0, bias=bias, into=here.kept, multiplied=here.multiplied)
            if layer.transformed:
                residual = below if self._residual(index) else None
                drop_here = drop and drop.since(steps.start)
                self._kernel.pointwise.norm_dropout_residual(
                    here.kept.H, residual, layer.norm, drop_here, index, here.x, here.stats
                )
        self._lanes.join()

    def _state(self) -> StackState:
        """Return a copy of the state after the segment that was read."""
        memories = [layer.memory for layer in self._layers]
        return tuple(LSTMState(memory.H[self._steps].clone(), memory.C[self._steps].clone()) for memory in memories)

    def _loss(self, steps: slice, targets: Tensor, scale: float) -> Number:
        """Return the summed nats; leave the gradient of what the readout read."""
        last = self._layers[-1]
        x, gradient = last.memory.part(self._whole).x, self._gradient(last.width)
        parts = x.view(len(targets), -1), gradient.view(len(targets), -1), targets
        nats: Number = 0.0
        start = steps.start * self._batch
        for rows, dx, here in zip(*(part.split(self._rows) for part in parts), strict=True):
            nats = nats + self._loss_of_rows(rows, dx, here, scale, slice(start, start + len(rows)))
            start += len(rows)
        return nats

    def _loss_of_rows(self, rows: Tensor, dx: Tensor, targets: Tensor, scale: float, place: slice) -> Number:
        readout, pointwise, logits = self._model.readout, self._kernel.pointwise, self._logits[: len(rows)]
        out = None if self._read_out is None else self._read_out[place]
        taught = self._taught and Taught(self._taught.probabilities[place], self._taught.weight)
        if readout is None:
            logits.copy_(rows)
            if out is not None:
                out.copy_(rows)
            nats = pointwise.loss(logits, None, targets, scale, None, taught)
            dx.copy_(logits)
            return nats
        product, weight = self._kernel.strict.product, readout.weight.data
        product(rows, weight.t(), logits)
        if out is not None:
            torch.add(logits, readout.bias.data, out=out)
        nats = pointwise.loss(logits, readout.bias.data, targets, scale, _grad(readout.bias), taught)
        product(logits.t(), rows, _grad(readout.weight), add=True)
        product(logits, weight, dx)
        return nats

    def _backward(self, ids: Tensor, drop: Dropout | None) -> None:
        """Run the segment back that was read last; then layers hold the gradient of the state before it."""
        self._lanes.part()
        for place, steps in self._waves(self._chunks()[::-1]):
            index = len(self._layers) - 1 - place
            layer, memory = self._layers[index], self._layers[index].memory
            here = memory.part(steps)
            dx = self._gradient(layer.width)[steps]
            dH = self._dH[place % len(self._dH), : dx.numel()].view(dx.shape) if layer.transformed else dx
            if layer.norm is not None or (drop is not None and layer.transformed):
                there = drop and drop.since(steps.start)
                self._kernel.pointwise.norm_dropout_residual_backward(dx, here.kept.H, layer.norm, there, index, dH, here.stats)
            elif layer.transformed:
                dH.copy_(dx)
            dH[-1].add_(memory.dhidden)
            U, W = layer.factors
            gates, C, _ = here.kept
            _, dhidden, dcell = self._kernel.backward(dH, memory.dcell, gates, C, here.C_0, W, multiplied=here.multiplied)
            memory.dhidden.copy_(dhidden)
            memory.dcell.copy_(dcell)
            if index:
                width = self._layers[index - 1].width
                # Added to where it is read: nobody else needs a chunk's gradient any more.
                to = self._gradient(width)[steps].view(len(here.da), -1)
                self._kernel.product(here.da, U.t(), to, add=self._residual(index))
        for place in range(len(self._layers)):
            with self._lanes(place):
                self._add(len(self._layers) - 1 - place, ids)
        self._lanes.join()

    def _add(self, index: int, ids: Tensor) -> None:
        """Add to the gradients of a layer's weights, when all steps of a segment are done."""
        layer, here = self._layers[index], self._layers[index].memory.part(self._whole)
        pointwise, product, rows = self._kernel.pointwise, self._kernel.product, here.da
        db = None if layer.b is None else _grad(layer.b)
        if index == 0:
            symbols = ids.reshape(-1).contiguous()
            pointwise.scatter(symbols, rows, _grad(layer.U), db)
            if layer.M is not None:
                assert here.multiplied is not None
                dscale = here.multiplied.scale.mul_(here.before)  # which is dm by now
                pointwise.scatter(symbols, dscale.view(-1, layer.width), _grad(layer.M), None)
        else:
            pointwise.scatter(None, rows, None, db)
        if self._kernel.factors is not None:
            rows = rows.to(self._kernel.factors)  # once for both
        product(here.m_t, rows, layer.drecurrent, add=True)
        if index:
            product(self._layers[index - 1].memory.part(self._whole).x_t, rows, _grad(layer.U), add=True)

    @property
    def _whole(self) -> slice:
        """Return the steps of the segment that was read last."""
        return slice(0, self._steps)

    def _residual(self, index: int) -> bool:
        """Say whether a layer's input is added to its output."""
        return self._model.config.residual and index > 0 and (self._model.readout is not None or index < len(self._layers) - 1)

    def _gradient(self, width: int) -> Tensor:
        """Return the gradient of what the layer above reads, or the readout. (T, B, width)"""
        return self._dx[: self._steps * self._batch * width].view(self._steps, self._batch, width)


def _transformed(model: CharLM, index: int) -> bool:
    """Say whether there is anything between a layer's output and what the layer above reads."""
    config = model.config
    hidden = model.readout is not None or index < len(model.layers) - 1
    return hidden and (model.norms is not None or (config.residual and index > 0) or bool(config.dropout))


def _memories(model: CharLM, T: int, B: int) -> list[_Memory]:
    """Return the memory of each layer."""
    stack, dropped_weights = model.stack(), bool(model.config.weight_dropout)
    factors = stack[0].kernel.factors
    return [
        _Memory(
            layer,
            factors,
            T,
            B,
            normed=_norm(model, index) is not None,
            transformed=_transformed(model, index),
            dropped_weights=dropped_weights,
        )
        for index, layer in enumerate(stack)
    ]


def _layers_of(model: CharLM, memories: list[_Memory]) -> list[_Layer]:
    """Return the layers of a network."""
    return [
        _Layer(layer, _norm(model, index), memory, transformed=_transformed(model, index))
        for index, (layer, memory) in enumerate(zip(model.stack(), memories, strict=True))
    ]


def _since(drop: Dropout | None, steps: slice) -> Dropout | None:
    """Return the dropout of a segment's values, if any are dropped."""
    return drop.since(steps.start) if drop is not None and drop.rate else None


def _norm(model: CharLM, index: int) -> Norm | None:
    """Return the norm of a layer's output; None: it has none."""
    if model.norms is None or index >= len(model.norms):
        return None
    norm = model.norms[index]
    assert isinstance(norm, nn.LayerNorm)
    return Norm(norm.weight.data, norm.bias.data, _grad(norm.weight), _grad(norm.bias))


def _grad(parameter: Tensor) -> Tensor:
    """Return where a parameter's gradient is added up."""
    assert parameter.grad is not None
    return parameter.grad
