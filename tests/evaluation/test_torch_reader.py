"""Rows of different lengths side by side: each as if it were alone."""

import itertools

import pytest
import torch

from lstmlm.evaluation.torch_reader import TorchReader, pick
from lstmlm.model import char_lm
from tests.helpers import assert_close, small_model, some_ids


@pytest.mark.parametrize("piece", [1, 20, 10_000])
def test_each_row_is_read_as_if_alone(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and states are those of reading every row by itself, whatever the lengths, their order and the pieces."""
    monkeypatch.setattr(char_lm, "PIECE", piece)
    model = small_model()
    with torch.inference_mode():
        _, states = model(some_ids(5 * 8).view(5, 8))
    rows = [some_ids(length).tolist() for length in (3, 9, 0, 1, 9, 2, 30, 4)]
    costs, _, after = TorchReader(model).read(rows, states)

    for index, row in enumerate(rows):
        own = pick(states, torch.tensor([index]))
        total = 0.0
        with torch.inference_mode():
            for now, following in itertools.pairwise(row):
                logits, own = model(torch.tensor([[now]]), own)
                total -= float(torch.log_softmax(logits[0, 0], -1)[following])
        assert sum(costs[index]) == pytest.approx(total, abs=1e-9)
        for one, other in zip(pick(after, torch.tensor([index])), own, strict=True):
            assert_close(one.hidden, other.hidden, f"H of row {index}")
            assert_close(one.cell, other.cell, f"C of row {index}")
