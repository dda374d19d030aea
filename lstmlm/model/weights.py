"""A network's weights by name: their shapes, as a configuration has them, and how the generator in C takes them.

`shapes` is for whoever believes a file only after a look at it, `StoredNetwork` for sampling without torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lstmlm.config.run_config import ModelConfig
from lstmlm.errors import CheckpointError
from lstmlm.kernels.buffers import Floats
from lstmlm.kernels.generate import LayerWeights, Library, NetworkWeights

PAIRS = "pairs"
"""Name of what is beside the weights and not trained: the ids of the pairs that have rows of their own, in their order."""


@dataclass(frozen=True, eq=False)
class StoredNetwork:
    """Networks that are read as one, as the generator in C takes them: where their weights are.

    library: What runs them.
    networks: At least one.
    threads: How many may share the work.
    separator: Ids of what parts documents; none: nothing does.
    """

    library: Library
    networks: tuple[NetworkWeights, ...]
    threads: int
    separator: tuple[int, ...] = ()

    def weights(self) -> list[Floats]:
        """Return the weights of all networks."""
        every: list[Floats] = []
        for network in self.networks:
            every += [weight for layer in network.layers for weight in layer if weight is not None]
            every += (*(network.readout or ()), *([network.pairs] if network.pairs is not None else []))
        return every


def stored(
    library: Library, config: ModelConfig, weights: Mapping[str, Floats], threads: int, separator: tuple[int, ...] = ()
) -> StoredNetwork:
    """Return the networks of a configuration.

    Args:
        library: See `StoredNetwork`.
        config: Of all of them.
        weights: By the names that `shapes` gives.
        threads: See `StoredNetwork`.
        separator: Likewise.

    Raises:
        CheckpointError: See `check_pairs`.
    """
    check_pairs([given.tolist() for name, given in weights.items() if name.endswith(PAIRS)], _vocabulary(config, weights))
    networks = []
    for member in range(config.members):
        own = prefix(config, member)
        networks.append(network_weights(config, {k.removeprefix(own): w for k, w in weights.items() if k.startswith(own)}))
    return StoredNetwork(library, tuple(networks), threads, separator)


def _vocabulary(config: ModelConfig, weights: Mapping[str, Floats]) -> int:
    return weights[f"{prefix(config, 0)}layers.0.U"].shape[0] - (config.pairs or 0)


def network_weights(config: ModelConfig, weights: Mapping[str, Floats]) -> NetworkWeights:
    """Return the weights of one network in the generator's order.

    Args:
        config: Of the network.
        weights: By the names that `weight_shapes` gives.
    """
    assert config.layers is not None
    layers = []
    for index in range(config.layers):
        layer, norm = f"layers.{index}", f"norms.{index}"
        own = (weights.get(name) for name in (f"{layer}.b", f"{norm}.weight", f"{norm}.bias", f"{layer}.M"))
        layers.append(LayerWeights(weights[f"{layer}.U"], weights[f"{layer}.W"], *own))
    readout = (weights["readout.weight"], weights["readout.bias"]) if config.readout == "linear" else None
    return NetworkWeights(tuple(layers), readout, config.residual, weights.get(PAIRS))


def weight_shapes(config: ModelConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a `CharLM`, without making one: a file is compared with it before it is believed."""
    assert config.hidden is not None
    assert config.layers is not None
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = rows = vocabulary + (config.pairs or 0)
    if config.pairs:
        shapes[PAIRS] = (config.pairs, 2)
    for index in range(config.layers):
        direct = config.readout == "direct" and index == config.layers - 1
        width = vocabulary if direct else config.hidden
        shapes |= {f"layers.{index}.U": (inputs, 4 * width), f"layers.{index}.W": (width, 4 * width)}
        if config.bias:
            shapes[f"layers.{index}.b"] = (4 * width,)
        if config.multiplicative and index == 0:
            shapes[f"layers.{index}.M"] = (rows, width)
        if config.layer_norm and not direct:
            shapes |= {f"norms.{index}.weight": (width,), f"norms.{index}.bias": (width,)}
        inputs = width
    if config.readout == "linear":
        shapes |= {"readout.weight": (vocabulary, inputs), "readout.bias": (vocabulary,)}
    return shapes


def check_pairs(each: Sequence[Sequence[float]], vocabulary: int) -> None:
    """Refuse pairs that are none: a file may say anything.

    Args:
        each: What `PAIRS` names, of each member, one number after another. (2N)
        vocabulary: V.

    Raises:
        CheckpointError: They are no ids, not in ascending order, or not the same of all members.
    """
    for pairs in each:
        ids = all(number == int(number) and 0 <= number < vocabulary for number in pairs)
        keys = [first * vocabulary + second for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
        if not ids or any(one >= other for one, other in pairwise(keys)) or pairs != each[0]:
            raise CheckpointError(
                f"checkpoint: weight {PAIRS}: expected pairs of ids below {vocabulary}, in ascending order and the same for all "
                "members, found others. Take another copy of the model, or train it again."
            )


def prefix(config: ModelConfig, member: int) -> str:
    """Return what stands before the names of a member's tensors; nothing where it is alone. Members are counted from 0."""
    return f"members.{member}." if config.members > 1 else ""


def shapes(config: ModelConfig, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of all members, without making one."""
    one = weight_shapes(config, vocabulary)
    return {prefix(config, member) + name: shape for member in range(config.members) for name, shape in one.items()}


def parameter_count(config: ModelConfig, vocabulary: int) -> int:
    """Count the numbers that a configuration trains, all members together."""
    return sum(math.prod(shape) for name, shape in shapes(config, vocabulary).items() if not name.endswith(PAIRS))
