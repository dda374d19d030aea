"""The benchmark of a GPU without one: its floors, its checks, and both sides on the CPU."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lstmlm import kernels
from lstmlm.kernels.eager import EagerKernel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(name="bench")
def _bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    import bench_gpu

    return bench_gpu


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so() -> None:
    """One line, exit 2, and no table."""
    command = [sys.executable, "-W", "ignore", "scripts/bench/bench.py", "gpu"]  # torch warns where there is no NumPy
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert done.stderr.startswith("bench gpu: expected a working CUDA device, found: torch")


def test_the_floor_of_a_step(bench: ModuleType) -> None:
    """Operations, bytes and meetings of one shape, counted by hand."""
    found = bench.floor(2, 512, 64, 128)
    products = 512 * 2048 + 2 * 512 * 2048 + 512 * 65  # W of both layers, U of the second, readout
    parameters = products + 65 * 2048 + 2 * 2048 + 65

    assert found.operations == 6 * products * 64 * 128
    assert found.bytes == 4 * (8 * parameters + 2 * (6 * 2 * 512 + 65) * 64 * 128)
    assert found.meetings == 2 * (128 + 1)
    card = bench.Card(bytes=1e12, operations=1e14)
    assert found.seconds(card) == max(found.operations / 1e14, found.bytes / 1e12, 258e-6)


@pytest.mark.slow
def test_both_sides_train_the_same(bench: ModuleType) -> None:
    """On the CPU at a tiny size: the losses agree, all sides are timed, and ratios come out of them."""
    kernel = EagerKernel()
    card = bench.CARDS["NVIDIA H200"]

    row = bench.train((2, 8, 4, 5), torch.device("cpu"), 1, {"eager": kernel}, {"TF32": torch.float32}, card, times=1)

    assert row["shape"] == "2x8 B4 T5"
    assert row["eager us/step"] > 0
    assert row["eager vs best nn.LSTM"] == pytest.approx(row["nn.LSTM TF32 us/step"] / row["eager us/step"])
    assert row["eager share of floor"] > 0


def test_what_differs_is_not_compared(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side whose loss is another one ends the benchmark."""
    own = kernels.choose("eager")[0]

    def other(rival: object, L: int, S: int, kernel: kernels.Kernel) -> object:
        from bench import Rival, ours_like

        return ours_like(Rival(L, S), L, S, kernel)

    monkeypatch.setattr(bench, "ours_like", other)
    with pytest.raises(SystemExit, match="nothing to compare"):
        bench.train((1, 8, 4, 5), torch.device("cpu"), 1, {"eager": own}, {}, times=1)


def test_members(bench: ModuleType) -> None:
    """One network and two are timed, and compared with the first."""
    rows = bench.members((2, 8, 4, 5), torch.device("cpu"), 1, EagerKernel(), counts=(1, 2))

    assert [row["members"] for row in rows] == [1, 2]
    assert rows[0]["vs 1"] == 1
    assert rows[1]["vs 1"] == pytest.approx(rows[1]["us/step"] / rows[0]["us/step"])


def test_samplers(bench: ModuleType) -> None:
    """Both write so many characters, and their speeds come out."""
    row = bench.sample((1, 8, 3), torch.device("cpu"), 1, EagerKernel(), chars=4)

    assert row["streams"] == 3
    assert row["vs nn.LSTM"] > 0
    assert row["lstmlm chars/s"] > 0
