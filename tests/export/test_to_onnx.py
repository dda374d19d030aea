"""The ONNX graph: onnx's own evaluator and onnxruntime give what the network gives."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.errors import UsageError
from lstmlm.export import to_onnx
from lstmlm.model import ensemble
from tests.export.models import KINDS, V, network

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def reference(data: bytes) -> Run:
    """Return what the evaluator of the package onnx makes of a graph."""
    onnx = pytest.importorskip("onnx", minversion="1.23")  # before that the evaluator has no cell state of an LSTM
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(onnx.load_from_string(data))
    return lambda ids, state: tensors(evaluator.run(None, {"ids": ids.numpy(), "state": state.numpy()}))


def runtime(data: bytes) -> Run:
    """Return what onnxruntime makes of it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda ids, state: tensors(session.run(["logits", "state_after"], {"ids": ids.numpy(), "state": state.numpy()}))


def tensors(arrays: Any) -> tuple[Tensor, Tensor]:
    """Return arrays as tensors."""
    logits, state = (torch.from_numpy(array) for array in arrays)
    return logits, state


@pytest.mark.parametrize("evaluator", [reference, runtime])
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_reads_as_the_network(kind: str, evaluator: Callable[[bytes], Run]) -> None:
    """Logits of a text, and of its continuation from the state handed back, to 1e-5, for every kind of network."""
    pytest.importorskip("onnx")
    made = network(**KINDS[kind])
    run = evaluator(to_onnx.graph(made, "abcde"))
    ids = torch.randint(0, V, (11, 3))
    with torch.inference_mode():
        first, between = made(ids[:6])
        then, _ = made(ids[6:], between)
    width = sum(2 * layer.width for layer in made.stack()) + bool(ensemble.members(made)[0].config.pairs)
    logits, state = run(ids[:6], torch.zeros(3, width))
    more, _ = run(ids[6:], state)

    assert torch.allclose(logits, first, atol=1e-5)
    assert torch.allclose(more, then, atol=1e-5)


def test_the_metadata_says_what_a_caller_needs() -> None:
    """The width of the state, the vocabulary and the sizes; of a model of bytes that it is one."""
    onnx = pytest.importorskip("onnx")
    chars, bytes_ = (
        {prop.key: prop.value for prop in onnx.load_from_string(to_onnx.graph(made, symbols)).metadata_props}
        for made, symbols in ((network(layers=2), "ab\n日é"), (network(256), None))
    )

    assert (chars["state"], json.loads(chars["model"])["symbols"]) == ("28", "ab\n日é")
    assert (json.loads(bytes_["model"])["vocabulary"], json.loads(bytes_["model"])["symbols"]) == (256, None)


def test_equal_networks_are_equal_graphs() -> None:
    """Nothing in the file depends on when or how often it is written, and its mark stands at its beginning."""
    pytest.importorskip("onnx")
    made = network(layers=2, layer_norm=True)

    assert to_onnx.graph(made, "abcde") == to_onnx.graph(made, "abcde")
    assert to_onnx.MARK in to_onnx.graph(made, "abcde")[:64]


def test_what_the_format_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 2 GiB or more is exit 2, with the way out, before it is written."""
    pytest.importorskip("onnx")
    monkeypatch.setattr(to_onnx, "MOST", 1000)

    with pytest.raises(UsageError, match=r"below 2 GiB.*--to torch"):
        to_onnx.graph(network(), "abcde")
