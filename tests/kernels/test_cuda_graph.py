"""Work that is recorded once and replayed: every call counts, and what changes is found in memory."""

import pytest
import torch

from lstmlm.kernels.cuda_graph import WARM, Graph, read_back
from tests.tape import record


@pytest.mark.slow
def test_every_call_counts() -> None:
    """The calls before the recording, the recording and the replays do the work once each, at the numbers of that call."""
    number, total = torch.zeros(()), torch.zeros(())
    called = 0

    def add() -> None:
        nonlocal called
        called += 1
        total.add_(number * 2)

    graph = Graph(add, torch.device("cpu"), record)
    sums = []
    for value in range(1, WARM + 5):
        number.fill_(value)
        graph()
        sums.append(float(total))

    assert sums == [value * (value + 1) for value in range(1, WARM + 5)]
    assert called == WARM + 1  # the last time while it was recorded


def test_on_the_cpu_it_is_the_function() -> None:
    """Without a way to record, each call is a call."""
    called = []

    graph = Graph(lambda: called.append(1), torch.device("cpu"))
    for _ in range(WARM + 3):
        graph()

    assert len(called) == WARM + 3


def test_the_stand_in_is_as_strict_as_a_graph() -> None:
    """A number that Python held stays what it was when it was recorded, and waiting for one is an error."""
    total, value = torch.zeros(()), 1.0

    def add() -> None:
        total.add_(value)

    again = record(add)
    value = 5.0
    again()
    assert float(total) == 1.0
    with pytest.raises(AssertionError, match="waits"):
        record(lambda: print(float(total)))


def test_numbers_come_back_in_their_order() -> None:
    """Of tensors and numbers mixed, each comes as a number in its place."""
    assert read_back(1.0, torch.tensor(2.0), True, torch.tensor(False), torch.tensor(3, dtype=torch.int64)) == [1, 2, 1, 0, 3]
    assert read_back(1.5) == [1.5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_replays() -> None:
    """On a device the same counts hold, and the function is not called any more."""
    device = torch.device("cuda")
    number, total = torch.zeros((), device=device), torch.zeros((), device=device)

    def add() -> None:
        total.add_(number)

    graph = Graph(add, device)
    for value in range(1, WARM + 5):
        number.fill_(value)
        graph()

    assert float(total) == sum(range(1, WARM + 5))
