"""Plain torch weights: the loader that goes with them gives what the network gives."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lstmlm.export import to_torch
from lstmlm.model.ensemble import Network
from tests.export.models import KINDS, V, network


def written(made: Network, symbols: str | None, folder: Path) -> ModuleType:
    """Write a network with its loader, and import the loader from there."""
    (folder / "it.safetensors").write_bytes(b"".join(to_torch.weights(made, symbols)))
    (folder / "it.py").write_text(to_torch.loader(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("it", folder / "it.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_the_loader_reads_as_the_network(kind: str, tmp_path: Path) -> None:
    """Logits of a text and of its continuation, to 1e-5, for every kind of network."""
    made = network(**KINDS[kind])
    model = written(made, "abcde", tmp_path).load(tmp_path / "it.safetensors")
    ids = torch.randint(0, V, (11, 3))
    with torch.inference_mode():
        first, between = made(ids[:6])
        then, _ = made(ids[6:], between)
        logits, state = model(ids[:6])
        more, _ = model(ids[6:], state)

    assert torch.allclose(logits, first, atol=1e-5)
    assert torch.allclose(more, then, atol=1e-5)


def test_the_weights_are_those_of_torch(tmp_path: Path) -> None:
    """The parameters of one layer are named and shaped as `nn.LSTM` has them."""
    model = written(network(), "abcde", tmp_path).load(tmp_path / "it.safetensors")
    lstm = model.members[0].lstms[0]

    assert isinstance(lstm, torch.nn.LSTM)
    assert {name: tuple(tensor.shape) for name, tensor in lstm.named_parameters()} == {
        "weight_ih_l0": (28, V),
        "weight_hh_l0": (28, 7),
        "bias_ih_l0": (28,),
        "bias_hh_l0": (28,),
    }


@pytest.mark.parametrize(("symbols", "text", "ids"), [("\nabé日", "日a\né", [4, 1, 0, 3]), (None, "é", [0xC3, 0xA9])])
def test_the_vocabulary_goes_with_them(symbols: str | None, text: str, ids: list[int], tmp_path: Path) -> None:
    """Characters, or bytes, become the ids that they are in the model, and come back."""
    made = network(256 if symbols is None else len(symbols))
    model: Any = written(made, symbols, tmp_path).load(tmp_path / "it.safetensors")

    assert (model.encode(text), model.decode(ids)) == (ids, text)
    assert len(model.write(text, length=9)) >= (9 if symbols else 1)


def test_a_character_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    """The loader names every character of a text that is not in the vocabulary, in ASCII, once."""
    model: Any = written(network(), " abcd", tmp_path).load(tmp_path / "it.safetensors")

    with pytest.raises(ValueError, match=r"expected characters that the model knows, found 'x', '\\xe9'\.$"):
        model.encode("a x \xe9 x")


def test_equal_networks_are_equal_files() -> None:
    """Nothing in the file depends on when or how often it is written."""
    made = network(layers=2, layer_norm=True)

    assert to_torch.weights(made, "abcde") == to_torch.weights(made, "abcde")


def test_the_loader_needs_torch_and_safetensors_alone() -> None:
    """It imports them and the standard library, and nothing of this package."""
    imports = [node for node in ast.walk(ast.parse(to_torch.loader())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0] for node in imports
    }

    assert names - set(sys.stdlib_module_names) == {"torch", "safetensors"}


@pytest.mark.slow
def test_the_loader_writes_text(tmp_path: Path) -> None:
    """Run as a program, without this package, it goes on after the words it is given."""
    written(network(), " abcd", tmp_path)
    command = [sys.executable, "-P", "it.py", "a", "bad"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a bad")
    assert len(done.stdout) == len("a bad") + 500 + 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pipes are closed so on POSIX")
def test_the_loader_ends_where_nobody_reads_on(tmp_path: Path) -> None:
    """Into a pipe whose reader has gone it writes nothing more, and says nothing."""
    written(network(), " abcd", tmp_path)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-P", "it.py", "a"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)

    assert (done.returncode, done.stderr) == (0, "")


def test_rare_characters_have_an_id(tmp_path: Path) -> None:
    """Of a model with a symbol for rare characters the loader reads any text, and writes them as U+FFFD."""
    (tmp_path / "it.safetensors").write_bytes(b"".join(to_torch.weights(network(), "abcd\ufffd", 4)))
    module = written(network(), None, tmp_path)
    (tmp_path / "it.safetensors").write_bytes(b"".join(to_torch.weights(network(), "abcd\ufffd", 4)))
    model = module.load(tmp_path / "it.safetensors")

    assert model.encode("a山b\ufffd") == [0, 4, 1, 4]
    assert model.decode([0, 4]) == "a\ufffd"
