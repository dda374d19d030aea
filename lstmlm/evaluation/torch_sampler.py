"""The sampler in torch: for a network whose kernel is not the native one, any device and floating type.

`generate` is the entry point, for `sampler`; `distribution` and `draw` are the rules that `kernels/draw.h` follows.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lstmlm.evaluation.sampling import NOISE_BLOCK, Sampling, blocks, twister_seed
from lstmlm.kernels import arguments
from lstmlm.kernels.cuda_graph import Graph
from lstmlm.kernels.native import NativeKernel
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import steps_at_once
from lstmlm.model.ensemble import Network, members
from lstmlm.model.lstm import StackState
from lstmlm.model.weights import StoredNetwork, network_weights

COOLEST = 1e-3  # a temperature below this may turn logits into infinities


@torch.inference_mode()
def generate(
    model: Network, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: Sampling
) -> Iterator[tuple[list[int], list[float]]]:
    """Go on after prompts without end, one stream for each seed; see `sampler.generate_each`."""
    yield from _drawn(model, *_read_each(model, prompts), Noise(seeds), how)


@torch.inference_mode()
def probabilities(model: Network, prompt: Sequence[int]) -> list[float]:
    """Return the probability of each id to come next; see `sampler.probabilities`."""
    logits, _ = _read(model, prompt, 1)
    found: list[float] = torch.softmax(logits[0].double(), dim=-1).tolist()
    return found


def native(model: Network) -> StoredNetwork | None:
    """Return the weights of a model where they are, for the generator in C; None: the model has another kernel."""
    kernel, models = model.stack()[0].kernel, members(model)
    if not isinstance(kernel, NativeKernel) or model.stack()[0].W.dtype != torch.float32:
        return None
    networks = tuple(
        network_weights(one.config, {name: arguments.floats(weight.detach()) for name, weight in one.state_dict().items()})
        for one in models
    )
    return StoredNetwork(kernel.library, networks, arguments.threads(), models[0].separator)


def distribution(logits: Tensor, how: Sampling) -> Tensor:
    """Return the probabilities that the next id is drawn from: softmax, cut to the top k, then to the top p of those.

    Of ids with the same probability the first comes first, so that `top_k` 1 and a tiny `top_p` mean the same as
    `greedy`.

    Args:
        logits: (n, V)
        how: Temperature and cuts.

    Returns:
        p: Sums to 1 in each row, at least one above 0. float64, (n, V)
    """
    best = logits.argmax(-1, keepdim=True)
    if how.greedy or how.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, best, 1.0)
    # The largest becomes 0 before the division: however small the temperature, nothing overflows to inf - inf.
    logits = logits.double()
    p = torch.softmax((logits - logits.gather(-1, best)) / how.temperature, dim=-1)
    keep_all = how.top_k <= 0 or how.top_k >= p.shape[-1]
    if keep_all and how.top_p >= 1:
        return p
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    if not keep_all:
        ordered[..., how.top_k :] = 0.0
        ordered /= ordered.sum(-1, keepdim=True)
    if how.top_p < 1:
        before = ordered.cumsum(-1)[..., :-1]  # the likeliest has nothing before it and always stays
        ordered[..., 1:].masked_fill_(before >= how.top_p, 0.0)
        ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, order, ordered)


def draw(p: Tensor, noise: Tensor) -> Tensor:
    """Choose by inverse distribution: the first id whose cumulated probability exceeds the noise.

    Args:
        p: (n, V)
        noise: Uniform in [0, 1). (n, 1)

    Returns:
        ids (n), each of a probability above 0.
    """
    upto = p.cumsum(-1)
    ids = torch.searchsorted(upto, noise * upto[..., -1:], right=True).squeeze(-1)
    return torch.minimum(ids, _last_possible(p))


def _last_possible(p: Tensor) -> Tensor:
    return p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)


class Noise:
    """One uniform number a step for each seed, drawn in blocks from a generator of its own, as tensors.

    They are those of `sampler.Noise`, which is slower with thousands of seeds. The numbers of a seed are the same whatever the
    block size and whoever else is drawn beside it.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(twister_seed(seed)) for seed in seeds]
        self._block = torch.empty(0, len(seeds), 1)
        self._next = 0

    def step(self) -> Tensor:
        """Return the noise of the next step. (n, 1)"""
        if self._next == len(self._block):
            columns = [torch.rand(NOISE_BLOCK, 1, generator=g) for g in self._generators]
            self._block, self._next = torch.stack(columns, dim=1), 0
        self._next += 1
        return self._block[self._next - 1]

    def steps(self, most: int) -> Tensor:
        """Return the noise of the next steps, at least one and at most `most`. (steps, n)"""
        first, start = self.step(), self._next
        self._next = min(start - 1 + most, len(self._block))
        return torch.cat([first[None], self._block[start : self._next]]).squeeze(-1)


def _read(model: Network, prompt: Sequence[int], n: int) -> tuple[Tensor, StackState]:
    """Return the logits and the state after a prompt, both n times."""
    state = model.initial_state(1)
    for piece in torch.tensor(prompt, device=state[0].hidden.device)[:, None].split(steps_at_once(1, model.vocabulary)):
        logits, state = model(piece, state)
    return logits[-1].expand(n, -1), tuple(LSTMState(s.hidden.repeat(n, 1), s.cell.repeat(n, 1)) for s in state)


def _read_each(model: Network, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, StackState]:
    """Return the logits and the state after each of several prompts; those in a row that are the same are read once."""
    read = [_read(model, prompt, len(list(same))) for prompt, same in itertools.groupby(map(tuple, prompts))]
    if len(read) == 1:
        return read[0]
    states = zip(*(state for _, state in read), strict=True)
    return torch.cat([logits for logits, _ in read]), tuple(
        LSTMState(torch.cat([s.hidden for s in layer]), torch.cat([s.cell for s in layer])) for layer in states
    )


def _drawn(
    model: Network, logits: Tensor, state: StackState, noise: Noise, how: Sampling
) -> Iterator[tuple[list[int], list[float]]]:
    """Draw and step by the model itself: any kernel, device and floating type.

    On a device a character is a graph, which is recorded once and replayed; nobody waits for one within a block.
    """
    logits = logits.clone()
    draw_next = _drawing(how, logits.shape[-1])
    number = logits.new_empty(len(logits), 1, dtype=torch.float64)
    id_, cost = logits.new_empty(len(logits), dtype=torch.int64), logits.new_empty(len(logits))

    def step() -> None:
        id_.copy_(draw_next(logits, number))
        cost.copy_(-torch.log_softmax(logits, dim=-1).gather(-1, id_[:, None]).squeeze(-1))
        rows, after = model(id_[None], state)
        logits.copy_(rows[-1])
        for own, new in zip(state, after, strict=True):
            own.hidden.copy_(new.hidden)
            own.cell.copy_(new.cell)

    graph = Graph(step, logits.device)

    def run(block: Tensor) -> tuple[list[list[int]], list[list[float]]]:
        ids, nats = id_.new_empty(block.shape), cost.new_empty(block.shape)
        for place, numbers in enumerate(block.to(logits.device)):
            number.copy_(numbers[:, None])
            graph()
            ids[place], nats[place] = id_, cost
        return ids.tolist(), nats.tolist()

    return blocks(noise.steps, run)


def _drawing(how: Sampling, V: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what draws ids from logits (n, V) and noise (n, 1): `draw` from `distribution`, in few operations if it can be."""
    if how.greedy or how.temperature == 0:
        return lambda logits, noise: logits.argmax(-1)
    if how.top_p < 1 or 0 < how.top_k < V or how.temperature < COOLEST:
        return lambda logits, noise: draw(distribution(logits, how), noise)

    def plain(logits: Tensor, noise: Tensor) -> Tensor:
        scaled = logits if how.temperature == 1 else logits.double() / how.temperature
        upto = torch.softmax(scaled, dim=-1, dtype=torch.float64).cumsum(-1)
        # The last sum is 1 to 1e-15 and the noise a float32 below 1: the id found has a probability; of NaN any id is.
        return torch.searchsorted(upto, noise, right=True).squeeze(-1).clamp_(max=V - 1)

    return plain
