"""What a fine-tuned model starts from: every weight of its parent, and rows for what the parent did not know."""

from pathlib import Path

import pytest
import torch

from lstmlm.api import LanguageModel
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.storage import checkpoint
from lstmlm.training import tuning
from tests.cli.trained import TEXT, make_run

NEW = "«é 😀\t"  # before, between and after the parent's characters


@pytest.mark.parametrize("members", [1, 2])
def test_growing_keeps_every_weight(tmp_path: Path, members: int) -> None:
    """Each row of the parent is where its character's is now; new ones are zeros, with the smallest bias; all else is equal."""
    parent = checkpoint.read(make_run(tmp_path / "run", members=members) / "best.safetensors")
    old, new = CharTokenizer(TEXT), CharTokenizer(TEXT + NEW)
    had = {k.removeprefix("model."): v for k, v in checkpoint.to_tensors(parent.tensors).items()}
    grown = tuning.weights_of(parent, new)
    rows = {char: new.encode(char)[0] for char in new.symbols}
    tables = [name for name in had if name.endswith(("layers.0.U", "layers.0.M", "readout.weight", "readout.bias"))]

    assert len(tables) == 4 * members
    assert grown.keys() == had.keys()
    for name, tensor in had.items():
        if name not in tables:
            assert torch.equal(grown[name], tensor)
            continue
        assert grown[name].shape == (len(new), *tensor.shape[1:])
        assert all(torch.equal(grown[name][rows[char]], tensor[i]) for i, char in enumerate(old.symbols))
        filled = tensor.min() if tensor.dim() == 1 else torch.zeros(())
        assert all(bool((grown[name][rows[char]] == filled).all()) for char in set(NEW) - set(old.symbols))


def test_rows_of_pairs_keep_their_characters(tmp_path: Path) -> None:
    """Their rows stay behind those of all characters, old and new, in the same order; and the same two make a pair."""
    parent = checkpoint.read(make_run(tmp_path / "run", pairs=20) / "best.safetensors")
    old, new = CharTokenizer(TEXT), CharTokenizer(TEXT + NEW)
    had = {k.removeprefix("model."): v for k, v in checkpoint.to_tensors(parent.tensors).items()}
    grown = tuning.weights_of(parent, new)
    before, after = ([[tokenizer.symbol(int(id_)) for id_ in pair] for pair in pairs.tolist()]
                     for tokenizer, pairs in ((old, had["pairs"]), (new, grown["pairs"])))  # fmt: skip

    assert before == after
    assert grown["pairs"].tolist() == sorted(grown["pairs"].tolist())
    for name in ("layers.0.U", "layers.0.M"):
        assert len(grown[name]) == len(new) + 20
        assert torch.equal(grown[name][len(new) :], had[name][len(old) :])


def test_nothing_new(tmp_path: Path) -> None:
    """Without a new character the weights are the parent's, bytes too."""
    for byte in (False, True):
        run = make_run(tmp_path / f"run{byte}", byte=byte)
        parent = checkpoint.read(run / "best.safetensors")
        had = {k.removeprefix("model."): v for k, v in checkpoint.to_tensors(parent.tensors).items()}
        found = tuning.weights_of(parent, LanguageModel.open(run).tokenizer)

        assert all(torch.equal(found[name], tensor) for name, tensor in had.items())


@pytest.mark.parametrize("form", ["nfd", "nfc"])
def test_growing_in_a_unicode_form(tmp_path: Path, form: str) -> None:
    """A row stays that of its character in any Unicode form, though a text of all characters would not stay itself in it."""
    marks = "aeo\u0327\u0301\u0323\u0300"  # that a form would reorder, or join with the letter before them
    parent = checkpoint.read(make_run(tmp_path / "run", text=marks) / "best.safetensors")
    old, new = CharTokenizer(marks), CharTokenizer(marks + "\u0302bz", form)
    had = checkpoint.to_tensors(parent.tensors)["model.layers.0.U"]
    grown = tuning.weights_of(parent, new)["layers.0.U"]

    assert torch.equal(grown[[new.symbols.index(char) for char in old.symbols]], had)
