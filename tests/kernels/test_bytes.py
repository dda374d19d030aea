"""Weights kept as bytes: the generator computes what the same rounding in torch gives, on every width of vectors."""

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.evaluation import sampler
from lstmlm.evaluation.sampler import Sampling
from lstmlm.kernels import build
from lstmlm.kernels.generate import Choice, Generator
from lstmlm.kernels.native import NativeKernel, Unavailable
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import LSTMLayer
from tests.helpers import small_model
from tests.kernels.tensors import TensorGenerator, tensor_generator

PLAIN = Choice(1.0, 0, 1.0, False)
GREEDY = Choice(1.0, 0, 1.0, True)
MACHINES = [(), ("-march=x86-64-v3",), ("-O1",)]


@pytest.fixture(name="kernel", scope="module", params=MACHINES, ids=["this CPU", "AVX2", "plain C"])
def _kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeKernel:
    """Compile the kernel for this CPU and for narrower vectors, or skip where that cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setenv("LSTMLM_CACHE", str(tmp_path_factory.mktemp("kernel")))
            patch.setattr(build, "FOR_THIS_CPU", (request.param,))
        try:
            kernel = NativeKernel(build.library())
        except Unavailable as reason:
            pytest.skip(str(reason))
    return kernel


def sensible(**options: Any) -> CharLM:
    """Return a small network with weights of the size that training gives them: each sum of some units."""
    model = small_model(options.pop("vocabulary", 21), torch.float32, **options)
    with torch.no_grad():
        for layer in model.stack():
            layer.W.uniform_(-1, 1).mul_(2 * len(layer.W) ** -0.5)
            layer.U.uniform_(-1, 1).mul_(2 * len(layer.U) ** -0.5)
            if layer.M is not None:
                layer.M.uniform_(-0.5, 0.5)
        if model.readout is not None:
            model.readout.weight.uniform_(-1, 1).mul_(2 * model.readout.in_features**-0.5)
    return model


def in_bytes(model: CharLM, kernel: NativeKernel, n: int) -> TensorGenerator:
    """Return the model's generator in its beginning, its weights kept as bytes."""
    twin = CharLM(model.config, model.vocabulary, kernel).eval()
    twin.load_state_dict(model.state_dict())
    generator = tensor_generator(twin, n, "int8")
    assert generator.storage == "int8"
    generator.begin(torch.zeros(n, generator.V), [(s.hidden, s.cell) for s in model.initial_state(n)])
    return generator


def rounded(x: Tensor, dim: int, most: int, top: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return integers up to `most` and what one of them is worth, along `dim`."""
    top = x.abs().amax(dim, keepdim=True) if top is None else top
    return torch.where(top > 0, (x * (most / top)).round(), 0.0), top / most


def product(x: Tensor, W: Tensor, top: Tensor | None = None) -> Tensor:
    """Return x W, both rounded: each row of x to 16 bits, each column of W to 8; the sum is exact. (n, columns)"""
    rows, columns = rounded(x, -1, min(2**15 - 1, (2**31 - 1) // (127 * len(W))), top), rounded(W, 0, 127)
    return (rows[0].double() @ columns[0].double()).float() * rows[1] * columns[1]


def one_step(model: CharLM, ids: Tensor, states: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the logits (n, V) and the next state of a network whose products are `product`: the slow twin of `products.h`."""
    x, after = torch.empty(0), []
    for index, (layer, (H, C)) in enumerate(zip(model.layers, states, strict=True)):
        assert isinstance(layer, LSTMLayer)
        recurrent = product(H, layer.W, torch.ones(1)) if layer.M is None else product((1 + layer.M[ids]) * H, layer.W)
        a = recurrent + (layer.U[ids] if index == 0 else product(x, layer.U))
        f, i, o, N = (a if layer.b is None else a + layer.b).chunk(4, -1)
        C = f.sigmoid() * C + i.sigmoid() * N.tanh()
        H = o.sigmoid() * C.tanh()
        after.append((H, C))
        direct = model.readout is None and index == len(model.layers) - 1
        y = H if model.norms is None or direct else model.norms[index](H)
        x = x + y if model.config.residual and index and not direct else y
    return x if model.readout is None else readout(x, model.readout.weight.t()) + model.readout.bias, after


def readout(x: Tensor, R: Tensor) -> Tensor:
    """Return x R; what rounding leaves of R is rounded too, where the vocabulary is at most as large as the state."""
    S, V = R.shape
    whole, worth = rounded(R, 0, 127)
    return product(x, R) + product(x, R - whole * worth) if V <= S else product(x, R)


SHAPES: list[dict[str, Any]] = [
    {"layers": 1, "hidden": 16},
    {"layers": 3, "hidden": 70, "vocabulary": 90},
    {"layers": 2, "hidden": 130, "residual": False, "vocabulary": 17},
    {"layers": 2, "hidden": 65, "layer_norm": False},
    {"layers": 1, "readout": "direct", "bias": False},
    {"layers": 1, "hidden": 48, "multiplicative": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_a_step_is_that_of_the_rounded_network(kernel: NativeKernel, shape: dict[str, Any], n: int) -> None:
    """From any state, logits, H and C after a step are those of a network in torch whose products round likewise."""
    model = sensible(**dict(shape))
    generator = in_bytes(model, kernel, n)
    for turn in range(4):
        ids = torch.randint(generator.V, (n,))
        states = [(torch.rand(n, s.hidden.shape[1]) * 2 - 1, torch.randn(n, s.cell.shape[1])) for s in model.initial_state(n)]
        generator.begin(torch.nn.functional.one_hot(ids, generator.V).float() * 100, states)
        generator.run(torch.zeros(1, n), GREEDY)  # draws the ids what was asked for
        generator.run(torch.rand(1, n), PLAIN)
        logits, after = one_step(model, ids, states)

        # A sum of a float more or less may round a value of the next product to its neighbour.
        ours, theirs = [generator.logits()], [logits]
        for layer, expected_layer in zip(generator.states(), after, strict=True):
            ours += layer
            theirs += expected_layer
        for found, expected in zip(ours, theirs, strict=True):
            gap = (found - expected).abs()
            assert gap.max() < 1e-2, (turn, shape)
            assert (gap < 1e-3).double().mean() > 0.9, (turn, shape)


@torch.no_grad()
def test_twenty_thousand_seeds_cannot_tell_it_from_the_network(kernel: NativeKernel) -> None:
    """After each of 60 prompts the distribution is so near the network's own that the chi-square of 20,000 draws hardly grows."""
    model = sensible(hidden=128, layers=2, vocabulary=29)
    generator = in_bytes(model, kernel, 1)
    prompts = torch.randint(generator.V, (60, 12))
    found = torch.empty(60, generator.V, dtype=torch.float64)
    for index, prompt in enumerate(prompts.tolist()):
        generator.read(prompt)
        found[index] = generator.logits()[0].double().softmax(-1)
    p = model(prompts.t())[0][-1].double().softmax(-1)

    assert (20_000 * (found - p).square() / p).sum(-1).mean() < 3  # its spread is 8
    assert 1e-6 < (found - p).abs().max() < 1e-2  # bytes they were


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [33, 130])
def test_a_stream_does_not_depend_on_company_threads_or_blocks(
    kernel: NativeKernel, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream's bits are the same alone, among three and among fifty, on one thread and on three, in one call and in many."""
    model = small_model(vocabulary=21, dtype=torch.float32, hidden=hidden, layers=3)
    noise = torch.rand(40, 50)
    results = []
    for n in (1, 3, 50):
        for threads, pieces in ((1, [40]), (3, [1, 2, 37]), (2, [13, 27])):
            monkeypatch.setattr("lstmlm.kernels.arguments.threads", lambda threads=threads: threads)
            monkeypatch.setattr("lstmlm.kernels.generate.Pace.plan", lambda self, now, threads=threads: (threads, 9))
            generator = in_bytes(model, kernel, n)
            parts = [generator.run(piece[:, :n].contiguous(), PLAIN) for piece in noise.split(pieces)]
            ids, nats = (torch.cat(columns)[:, 0].tolist() for columns in zip(*parts, strict=True))
            results.append(
                (ids, nats, generator.logits()[0].tolist(), [part[0].tolist() for s in generator.states() for part in s])
            )

    assert all(result == results[0] for result in results)


@torch.no_grad()
def test_extremes_are_held(kernel: NativeKernel) -> None:
    """Columns of zeros, tiny and huge weights give finite logits; weights that are no numbers are not made into ones."""
    model = small_model(dtype=torch.float32, layers=2, hidden=20)
    W = model.get_parameter("layers.1.U")
    W[:, 0], W[:, 1], W[:, 2], W[0, 3] = 0.0, 1e-35, 1e25, -1e29
    generator = in_bytes(model, kernel, 2)
    generator.run(torch.rand(20, 2), PLAIN)
    assert generator.logits().isfinite().all()

    W[0, 0] = torch.nan
    twin = CharLM(model.config, 11, kernel).eval()
    twin.load_state_dict(model.state_dict())
    refused = sampler.native_generator(twin, 1, "int8")
    assert refused is not None
    assert refused.storage == "float32"


@torch.no_grad()
@pytest.mark.parametrize("layer_norm", [True, False])
def test_what_is_no_number_stays_none(kernel: NativeKernel, layer_norm: bool) -> None:
    """A unit whose state is NaN is seen in the logits of its stream and of no other, as it is with floats."""
    model = sensible(layers=2, hidden=20, layer_norm=layer_norm)
    generator = in_bytes(model, kernel, 2)
    states = [(torch.zeros(2, 20), torch.zeros(2, 20)) for _ in range(2)]
    states[0][1][1, 3] = torch.nan
    generator.begin(torch.zeros(2, generator.V), states)
    generator.run(torch.rand(2, 2), PLAIN)

    assert generator.logits()[0].isfinite().all()
    assert generator.logits()[1].isnan().all()


def test_the_largest_sum_is_exact(kernel: NativeKernel) -> None:
    """Five hundred products of the largest integers, all of one sign, are summed without overflow or saturation."""
    wide = 512
    model = sensible(layers=1, hidden=wide, layer_norm=False, vocabulary=5)
    with torch.no_grad():
        assert model.readout is not None
        model.readout.weight.fill_(-0.5)
        generator = in_bytes(model, kernel, 1)
        generator.begin(torch.zeros(1, 5), [(torch.ones(1, wide), torch.full((1, wide), 50.0))])
        generator.run(torch.rand(2, 1), PLAIN)
        H, _ = generator.states()[0]

        expected = readout(H, model.readout.weight.t()) + model.readout.bias
    assert torch.allclose(generator.logits(), expected, rtol=1e-6)


def test_the_sampler_draws_from_bytes_where_they_are_quick(kernel: NativeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, the sampler keeps weights as bytes where the CPU multiplies them quickly; asked to be exact, never."""
    model = CharLM(small_model(dtype=torch.float32).config, 11, kernel).eval()
    made: list[str] = []
    pack = sampler.native_generator

    def noted(model: CharLM, n: int, storage: str) -> Generator | None:
        generator = pack(model, n, storage)
        assert generator is not None
        made.append(generator.storage)
        return generator

    monkeypatch.setattr(sampler, "native_generator", noted)
    for exact in (False, True):
        assert len(list(islice(sampler.generate(model, [1], [5], Sampling(exact=exact)), 30))) == 30
    quick = bool(kernel.library.lstmlm_generator_bytes())
    assert made == ["int8" if quick else "float32", "float32"]
