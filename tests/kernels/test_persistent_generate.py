"""The Triton generator: the ids and nats of the eager sampler, on a CUDA device where there is one, else in the interpreter."""

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lstmlm
from lstmlm.evaluation import sampler
from lstmlm.evaluation.sampler import Sampling, distribution, draw
from lstmlm.kernels import Kernel, persistent_generate
from lstmlm.kernels.generate import Choice
from lstmlm.kernels.persistent import PersistentKernel
from lstmlm.kernels.persistent_generate import PersistentGenerator, Shares, Sizes
from lstmlm.kernels.persistent_tiles import Chip
from lstmlm.model import ensemble
from lstmlm.model.char_lm import CharLM
from tests.helpers import assert_close, normal, small_model
from tests.kernels import generating_programs

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ROOT = Path(lstmlm.__file__).parents[1]
H200 = Chip(132, 232_448)
PLAIN = Choice(1.0, 0, 1.0, greedy=False)

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: it is made for Linux on x86-64"),
    pytest.mark.filterwarnings("ignore:invalid value encountered"),  # NumPy says so, in the interpreter
]


@pytest.fixture(name="kernel")
def _kernel(loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch) -> PersistentKernel:
    """Return the kernel, which here generates in the interpreter too, and has been found right."""
    monkeypatch.setattr(persistent_generate, "runs", lambda kernel: True)
    monkeypatch.setattr(persistent_generate, "works", lambda *sizes: True)
    return loaded["float32"]


@pytest.fixture(name="share")
def _share(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes the work be shared in a way that is asked for; in the interpreter a stream has one program."""

    def ask(units: int, columns: int, programs: int) -> None:
        chosen = Shares(units, columns, programs if CUDA else 1, 8)
        monkeypatch.setattr(persistent_generate, "shares", lambda *sizes: chosen)

    return ask


def rounded(vocabulary: int = 11, **options: Any) -> CharLM:
    """Return a network whose weights are numbers of bfloat16. W is small: else a rounding would grow into another text."""
    model = small_model(vocabulary, dtype=torch.float32, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_((weight * (0.3 if name.endswith(".W") else 1.0)).bfloat16())
    return model


def with_kernel(model: CharLM, kernel: Kernel) -> CharLM:
    """Return the same network with another kernel, where that runs."""
    twin = CharLM(model.config, len(model.get_parameter("layers.0.U")), kernel).eval()
    twin.load_state_dict(model.state_dict())
    return twin.to(DEVICE, model.get_parameter("layers.0.U").dtype)


def opened(model: CharLM, kernel: PersistentKernel, logits: Tensor) -> PersistentGenerator:
    """Return a model's generator before the first character, which is drawn from given logits."""
    n = len(logits)
    generator = sampler.device_generator(with_kernel(model, kernel), n, Sampling())
    assert generator is not None
    generator.begin(logits, [(s.hidden, s.cell) for s in model.initial_state(n)])
    return generator


def text(model: CharLM | ensemble.Ensemble, how: Sampling, length: int) -> tuple[list[list[int]], Tensor]:
    """Return the ids and nats of three seeds after a prompt."""
    steps = list(islice(sampler.generate(model, [3, 1, 4], [7, 8, 9], how), length))
    return [ids for ids, _ in steps], torch.tensor([nats for _, nats in steps], dtype=torch.float64)


SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 1, "hidden": 16, "vocabulary": 16},
    {"layers": 3, "hidden": 19},
    {"layers": 3, "residual": False},
    {"layers": 3, "layer_norm": False},
    {"layers": 2, "layer_norm": False, "residual": False, "bias": False},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_seeds_give_the_ids_of_the_eager_sampler(
    kernel: PersistentKernel, shape: dict[str, Any], share: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are the same and nats are close, whatever the network, in blocks of units and columns that do not come out even."""
    share(8, 4, 2)
    model = rounded(**shape)
    expected, theirs = text(model, Sampling(), 6)
    monkeypatch.setattr(sampler, "_drawn", None)  # it is not what draws now
    found, ours = text(with_kernel(model, kernel), Sampling(), 6)

    assert found == expected
    assert_close(ours, theirs, "nats", 2e-5)


@pytest.mark.parametrize("how", [Sampling(temperature=0.5), Sampling(temperature=0.0), Sampling(greedy=True)], ids=str)
def test_temperatures(kernel: PersistentKernel, how: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they are at other temperatures, and greedily; the nats are those at temperature 1."""
    model = rounded()

    expected, theirs = text(model, how, 8)
    monkeypatch.setattr(sampler, "_drawn", None)
    found, ours = text(with_kernel(model, kernel), how, 8)

    assert found == expected
    assert_close(ours, theirs, "nats", 2e-5)


@pytest.mark.parametrize("V", [2, 17, 64, 300])
@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(temperature=3.0), Sampling(temperature=1e-30), Sampling(greedy=True)], ids=str
)
def test_a_draw_follows_the_samplers_rules(
    kernel: PersistentKernel, how: Sampling, V: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any logits, ties and -inf among them, the id is that of `distribution` and `draw`, and the nats are the uncut ones."""
    n = 16
    monkeypatch.setattr(persistent_generate, "MANY", n)
    logits = normal(n, V, dtype=torch.float32) * torch.tensor([0.0, 2.0, 60.0, 1000.0]).repeat(n // 4)[:, None]
    logits[: n // 2] = logits[: n // 2].round()  # many of the same
    logits[4:12, V // 2 :] = -math.inf
    noise = torch.rand(n)
    noise[:4], noise[4:8] = 0.0, 1 - 2.0**-24
    generator = opened(rounded(V, hidden=3, layers=1), kernel, logits)

    ids, nats = (part[0].cpu() for part in generator.run(noise[None], Choice(how.temperature, 0, 1.0, how.greedy)))

    p = distribution(logits, how)
    assert ids.tolist() == draw(p, noise[:, None]).tolist()
    assert bool((p.gather(-1, ids[:, None]) > 0).all())
    expected = -torch.log_softmax(logits.double(), -1).gather(-1, ids[:, None]).squeeze(-1)
    assert_close(nats.double(), expected, "nats", 1e-6 * max(1.0, float(expected.max())))


def characters(generator: PersistentGenerator, noise: Tensor, pieces: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids and nats of all pieces, and the logits after them."""
    found = [generator.run(piece, PLAIN) for piece in noise.split(pieces)]
    ids, nats = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ids, nats, generator.logits


def test_neither_company_nor_blocks_matter(kernel: PersistentKernel) -> None:
    """A stream has the same bits alone, with two others, and in calls of other lengths."""
    model = rounded(hidden=13)
    logits, noise = normal(3, 11, dtype=torch.float32), torch.rand(5, 3)

    whole = characters(opened(model, kernel, logits), noise, [5])
    pieces = characters(opened(model, kernel, logits), noise, [1, 2, 2])
    single = characters(opened(model, kernel, logits[1:2]), noise[:, 1:2], [2, 3])

    assert all(map(torch.equal, pieces, whole))
    for one, of_all, axis in zip(single, whole, (1, 1, 0), strict=True):
        assert torch.equal(one, of_all.narrow(axis, 1, 1))


def test_a_text_goes_on_from_a_state(kernel: PersistentKernel) -> None:
    """What is begun with is the state that the model has after a text; a generator may begin again."""
    model = rounded(layers=3)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.inference_mode():
        logits, state = model(ids)
        generator = opened(model, kernel, normal(3, 11, dtype=torch.float32))
        generator.run(torch.rand(1, 3), PLAIN)
        generator.begin(logits[-1], state)
        drawn, _ = generator.run(torch.rand(2, 3), PLAIN)
        expected, _ = model(drawn.cpu(), state)

    assert_close(generator.logits.cpu(), expected[-1], "logits", 1e-5)


def test_nan_is_seen_and_stays_where_it_is(kernel: PersistentKernel) -> None:
    """Logits of NaN or all -inf give an id of the vocabulary and nats of NaN, and the streams beside them go on as ever."""
    model = rounded()
    logits, noise = normal(4, 11, dtype=torch.float32), torch.rand(2, 4)
    expected = characters(opened(model, kernel, logits), noise, [2])
    broken = logits.clone()
    broken[0, 3], broken[1] = math.nan, -math.inf
    for choice in (PLAIN, PLAIN._replace(greedy=True)):
        ids, nats = opened(model, kernel, broken).run(noise[:1], choice)
        assert bool(((ids >= 0) & (ids < 11)).all())
        assert nats[0].isnan().tolist() == [True, True, False, False]

    found = characters(opened(model, kernel, broken), noise, [2])

    assert all(torch.equal(one[:, 2:], other[:, 2:]) for one, other in zip(found[:2], expected[:2], strict=True))
    with torch.no_grad():
        model.get_parameter("layers.1.W")[0, 0] = math.nan
    ids, nats = opened(model, kernel, logits).run(noise.repeat(2, 1), PLAIN)
    assert bool(((ids >= 0) & (ids < 11)).all())
    assert bool(nats[-1].isnan().all())


def test_the_self_check_sees_what_is_wrong(kernel: PersistentKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the generator, and sees another id, nats or state in one stream, NaN, and draws by other rules."""
    sizes, device = Sizes(9, 10, 2, norm=True, residual=True), torch.device(DEVICE)

    def found() -> float:
        return persistent_generate.disagreement(kernel, sizes, 3, device)

    assert found() < persistent_generate.WITHIN / 10
    right = PersistentGenerator.run

    def spoiling(what: int, wrong: float) -> Callable[..., tuple[Tensor, Tensor]]:
        def spoiled(self: PersistentGenerator, noise: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
            ids, nats = right(self, noise, choice)
            (ids, nats, self.logits, self._C[self._turn])[what].view(-1, *(() if what < 3 else (10,)))[-1] += wrong
            return ids.remainder(9), nats

        return spoiled

    for what, wrong in ((0, 1), (1, 0.01), (1, math.nan), (2, 0.01), (3, 0.3)):
        monkeypatch.setattr(PersistentGenerator, "run", spoiling(what, wrong))
        assert not found() < 2 * persistent_generate.WITHIN, (what, wrong)
    for wrong_way in (lambda noise, choice: (1 - noise, choice), lambda noise, choice: (noise, choice._replace(greedy=False))):

        def other(self: PersistentGenerator, noise: Tensor, choice: Choice, way: Any = wrong_way) -> tuple[Tensor, Tensor]:
            return right(self, *way(noise, choice))

        monkeypatch.setattr(PersistentGenerator, "run", other)
        assert found() > 2 * persistent_generate.WITHIN


def test_what_fails_is_left_to_the_model(loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that raises, or is wrong, is asked once for a size; texts are drawn by the model then."""
    kernel, model = loaded["float32"], rounded()
    asked: list[Any] = []

    def disagreement(*given: Any) -> float:
        asked.append(given)
        if len(asked) > 1:
            raise RuntimeError("sick")
        return 0.5

    monkeypatch.setattr(persistent_generate, "runs", lambda kernel: True)
    monkeypatch.setattr(persistent_generate, "disagreement", disagreement)
    persistent_generate.works.cache_clear()
    expected, _ = text(model, Sampling(), 4)

    assert text(with_kernel(model, kernel), Sampling(), 4)[0] == expected
    assert text(with_kernel(model, kernel), Sampling(), 4)[0] == expected
    assert len(asked) == 1
    assert sampler.device_generator(with_kernel(rounded(layers=1), kernel), 1, Sampling()) is None
    assert len(asked) == 2
    persistent_generate.works.cache_clear()


def test_what_it_is_for(kernel: PersistentKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts, exact texts, networks as one, direct readouts, wide vocabularies, many streams, float64, the interpreter are not."""
    model = with_kernel(rounded(), kernel)
    assert sampler.device_generator(model, 2, Sampling()) is not None
    assert sampler.device_generator(model, persistent_generate.MANY, Sampling()) is not None
    assert sampler.device_generator(model, persistent_generate.MANY + 1, Sampling()) is None
    for how in (Sampling(top_k=3), Sampling(top_p=0.9), Sampling(exact=True)):
        assert sampler.device_generator(model, 2, how) is None
    assert sampler.device_generator(ensemble.of([model, model]), 2, Sampling()) is None
    for options in ({"readout": "direct"}, {"vocabulary": 1025}):
        assert sampler.device_generator(with_kernel(rounded(**options), kernel), 2, Sampling()) is None
    assert sampler.device_generator(with_kernel(rounded().double(), kernel), 2, Sampling()) is None
    assert sampler.device_generator(rounded(), 2, Sampling()) is None
    with pytest.raises(ValueError, match="expected one without cuts"):
        opened(rounded(), kernel, torch.zeros(1, 11)).run(torch.rand(1, 1), PLAIN._replace(keep=2))

    monkeypatch.undo()
    assert (sampler.device_generator(model, 2, Sampling()) is None) == (not CUDA)
    assert not persistent_generate.runs(PersistentKernel(torch.bfloat16, H200._replace(programs=0)))
    assert persistent_generate.runs(PersistentKernel(torch.bfloat16, H200))


def test_changed_weights_are_noticed(kernel: PersistentKernel) -> None:
    """The next text is that of the weights as they are then; what is under way is not changed."""
    model = with_kernel(rounded(), kernel)
    logits, noise = normal(1, 11, dtype=torch.float32), torch.rand(6, 1)
    opening = [(s.hidden, s.cell) for s in model.initial_state(1)]

    def packed() -> PersistentGenerator:
        generator = sampler.device_generator(model, 1, Sampling())
        assert generator is not None
        generator.begin(logits, opening)
        return generator

    whole = packed().run(noise, PLAIN)[1]
    generator = packed()
    first = generator.run(noise[:3], PLAIN)[1]
    for weight in model.parameters():
        with torch.no_grad():
            weight.mul_(0.5)

    assert torch.equal(torch.cat([first, generator.run(noise[3:], PLAIN)[1]]), whole)
    assert not torch.equal(packed().run(noise, PLAIN)[1], whole)


@pytest.mark.skipif(CUDA, reason="on a CUDA device the grid itself is tested")
def test_programs_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Any]) -> None:
    """Programs that run at the same time, each in a process, give the bits of a single one: nobody reads before it is written."""
    parts = generating_programs
    memory = parts.shared(tmp_path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", parts.__name__, str(tmp_path)], env=environment, check=True, timeout=120
    )

    monkeypatch.setattr(persistent_generate, "shares", lambda *sizes: parts.shares(*sizes)._replace(programs=1))
    generator, noise = parts.problem()
    ids, nats = generator.run(noise, parts.CHOICE)

    assert torch.equal(memory["ids"], ids)
    assert torch.equal(memory["nats"], nats)
    assert torch.equal(memory["logits"], generator.logits)
    assert memory["counters"].tolist() == [parts.K * (parts.L + 1) * parts.GRID[0]] * parts.n


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_many_programs_equal_one(kernel: PersistentKernel, share: Callable[..., None]) -> None:
    """On the device, a grid that waits has the bits of a single program, in a hundred launches."""
    model = rounded(hidden=100, layers=3)
    logits, noise = normal(3, 11, dtype=torch.float32), torch.rand(20, 3)
    share(4, 1, 1)
    expected = characters(opened(model, kernel, logits), noise, [20])
    share(4, 1, 13)
    for _ in range(100):
        assert all(map(torch.equal, characters(opened(model, kernel, logits), noise, [20]), expected))


def test_compiles_for_an_h200(compiled: Callable[[str], list[dict[str, Any]]]) -> None:
    """The compiler takes the launches, nothing is spilled, and the barrier is between programs."""
    for found in compiled("compile_generate"):
        ptx = found.pop("ptx")
        assert found["stack"] == 0, found
        assert found["shared"] <= H200.memory, found
        assert 100 < found["grid"][0] * found["grid"][1] <= H200.programs, found
        assert found["cooperative"], found
        assert all(word in ptx for word in ("ld.global.gpu.acquire", "global.gpu.release")), found


@pytest.mark.parametrize("chip", [H200, Chip(108, 166_912), Chip(20, 101_376), Chip(1, 1 << 17)])
def test_shares_cover_and_fit(chip: Chip) -> None:
    """All programs run at once, a tile is not too large, and how a sum is made does not depend on the number of streams."""
    for S in (1, 7, 16, 100, 512, 640, 1024, 4096):
        for V in (2, 100, 1024):
            alone = persistent_generate.shares(S, V, 1, chip)
            for n in (1, 2, 4, 100, 5000):
                cut = persistent_generate.shares(S, V, n, chip)
                assert cut.programs == 1 or cut.programs * n <= chip.programs
                assert cut.programs >= 1
                assert cut._replace(programs=alone.programs) == alone
                assert max(cut.units, cut.columns) * S <= persistent_generate.TILE
    assert persistent_generate.shares(512, 100, 1, H200) == Shares(4, 1, 128, 8)
    assert persistent_generate.shares(1024, 100, 1, H200) == Shares(8, 1, 128, 16)
    assert persistent_generate.shares(512, 100, 4, H200) == Shares(4, 1, 33, 8)
