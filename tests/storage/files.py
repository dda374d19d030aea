"""A checkpoint's description, and what is said of a file that is refused, for several tests of this folder."""

from pathlib import Path
from typing import Any

import pytest

from lstmlm.errors import CheckpointError
from lstmlm.storage import checkpoint

META: dict[str, Any] = {
    "config": {"model": {"hidden": 7, "layers": None, "bias": True}, "train": {"lr": 3e-4}},
    "tokenizer": {"kind": "char", "symbols": "\n abcé\U0001f600"},
    "counts": [3, 14, 15, 9, 2, 6, 5],
    "step": 20,
    "scores": {"validation_nats_per_char": 1.5},
    "corpus": {"name": "text", "fingerprint": "00ff", "chars": 54},
    "versions": {"lstmlm": "0.1.0"},
    "command": ["lstmlm", "train", "text\udc80"],
    "parameters": 25,
    "training": {"best": None},
}


def refusal(path: Path) -> str:
    """Read a file that has to be refused, and return the message, which has to be fit for a terminal."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    text = str(caught.value)
    assert text.count("\n") < 6
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert len(text) < 1000
    return text
