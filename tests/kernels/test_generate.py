"""The native generator: the ids, nats and logits that the model and the sampler's own rules give."""

import ctypes
import math
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.evaluation import sampler
from lstmlm.evaluation.sampler import Sampling
from lstmlm.evaluation.torch_sampler import Noise, distribution, draw
from lstmlm.kernels import arguments, native
from lstmlm.kernels import generate as generating
from lstmlm.kernels.generate import Choice, Generator, LayerWeights, NetworkWeights
from lstmlm.kernels.native import NativeKernel
from lstmlm.kernels.pace import Pace
from lstmlm.model.char_lm import CharLM
from tests.helpers import assert_close, normal, small_model
from tests.kernels.tensors import TensorGenerator, tensor_generator

PLAIN = Choice(1.0, 0, 1.0, False)


@pytest.fixture(name="kernel", scope="module")
def _kernel() -> NativeKernel:
    """Compile the kernel, or skip where there is no compiler."""
    try:
        return native.load("float32")
    except native.Unavailable as reason:
        pytest.skip(str(reason))


def with_kernel(model: CharLM, kernel: NativeKernel) -> CharLM:
    """Return the same network with another kernel."""
    twin = CharLM(model.config, model.vocabulary, kernel).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def calm(model: CharLM) -> CharLM:
    """Shrink W: where states follow one another chaotically, a rounding would grow into another text."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(0.3 if name.endswith(".W") else 1.0)
    return model


def opened(model: CharLM, kernel: NativeKernel, n: int) -> TensorGenerator:
    """Return the model's generator in its beginning: states of zero, logits of zero."""
    generator = tensor_generator(with_kernel(model, kernel), n, "float32")
    state = model.initial_state(n)
    generator.begin(torch.zeros(n, generator.V), [(s.hidden, s.cell) for s in state])
    return generator


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"layers": 1, "pairs": 30},
    {"layers": 4, "hidden": 33},
    {"hidden": 16, "layers": 3, "residual": False},
    {"layers": 3, "layer_norm": False},
    {"layers": 3, "layer_norm": False, "residual": False, "bias": False},
    {"layers": 1, "readout": "direct", "bias": False, "layer_norm": False},
    {"layers": 3, "readout": "direct", "hidden": 19},
]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_states_are_the_models(kernel: NativeKernel, shape: dict[str, Any], n: int) -> None:
    """After some characters of n different texts, logits, H and C of every layer are those of the eager model, to 1e-5."""
    model = small_model(vocabulary=21, dtype=torch.float32, **shape)
    generator = opened(model, kernel, n)

    ids, nats = generator.run(torch.rand(7, n), PLAIN)
    with torch.inference_mode():
        logits, state = model(ids[:-1])

    assert_close(generator.logits(), logits[-1], "logits", 1e-5 * float(logits.abs().max()))
    for (H, C), expected in zip(generator.states(), state[: len(model.layers)], strict=True):
        assert_close(H, expected.hidden, "H", 1e-5)
        assert_close(C, expected.cell, "C", 1e-5 * max(1.0, float(expected.cell.abs().max())))
    whole = torch.log_softmax(logits.double(), -1).gather(-1, ids[1:, :, None]).squeeze(-1)
    assert_close(nats[1:].double(), -whole, "nats", 1e-4)


HOW = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=3.0, top_k=4),
    Sampling(top_p=0.7),
    Sampling(temperature=1.4, top_k=6, top_p=0.8),
    Sampling(greedy=True),
    Sampling(temperature=0.0),
    Sampling(top_k=1),
    Sampling(temperature=1e-30),
    Sampling(temperature=5e-324),
    Sampling(top_k=500, top_p=1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("shape", [{}, {"layers": 3, "hidden": 40}, {"readout": "direct"}], ids=str)
def test_the_same_seed_gives_the_ids_of_the_eager_sampler(kernel: NativeKernel, how: Sampling, shape: dict[str, Any]) -> None:
    """Two hundred characters of two seeds, and their nats, are the same whichever kernel the model has."""
    model = calm(small_model(vocabulary=30, dtype=torch.float32, **shape))

    expected = list(islice(sampler.generate(model, [3, 1, 4], [7, 8], how), 200))
    found = list(islice(sampler.generate(with_kernel(model, kernel), [3, 1, 4], [7, 8], replace(how, exact=True)), 200))

    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    ours, theirs = (torch.tensor([nats for _, nats in steps], dtype=torch.float64) for steps in (found, expected))
    assert_close(ours, theirs, "nats", 1e-3)


def drawn(kernel: NativeKernel, logits: Tensor, noise: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """Return the ids and nats that the generator draws from given logits."""
    n, V = logits.shape
    model = small_model(vocabulary=V, dtype=torch.float32, hidden=3, layers=1)
    generator = opened(model, kernel, n)
    generator.begin(logits, [(torch.zeros(n, 3), torch.zeros(n, 3))])
    ids, nats = generator.run(noise[None], Choice(how.temperature, how.top_k, how.top_p, how.greedy))
    return ids[0], nats[0]


@pytest.mark.parametrize("V", [2, 15, 16, 17, 300])
@pytest.mark.parametrize("scale", [0.0, 2.0, 60.0])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_draw_follows_the_samplers_rules(kernel: NativeKernel, how: Sampling, scale: float, V: int) -> None:
    """From any logits, ties among them, the id is that of `distribution` and `draw`, and the nats are the uncut ones."""
    n = 50
    logits = normal(n, V, dtype=torch.float32, scale=scale)
    logits[: n // 2] = logits[: n // 2].round()  # many of the same
    noise = torch.rand(n)
    noise[0], noise[1] = 0.0, 1 - 2.0**-24

    ids, nats = drawn(kernel, logits, noise, how)

    assert ids.tolist() == draw(distribution(logits, how), noise[:, None]).tolist()
    expected = -torch.log_softmax(logits.double(), -1).gather(-1, ids[:, None]).squeeze(-1)
    assert_close(nats.double(), expected, "nats", 1e-5 * max(1.0, float(expected.max())))


def test_top_p_stops_where_it_is_reached_exactly(kernel: NativeKernel) -> None:
    """One half and one quarter are three quarters: the last quarter is never drawn."""
    logits = torch.tensor([[0.0, math.log(2), 0.0]]).expand(64, -1).contiguous()

    ids, _ = drawn(kernel, logits, torch.arange(64) / 64, Sampling(top_p=0.75))

    assert set(ids.tolist()) == {0, 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_do_no_harm(kernel: NativeKernel, bad: float) -> None:
    """Logits that are not numbers still give ids of the vocabulary."""
    logits = torch.full((4, 9), bad)
    logits[1, 3] = logits[2, 5] = 1.0

    for how in HOW:
        ids, _ = drawn(kernel, logits, torch.rand(4), how)
        assert all(0 <= id_ < 9 for id_ in ids.tolist())


def test_a_stream_does_not_depend_on_its_company(kernel: NativeKernel) -> None:
    """A stream's bits are the same alone, among three and among fifty."""
    model = small_model(vocabulary=21, dtype=torch.float32, hidden=70, layers=3)
    noise = torch.rand(60, 50)
    results = []
    for n in (1, 3, 50):
        generator = opened(model, kernel, n)
        ids, nats = generator.run(noise[:, :n].contiguous(), PLAIN)
        results.append((ids[:, 0].tolist(), nats[:, 0].tolist(), generator.logits()[0].tolist()))

    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("n", [1, 5])
def test_blocks_and_threads_do_not_matter(kernel: NativeKernel, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty characters in one call, in pieces, or on three threads are the same to the last bit."""
    model = small_model(vocabulary=37, dtype=torch.float32, hidden=50, layers=3)
    noise = torch.rand(40, n)
    results = []
    for threads, pieces in ((1, [40]), (1, [1, 2, 37]), (3, [40]), (2, [13, 27])):
        monkeypatch.setattr(arguments, "threads", lambda threads=threads: threads)
        monkeypatch.setattr(Pace, "plan", lambda self, now, threads=threads: (threads, 9))
        generator = opened(model, kernel, n)
        parts = [generator.run(piece, PLAIN) for piece in noise.split(pieces)]
        results.append([torch.cat(columns).tolist() for columns in zip(*parts, strict=True)])

    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("n", [1, 3, 9])
def test_a_team_may_be_smaller_than_asked_for(kernel: NativeKernel, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread where four were asked for does the work of all, and a network made for three is never given to more."""
    model, noise = with_kernel(small_model(dtype=torch.float32, layers=2), kernel), torch.rand(20, n)
    library, asked, results = generating._declared(kernel.library), [], []
    Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    Number = ctypes.CFUNCTYPE(ctypes.c_int)

    def run(body: int, job: int, threads: int, _: int) -> None:
        asked.append(threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body)(job)

    team = Run(run), Number(lambda: 0), Number(lambda: 1)
    monkeypatch.setattr(Pace, "plan", lambda self, now: (max(self._seconds), 64))
    try:
        for own, others in ((1, 1), (4, 3)):
            generators = []
            for threads in (own, others):
                monkeypatch.setattr(arguments, "threads", lambda threads=threads: threads)
                generators.append(tensor_generator(model, n, "float32"))
            first, second = generators
            first.join(second)
            first.read([1, 2])
            library.lstmlm_team(*[ctypes.cast(function, ctypes.c_void_p) for function in team])
            asked.clear()
            results.append([part.tolist() for part in first.run(noise, PLAIN)])
    finally:
        library.lstmlm_team(None, None, None)
        native._declare(library)

    assert asked == [3]
    assert results[0] == results[1]


def test_weights_are_copied(kernel: NativeKernel) -> None:
    """Training that goes on while a text is drawn does not change the text."""
    model = with_kernel(small_model(dtype=torch.float32), kernel)
    expected = [ids for ids, _ in islice(sampler.generate(model, [1], [5], Sampling()), 50)]

    stream = sampler.generate(model, [1], [5], Sampling())
    found = [next(stream)[0]]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    found += [ids for ids, _ in islice(stream, 49)]

    assert found == expected


def stream_of(model: CharLM, seed: int, count: int) -> list[tuple[list[int], list[float]]]:
    """Return the first steps of a text."""
    return list(islice(sampler.generate(model, [1], [seed], Sampling()), count))


def test_weights_are_packed_again_when_one_has_changed(kernel: NativeKernel) -> None:
    """What is kept between two texts is used again as long as the weights are the same, and only then."""
    model = with_kernel(small_model(dtype=torch.float32, hidden=40), kernel)
    first = stream_of(model, 5, 20)
    kept = sampler._kept[model]

    assert stream_of(model, 5, 20) == first
    assert sampler._kept[model] is kept

    for name, weight in model.named_parameters():
        weight.data.add_(torch.randn_like(weight))  # torch does not count a change made this way
        changed = stream_of(model, 5, 20)
        assert changed != first, name
        assert sampler._kept[model] is not kept
        first = stream_of(model, 5, 20)
        kept = sampler._kept[model]


def fingerprint(kernel: NativeKernel, *weights: Tensor) -> int:
    """Return the fingerprint of tensors."""
    return generating.fingerprint(kernel.library, [arguments.floats(weight) for weight in weights], 2)


def test_a_fingerprint_sees_every_word(kernel: NativeKernel) -> None:
    """Each single bit of weights of any size counts, and so does their order."""
    for size in (1, 63, 64, 200, 70_000):
        weight = torch.randn(size)
        marks = {fingerprint(kernel, weight)}
        places = list(range(0, size, 1 + size // 50))
        for place in places:
            weight.view(torch.int32)[place] ^= 1
            marks.add(fingerprint(kernel, weight))
            weight.view(torch.int32)[place] ^= 1

        assert len(marks) == 1 + len(places)
    a, b = torch.randn(2, 300)
    assert fingerprint(kernel, a, b) != fingerprint(kernel, b, a)


def test_two_texts_at_once_do_not_meet(kernel: NativeKernel) -> None:
    """Two texts of one model, drawn in turn, are what each is alone."""
    model = with_kernel(small_model(dtype=torch.float32), kernel)
    expected = [stream_of(model, 5, 40), stream_of(model, 6, 40)]

    one, two = (sampler.generate(model, [1], [seed], Sampling()) for seed in (5, 6))
    steps = [(next(one), next(two)) for _ in range(40)]

    assert [list(found) for found in zip(*steps, strict=True)] == expected


@pytest.mark.parametrize("n", [1, 4])
def test_a_prompt_is_read_as_the_model_reads_it(kernel: NativeKernel, n: int) -> None:
    """Logits and states after a prompt, short or long, are the same whoever reads it, for each stream."""
    model = with_kernel(small_model(dtype=torch.float32), kernel)
    generator = tensor_generator(model, n, "float32")

    for prompt in ([3], [1, 4, 2, 2, 9], [5, 2] * 40):
        generator.read(prompt)
        with torch.inference_mode():
            logits, state = model(torch.tensor(prompt)[:, None].expand(-1, n))
        assert_close(generator.logits(), logits[-1], "logits", 1e-5 * float(logits.abs().max()))
        for (H, C), expected in zip(generator.states(), state[: len(model.layers)], strict=True):
            assert_close(H, expected.hidden, "H", 1e-5)
            assert_close(C, expected.cell, "C", 1e-5 * max(1.0, float(expected.cell.abs().max())))
    with pytest.raises(ValueError, match="ids"):
        generator.read([11])


def test_noise_in_pieces_is_the_same_noise() -> None:
    """The numbers of a seed do not depend on how many are taken at a time."""
    one, many = Noise([4, 6]), Noise([4, 6])

    expected = torch.cat([one.step() for _ in range(600)], dim=1).t()
    pieces: list[Tensor] = []
    while sum(map(len, pieces)) < 600:
        pieces.append(many.steps(1 + len(pieces) * 3))

    assert torch.equal(torch.cat(pieces)[:600], expected)
    assert all(1 <= len(piece) <= 1 + index * 3 for index, piece in enumerate(pieces))


def test_wrong_shapes_are_refused(kernel: NativeKernel) -> None:
    """What the C code would read beyond its end never reaches it."""
    generator = opened(small_model(dtype=torch.float32), kernel, 2)

    for noise in (torch.rand(5, 3), torch.rand(0, 2)):
        with pytest.raises(ValueError, match="noise"):
            generator.run(noise, PLAIN)
    with pytest.raises(ValueError, match="logits"):
        generator.begin(torch.zeros(1, 11), [])
    with pytest.raises(ValueError, match="H"):
        generator.begin(torch.zeros(2, 11), [(torch.zeros(2, 8), torch.zeros(2, 7))] * 2)
    with pytest.raises(TypeError):
        arguments.floats(torch.zeros(5, 20, dtype=torch.float64))
    assert sampler.native_generator(with_kernel(small_model(), kernel).double(), 1) is None


def test_lengths_are_checked(kernel: NativeKernel) -> None:
    """So are numbers of prompts and streams, and sizes of states."""
    model = with_kernel(small_model(dtype=torch.float32), kernel)
    generator, small = (sampler.native_generator(model, 2, storage) for storage in ("float32", "int8"))
    assert generator is not None
    assert small is not None

    with pytest.raises(ValueError, match="prompts: expected one for each of 2"):
        generator.read_each([[1]])
    for count in (0, 3):
        with pytest.raises(ValueError, match="states: expected those of 1 to 2"):
            generator.take_states(count)
    with pytest.raises(ValueError, match="states: expected two of one size"):
        generator.roundings(bytes(8), bytes(4))
    with pytest.raises(ValueError, match="storage: expected float32"):
        small.put_states(small.take_states(1))
    shapes = (5, 12), (3, 12), (3, 16), (4, 16), (5, 4), (5,)
    U, W, U_2, W_2, R, r = (arguments.floats(torch.zeros(shape)) for shape in shapes)
    layers = LayerWeights(U, W, None, None, None), LayerWeights(U_2, W_2, None, None, None)
    with pytest.raises(ValueError, match="one width"):
        Generator(kernel.library, NetworkWeights(layers, (R, r), True), 1, threads=1)
    above = layers[0], layers[1]._replace(M=arguments.floats(torch.zeros(5, 4)))
    with pytest.raises(ValueError, match="M: expected one in the first layer alone"):
        Generator(kernel.library, NetworkWeights(above, (R, r), False), 1, threads=1)
    with pytest.raises(ValueError, match="at least one stream and one thread"):
        Generator(kernel.library, NetworkWeights(layers, (R, r), False), 1, threads=0)


@pytest.mark.parametrize("place", [0, 1, 20, 39])
def test_a_comparison_of_states_forgets_no_nan(kernel: NativeKernel, place: int) -> None:
    """Whatever differs elsewhere, two states of which one holds a NaN differ by NaN."""
    generator = sampler.native_generator(with_kernel(small_model(dtype=torch.float32), kernel), 1, "float32")
    assert generator is not None
    one, other = torch.zeros(40), torch.linspace(1, 2, 40)
    one[place] = math.nan

    assert math.isnan(generator.roundings(one.numpy().tobytes(), other.numpy().tobytes()))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no count of pages")
def test_threads_that_read_nothing_take_no_memory(kernel: NativeKernel) -> None:
    """What threads compute in is touched when they do: sixteen of them cost a large vocabulary no more than one."""
    V, S = 200_000, 8
    U, W, R, r = (arguments.floats(torch.zeros(shape)) for shape in ((V, 4 * S), (S, 4 * S), (V, S), (V,)))
    weights = NetworkWeights((LayerWeights(U, W, None, None, None),), (R, r), False)

    def taken(threads: int) -> int:
        pages = [int(Path("/proc/self/statm").read_text().split()[1])]
        generator = Generator(kernel.library, weights, 1, threads=threads, storage="float32")
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        assert generator.n == 1
        return (pages[1] - pages[0]) * os.sysconf("SC_PAGE_SIZE")

    taken(1)  # what it gives back is taken again without new pages
    assert taken(16) - taken(1) < 10_000_000


def test_weights_that_do_not_fit_are_refused(kernel: NativeKernel) -> None:
    """One row or column less, of any weight: the C code would read beyond its end."""
    V, S = 5, 3
    shapes = [(V, 4 * S), (S, 4 * S), (4 * S,), (S,), (S,), (S, 4 * S), (S, 4 * S), (4 * S,), (S,), (S,)]
    shapes += [(V, S), (V,), (V, S)]

    def made(*weights: Tensor) -> Generator:
        given = [arguments.floats(weight) for weight in weights]
        layers = LayerWeights(*given[:5])._replace(M=given[12]), LayerWeights(*given[5:10])
        return Generator(kernel.library, NetworkWeights(layers, (given[10], given[11]), False), 1, threads=1)

    made(*(torch.zeros(shape) for shape in shapes)).read([1])
    for index, shape in enumerate(shapes):
        for axis in range(len(shape)):
            weights = [torch.zeros(shape) for shape in shapes]
            weights[index] = weights[index].narrow(axis, 0, shape[axis] - 1).contiguous()
            with pytest.raises(ValueError, match="expected float32"):
                made(*weights)
    layer = LayerWeights(arguments.floats(torch.zeros(V, 4 * S)), arguments.floats(torch.zeros(S, 4 * S)), None, None, None)
    with pytest.raises(ValueError, match="readout: expected"):
        Generator(kernel.library, NetworkWeights((layer,), None, False), 1, threads=1)
    with pytest.raises(ValueError, match="contiguous"):
        arguments.floats(torch.zeros(4, 6).t())
