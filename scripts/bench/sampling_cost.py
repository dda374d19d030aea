"""Measure what rounding weights costs the sampler: nats a character of a text under its network, as floats, bytes and bfloat16.

The text is read character by character by the sampler's own generator, in 64 streams; nothing else is rounded. bfloat16 is what
the generator for CUDA keeps; here the same weights are rounded to it and then read as floats.
"""

import argparse
from array import array
from pathlib import Path

import torch
from torch import Tensor

import lstmlm
from lstmlm import kernels
from lstmlm.api import LanguageModel
from lstmlm.evaluation.sampler import native_generator
from lstmlm.kernels.arguments import floats
from lstmlm.kernels.generate import Choice
from lstmlm.kernels.native import NativeKernel
from lstmlm.model.ensemble import members

STREAMS = 64
GREEDY = Choice(1.0, 0, 1.0, True)


@torch.inference_mode()
def nats(model: LanguageModel, ids: Tensor, storage: str) -> float:
    """Return the mean minus log probability of each id but the first one of every stream. ids: (T, n)"""
    T, n = ids.shape
    generator = native_generator(model.network, n, storage)
    if generator is None or generator.storage != storage:
        raise SystemExit(f"sampling_cost: the sampler keeps weights as {storage} with the native kernel only.")
    if members(model.network)[0].config.pairs:
        raise SystemExit("sampling_cost: expected a network that knows single characters alone: --set model.pairs=0.")
    states = [(floats(state.hidden), floats(state.cell)) for state in model.network.initial_state(n)]
    total, noise = 0.0, array("f", bytes(4 * n))
    for t in range(T - 1):
        forced = torch.nn.functional.one_hot(ids[t], generator.V).float()
        generator.begin(floats(forced), states)
        generator.run(noise, GREEDY)  # draws what was asked for
        generator.run(noise, GREEDY)  # a step; what it draws is not used
        logits = torch.tensor(generator.logits(), dtype=torch.float64).view(n, -1)
        total -= float(torch.log_softmax(logits, -1).gather(-1, ids[t + 1][:, None]).sum())
        states = [(floats(torch.tensor(H).view(n, -1)), floats(torch.tensor(C).view(n, -1))) for H, C in generator.states()]
    return total / (T - 1) / n


@torch.inference_mode()
def to_bfloat16(model: LanguageModel) -> None:
    """Round all weights but those that are read a row at a time, or are vectors."""
    tables = {id(table) for network in members(model.network) for table in (network.stack()[0].U, network.stack()[0].M)}
    for weight in model.network.parameters():
        if weight.dim() == 2 and id(weight) not in tables:
            weight.copy_(weight.bfloat16())


def main() -> None:
    """Compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="run folder or checkpoint")
    parser.add_argument("text", type=Path)
    parser.add_argument("--chars", type=int, default=100_000, help="of the end of the text")
    asked = parser.parse_args()
    if not isinstance(kernels.choose()[0], NativeKernel):
        raise SystemExit("sampling_cost: the native kernel is not available here.")
    model = lstmlm.load(asked.model)
    text = asked.text.read_text(encoding="utf-8")[-asked.chars :]
    ids = torch.tensor(model.tokenizer.encode(text, on_unknown="skip"))
    length = len(ids) // STREAMS
    streams = ids[: length * STREAMS].view(STREAMS, length).t().contiguous()
    exact, rounded = (nats(model, streams, storage) for storage in ("float32", "int8"))
    to_bfloat16(model)
    halves = nats(model, streams, "float32")
    words = f"{exact:.5f} nats/char with weights as floats, {rounded - exact:+.6f} as bytes, {halves - exact:+.6f} as bfloat16"
    print(f"{streams.numel()} characters: {words}")


if __name__ == "__main__":
    main()
