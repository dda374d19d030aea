import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lstmlm.kernels import Activations, Kernel, arguments, build, native
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model.lstm import multiplying

# T, B, S: tails of every vector width, tiles of every height, a batch of one, one step, more units than a panel's chunk
SIZES = [(1, 1, 1), (7, 1, 37), (3, 2, 16), (4, 3, 33), (1, 5, 19), (3, 29, 47), (2, 97, 15), (3, 13, 80), (2, 6, 300)]

ROUNDING = {native.FLOAT16: 2.0**-11, native.INTS: 2.0**-12}  # bfloat16's is 2^-8


@pytest.fixture(name="kernel", scope="module")
def _kernel() -> native.NativeKernel:
    """Return the strict kernel; a machine without a compiler has nothing to test here."""
    try:
        return native.load("float32")
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(
    name="rough",
    scope="module",
    params=[native.FLOAT16, native.TILES, native.PAIRS, native.INTS],
    ids=["float16", "AMX", "pairs", "int16"],
)
def _rough(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> native.NativeKernel:
    """Return a kernel of reduced precision, with the AMX instructions replaced by functions, so that they run anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSTMLM_CACHE", str(tmp_path_factory.getbasetemp() / "emulated"))
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-DLSTMLM_EMULATE"))
        try:
            library = build.library()
        except Unavailable as reason:
            pytest.skip(str(reason))
    kernel = native.NativeKernel(library, request.param)
    if not library.lstmlm_has(request.param):
        pytest.skip(f"this machine cannot run {kernel.name}")
    return kernel


def problem(T: int, B: int, S: int, *, multiplicative: bool = False) -> dict[str, Tensor]:
    """Return random inputs of both passes, with weights as large as those of a trained model."""
    generator = torch.Generator().manual_seed(T * 10_000 + B * 100 + S)
    shapes = {"a": (T, B, 4 * S), "W": (S, 4 * S), "H_0": (B, S), "C_0": (B, S), "dH": (T, B, S), "dC_T": (B, S)}
    inputs = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    inputs["W"] *= 1.5 * S**-0.5
    if multiplicative:
        inputs["scale"] = 1 + 0.3 * torch.randn(T, B, S, generator=generator)
    return inputs


def both_passes(kernel: Kernel, inputs: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return everything that the two passes give, in the order in which it comes about."""
    x = {name: tensor.to(dtype, copy=True) for name, tensor in inputs.items()}
    by = multiplying(x.get("scale"))
    gates, C, H = kernel.forward(x["a"], x["W"], x["H_0"], x["C_0"], multiplied=by)
    results = {"gates": gates.clone(), "C": C, "H": H}
    da, dH_0, dC_0 = kernel.backward(x["dH"], x["dC_T"], gates, C, x["C_0"], x["W"], multiplied=by)
    own = {} if by is None else {"dm": by.scale, "m": by.m}
    return {**results, "da": da, "dH_0": dH_0, "dC_0": dC_0, **own}


def largest_relative(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_eager(kernel: native.NativeKernel, size: tuple[int, int, int], multiplicative: bool) -> None:
    """Both passes agree with eager in float32 and in float64 to 1e-5 relative, whatever the sizes and the kind of layer."""
    inputs = problem(*size, multiplicative=multiplicative)
    exact = both_passes(EagerKernel(), inputs, torch.float64)
    eager = both_passes(EagerKernel(), inputs, torch.float32)

    actual = both_passes(kernel, inputs, torch.float32)

    for name in exact:
        assert largest_relative(actual[name], exact[name]) < 1e-5, name
        assert largest_relative(actual[name], eager[name]) < 1e-5, name


def test_is_as_exact_as_float32(kernel: native.NativeKernel) -> None:
    """The error against float64 stays within twice that of eager in float32: no reduced precision is hidden inside."""
    inputs = problem(20, 24, 96)
    exact = both_passes(EagerKernel(), inputs, torch.float64)
    eager = both_passes(EagerKernel(), inputs, torch.float32)

    actual = both_passes(kernel, inputs, torch.float32)

    for name, value in exact.items():
        own, others = ((x[name].double() - value).norm() / value.norm() for x in (actual, eager))
        assert own < 2 * others, name


def test_activations_are_accurate_everywhere(kernel: native.NativeKernel) -> None:
    """Sigmoid and tanh are within 4 units in the last place of float64, tiny and huge arguments among them."""
    magnitudes = torch.logspace(-30, 1.93, 4000)  # up to 85: beyond, sigmoid leaves the normal numbers
    x = torch.cat([-magnitudes, magnitudes, torch.zeros(1)])
    zeros = torch.zeros(len(x), 1)

    gates, _, _ = kernel.forward(x.view(1, -1, 1).repeat(1, 1, 4), torch.zeros(1, 4), zeros, zeros)
    f, _, _, N = gates.double().view(-1, 4).unbind(1)

    assert float(((f - x.double().sigmoid()) / x.double().sigmoid()).abs().max()) < 4 * 2**-23
    expected = x.double().tanh()
    assert float(((N - expected).abs() / expected.abs().clamp_min(1e-37)).max()) < 4 * 2**-23


def test_saturates_as_eager_does(kernel: native.NativeKernel) -> None:
    """Infinite pre-activations give gates of exactly 0 and 1, and -1 and 1, to float32's smallest normal number."""
    inf = float("inf")
    a = torch.tensor([-inf, inf, -1e4, 1e4, 300.0]).repeat(4).view(1, 1, -1)
    zeros = torch.zeros(1, 5)

    gates, _, _ = kernel.forward(a.clone(), torch.zeros(5, 20), zeros, zeros)

    assert torch.allclose(gates[..., :15], a[..., :15].sigmoid(), rtol=0, atol=2e-38)
    assert torch.equal(gates[..., 15:], a[..., 15:].tanh())


def test_nan_is_not_hidden(kernel: native.NativeKernel) -> None:
    """A NaN in one pre-activation reaches H of its row and of no other, so that divergence is seen."""
    inputs = problem(3, 4, 21)
    inputs["a"][1, 2, 5] = float("nan")

    _, _, H = kernel.forward(inputs["a"], inputs["W"], inputs["H_0"], inputs["C_0"])

    assert H[1, 2].isnan().sum() == 1
    assert H[2, 2].isnan().all()
    assert not H[:, [0, 1, 3]].isnan().any()


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("B", [1, 2, 3, 11])
def test_one_piece_equals_three(kernel: native.NativeKernel, B: int, multiplicative: bool) -> None:
    """Nine steps in one call and in three calls that pass the state on have the same bits, forward and backward."""
    x = problem(9, B, 35, multiplicative=multiplicative)
    whole = both_passes(kernel, x)

    scales = torch.split(x["scale"].clone(), [2, 4, 3]) if multiplicative else [None] * 3
    factors = [multiplying(scale) for scale in scales]
    pieces, state = [], (x["H_0"], x["C_0"])
    for part, by in zip(torch.split(x["a"].clone(), [2, 4, 3]), factors, strict=True):
        gates, C, H = kernel.forward(part, x["W"], *state, multiplied=by)
        pieces.append((gates, C, H, state[1]))
        state = H[-1], C[-1]
    forward = [torch.cat(parts) for parts in list(zip(*pieces, strict=True))[:3]]
    for name, joined in zip(("gates", "C", "H"), forward, strict=True):
        assert torch.equal(joined, whole[name]), name

    dH_last, dC = torch.zeros(B, 35), x["dC_T"]
    gradients = torch.split(x["dH"], [2, 4, 3])
    for (gates, C, _, C_start), dH, by in zip(reversed(pieces), reversed(gradients), reversed(factors), strict=True):
        dH = torch.cat([dH[:-1], dH[-1:] + dH_last])
        _, dH_last, dC = kernel.backward(dH, dC, gates, C, C_start, x["W"], multiplied=by)
    assert torch.equal(torch.cat([piece[0] for piece in pieces]), whole["da"])
    assert torch.equal(dH_last, whole["dH_0"])
    assert torch.equal(dC, whole["dC_0"])
    for name, joined in zip(
        ("dm", "m"), map(torch.cat, zip(*(by for by in factors if by is not None), strict=True)), strict=False
    ):
        assert torch.equal(joined, whole[name]), name


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("B", [1, 3, 7, 40])
def test_threads_do_not_change_bits(
    kernel: native.NativeKernel, B: int, multiplicative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of threads, even more than processors, gives the same bits."""
    inputs = problem(6, B, 70, multiplicative=multiplicative)
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(arguments, "threads", lambda n=threads: n)
        results.append(both_passes(kernel, inputs, torch.float32))

    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_threads_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The team is as large as torch's, unless that is more than the processors there are."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert arguments.threads() == 1

    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert arguments.threads() < 10_000


def test_changed_weights_are_seen(kernel: native.NativeKernel) -> None:
    """Weights changed in place between two calls count in the second, however they were changed."""
    x = problem(2, 5, 20)
    before = kernel.forward(x["a"].clone(), x["W"], x["H_0"], x["C_0"])
    x["W"].data.mul_(0.5)

    after = kernel.forward(x["a"].clone(), x["W"], x["H_0"], x["C_0"])
    expected = EagerKernel().forward(x["a"].clone(), x["W"], x["H_0"], x["C_0"])

    assert not torch.equal(before.H, after.H)
    assert largest_relative(after.H, expected.H) < 1e-5


def test_states_may_be_views(kernel: native.NativeKernel) -> None:
    """Start states that are slices or broadcasts of other tensors are read as what they show."""
    x = problem(3, 5, 18)
    wide = torch.randn(5, 40)
    H_0, C_0 = wide[:, 3:21], torch.zeros(1, 18).expand(5, 18)

    actual = kernel.forward(x["a"].clone(), x["W"], H_0, C_0)
    expected = kernel.forward(x["a"].clone(), x["W"], H_0.contiguous(), C_0.contiguous())

    assert torch.equal(actual.H, expected.H)


def test_refuses_what_it_cannot_read(kernel: native.NativeKernel) -> None:
    """Another type, shape or layout is refused before any memory is touched."""
    x = problem(3, 5, 18)

    with pytest.raises(TypeError, match="a: expected float32"):
        kernel.forward(x["a"].double(), x["W"], x["H_0"], x["C_0"])
    with pytest.raises(ValueError, match="W: expected contiguous"):
        kernel.forward(x["a"], x["W"][:-1], x["H_0"], x["C_0"])
    with pytest.raises(ValueError, match="a: expected contiguous"):
        kernel.forward(x["a"].transpose(0, 1), x["W"], x["H_0"], x["C_0"])
    with pytest.raises(ValueError, match="not empty"):
        kernel.forward(x["a"][:0], x["W"], x["H_0"], x["C_0"])
    elsewhere = Activations(torch.empty(3, 5, 72), torch.empty(3, 5, 18), torch.empty(3, 5, 18))
    with pytest.raises(ValueError, match="the memory of a"):
        kernel.forward(x["a"], x["W"], x["H_0"], x["C_0"], into=elsewhere)


@pytest.mark.parametrize("multiplicative", [False, True])
def test_self_check_notices_wrong_results(
    kernel: native.NativeKernel, multiplicative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that computes something else is not used, be it for one kind of layer alone, and the reason says so."""
    right = native.NativeKernel.forward

    def wrong(self: native.NativeKernel, a: Tensor, W: Tensor, H_0: Tensor, C_0: Tensor, **given: Any) -> object:
        off = 1e-3 if (given["multiplied"] is not None) == multiplicative else 0.0
        return right(self, a + off, W, H_0, C_0, **given)

    monkeypatch.setattr(native.NativeKernel, "forward", wrong)
    monkeypatch.setattr(build, "passed", lambda *_, **__: False)

    with pytest.raises(Unavailable, match="disagrees with eager"):
        native.load.__wrapped__("float32")


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return the size of the difference as a fraction of the size of what is expected."""
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reduced_precision_is_within_its_rounding(
    rough: native.NativeKernel, size: tuple[int, int, int], multiplicative: bool
) -> None:
    """All results are within eight roundings of the factors' type (the factors, sums of 64) of float64, at all sizes."""
    rounding = ROUNDING.get(rough.kind, 2.0**-8)
    inputs = problem(*size, multiplicative=multiplicative)
    exact = both_passes(EagerKernel(), inputs, torch.float64)

    actual = both_passes(rough, inputs)

    for name, value in exact.items():
        assert relative(actual[name], value) < 8 * rounding, name


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1e6])
def test_gradients_of_every_size_survive(rough: native.NativeKernel, magnitude: float) -> None:
    """Gradients far outside float16's range, whole rows of them beside ordinary ones, keep their direction in every row."""
    inputs = problem(6, 9, 70)
    inputs["dH"][:, ::2] *= magnitude
    inputs["dC_T"][::2] *= magnitude
    exact = both_passes(EagerKernel(), inputs, torch.float64)

    actual = both_passes(rough, inputs)

    for row in range(9):
        cosine = torch.cosine_similarity(actual["da"][:, row].double().flatten(), exact["da"][:, row].flatten(), dim=0, eps=0)
        assert cosine > 0.9999
        assert relative(actual["dH_0"][row], exact["dH_0"][row]) < 0.02


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("B", [1, 3, 7, 40])
def test_reduced_precision_has_the_same_bits_for_any_threads(
    rough: native.NativeKernel, B: int, multiplicative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of threads gives the same bits here too."""
    inputs = problem(6, B, 150, multiplicative=multiplicative)
    results = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(arguments, "threads", lambda n=threads: n)
        results.append(both_passes(rough, inputs))

    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("multiplicative", [False, True])
@pytest.mark.parametrize("B", [1, 11])
def test_reduced_precision_in_three_pieces(rough: native.NativeKernel, B: int, multiplicative: bool) -> None:
    """Nine steps in one call and in three calls have the same bits here too."""
    x = problem(9, B, 35, multiplicative=multiplicative)
    whole = rough.forward(x["a"].clone(), x["W"], x["H_0"], x["C_0"], multiplied=multiplying(x.get("scale")))

    hidden, state = [], (x["H_0"], x["C_0"])
    scales = torch.split(x["scale"], [2, 4, 3]) if multiplicative else [None] * 3
    for part, scale in zip(torch.split(x["a"].clone(), [2, 4, 3]), scales, strict=True):
        _, C, H = rough.forward(part, x["W"], *state, multiplied=multiplying(scale))
        hidden.append(H)
        state = H[-1], C[-1]

    assert torch.equal(torch.cat(hidden), whole.H)


def test_reduced_precision_shows_nan(rough: native.NativeKernel) -> None:
    """A NaN is seen in its own row and in no other."""
    inputs = problem(3, 20, 21)
    inputs["a"][1, 2, 5] = float("nan")

    _, _, H = rough.forward(inputs["a"], inputs["W"], inputs["H_0"], inputs["C_0"])

    assert H[2, 2].isnan().all()
    assert int(H.isnan().any(2).any(0).sum()) == 1


# M, N, K: the last has more columns than scratch is kept for at a time
PRODUCTS = [(1, 1, 1), (3, 70, 1100), (97, 65, 64), (200, 130, 2085), (17, 5, 33), (2, 8300, 70)]


@pytest.mark.parametrize(("M", "N", "K"), PRODUCTS)
def test_product(rough: native.NativeKernel, M: int, N: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products agree with float64 within what roundings of sums of 64 add up to, turned or not, added or not, of tiny values
    too, with the same bits for any number of threads.
    """
    generator = torch.Generator().manual_seed(M + N + K)
    rounding = ROUNDING.get(rough.kind, 2.0**-8)
    A = torch.randn(M, K, generator=generator) * 1e-20 * 10 ** torch.rand(M, 1, generator=generator)
    B = torch.randn(K, N, generator=generator) * 1e15
    exact = A.double() @ B.double()
    allowed = 10 * rounding * (A.double().square() @ B.double().square()).sqrt().max()  # five deviations

    monkeypatch.setattr(arguments, "threads", lambda: 1)
    plain = rough.product(A, B)
    for turned_A in (A, A.t().contiguous().t()):
        for turned_B in (B, B.t().contiguous().t()):
            for threads in (1, 2, 5):
                monkeypatch.setattr(arguments, "threads", lambda n=threads: n)
                assert torch.equal(rough.product(turned_A, turned_B), plain)
    added = rough.product(A, B, plain.clone(), add=True)

    assert (plain - exact).abs().max() < allowed
    assert (added - 2 * exact).abs().max() < 2 * allowed


@pytest.fixture(name="int16", scope="module")
def _int16(tmp_path_factory: pytest.TempPathFactory) -> native.NativeKernel:
    """Return the kernel of int16 products, emulated where the machine has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSTMLM_CACHE", str(tmp_path_factory.getbasetemp() / "emulated"))
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-DLSTMLM_EMULATE"))
        try:
            return native.NativeKernel(build.library(), native.INTS)
        except Unavailable as reason:
            pytest.skip(str(reason))


def slow_int16_product(A: Tensor, B: Tensor) -> Tensor:
    """Compute A B as `ints.h` says, 64 of K at a time: rows of A and columns of B to integers, their exact product, its worth."""
    K = -(-A.shape[1] // 64) * 64
    A = torch.nn.functional.pad(A, (0, K - A.shape[1]))
    B = torch.nn.functional.pad(B, (0, 0, 0, K - B.shape[0]))
    total = torch.zeros(A.shape[0], B.shape[1], dtype=torch.float64)
    for a, b in zip(A.split(64, 1), B.split(64, 0), strict=True):
        magnitudes = sum(b.abs(), torch.zeros(B.shape[1]))  # in order, as the rounding of the sum is part of it
        column = torch.maximum(magnitudes / 131000, b.abs().amax(0) / 32767)
        row = a.abs().amax(1, keepdim=True) / 16383
        left, right = (
            (x.double() * torch.where(worth > 1.2e-38, 1 / worth, 0).double()).round() for x, worth in ((a, row), (b, column))
        )
        assert (left.abs() @ right.abs()).max() < 2**31
        total += left @ right * row.double() * column.double()
    return total


def _factors(case: str, M: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    """Return two matrices of a kind that is hard for integers of one scale."""
    generator = torch.Generator().manual_seed(K)
    A, B = torch.randn(M, K, generator=generator), torch.randn(K, N, generator=generator)
    if case == "outliers":
        A[:, ::50] *= 1e4
        B[::37, :] *= 1e4
    elif case == "wide":
        A *= 10 ** torch.empty(A.shape).uniform_(-12, 2, generator=generator)
        B *= 10 ** torch.empty(B.shape).uniform_(-12, 2, generator=generator)
    elif case == "equal":
        A, B = torch.full_like(A, 0.3), torch.full_like(B, -7.0)
    elif case == "sparse":
        A *= torch.rand(A.shape, generator=generator) < 0.02
        B *= torch.rand(B.shape, generator=generator) < 0.02
    elif case == "tiny":
        A[:, ::2] *= 1e-42  # less than any normal number
        B *= 1e-25
    return A, B


@pytest.mark.parametrize("case", ["normal", "outliers", "wide", "equal", "sparse", "tiny"])
def test_int16_products_are_more_exact_than_float16(int16: native.NativeKernel, case: str) -> None:
    """Whatever the factors hold, an error is below 2^-11 of the two norms, half of what float16 factors may be wrong by; and the
    product is the slow one to the rounding of float32 sums.
    """
    for M, N, K in PRODUCTS:
        A, B = _factors(case, M, N, K)
        norms = A.double().norm(dim=1)[:, None] * B.double().norm(dim=0)
        found = int16.product(A, B).double()

        assert ((found - A.double() @ B.double()).abs() <= 2.0**-11 * norms + 1e-37).all()
        assert ((found - slow_int16_product(A, B)).abs() <= 1e-6 * norms + 1e-37).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_int16_hides_no_nan(int16: native.NativeKernel, value: float) -> None:
    """What is no number in a row or a column leaves no number there, and nowhere else."""
    A, B = torch.randn(9, 100), torch.randn(100, 11)
    A[3, 70] = B[5, 4] = value

    finite = int16.product(A, B).isfinite()

    assert not finite[3].any()
    assert not finite[:, 4].any()
    assert finite.sum() == 8 * 10


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["-march=native", "-march=x86-64-v3", "-O1"])
def test_int16_has_the_same_bits_in_every_width(
    int16: native.NativeKernel, machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By whatever instructions and however wide, products of integers and the recurrence have the same bits, on CPUs with FMA."""
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path))
    flags = ("-mno-avx512vnni", "-mno-avxvnni") if machine == "-march=native" else ("-mfma",)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DLSTMLM_EMULATE"))
    monkeypatch.setattr(build, "FOR_THIS_CPU", ((machine, *flags),))
    if platform.machine() != "x86_64":
        pytest.skip("options of x86-64")
    try:
        other = native.NativeKernel(build.library(), native.INTS)
    except Unavailable as reason:
        pytest.skip(str(reason))

    for M, N, K in PRODUCTS:
        A, B = torch.randn(M, K), torch.randn(K, N)
        assert torch.equal(other.product(A, B), int16.product(A, B))
    for size in SIZES:
        found, expected = both_passes(other, problem(*size)), both_passes(int16, problem(*size))
        assert all(torch.equal(found[name], expected[name]) for name in expected), size


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["icelake-server", "alderlake"])
def test_vnni_instructions_are_used(machine: str, tmp_path: Path) -> None:
    """Compilers that know these CPUs use their instruction, and keep the sums of a tile in registers."""
    try:
        compiler = next(build.compilers())
    except Unavailable as reason:
        pytest.skip(str(reason))
    if subprocess.run([*compiler, f"-march={machine}", "-xc", "-E", "/dev/null"], capture_output=True).returncode:
        pytest.skip("the compiler does not know this CPU")
    flags = [*build.FLAGS, f"-march={machine}", "-S", "-o", str(tmp_path / "native.s")]
    subprocess.run([*compiler, *flags, str(build.SOURCES / "native.c")], check=True)

    tile = (tmp_path / "native.s").read_text().partition("\nints_6:")[2].partition("\n\tret")[0]
    assert "vpdpwssd" in tile
    assert not re.search(r"[yz]mm\d+, [-\w]*\(%[re][sb]p\)", tile)


@pytest.mark.parametrize(("M", "N", "K"), PRODUCTS)
def test_product_in_float32(kernel: native.NativeKernel, M: int, N: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict products are float64's to a few roundings, turned or not, added or not, with the same bits for any number of threads
    and for a row whatever rows are beside it.
    """
    generator = torch.Generator().manual_seed(M + N + K)
    A, B, before = (torch.randn(*shape, generator=generator) for shape in ((M, K), (K, N), (M, N)))
    exact = A.double() @ B.double()
    allowed = 4 * 2.0**-24 * (A.double().abs() @ B.double().abs()).max()

    monkeypatch.setattr(arguments, "threads", lambda: 1)
    plain = kernel.product(A, B)
    for turned_A in (A, A.t().contiguous().t()):
        for turned_B in (B, B.t().contiguous().t()):
            for threads in (1, 2, 5):
                monkeypatch.setattr(arguments, "threads", lambda n=threads: n)
                assert torch.equal(kernel.product(turned_A, turned_B), plain)
    added = kernel.product(A, B, before.clone(), add=True)

    assert (plain - exact).abs().max() < allowed
    assert (added - (before + exact)).abs().max() < 2 * allowed
    assert torch.equal(kernel.product(A[-1:], B), plain[-1:])
    assert torch.equal(kernel.product(A, B[:, -1:].contiguous()), plain[:, -1:])


def test_scratch_of_a_product_is_bounded(kernel: native.NativeKernel) -> None:
    """A readout of a million ids takes no more scratch than one of ten thousand, some 17 MB."""
    sizes = [kernel.library.lstmlm_multiply_size(1, N) for N in (100, 10_000, 1_000_000)]

    assert sizes[0] < 1_000_000 < sizes[1] == sizes[2] < 20_000_000


@pytest.mark.slow
def test_amx_instructions_compile(tmp_path: Path) -> None:
    """The instructions that the tests replace by functions are at least accepted by a compiler that knows them."""
    try:
        compiler = next(build.compilers())
    except Unavailable as reason:
        pytest.skip(str(reason))
    machine = ["-march=sapphirerapids"]
    known = subprocess.run([*compiler, *machine, "-xc", "-E", "/dev/null"], capture_output=True).returncode == 0
    if not known:
        pytest.skip("the compiler does not know AMX")
    source = str(build.SOURCES / "native.c")
    command = [*compiler, *build.FLAGS, "-O1", *machine, "-S", "-o", str(tmp_path / "native.s"), source]
    subprocess.run(command, check=True)

    assert "tdpbf16ps" in (tmp_path / "native.s").read_text()


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_lower_precision_falls_back_to_a_better_one(kernel: native.NativeKernel, precision: str) -> None:
    """Where there are neither bfloat16 nor float16 products, the one that runs is float32; its name says which it is."""
    chosen = native.load(precision)
    there = [kind for kind in range(len(native.NAMES)) if kernel.library.lstmlm_has(kind)]

    assert chosen.kind in there
    assert chosen.kind == native.TILES or native.TILES not in there
    assert native.NAMES[chosen.kind] in chosen.name


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({native.FLOAT32: 2.0, native.FLOAT16: 1.0, native.PAIRS: 4.0}, native.FLOAT16),  # Sapphire Rapids without AMX
        ({native.FLOAT32: 2.0, native.PAIRS: 4.0}, native.FLOAT32),  # Cooper Lake
        ({native.FLOAT32: 2.0, native.PAIRS: 1.0}, native.PAIRS),  # Zen 4
        ({native.FLOAT32: 1.05, native.PAIRS: 1.0}, native.FLOAT32),
        ({native.FLOAT32: 2.0, native.FLOAT16: 1.05, native.PAIRS: 1.0}, native.FLOAT16),
        ({native.FLOAT32: 2.0, native.INTS: 1.0}, native.INTS),  # Ice Lake, Alder Lake
        ({native.FLOAT32: 1.05, native.INTS: 1.0}, native.FLOAT32),
        ({native.FLOAT32: 2.0, native.PAIRS: 1.05, native.INTS: 1.0}, native.PAIRS),
        ({native.FLOAT32: 2.0, native.PAIRS: 4.0, native.INTS: 1.0}, native.INTS),
    ],
)
def test_the_fastest_kind_is_taken_and_kept(
    kernel: native.NativeKernel, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], expected: int
) -> None:
    """Kinds are timed once: the fastest, of those within a tenth the most exact, is taken, and again when times are others."""
    said: set[str] = set()

    def passed(_: object, name: str, *, now: bool = False) -> bool:
        said.update([name] if now else [])
        return name in said

    monkeypatch.setattr(build, "passed", passed)
    monkeypatch.setattr(native, "_seconds", lambda kernels: {kernel: seconds[kernel.kind] for kernel in kernels})
    kinds = [native.NativeKernel(kernel.library, kind, kernel) for kind in seconds]

    first = native._fastest(kernel.library, kinds)
    monkeypatch.setattr(native, "_seconds", lambda kernels: {kernel: 1 / seconds[kernel.kind] for kernel in kernels})
    again = native._fastest(kernel.library, kinds)

    assert (first.kind, again.kind) == (expected, expected)


@pytest.mark.parametrize(
    ("alone", "together", "expected"),
    [
        ((2.0, 1.0), (2.0, 1.0), True),  # no vectors
        ((1.05, 1.0), (2.0, 1.0), False),
        ((2.0, 1.0), (0.5, 1.0), False),  # threads help the one in C alone
        ((1.0, 2.0), (2.0, 1.0), False),
    ],
)
def test_eager_is_timed_once(
    kernel: native.NativeKernel,
    monkeypatch: pytest.MonkeyPatch,
    alone: tuple[float, float],
    together: tuple[float, float],
    expected: bool,
) -> None:
    """Eager is quicker where it clearly is on one thread and on all, and what was found is asked for, not found again."""
    said: set[str] = set()

    def passed(_: object, name: str, *, now: bool = False) -> bool:
        said.update([name] if now else [])
        return name in said

    monkeypatch.setattr(build, "passed", passed)
    monkeypatch.setattr(arguments, "threads", lambda: 2)
    monkeypatch.setattr(native, "_recurrence_seconds", lambda *_: alone if torch.get_num_threads() == 1 else together)
    torch.set_num_threads(2)

    first = native.is_slower(kernel, EagerKernel())
    monkeypatch.setattr(native, "_recurrence_seconds", None)

    assert first is expected
    assert native.is_slower(kernel, EagerKernel()) is expected


def test_the_seconds_of_a_recurrence(kernel: native.NativeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel and its rival are both timed, for a while at most where the rival is the quicker one."""
    monkeypatch.setattr(native, "SECONDS", 0.01)
    monkeypatch.setattr(native, "MARGIN", 0.0)
    assert all(0 < seconds < 5 for seconds in native._recurrence_seconds(kernel, EagerKernel()))


def test_amx_is_taken_untimed(kernel: native.NativeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is AMX nothing is timed, and nothing where AVX512-BF16 and VNNI are missing."""
    monkeypatch.setattr(native, "_seconds", None)
    for kinds in (
        (native.TILES, native.FLOAT16, native.PAIRS, native.FLOAT32),
        (native.FLOAT16, native.FLOAT32),
        (native.FLOAT32,),
    ):
        made = [native.NativeKernel(kernel.library, kind, kernel) for kind in kinds]
        assert native._fastest(kernel.library, made) is made[0]


def test_a_run_goes_on_with_its_kernel(kernel: native.NativeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that a run began with is taken again by its name, whatever is fastest now; one that is not here is not."""
    monkeypatch.setattr(native, "_fastest", lambda library, kernels: kernels[0])

    assert native.load("auto", kernel.name).name == kernel.name
    assert native.load("auto", "native bfloat16 (an abacus)").name == native.load("auto", "").name
    native.load.cache_clear()


def test_the_seconds_of_a_product(kernel: native.NativeKernel) -> None:
    """Every kind that is timed has a time of its own, and the number of threads is as it was."""
    torch.set_num_threads(2)
    twins = [kernel, native.NativeKernel(kernel.library)]
    found = native._seconds(twins, slices=3)

    assert torch.get_num_threads() == 2
    assert list(found) == twins
    assert all(0 < seconds < 5 for seconds in found.values())


@pytest.mark.slow
def test_bfloat16_without_the_instruction(rough: native.NativeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stands in for AVX512-BF16 on a machine that lacks it gives what the instruction gives, to the rounding of sums."""
    if rough.kind != native.PAIRS:
        pytest.skip("another kind")
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DLSTMLM_EMULATE"))
    monkeypatch.setattr(build, "FOR_THIS_CPU", (("-march=native", "-mno-avx512bf16"),))
    emulated = native.NativeKernel(build.library(), native.PAIRS)

    for size in SIZES:
        inputs = problem(*size)
        found, expected = both_passes(emulated, inputs), both_passes(rough, inputs)
        assert all(relative(found[name], expected[name].double()) < 1e-3 for name in expected), size


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "vectors"), [("-march=x86-64-v3", "AVX2"), ("-O1", "plain C")])
def test_every_vector_width(machine: str, vectors: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Older CPUs, and those of which nothing is known, get the same results from narrower vectors."""
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FOR_THIS_CPU", ((machine,),))
    try:
        kernel = native.NativeKernel(build.library())
    except Unavailable as reason:
        pytest.skip(str(reason))

    assert kernel.name == f"native float32 ({vectors})"
    for size in SIZES:
        inputs = problem(*size)
        exact = both_passes(EagerKernel(), inputs, torch.float64)
        actual = both_passes(kernel, inputs)
        assert all(largest_relative(actual[name], exact[name]) < 1e-5 for name in exact), size
    for M, N, K in PRODUCTS:
        A, B = torch.randn(M, K), torch.randn(K, N)
        products = [kernel.product(X, Y) for X in (A, A.t().contiguous().t()) for Y in (B, B.t().contiguous().t())]
        assert all(torch.equal(product, products[0]) for product in products)
        assert largest_relative(products[0], A.double() @ B.double()) < 1e-5


def test_unknown_precision_is_unavailable() -> None:
    """A precision that the machine has no products for is refused with a reason rather than replaced in silence."""
    with pytest.raises(Unavailable, match="no float8 products"):
        native.load("float8")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
def test_one_openmp_runtime(kernel: native.NativeKernel) -> None:
    """After a call on two threads the process holds one OpenMP runtime, torch's."""
    program = (
        "import re, torch; from lstmlm.kernels import arguments, native; arguments.threads = lambda: 2\n"
        "kernel = native.load(); native.disagreement(kernel); maps = open('/proc/self/maps').read()\n"
        "print(*sorted(set(re.findall(r'\\S*/lib\\w*omp\\w*[-.][^/\\s]*', maps))), sep='\\n')"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(native.__file__).parents[2])

    assert len(run.stdout.split()) == 1


def test_strict_is_float32(kernel: native.NativeKernel) -> None:
    """Whatever a kernel's precision, its strict twin computes in float32, and a float32 kernel is its own."""
    assert kernel.strict is kernel
    assert "float32" in native.load("auto").strict.name


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
@pytest.mark.parametrize("name", ["backward", "product"])
def test_the_self_check_sees_what_is_wrong(
    kernel: native.NativeKernel, monkeypatch: pytest.MonkeyPatch, name: str, wrong: float
) -> None:
    """One wrong number in the last of the results is a disagreement, and so is a NaN, though it is not larger than any number."""
    right = getattr(kernel, name)

    def spoiled(*given: Tensor, **more: Any) -> Any:
        found = right(*given, **more)
        (found[-1] if isinstance(found, tuple) else found)[3, 4] += wrong
        return found

    assert native.disagreement(kernel) < native.WITHIN[native.FLOAT32]
    monkeypatch.setattr(kernel, name, spoiled)
    assert not native.disagreement(kernel) < native.WITHIN[native.FLOAT32]


def test_no_kernel_without_its_strict_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 is found wrong there is no kernel of any precision: no run ends at its first validation for want of one."""
    monkeypatch.setattr(build, "passed", lambda *ignored, **also: False)
    monkeypatch.setattr(native, "disagreement", lambda kernel: float(kernel.kind == native.FLOAT32))

    native.load.cache_clear()
    for precision in ("auto", "float32"):
        with pytest.raises(Unavailable, match="disagrees with eager"):
            native.load(precision)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes(kernel: native.NativeKernel) -> None:
    """A process forked after its parent computed on two threads computes too, to the same bits, in torch and in C, there on two
    threads of its own.
    """
    program = (
        "import os, signal, torch; from lstmlm.kernels import arguments, native; torch.set_num_threads(2)\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        "kernel = native.load(); A = torch.randn(400, 400); expected = kernel.product(A, A); torch.mm(A, A)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(60); A @ A; arguments.threads = lambda: 2\n"
        "    one, other = kernel.product(A, A), native.NativeKernel(kernel.library).product(A, A)\n"
        "    os._exit(not torch.equal(one, expected) or not torch.equal(other, expected))\n"
        "print(os.waitpid(child, 0)[1], torch.get_num_threads())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(native.__file__).parents[2])

    assert run.stdout.split() == ["0", "2"]


def test_tiny_numbers_are_zero_within_a_call_alone(kernel: native.NativeKernel) -> None:
    """What is smaller than any normal number counts as zero in C, and the thread that called computes with it again after."""
    tiny = torch.full((1, 1), 1e-40)

    assert float(kernel.product(tiny, torch.ones(1, 1))) == 0.0
    assert float(tiny + tiny) > 1.9e-40


@pytest.mark.parametrize("threads", [1, 3])
def test_what_was_there_is_not_read(rough: native.NativeKernel, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has just run a wider network, whose values its memory still holds, gives the bits of one that has not."""
    monkeypatch.setattr(arguments, "threads", lambda: threads)
    wide = problem(2, 40, 100)
    both_passes(rough, {name: torch.full_like(tensor, 9.0) for name, tensor in wide.items()})
    x = problem(2, 40, 70)
    found, expected = both_passes(rough, x), both_passes(native.NativeKernel(rough.library, rough.kind), x)

    assert all(torch.equal(found[name], expected[name]) for name in expected)
