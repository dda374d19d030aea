"""Dynamic evaluation: each piece of a text is scored first, and then the network learns from it.

`DynamicEvaluator` reads for a `scoring.Scorer`, for `eval --dynamic`; the model it was given stays as it is.

    g = gradient of the mean nats of a segment of LEARN_EVERY characters
    s = sqrt(mean of g^2) of each weight, over a text that the network writes itself
    n = g / (s + floor * s_all)
    w = w - rate * n * min(1, LARGEST / |n|) + decay * (w_0 - w)

where s_all is the root mean square of all s, |n| that of all n, and w_0 the trained weights. The text of its own stands in
for the training text, which whoever has only the model does not have: a trained network writes what it was trained on.

Source: Krause, Kahembwe, Murray and Renals 2018, "Dynamic Evaluation of Neural Sequence Models".
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import Scored
from lstmlm.kernels.contexts import Mixer
from lstmlm.kernels.threads import one_thread
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.model.ensemble import Network, average, joined, members
from lstmlm.model.lstm import StackState
from lstmlm.training.backprop import Backprop
from lstmlm.training.optim import ALIGNED

LEARN_EVERY = 32  # characters that are scored before the network learns from them
LARGEST = 3.0  # times the usual size: what a text that is like no other may ask for in one step
CHOICES = (1e-3, 3.5e-4, 1e-4)  # rates: most texts want the first, those without anything new the last
CHOICE_CHARS = 6_144  # of the training text, its end, by which one of them is chosen
OWN_CHARS = 8_192  # length of the text that the network writes to see how large its gradients are


@dataclass(frozen=True)
class Rates:
    """How fast the network learns from what it has been scored on; the steps are those of LEARN_EVERY characters.

    rate: Size of a step whose gradient is as large as is usual.
    decay: Share of the way back to the trained weights, at each step.
    floor: What is added to the usual size of a gradient, as a share of that of all of them: no weight runs away.
    """

    rate: float = 1e-3
    decay: float = 1e-3
    floor: float = 0.05


class DynamicEvaluator:
    """A copy of a network that reads a text, is scored on it, and learns from it as it goes.

    Of several networks in one each learns by its own mistakes, as it would alone; what is scored is the mean of their
    probabilities. The bits do not depend on the number of threads.

    Args:
        model: The trained network; it is left as it is.
        start: The id that the text of its own begins after.
        rates: How fast to learn.
        own_chars: Length of the text that the network writes.

    Memory: five times the parameters, and what a segment's backward pass takes.
    """

    def __init__(self, model: Network, start: int, rates: Rates, own_chars: int = OWN_CHARS) -> None:
        self._rates = rates
        self._mixer: Mixer | None = None
        self._mixed: list[float] | None = None
        with _threads(model):
            self._networks = [_AdaptedNetwork(one, start, rates, own_chars) for one in members(model)]

    def restart(self, rates: Rates) -> None:
        """Forget what was read and learnt, and go on at other rates; their floor stays that of the first ones."""
        self._rates = rates
        for network in self._networks:
            network.restart()

    def choose(self, ids: Sequence[int]) -> Rates:
        """Return the rates of `CHOICES` that score a text best, and start again at them.

        Args:
            ids: A piece of the training text; the text that is to be scored is no part of it. (n)
        """
        found = []
        for rate in CHOICES:
            self.restart(replace(self._rates, rate=rate))
            found.append((math.fsum(self.read(ids).nats), self._rates))
        self.restart(min(found, key=lambda pair: pair[0])[1])
        return self._rates

    def mix(self, mixer: Mixer) -> None:
        """Let what is read from now on be scored by a mixture with counts of contexts too, see `mixed`."""
        self._mixer = mixer

    def mixed(self, ids: Sequence[int]) -> Scored:
        """Return the mixture's scores of what was read last, which are these ids; what is likeliest to it is not known."""
        assert self._mixed is not None
        nats = self._mixed[-(len(ids) - 1) :]
        self._mixed = []
        return Scored(nats, [False] * len(nats), None)

    def read(self, ids: Sequence[int]) -> Scored:
        """Score ids[1:] and learn from them, segment by segment, from where the last call ended.

        Args:
            ids: (n), n - 1 a multiple of LEARN_EVERY but for the last call.

        Returns:
            Scores of the n - 1 characters after the first, and the state after ids[-2], the last input.
        """
        empty = self._networks[0].weights[:0]
        scores, hits = [empty], [empty.bool()]
        text = torch.tensor(ids, dtype=torch.int64, device=empty.device)
        with _threads(self._networks[0].model):
            for start in range(0, len(text) - 1, LEARN_EVERY):
                segment = text[start : start + LEARN_EVERY + 1]
                logits = average(network.read(segment) for network in self._networks)
                scores.append(nats(logits, segment[1:, None]).view(-1))
                hits.append(logits.argmax(-1).view(-1) == segment[1:])
                if self._mixer:
                    if self._mixed is None:  # the first of all is charged at its frequency
                        self._mixed = []
                        self._mixer.follow(int(segment[0]))
                    self._mixed += self._mixer.read(segment[1:].cpu(), logits[:, 0].cpu())
                for network in self._networks:
                    network.learn(self._rates)
        return Scored(torch.cat(scores).tolist(), torch.cat(hits).tolist(), joined(network.state for network in self._networks))


class _AdaptedNetwork:
    """A copy of one network, its weights and their gradient flat, and where it stands in the text."""

    def __init__(self, model: CharLM, start: int, rates: Rates, own_chars: int) -> None:
        self.model, self.weights, self._gradient = _flat_copy(model)
        self._backprop = Backprop(self.model, 1, LEARN_EVERY)
        self._pointwise = self.model.stack()[0].kernel.pointwise
        self._count = model.parameter_count()
        usual = self._usual(start, own_chars)
        overall = self._root_mean_square(usual)
        # A network without any gradient learns nothing, and divides by no zero either.
        self._scale = 1 / (usual + rates.floor * overall).clamp_min(torch.finfo(usual.dtype).tiny)
        self._home = self.weights.clone()
        self.restart()

    def restart(self) -> None:
        """Forget what was read and learnt."""
        self.weights.copy_(self._home)
        self.state: StackState = self.model.initial_state(1)

    def read(self, ids: Tensor) -> Tensor:
        """Read all ids but the last; return the logits after each, (n - 1, 1, V), and leave the gradient."""
        self._gradient.zero_()
        n = len(ids) - 1
        logits = self.weights.new_empty(n, self.model.vocabulary)
        _, self.state = self._backprop(ids[:-1, None], ids[1:, None], self.state, 1 / n, logits=logits)
        return logits[:, None]

    def learn(self, rates: Rates) -> None:
        """Take the step that the last segment's gradient asks for."""
        n = self._gradient.mul_(self._scale)
        size = self._root_mean_square(n)
        self.weights.lerp_(self._home, rates.decay)
        self.weights.add_(n, alpha=-rates.rate * min(1.0, LARGEST / max(size, 1e-30)))

    def _usual(self, start: int, chars: int) -> Tensor:
        """Return the root mean square of each weight's gradient on a text that the network writes."""
        stream = generate(self.model, [start], [0], Sampling())
        ids = torch.tensor([start, *(next(stream)[0][0] for _ in range(chars))], device=self.weights.device)
        squares, count = torch.zeros_like(self.weights), 0
        self.state = self.model.initial_state(1)
        for first in range(0, chars, LEARN_EVERY):
            self.read(ids[first : first + LEARN_EVERY + 1])
            squares.addcmul_(self._gradient, self._gradient)
            count += 1
        return squares.div_(max(1, count)).sqrt_()

    def _root_mean_square(self, x: Tensor) -> float:
        """Return that of what belongs to the weights, of the same bits on any number of threads."""
        return math.sqrt(float(self._pointwise.squared(x)) / self._count)


def _threads(model: Network) -> AbstractContextManager[None]:
    """Let torch compute on one thread meanwhile, unless the kernel has the same bits on any number of them."""
    return nullcontext() if model.stack()[0].kernel.any_threads else one_thread()


def _flat_copy(model: CharLM) -> tuple[CharLM, Tensor, Tensor]:
    """Return a copy of a model in evaluation mode, and the flat tensors that its weights and gradients are views of.

    Each begins where products want it (`optim.ALIGNED`); what lies between is zero and stays zero.
    """
    first = model.stack()[0]
    copy = CharLM(model.config, model.vocabulary, first.kernel, model.separator, start=False).to(first.U).eval()
    for own, given in zip(copy.buffers(), model.buffers(), strict=True):
        own.copy_(given)
    unit = ALIGNED // first.U.element_size()
    starts = [0, *accumulate(-(-p.numel() // unit) * unit for p in model.parameters())]
    weights, gradient = (first.U.detach().new_zeros(starts[-1]) for _ in range(2))
    for start, p, own in zip(starts, copy.parameters(), model.parameters(), strict=False):
        place = slice(start, start + p.numel())
        weights[place] = own.detach().reshape(-1)
        p.data, p.grad = weights[place].view(p.shape), gradient[place].view(p.shape)
    return copy, weights, gradient
