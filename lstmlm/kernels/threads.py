"""How many threads compute, in torch and in C, and what becomes of them in a forked process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _alone() -> None:
    """Compute on one thread from now on: the others stayed in the process that this was forked from, and would be waited for."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alone)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread meanwhile: what has other bits with more of them then has the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
