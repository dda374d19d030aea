"""The Triton kernel, tied to eager: on a CUDA device where there is one, else in Triton's interpreter, which is slow."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

import lstmlm
from lstmlm import kernels
from lstmlm.kernels import Activations, Kernel, Rows, persistent
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.persistent import PersistentKernel, Unavailable
from lstmlm.kernels.persistent_tiles import Chip, tiles
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.training.backprop import Backprop
from tests.helpers import small_model
from tests.kernels import one_program

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ROOT = Path(lstmlm.__file__).parents[1]
H200 = Chip(132, 232_448)
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
Cut = Callable[..., None]

with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton: it is made for Linux on x86-64")
with_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device")


@pytest.fixture(name="kernel", params=ROUNDING)
def _kernel(loaded: dict[str, PersistentKernel], request: pytest.FixtureRequest) -> PersistentKernel:
    return loaded[request.param]


@pytest.fixture(name="strict")
def _strict(loaded: dict[str, PersistentKernel]) -> PersistentKernel:
    return loaded["float32"]


def precision_of(kernel: PersistentKernel) -> str:
    """Return what its factors are rounded to."""
    return str(kernel._factors).removeprefix("torch.")


def problem(T: int, B: int, S: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs of both passes, with weights as large as those of a trained model."""
    generator = torch.Generator().manual_seed(seed * 1_000_000 + T * 10_000 + B * 100 + S)
    shapes = {"a": (T, B, 4 * S), "W": (S, 4 * S), "H_0": (B, S), "C_0": (B, S), "dH": (T, B, S), "dC_T": (B, S)}
    inputs = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    inputs["W"] *= 1.5 * S**-0.5
    inputs["H_0"].tanh_()
    return inputs


def both_passes(kernel: Kernel, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return everything that the two passes give; what eager does is done on the CPU."""
    device = DEVICE if isinstance(kernel, PersistentKernel) else "cpu"
    x = {name: tensor.to(device, dtype, copy=True) for name, tensor in inputs.items()}
    gates, C, H = kernel.forward(x["a"], x["W"], x["H_0"], x["C_0"])
    results = {"gates": gates.clone(), "C": C, "H": H}
    da, dH_0, dC_0 = kernel.backward(x["dH"], x["dC_T"], gates, C, x["C_0"], x["W"])
    return {name: part.cpu() for name, part in {**results, "da": da, "dH_0": dH_0, "dC_0": dC_0}.items()}


def assert_agrees(actual: dict[str, Tensor], exact: dict[str, Tensor], precision: str) -> None:
    """Compare with float64: float32 to 1e-5 of the largest value; bfloat16 to eight roundings, and in direction."""
    for name, value in exact.items():
        difference = actual[name].double() - value
        if precision == "float32":
            assert float(difference.abs().max()) < 1e-5 * float(value.abs().max()), name
        else:
            assert float(difference.norm()) < 8 * ROUNDING[precision] * float(value.norm()), name
            assert functional.cosine_similarity(actual[name].double().flatten(), value.flatten(), dim=0) > 0.999, name


# Blocks of units and of rows that do not come out even; weights kept and not; chunks read ahead or not; one unit, row and step.
CUTS = [
    ("float32", (4, 3, 20), {"units": 32, "together": True}),
    ("bfloat16", (4, 3, 20), {"units": 32, "together": True}),
    ("float32", (1, 1, 1), {"together": True}),
    ("float32", (2, 17, 37), {}),
    ("bfloat16", (2, 17, 20), {"kept": False}),
    ("float32", (2, 3, 40), {"warps": 1, "ahead": 1}),
    ("bfloat16", (2, 18, 15), {"rows": 32, "warps": 1, "ahead": 9, "together": False}),
    ("float32", (2, 17, 21), {"kept": False}),
    ("float32", (3, 37, 18), {"turns": 2}),
    ("bfloat16", (2, 35, 5), {"turns": 4, "kept": False, "together": True}),
]


@with_triton
@pytest.mark.parametrize(("precision", "size", "requested"), CUTS, ids=str)
def test_equals_eager(
    loaded: dict[str, PersistentKernel], precision: str, size: tuple[int, int, int], requested: dict[str, Any], cut: Cut
) -> None:
    """Both passes agree with eager in float64, however they are cut up and whatever the sizes."""
    cut(**requested)
    inputs = problem(*size)

    actual = both_passes(loaded[precision], inputs)

    assert_agrees(actual, both_passes(EagerKernel(), inputs, torch.float64), precision)


@with_triton
@pytest.mark.parametrize("size", [(3, 5, 23), (2, 1, 50)], ids=str)
def test_equals_eager_as_it_cuts_itself(kernel: PersistentKernel, size: tuple[int, int, int]) -> None:
    """The same holds for the tiles that are chosen for this machine."""
    inputs = problem(*size)

    assert_agrees(both_passes(kernel, inputs), both_passes(EagerKernel(), inputs, torch.float64), precision_of(kernel))


@with_triton
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [True, False])
def test_rows_and_bias(strict: PersistentKernel, rows: bool, bias: bool, cut: Cut) -> None:
    """A table's rows in place of a tensor, and a bias or none, give what eager makes of them, in the memory that is given."""
    cut()
    T, B, S, V = 3, 5, 19, 7
    x = problem(T, B, S)
    table, b = torch.randn(V, 4 * S), torch.randn(4 * S) if bias else None
    ids = torch.randint(V, (T, B))
    expected = EagerKernel().forward(Rows(ids, table) if rows else x["a"].clone(), x["W"], x["H_0"], x["C_0"], bias=b)

    gates = torch.full((T, B, 4 * S), torch.nan) if rows else x["a"]
    into = Activations(*(part.to(DEVICE) for part in (gates, torch.full((T, B, S), torch.nan), torch.full((T, B, S), torch.nan))))
    given = Rows(ids.to(DEVICE), table.to(DEVICE)) if rows else into.gates
    W, H_0, C_0 = (x[name].to(DEVICE) for name in ("W", "H_0", "C_0"))
    actual = strict.forward(given, W, H_0, C_0, bias=None if b is None else b.to(DEVICE), into=into)

    assert actual is into
    for name, one, other in zip(Activations._fields, actual, expected, strict=True):
        assert torch.allclose(one.cpu(), other, rtol=0, atol=3e-6), name


@with_triton
def test_writes_only_where_it_may(strict: PersistentKernel, cut: Cut) -> None:
    """What lies around the results in memory, and everything that is only read, comes out as it went in."""
    cut(rows=32, units=32)
    T, B, S = 2, 3, 21
    x = {name: tensor.to(DEVICE) for name, tensor in problem(T, B, S).items()}
    copies = {name: tensor.clone() for name, tensor in x.items()}
    buffers = [torch.full((T + 2, B, width), 7.0, device=DEVICE) for width in (4 * S, S, S)]
    into = Activations(*(buffer[1:-1] for buffer in buffers))
    into.gates.copy_(x["a"])

    strict.forward(into.gates, x["W"], x["H_0"], x["C_0"], into=into)
    strict.backward(x["dH"], x["dC_T"], into.gates, into.C, x["C_0"], x["W"])

    assert all(bool((buffer[[0, -1]] == 7).all()) for buffer in buffers)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in x.items())


@with_triton
def test_nan_is_not_hidden(kernel: PersistentKernel, cut: Cut) -> None:
    """A NaN in one pre-activation reaches H of its row and of no other, so that divergence is seen."""
    cut()
    x = {name: tensor.to(DEVICE) for name, tensor in problem(3, 4, 21).items()}
    x["a"][1, 2, 5] = float("nan")

    _, _, H = kernel.forward(x["a"], x["W"], x["H_0"], x["C_0"])

    assert H[1, 2].isnan().sum() == 1
    assert H[2, 2].isnan().all()
    assert not H[:, [0, 1, 3]].isnan().any()


@with_triton
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy says so, in the interpreter
def test_saturates(strict: PersistentKernel) -> None:
    """Huge and infinite pre-activations give gates of 0 and 1, and -1 and 1."""
    inf = float("inf")
    a = torch.tensor([-inf, inf, -1e4, 1e4, 300.0]).repeat(4).view(1, 1, -1)
    zeros = torch.zeros(1, 5, device=DEVICE)

    gates, _, _ = strict.forward(a.to(DEVICE, copy=True), torch.zeros(5, 20, device=DEVICE), zeros, zeros)

    assert torch.allclose(gates.cpu()[..., :15], a[..., :15].sigmoid(), rtol=0, atol=2e-38)
    assert torch.equal(gates.cpu()[..., 15:], a[..., 15:].tanh())


@with_triton
def test_one_piece_equals_two(strict: PersistentKernel, cut: Cut) -> None:
    """Five steps in one call and in two calls that pass the state on have the same bits, forward and backward."""
    cut(units=32, together=True)
    inputs = problem(5, 3, 20)
    whole = both_passes(strict, inputs)
    x = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}

    first, C_1, H_1 = strict.forward(x["a"][:2], x["W"], x["H_0"], x["C_0"])
    second, C_2, H_2 = strict.forward(x["a"][2:], x["W"], H_1[-1], C_1[-1])
    gates = torch.cat([first, second]).cpu()
    _, dH, dC = strict.backward(x["dH"][2:], x["dC_T"], second, C_2, C_1[-1], x["W"])
    _, dH_0, dC_0 = strict.backward(torch.stack([x["dH"][0], x["dH"][1] + dH]), dC, first, C_1, x["C_0"], x["W"])

    parts = {"gates": gates, "C": torch.cat([C_1, C_2]), "H": torch.cat([H_1, H_2]), "da": torch.cat([first, second])}
    for name, joined in {**parts, "dH_0": dH_0, "dC_0": dC_0}.items():
        assert torch.equal(joined.cpu(), whole[name]), name


@with_triton
def test_one_step_waits_for_nobody(strict: PersistentKernel, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of one step, as a sampler takes it, needs no counters and no cooperative launch; of two steps it needs both."""
    cut(together=True)
    inputs = problem(1, 17, 37)
    kernel, launches = strict._steps.forward, []  # type: Any, list[bool]

    class Noted:
        def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
            def launch(*given: Any, **options: Any) -> None:
                assert options["OTHERS"] == options["launch_cooperative_grid"]
                launches.append(options["OTHERS"])
                if not options["OTHERS"]:
                    kernel[grid](*given, **options)

            return launch

    counted: list[int] = []

    def counters(count: int, device: torch.device) -> Tensor:
        counted.append(count)
        return torch.zeros(count, dtype=torch.int32, device=device)

    monkeypatch.setattr(strict, "_counters", counters)
    monkeypatch.setattr(strict._steps, "forward", Noted())
    device = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    a, W, H_0, C_0 = (device[name] for name in ("a", "W", "H_0", "C_0"))

    found = strict.forward(a.clone(), W, H_0, C_0)

    exact = EagerKernel().forward(*(inputs[name].double() for name in ("a", "W", "H_0", "C_0")))
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one.cpu().double(), other, rtol=0, atol=3e-6)
    assert (launches, counted) == ([False], [])
    strict.forward(a.repeat(2, 1, 1), W, H_0, C_0)
    assert (launches, counted) == ([False, True], [2])


@with_triton
def test_refuses_other_memory(strict: PersistentKernel) -> None:
    """Tensors that the device code would misread are refused before it runs."""
    x = {name: tensor.to(DEVICE) for name, tensor in problem(2, 3, 5).items()}

    with pytest.raises(ValueError, match=r"W: expected contiguous \(5, 20\) of float32, found \(20, 5\)"):
        strict.forward(x["a"], x["W"].t(), x["H_0"], x["C_0"])
    with pytest.raises(ValueError, match="C_0: expected contiguous"):
        strict.forward(x["a"], x["W"], x["H_0"], x["C_0"].double())
    into = Activations(x["a"].clone(), x["dH"].clone(), x["dH"].clone())
    with pytest.raises(ValueError, match="expected the memory of a"):
        strict.forward(x["a"], x["W"], x["H_0"], x["C_0"], into=into)


@with_triton
def test_product(kernel: PersistentKernel) -> None:
    """Products are those of the rounded factors, turned or not, in new memory, over what is there, or added to it."""
    A, B = torch.randn(5, 9).to(DEVICE), torch.randn(3, 9).to(DEVICE).t()
    expected = A.to(kernel._factors).double() @ B.to(kernel._factors).double()

    plain = kernel.product(A, B)
    out = torch.full_like(plain, torch.nan)

    assert plain.dtype == torch.float32
    assert torch.allclose(plain.double(), expected, rtol=0, atol=1e-5)
    assert kernel.product(A, B, out) is out
    assert torch.equal(out, plain)
    assert torch.allclose(kernel.product(A, B, out, add=True), 2 * plain)


@with_triton
@pytest.mark.parametrize("add", [True, False])
def test_product_on_a_device(kernel: PersistentKernel, add: bool) -> None:
    """On CUDA, as far as shapes and types show without one, the product of rounded factors is float32 and stays where it is."""
    with FakeTensorMode():
        A, B, out = torch.empty(9, 5, device="cuda").t(), torch.empty(9, 3, device="cuda"), torch.empty(5, 3, device="cuda")

        assert kernel.product(A, B, out, add=add) is out
        new = kernel.product(A, B)
        assert (new.dtype, new.device.type, new.shape) == (torch.float32, "cuda", (5, 3))


@with_triton
def test_strict_is_float32(loaded: dict[str, PersistentKernel]) -> None:
    """The strict twin computes in float32, and a float32 kernel is its own; auto is bfloat16."""
    assert loaded["bfloat16"].strict is loaded["float32"].strict is loaded["float32"]
    assert loaded["float32"].name.startswith("triton float32")
    assert loaded["bfloat16"].name.startswith("triton bfloat16")
    assert persistent.PRODUCTS["auto"] == torch.bfloat16


def prepared(model: CharLM, kernel: Kernel, dtype: torch.dtype, device: str) -> CharLM:
    """Return a copy of a model with another kernel, each parameter with a gradient of zero."""
    other = CharLM(model.config, 11, kernel).to(device, dtype)
    other.load_state_dict(model.state_dict())
    for p in other.parameters():
        p.grad = torch.zeros_like(p)
    return other


@with_triton
@pytest.mark.parametrize("options", [{}, {"bias": False, "layer_norm": False, "residual": False}], ids=["all", "few"])
def test_a_whole_step_equals_eager(kernel: PersistentKernel, options: dict[str, Any]) -> None:
    """The loss of a window and the gradient of every parameter are those of the eager kernel, to the rounding of the products."""
    model = small_model(hidden=20, **options)
    slow, fast = prepared(model, EagerKernel(), torch.float64, "cpu"), prepared(model, kernel, torch.float32, DEVICE)
    ids = torch.randint(11, (6, 3))
    empty = {m: tuple(LSTMState(*(part.clone() for part in layer)) for layer in m.initial_state(3)) for m in (slow, fast)}

    expected, last = Backprop(slow, 3, 5)(ids[:-1], ids[1:], empty[slow], 0.5)
    found, after = Backprop(fast, 3, 5)(ids[:-1].to(DEVICE), ids[1:].to(DEVICE), empty[fast], 0.5)

    within, cosine = {"float32": (1e-5, 1 - 1e-9), "bfloat16": (3e-2, 0.999)}[precision_of(kernel)]
    assert float(found) == pytest.approx(float(expected), rel=within)
    for (name, p), q in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert functional.cosine_similarity(p.grad.flatten(), q.grad.double().cpu().flatten(), dim=0) > cosine, name
    for one, other in zip(last, after, strict=True):
        assert torch.allclose(one.hidden, other.hidden.double().cpu(), atol=within)


@with_triton
@pytest.mark.skipif(CUDA, reason="on a CUDA device the grid itself is tested")
@pytest.mark.parametrize("name", one_program.CASES)
def test_programs_wait_for_each_other(name: str, tmp_path: Path) -> None:
    """Programs that run at the same time, each in a process, give eager's results: nobody reads before it is written.

    Those of some rows of a recurrence wait for each other and for no others.
    """
    case = one_program.CASES[name]
    width, height, count = case.grid
    inputs = [problem(case.T, case.B, one_program.S, seed=r) for r in range(count)]
    memory = one_program.shared(tmp_path, case)
    for r, one in enumerate(inputs):
        for part, tensor in one.items():
            memory["gates" if part == "a" else part].view(count, *tensor.shape)[r].copy_(tensor)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    command = [sys.executable, "-W", "ignore", "-m", one_program.__name__, str(tmp_path), name]
    subprocess.run(command, env=environment, check=True, timeout=120)

    for r, one in enumerate(inputs):
        exact = _but(both_passes(EagerKernel(), one, torch.float64))
        found = {part: memory["gates" if part == "da" else part].view(count, *value.shape)[r] for part, value in exact.items()}
        assert_agrees(found, exact, "float32")
    assert memory["forward_counters"].tolist() == [width * case.T] * height * count
    assert memory["backward_counters"].tolist() == [width * (case.T + 1)] * height * count


def _but(exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the gates: da is in their memory."""
    return {name: value for name, value in exact.items() if name != "gates"}


@with_triton
@with_cuda
def test_many_programs_equal_one(kernel: PersistentKernel, cut: Cut) -> None:
    """On the device, a grid that waits, a launch for each step, and a single program agree; 200 launches have the same bits."""
    inputs = problem(20, 40, 30)
    cut(units=32, turns=3, together=True)
    alone = both_passes(kernel, inputs)
    cut(together=False)
    apart = both_passes(kernel, inputs)
    cut(together=True)
    first = both_passes(kernel, inputs)

    for name, value in alone.items():
        assert_agrees({name: apart[name]}, {name: value.double()}, precision_of(kernel))
        assert_agrees({name: first[name]}, {name: value.double()}, precision_of(kernel))
    for _ in range(200):
        again = both_passes(kernel, inputs)
        assert all(torch.equal(value, again[name]) for name, value in first.items())


@with_triton
def test_compiles_for_an_h200(compiled: Callable[[str], list[dict[str, Any]]]) -> None:
    """The compiler takes the launches, the weights fit on the chip, nothing is spilled, and the barrier is between programs."""
    for found in compiled("compile_persistent"):
        ptx, half = found.pop("ptx"), found["case"] != "strict"
        assert found["shared"] <= H200.memory, found
        assert 1 < found["grid"][0] * found["grid"][1] <= H200.programs, found
        assert found["cooperative"], found
        assert all(word in ptx for word in ("ld.global.gpu.acquire", "global.gpu.release")), found
        assert found["kept"] == half
        assert ("mma.sync" in ptx) == half, found
        assert found["stack"] == 0 or not half, found


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("chip", [H200, Chip(108, 166_912), Chip(20, 101_376), Chip(1, 1 << 17), Chip(0, 232_448)])
def test_tiles_cover_and_fit(chip: Chip, size: int) -> None:
    """Whatever the sizes, for one recurrence and several: all is covered, what is kept has room, what waits runs together."""
    for B in (1, 3, 16, 17, 64, 100, 256, 4096):
        for S in (1, 7, 16, 37, 128, 512, 640, 1000, 1024, 4096):
            for K in (S, 4 * S):
                assert tiles(B, S, K, size, chip) == tiles(B, S, K, size, chip, 1)
                for count in (1, 2, 3, 24):
                    cut = tiles(B, S, K, size, chip, count)
                    assert K <= cut.depth * cut.warps * cut.chunks < K + cut.depth * cut.warps
                    across, along = cut.grid(B, S)
                    assert (across * along * count <= chip.programs) == cut.together
                    assert across * cut.units >= S
                    assert along * cut.turns * cut.rows >= B
                    weights = 4 * S // K * cut.units * cut.depth * cut.warps * cut.chunks
                    left = cut.rows * cut.depth * cut.warps * (cut.ahead + 1)
                    assert not cut.kept or size * (weights + left) <= chip.memory
                    assert 0 <= cut.ahead < cut.chunks


@pytest.mark.parametrize(
    ("B", "S", "count"),
    [(64, 512, 1), (256, 512, 1), (64, 1024, 1), (256, 1024, 1), (64, 512, 2), (64, 512, 3), (256, 512, 8), (64, 1024, 2)],
)
def test_usual_networks_stay_on_an_h200(B: int, S: int, count: int) -> None:
    """Networks of 512 and 1,024 units run in one launch a pass, their weights on chip; so do layers of theirs, side by side."""
    for K in (S, 4 * S):
        cut = tiles(B, S, K, 2, H200, count)

        assert cut.together
        assert cut.kept


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot run it says so in a line: no device, no such products, a device too old, no Triton."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    persistent.load.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="there is no CUDA device"):
        persistent.load()
    with pytest.raises(Unavailable, match="it has no float8 products"):
        persistent.load("float8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(Unavailable, match="older than bfloat16"):
        persistent.load()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "lstmlm.kernels.persistent_steps", None)
    monkeypatch.delattr(kernels, "persistent_steps", raising=False)
    with pytest.raises(Unavailable, match=r"lstmlm\[gpu\]"):
        persistent.load()


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there is an H200."""

    class Properties:
        multi_processor_count, shared_memory_per_block, shared_memory_per_block_optin = 132, 49_152, 232_448

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    persistent.load.cache_clear()


@with_triton
@pytest.mark.parametrize(
    ("outcomes", "programs"), [([1e-7], 132), ([OSError("too many blocks\nin launch"), 1e-7], 0), ([0.5, 1e-7], 0)], ids=str
)
def test_waits_only_where_that_works(
    outcomes: list[Any], programs: int, loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that refuses the grid that waits, or gets it wrong, is given a launch for each step."""
    pretend(monkeypatch)
    monkeypatch.setattr(persistent, "disagreement", fates(outcomes))

    assert persistent.load("float32")._chip == Chip(programs, 232_448)
    persistent.load.cache_clear()


@with_triton
@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([0.5, 0.25], "disagrees with eager by 2.5e-01"),
        ([float("nan")] * 2, "by nan"),
        ([RuntimeError("sick\nlong")] * 2, "^sick$"),
    ],
    ids=["wrong", "nan", "sick"],
)
def test_wrong_results_are_not_used(
    outcomes: list[Any], reason: str, loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device on which both ways fail has no such kernel, and the reason is one line."""
    pretend(monkeypatch)
    monkeypatch.setattr(persistent, "disagreement", fates(outcomes))

    with pytest.raises(Unavailable, match=reason):
        persistent.load("float32")


def fates(outcomes: list[Any]) -> Callable[..., float]:
    """Return a function that gives or raises one after another."""
    rest = iter(outcomes)

    def next_one(*ignored: Any) -> float:
        outcome = next(rest)
        if isinstance(outcome, Exception):
            raise outcome
        return float(outcome)

    return next_one


@with_triton
def test_scores_are_checked_too(loaded: dict[str, PersistentKernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of rounded factors is there only where the strict one has been found right, and that one is its strict twin."""
    pretend(monkeypatch)
    monkeypatch.setattr(persistent, "disagreement", lambda kernel, device: 1e-3 if kernel._factors == torch.bfloat16 else 1e-7)
    assert persistent.load().strict is persistent.load("float32")

    persistent.load.cache_clear()
    monkeypatch.setattr(persistent, "disagreement", lambda kernel, device: 1e-3)
    with pytest.raises(Unavailable, match=r"by 1\.0e-03"):
        persistent.load()


@with_triton
def test_the_self_check_sees_what_is_wrong(strict: PersistentKernel, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the kernel, and sees a wrong number or a NaN wherever they are, in one recurrence or in one of several."""
    cut(units=64, turns=2, warps=4, together=True)
    assert persistent.disagreement(strict, DEVICE) < persistent.WITHIN[torch.float32]

    right = strict.backward
    for wrong, dims in ((1.0, 2), (float("nan"), 4)):

        def spoiled(*given: Any, wrong: float = wrong, dims: int = dims) -> tuple[Tensor, Tensor, Tensor]:
            da, dH_0, dC_0 = right(*given)
            if dC_0.dim() == dims:
                dC_0.view(-1, *dC_0.shape[-2:])[-1, 3, 4] += wrong
            return da, dH_0, dC_0

        with monkeypatch.context() as patch:
            patch.setattr(strict, "backward", spoiled)
            assert not persistent.disagreement(strict, DEVICE) < 0.1
