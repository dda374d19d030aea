"""A network of every kind that can be exported."""

from typing import Any

from lstmlm import kernels
from lstmlm.config.run_config import ModelConfig
from lstmlm.model import ensemble
from lstmlm.model.char_lm import CharLM
from lstmlm.model.ensemble import Network

V = 5
KINDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "three layers": {"layers": 3},
    "residual": {"layers": 3, "residual": True},
    "layer norm": {"layers": 2, "layer_norm": True},
    "residual and norm": {"layers": 3, "residual": True, "layer_norm": True},
    "direct readout": {"layers": 2, "readout": "direct"},
    "direct, norm, residual": {"layers": 3, "readout": "direct", "layer_norm": True, "residual": True},
    "no bias": {"layers": 2, "bias": False},
    "plain LSTM": {"layers": 2, "multiplicative": False},
    "the article's": {"bias": False, "readout": "direct", "multiplicative": False},
    "three members": {"layers": 2, "members": 3, "layer_norm": True},
    "rows of pairs": {"layers": 2, "pairs": 5},
    "members with rows of pairs": {"members": 2, "pairs": 5, "multiplicative": False},
}


def network(vocabulary: int = V, **config: Any) -> Network:
    """Make an untrained network, every weight of which counts."""
    sizes = ModelConfig(**{"hidden": 7, "layers": 1, "dropout": 0.0, **config})
    kernel, _ = kernels.choose(precision="float32")
    made = ensemble.of([CharLM(sizes, vocabulary, kernel) for _ in range(sizes.members)]).eval()
    for member in ensemble.members(made):
        member.give_rows([(0, 1), (1, 1), (2, 0), (3, 3), (4, 2)][: sizes.pairs or 0])
    for parameter in made.parameters():
        parameter.data += 0.3 * parameter.data.new_empty(parameter.shape).normal_()
    return made
