"""A trained network as plain torch weights: those of `nn.LSTM`, `nn.LayerNorm` and `nn.Linear`, and the code that loads them.

Of a multiplicative layer M stands beside them, and the loader runs its `nn.LSTM` one step at a time.

`weights` and `loader` are the entry points, for `lstmlm export --to torch`; `about`, what a file says of its network, is for
`to_onnx` too.
"""

import json
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from lstmlm.model.ensemble import Network, members
from lstmlm.model.lstm import TORCH_ORDER, to_order
from lstmlm.storage import atomic, checkpoint

MARK = b"lstmlm-torch-1"
"""Stands near the beginning of the file, and of no checkpoint."""


def about(network: Network, symbols: str | None, mark: bytes, rare: int | None = None) -> str:
    """Return what a reader has to know of a network, as JSON: of one whose documents are parted the ids that do so, too.

    Neither format empties the state behind them: whoever reads begins again from the empty one there.

    Args:
        network: One or several.
        symbols: Its vocabulary, by id; None: its ids are bytes.
        mark: Of the file's kind: its first text.
        rare: The id that characters have which are none of the symbols; None: they have none.
    """
    models = members(network)
    config = models[0].config
    found = {
        "format": mark.decode(),
        "vocabulary": models[0].vocabulary,
        "widths": [layer.width for layer in models[0].stack()],
        "bias": config.bias,
        "layer_norm": config.layer_norm,
        "residual": config.residual,
        "readout": config.readout,
        "multiplicative": config.multiplicative,
        "members": len(models),
        "symbols": symbols,
        **({} if rare is None else {"rare": rare}),
        **({"separator": models[0].separator} if models[0].separator else {}),
        **({"pairs": models[0].pairs.to(torch.int64).tolist()} if config.pairs else {}),
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def weights(network: Network, symbols: str | None, rare: int | None = None) -> list[atomic.Bytes]:
    """Return the pieces of a safetensors file that `loader` reads; equal networks give equal bytes.

    Args:
        network: One or several.
        symbols: Its vocabulary, by id; None: its ids are bytes.
        rare: See `about`.
    """
    tensors: dict[str, Tensor] = {}
    for number, model in enumerate(members(network)):
        own = f"members.{number}"
        for index, layer in enumerate(model.stack()):
            at = f"{own}.lstms.{index}"
            tensors[f"{at}.weight_ih_l0"] = to_order(layer.U, TORCH_ORDER)
            tensors[f"{at}.weight_hh_l0"] = to_order(layer.W, TORCH_ORDER)
            if layer.M is not None:
                tensors[f"{own}.M"] = layer.M.detach()
            if layer.b is not None:  # there are two there, and their sum counts
                tensors[f"{at}.bias_ih_l0"] = to_order(layer.b, TORCH_ORDER)
                tensors[f"{at}.bias_hh_l0"] = tensors[f"{at}.bias_ih_l0"].new_zeros(len(layer.b))
        kept: dict[str, Any] = model.state_dict()
        tensors |= {f"{own}.{name}": kept[name] for name in kept if name.startswith(("norms.", "readout."))}
    prefix, views = checkpoint.lay_out({"model": about(network, symbols, MARK, rare)}, checkpoint.to_blobs(tensors))
    return [prefix, *views]


def loader() -> str:
    """Return the code that reads such a file: a module that needs torch and safetensors, and this package no more."""
    return resources.files(__package__).joinpath("loader.py").read_text(encoding="utf-8")
