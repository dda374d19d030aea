"""The recurrence in Triton: on a CUDA device where there is one, else in Triton's interpreter at small sizes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lstmlm
from lstmlm.kernels import Activations, Multiplied, Rows, at_sizes, triton_kernel
from lstmlm.kernels.build import Unavailable
from lstmlm.kernels.eager import EagerKernel
from lstmlm.kernels.triton_kernel import WITHIN, TritonKernel
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM
from lstmlm.model.lstm import multiplying
from lstmlm.training.backprop import Backprop
from tests.helpers import normal, small_model

pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def kernel(request: pytest.FixtureRequest) -> Iterator[TritonKernel]:
    """Return the kernel in a precision."""
    triton_kernel.load.cache_clear()
    yield triton_kernel.load(request.param)
    triton_kernel.load.cache_clear()


@pytest.mark.parametrize("sizes", [(3, 5, 37, 11), (1, 1, 1, 2), (2, 3, 48, 5), (2, 1, 300, 3)], ids=str)
def test_equals_eager(kernel: TritonKernel, sizes: tuple[int, int, int, int]) -> None:
    """Activations, gradients and products of sizes that nothing divides, and of whole 16, are eager's to their rounding."""
    assert triton_kernel.disagreement(kernel, DEVICE, *sizes) < WITHIN[kernel._factors]


def test_rounded_weights_are_taken(kernel: TritonKernel) -> None:
    """Weights in the type of the factors give the bits of the weights themselves."""
    S = 21
    a, W, state = (normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((2, 3, 4 * S), (S, 4 * S), (3, S)))
    found = [kernel.forward(a.clone(), w, state, state) for w in (W, W.to(kernel.factors or torch.float32))]

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_pieces_are_the_whole(kernel: TritonKernel) -> None:
    """Step by step, a recurrence has the bits of all steps in one call; the interpreter rounds to bfloat16 in its own way."""
    T, B, S = 3, 2, 21
    a, W, H, C = (normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((T, B, 4 * S), (S, 4 * S), (B, S), (B, S)))
    scale = normal(T, B, S, dtype=torch.float32).to(DEVICE)
    whole = kernel.forward(a.clone(), W, H, C, multiplied=multiplying(scale))
    for t in range(T):
        _, cells, hidden = kernel.forward(a[t : t + 1].clone(), W, H, C, multiplied=multiplying(scale[t : t + 1]))
        H, C = hidden[0], cells[0]
        within = 0.0 if CUDA or kernel.factors is None else WITHIN[torch.bfloat16]
        assert torch.allclose(H, whole.H[t], rtol=0, atol=within)
        assert torch.allclose(C, whole.C[t], rtol=0, atol=within)


def test_writes_only_where_it_may(kernel: TritonKernel) -> None:
    """What lies around the results, and everything that is only read, comes out as it went in."""
    T, B, S = 2, 3, 37
    gates, C, H, scale, m = (torch.full((T + 2, B, width), 7.0, device=DEVICE) for width in (4 * S, S, S, S, S))
    ids = torch.randint(5, (T, B)).to(DEVICE)
    read = [normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((5, 4 * S), (S, 4 * S), (4 * S,), (B, S), (T, B, S))]
    table, W, bias, state, dH = read
    copies = [part.clone() for part in read]
    scale[1:-1].normal_()
    into, by = Activations(gates[1:-1], C[1:-1], H[1:-1]), Multiplied(scale[1:-1], m[1:-1])
    kernel.forward(Rows(ids, table), W, state, state, bias=bias, into=into, multiplied=by)
    kernel.backward(dH, state, into.gates, into.C, state, W, multiplied=by)

    assert all(bool((part[[0, -1]] == 7).all()) for part in (gates, C, H, scale, m))
    assert all(bool((part[1:-1] != 7).any()) for part in (gates, C, H, scale, m))
    assert all(torch.equal(one, other) for one, other in zip(read, copies, strict=True))


def test_nan_is_not_hidden(kernel: TritonKernel) -> None:
    """A NaN in a pre-activation or a state is in the states after it, and one in a gradient in those before."""
    T, B, S = 2, 2, 21
    for which in range(2):
        a, W, state = (normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((T, B, 4 * S), (S, 4 * S), (B, S)))
        (a, state)[which].view(-1)[0] = float("nan")
        _, _, H = kernel.forward(a, W, state, state)
        assert H.isnan().any()
    a, W, state, dH = (normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((T, B, 4 * S), (S, 4 * S), (B, S), (T, B, S)))
    gates, C, _ = kernel.forward(a, W, state, state)
    dH[1, 1, 3] = float("nan")
    assert kernel.backward(dH, state, gates, C, state, W)[1].isnan().any()


def test_refuses_other_memory(kernel: TritonKernel) -> None:
    """Tensors that the device code would misread are refused before it runs."""
    T, B, S = 2, 3, 5
    a, W, state = torch.zeros(T, B, 4 * S), torch.zeros(S, 4 * S), torch.zeros(B, S)
    with pytest.raises(ValueError, match=r"^W: expected contiguous \(5, 20\) of float32"):
        kernel.forward(a, W.double(), state, state)
    with pytest.raises(ValueError, match=r"^bias: "):
        kernel.forward(a, W, state, state, bias=torch.zeros(S))
    with pytest.raises(ValueError, match=r"^C_0: "):
        kernel.forward(a, W, state, state[:1])
    with pytest.raises(ValueError, match="other memory"):
        kernel.forward(a, W, state, state, into=Activations(a.clone(), *torch.zeros(2, T, B, S)))
    with pytest.raises(ValueError, match=r"^dH: "):
        kernel.backward(torch.zeros(T, B, S + 1), state, a, torch.zeros(T, B, S), state, W)


def test_a_whole_window(kernel: TritonKernel) -> None:
    """Loss and gradients of a window with everything on are eager's to the rounding, and a layer's weights are rounded once."""
    model = small_model(hidden=20, dropout=0.3, weight_dropout=0.4, dtype=torch.float32)
    ids = torch.randint(11, (4, 3)).to(DEVICE)
    found = []
    for own in (EagerKernel(), kernel):
        net = CharLM(model.config, 11, own).to(DEVICE)
        net.load_state_dict(model.state_dict())
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        empty = tuple(LSTMState(*layer) for layer in net.initial_state(3))
        nats, _ = Backprop(net, 3, 3, segment=2)(ids[:-1], ids[1:], empty, 0.5)
        found.append([torch.tensor(float(nats)), *(p.grad for p in net.parameters() if p.grad is not None)])

    within = WITHIN[kernel._factors]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=within * float(one.abs().max()))


@pytest.mark.slow
def test_the_check_sees_what_is_wrong(kernel: TritonKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong number and a NaN, in any pass and in the large products, are seen; then eager is used, and it is said why."""
    assert triton_kernel.wrong(kernel, DEVICE, 2, 3, 21, 5) == ""
    for name in ("forward", "backward", "product"):
        for bad in (1.0, float("nan")):

            def spoiled(*given: Any, name: str = name, bad: float = bad, **options: Any) -> Any:
                found = getattr(TritonKernel, name)(kernel, *given, **options)
                (found if name == "product" else found[1]).view(-1)[3] += bad
                return found

            with monkeypatch.context() as patch:
                patch.setattr(kernel, name, spoiled)
                assert "disagrees with eager" in triton_kernel.wrong(kernel, DEVICE, 2, 3, 21, 5)
    monkeypatch.setattr(triton_kernel, "wrong", lambda *_: "it is Sunday")
    other, why = at_sizes(kernel, torch.device("cuda"), 2, 3, 21, 5)
    assert isinstance(other, EagerKernel)
    assert why == f"kernel {other.name}: triton is not used (it is Sunday)"
    assert at_sizes(kernel, torch.device("cpu"), 2, 3, 21, 5) == (kernel, "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('wrong')", "^wrong$"),
        ("import os; os.abort()", "status -6$"),
        ("import time; time.sleep(60)", "did not end within 0.5 s"),
        ("", None),
    ],
)
def test_a_child_checks_it_once(code: str, reason: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A check that fails, dies or hangs is the reason why the kernel is not used; one that passes is remembered."""
    real, ran = subprocess.run, []

    def run(command: list[str], **options: Any) -> Any:
        ran.append(command)
        return real([*command[:-1], code], **options)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(triton_kernel, "SECONDS", 0.5 if "sleep" in code else 60)
    monkeypatch.setattr(triton_kernel, "_passed_file", lambda version: tmp_path / "cache" / "passed")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for _ in range(2):
        if reason is None:
            triton_kernel._examined_in_child("3.7")
        else:
            with pytest.raises(Unavailable, match=reason):
                triton_kernel._examined_in_child("3.7")

    assert len(ran) == (1 if reason is None else 2)
    assert "triton_kernel.examine(0)" in ran[0][-1]


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "there is no CUDA device"),
        ({"version.hip": "6.1"}, "ROCm"),
        ({"cuda.is_available": lambda: True, "cuda.get_device_capability": lambda: (7, 5)}, "older than bfloat16"),
        (
            {
                "cuda.is_available": lambda: True,
                "cuda.get_device_capability": lambda: (9, 0),
                "ops.aten.mm.overloads": lambda: ["default", "out"],
            },
            "2.8 has",
        ),
    ],
    ids=["none", "rocm", "old device", "old torch"],
)
def test_what_it_is_not_made_for(changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No device, ROCm, an old device and an old torch are each a reason in a line."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name, value in changes.items():
        monkeypatch.setattr(f"torch.{name}", value)
    triton_kernel.load.cache_clear()
    with pytest.raises(Unavailable, match=reason):
        triton_kernel.load()
    triton_kernel.load.cache_clear()
    with pytest.raises(Unavailable, match="it has no float16 products"):
        triton_kernel.load("float16")


@pytest.mark.slow
def test_compiles_for_what_there_is(tmp_path: Path) -> None:
    """The compiler takes all launches for four generations; nothing is spilled, nothing added by atomics."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(lstmlm.__file__).parents[1])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_triton"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(run.stdout)

    assert {found["capability"] for found in results} == {80, 90, 100, 120}
    assert {found["function"] for found in results} == {
        "forward",
        "backward",
        "norm_dropout_residual",
        "norm_dropout_residual_backward",
        "gather",
    }
    for found in results:
        assert found["local"] == 0, found
        assert found["stack"] <= 8, found
        assert not found["atomic"], found
        assert found["shared"] <= 49_152, found
        if found["function"] == "norm_dropout_residual_backward" and found["size"][2] <= 2048 and found["size"][2] % 16 == 0:
            assert found["grid"][0] <= 132 * (65_536 // (32 * found["warps"] * found["reg"])), found


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_the_same_bits_each_time(kernel: TritonKernel) -> None:
    """A hundred equal calls give equal bits."""
    T, B, S = 8, 64, 512
    a, W, state = (normal(*shape, dtype=torch.float32).to(DEVICE) for shape in ((T, B, 4 * S), (S, 4 * S), (B, S)))
    first = kernel.forward(a.clone(), W, state, state).H
    assert all(torch.equal(first, kernel.forward(a.clone(), W, state, state).H) for _ in range(100))
