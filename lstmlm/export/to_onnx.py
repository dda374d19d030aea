"""A trained network as one ONNX graph, for runtimes in browsers, telephones and other languages.

`graph` is the entry point, for `lstmlm export --to onnx`. The package onnx is an optional extra.

    ids (T, B) int64, state (B, N)  ->  logits (T, B, V), state_after (B, N)

The state is one tensor, for a caller to hand back as it came: H and C of the first layer, then of the second, then of the next
member; then, where pairs of ids have rows of their own, the last id plus 1. The empty state is zeros. N and the vocabulary
stand in the model's metadata.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lstmlm.errors import UsageError
from lstmlm.export.to_torch import about
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network, members
from lstmlm.model.lstm import LSTMLayer, to_order
from lstmlm.storage import checkpoint

MARK = b"lstmlm-onnx-1"
"""The producer's name, with which the file begins."""

ORDER = ("input", "output", "forget", "new")
"""The order of the four blocks in the operator LSTM."""

OPSET, IR = 18, 8  # of 2022: old enough for every runtime in use
MOST = 2**31  # bytes of a protobuf message


def graph(network: Network, symbols: str | None, rare: int | None = None) -> bytes:
    """Return the file.

    Args:
        network: One or several.
        symbols: Its vocabulary, by id; None: its ids are bytes.
        rare: The id that characters have which are none of the symbols; None: they have none.

    Raises:
        UsageError: It is too large for the format.
    """
    import onnx
    from onnx import TensorProto, helper

    size = 4 * network.parameter_count()
    if size >= MOST:
        raise UsageError(f"--to onnx: expected a model below 2 GiB, which it can hold, found {size:,} bytes. Take --to torch.")
    build = _Graph()
    models = members(network)
    vocabulary = models[0].vocabulary
    width = sum(2 * layer.width for layer in network.stack())
    sizes = [layer.width for layer in network.stack() for _ in range(2)]
    paired = bool(models[0].config.pairs)
    width += paired
    sizes += [1] * paired
    parts = build("Split", "state", build.integers(sizes), outputs=len(sizes), axis=1)
    rows, seen = _rows(build, models[0], parts.pop()) if paired else ("ids", [])
    one_hot = build("OneHot", rows, build.integers([len(models[0].stack()[0].U)], []), build.floats([0.0, 1.0], [2]))
    guesses, after = [], []
    for number, model in enumerate(models):
        own = 2 * len(model.layers)
        logits, last = _network(build, model, rows, one_hot[0], parts[number * own : (number + 1) * own])
        guesses.append(logits)
        after += last
    if len(guesses) > 1:  # ln of the mean of the probabilities
        each = [build("LogSoftmax", logits, axis=-1)[0] for logits in guesses]
        apart = [build("Unsqueeze", one, build.integers([0]))[0] for one in each]
        total = build("ReduceLogSumExp", build("Concat", *apart, axis=0)[0], build.integers([0]), keepdims=0)[0]
        guesses = build("Sub", total, build.floats([math.log(len(each))], []))
    build("Identity", guesses[0], names=["logits"])
    build("Concat", *after, *seen, names=["state_after"], axis=1)
    whole = helper.make_graph(
        build.nodes,
        "lstmlm",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["T", "B"]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["B", width]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", "B", vocabulary]),
            helper.make_tensor_value_info("state_after", TensorProto.FLOAT, ["B", width]),
        ],
        build.constants,
    )
    made = helper.make_model(whole, producer_name=MARK.decode(), ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    helper.set_model_props(made, {"model": about(network, symbols, MARK, rare), "state": str(width)})
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


class _Graph:
    """Nodes and constants of a graph in the making. Called with an operator and inputs, it adds a node and names its outputs.

    Args:
        around: The graph of which this one is a part, whose constants it sees; None: it is none.
    """

    def __init__(self, around: "_Graph | None" = None) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = around.constants if around else []
        self._names: Iterator[str] = around._names if around else (f"t{number}" for number in range(1 << 30))

    def __call__(
        self, operator: str, *inputs: str, outputs: int = 1, names: Sequence[str] = (), **attributes: object
    ) -> list[str]:
        """Add a node; return the names of its outputs."""
        from onnx import helper

        made = list(names) or [next(self._names) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), made, **attributes))
        return made

    def weight(self, tensor: Tensor) -> str:
        """Add weights as a constant; return its name."""
        from onnx import TensorProto, helper

        blob = checkpoint.to_blobs({"": tensor.detach().float()})[""]
        name = next(self._names)
        self.constants.append(helper.make_tensor(name, TensorProto.FLOAT, blob.shape, bytes(blob.data), raw=True))
        return name

    def integers(self, values: Sequence[int], shape: Sequence[int] | None = None) -> str:
        """Add whole numbers as a constant, a row where no shape is given; return its name."""
        from onnx import TensorProto, helper

        name = next(self._names)
        self.constants.append(helper.make_tensor(name, TensorProto.INT64, [len(values)] if shape is None else shape, values))
        return name

    def floats(self, values: Sequence[float], shape: Sequence[int]) -> str:
        """Add numbers as a constant; return its name."""
        from onnx import TensorProto, helper

        name = next(self._names)
        self.constants.append(helper.make_tensor(name, TensorProto.FLOAT, shape, values))
        return name


def _rows(build: _Graph, model: CharLM, last: str) -> tuple[str, list[str]]:
    """Add which rows of the tables are read (T, B), as `CharLM.inputs` says, and the last id for the state after them (B, 1)."""
    from onnx import TensorProto

    V, (first, second) = model.vocabulary, model.pairs.to(torch.int64).unbind(1)
    one, axis = build.integers([1], []), build.integers([0])
    before = build("Sub", build("Cast", build("Transpose", last, perm=[1, 0])[0], to=TensorProto.INT64)[0], one)[0]
    seen = build("Concat", before, "ids", axis=0)[0]
    before = build("Slice", seen, axis, build.integers([-1]), axis)[0]
    wanted = build("Add", build("Mul", before, build.integers([V], []))[0], "ids")[0]
    keys = build.integers((first * V + second).tolist())
    hits = build("Equal", build("Unsqueeze", wanted, build.integers([-1]))[0], keys)[0]  # (T, B, N)
    found = build("Cast", hits, to=TensorProto.INT64)[0]
    place = build("Add", build("ArgMax", found, axis=-1, keepdims=0)[0], build.integers([V], []))[0]
    there = build("Cast", build("ReduceMax", found, build.integers([-1]), keepdims=0)[0], to=TensorProto.BOOL)[0]
    rows = build("Where", there, place, "ids")[0]
    end = build("Slice", seen, build.integers([-1]), build.integers([2**62]), axis)[0]
    return rows, [build("Cast", build("Transpose", build("Add", end, one)[0], perm=[1, 0])[0], to=TensorProto.FLOAT)[0]]


def _network(build: _Graph, model: CharLM, ids: str, x: str, state: Sequence[str]) -> tuple[str, list[str]]:
    """Add one network, as `CharLM.forward` reads; return its logits, and its state after them in parts."""
    after: list[str] = []
    last = len(model.layers) - 1
    for index, layer in enumerate(model.stack()):
        H, C = state[2 * index : 2 * index + 2]
        if layer.M is None:
            y, *ended = _layer(build, layer, x, H, C)
        else:
            scale = build("Gather", build.weight(1 + layer.M), ids)[0]
            y, *ended = _multiplicative(build, layer, x, scale, H, C)
        after += ended
        if model.readout is None and index == last:
            return y, after
        if model.norms is not None:
            norm: Any = model.norms[index]
            y = build("LayerNormalization", y, build.weight(norm.weight), build.weight(norm.bias), epsilon=norm.eps)[0]
        x = build("Add", x, y)[0] if model.config.residual and index else y
    assert model.readout is not None  # a stack has at least one layer
    product = build("MatMul", x, build.weight(model.readout.weight.t()))[0]
    return build("Add", product, build.weight(model.readout.bias))[0], after


def _layer(build: _Graph, layer: LSTMLayer, x: str, H: str, C: str) -> tuple[str, str, str]:
    """Add the operator LSTM over all steps of x (T, B, E); return H of every step (T, B, S), and the last H and C (B, S)."""
    U, W = (build.weight(to_order(weight, ORDER)[None]) for weight in (layer.U, layer.W))
    b = torch.zeros(4 * layer.width) if layer.b is None else to_order(layer.b, ORDER)
    both = build.weight(torch.cat([b, torch.zeros_like(b)])[None])  # there are two there, and their sum counts
    first = [build("Unsqueeze", part, build.integers([0]))[0] for part in (H, C)]
    every, *last = build("LSTM", x, U, W, both, "", *first, outputs=3, hidden_size=layer.width)
    H_T, C_T = (build("Squeeze", part, build.integers([0]))[0] for part in last)
    return build("Squeeze", every, build.integers([1]))[0], H_T, C_T


def _multiplicative(build: _Graph, layer: LSTMLayer, x: str, scale: str, H: str, C: str) -> tuple[str, str, str]:
    """Add the same one step at a time, in front of which H is multiplied by the scale of that step (T, B, S)."""
    from onnx import TensorProto, helper

    inner = _Graph(build)
    H_t, C_t, x_t, scale_t = names = [next(inner._names) for _ in range(4)]
    one = inner("Unsqueeze", x_t, inner.integers([0]))[0]
    _, *after = _layer(inner, layer, one, inner("Mul", H_t, scale_t)[0], C_t)
    every = inner("Identity", after[0])[0]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*after, every)]
    body = helper.make_graph(inner.nodes, "step", given, found)
    H_T, C_T, y = build("Scan", H, C, x, scale, outputs=3, body=body, num_scan_inputs=2)
    return y, H_T, C_T
