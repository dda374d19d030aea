"""What is dropped depends on seed, step, layer and the place in the whole batch, and on nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lstmlm.kernels.dropout import STATE, Dropout

T, B, S = 30, 8, 50


def mask(layer: int = 0, **changes: Any) -> torch.Tensor:
    """Return the mask of a step."""
    return replace(Dropout(0.3, seed=1, step=2, streams=B), **changes).mask(layer, torch.empty(T, B, S))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_and_the_scale(rate: float) -> None:
    """The stated share is zero, all else one number, and the mean stays one."""
    found = mask(rate=rate)

    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=0.015)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"layer": 1}])
def test_seed_step_and_layer_change_everything(other: dict[str, int]) -> None:
    """Two masks that differ in one of these agree just as often as chance has it."""
    agree = float((mask() == mask(**other)).double().mean())

    assert agree == pytest.approx(0.3**2 + 0.7**2, abs=0.02)


def test_the_same_place_has_the_same_fate() -> None:
    """A process that holds streams 3 to 5 of 8 drops what one that holds all of them drops there."""
    part = Dropout(0.3, seed=1, step=2, streams=B, first=3).mask(0, torch.empty(T, 3, S))

    assert torch.equal(part, mask()[:, 3:6])


def test_neighbours_are_strangers() -> None:
    """Along time, streams and units one value says nothing about the next."""
    x = (mask() == 0).double()
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        both = torch.stack([a.flatten(), b.flatten()])

        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.04


def test_weights_have_a_fate_of_their_own() -> None:
    """The mask of a matrix is the same for every process, and not the one of values at the same place."""
    drop = Dropout(0.3, seed=1, step=2, streams=B, first=3, weights=0.5)
    matrix = drop.of_weights().mask(0, torch.empty(T, 1, S))
    elsewhere = Dropout(0.3, seed=1, step=2, streams=B, first=0, weights=0.5).of_weights().mask(0, torch.empty(T, 1, S))
    values = Dropout(0.5, seed=1, step=2, streams=1).mask(0, torch.empty(T, 1, S))

    assert torch.equal(matrix, elsewhere)
    assert float((matrix == 0).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert float((matrix == values).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_later_steps_of_a_window() -> None:
    """What begins four steps into the window is dropped as the whole window drops it there."""
    later = Dropout(0.3, seed=1, step=2, streams=B).since(4).mask(0, torch.empty(T - 4, B, S))

    assert torch.equal(later, mask()[4:])


def test_streams_begin_empty() -> None:
    """The stated share of the streams, others in each step, and the same ones for the process that holds a part of them."""
    drops = [Dropout(0.0, seed=1, step=step, streams=40) for step in range(100)]
    emptied = torch.stack([drop.emptied(0.2, 40) for drop in drops])
    part = Dropout(0.3, seed=1, step=0, streams=40, first=10).emptied(0.2, 5)

    assert float(emptied.double().mean()) == pytest.approx(0.2, abs=0.03)
    assert not torch.equal(emptied[0], emptied[1])
    assert torch.equal(part, emptied[0, 10:15])


def test_a_stream_and_its_place_are_mixed_alike() -> None:
    """Which streams begin empty, worked out a number at a time, is what a mask of one value a stream would drop."""
    drop = Dropout(0.3, seed=5, step=7, streams=40, first=2**32 - 3)
    one = replace(drop, rate=0.4, seed=~5).mask(STATE, torch.empty(1, 9, 1))

    assert torch.equal(drop.emptied(0.4, 9), one.flatten() == 0)
