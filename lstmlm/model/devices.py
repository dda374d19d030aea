"""Where to compute: the CPU, or a CUDA device that has shown that it works.

`choose` is the entry point, for `api` and `train`; `out_of_memory` turns a device's own error into ours.

What holds on a CUDA device as on the CPU: a run that is stopped, killed or stepped back goes on to the same bits, on the same
device model and with the same libraries. For that every sum has a fixed order: no operation that adds by atomics is used
(`kernels.pointwise`), and cuBLAS gets one workspace of fixed size (`CUBLAS_WORKSPACE_CONFIG`, set before CUDA starts). Other
devices, and the CPU beside a GPU, agree to rounding. Checkpoints know no device: they are read to the CPU and copied from there.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lstmlm.errors import SystemProblem, UsageError, printable

if TYPE_CHECKING:
    import torch

    from lstmlm.kernels import Kernel

DEVICES = ("auto", "cpu", "cuda")

GPU_FILES = "/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg"
"""What a Linux kernel with a driver for a GPU shows: NVIDIA's, that of its Tegra boards, AMD's, and Windows below it."""


def choose(
    requested: str = "auto", report: Callable[[str], None] | None = None, place: int = 0, places: int = 1
) -> "torch.device":
    """Return the device to compute on.

    Args:
        requested: auto (CUDA where it works, else the CPU), cpu or cuda.
        report: Called with a line where there is a CUDA device and the CPU is taken, as it does not work or there are too few.
        place: Which of the processes on this machine this is, counted from 0: each takes a device of its own.
        places: How many they are.

    Raises:
        UsageError: The request is unknown, or is a CUDA device and none works.
    """
    _check(requested)
    import torch

    if requested == "cpu":
        return torch.device("cpu")
    # cuBLAS adds in a fixed order if its workspace is fixed; it reads this once, when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cuda", place)
    wrong = missing(places) or broken(device)
    if wrong and requested == "auto" and report is not None and not missing():
        report(f"device cpu: there is a CUDA device, but {wrong}")
    if not wrong:
        torch.cuda.set_device(device)  # what names no device goes there too: streams, graphs, NCCL
        return device
    if requested == "cuda":
        raise UsageError(f"--device cuda: expected a working CUDA device, found: {wrong}. Leave it out, or say --device cpu.")
    return torch.device("cpu")


def is_cpu(requested: str) -> bool:
    """Say whether `choose` gives the CPU, as far as that can be told without torch: no device file, no GPU.

    Raises:
        UsageError: The request is unknown.
    """
    _check(requested)
    if requested != "auto" or sys.platform == "darwin":
        return requested != "cuda"
    return sys.platform.startswith("linux") and not any(map(os.path.exists, GPU_FILES))


def _check(requested: str) -> None:
    if requested not in DEVICES:
        raise UsageError(f"--device: expected auto, cpu or cuda, found {printable(requested[:40])}.")


def with_kernel(
    requested: str,
    requested_kernel: str = "auto",
    precision: str = "auto",
    report: Callable[[str], None] | None = None,
    place: int = 0,
    places: int = 1,
    keep: str | None = None,
) -> "tuple[torch.device, Kernel, str]":
    """Return the device, the fastest kernel that works there, and one line where that is not the one to be expected.

    A device that the kernel's check has broken is not used, as one that never worked.

    Args:
        requested: See `choose`; so are `report`, `place` and `places`.
        requested_kernel: See `kernels.choose`.
        precision: Likewise.
        report: Of `choose`.
        place: Likewise.
        places: Likewise.
        keep: See `kernels.choose`.

    Raises:
        UsageError: See `choose` and `kernels.choose`.
    """
    from lstmlm import kernels

    device = choose(requested, report, place, places)
    kernel, why = kernels.choose(requested_kernel, precision, device.type, keep)
    if why and device.type == "cuda" and (wrong := broken(device)):
        if requested == "cuda":
            raise UsageError(f"--device cuda: expected a working CUDA device, found: {wrong}. Leave it out, or say --device cpu.")
        device = choose("cpu")
        kernel, _ = kernels.choose(requested_kernel, precision, device.type, keep)
        why = f"device cpu: there is a CUDA device, but {wrong}"
    return device, kernel, why


def missing(places: int = 1) -> str:
    """Return why there is no CUDA device for each of so many processes; empty if there is one."""
    import torch

    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__}, built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} with CUDA {torch.version.cuda}, but no device or driver that it can use"
    if (count := torch.cuda.device_count()) < places:
        return f"{count} for {places} processes on this machine"
    return ""


def broken(device: "torch.device") -> str:
    """Return what is wrong with a device, by a product whose result is known; empty if it is right.

    A driver of another version, a card that torch has no code for, or one whose memory is full shows here.
    """
    import torch

    try:
        ones = torch.ones(8, 8, device=device)
        found = float((ones @ ones).sum())
    except RuntimeError as error:
        return (printable(str(error).splitlines()[0]) if str(error) else type(error).__name__)[:120]
    return "" if found == 512 else f"8 x 8 ones times themselves sum to {found:g}, not 512"


def name(device: "torch.device") -> str:
    """Return what a run was computed on, for its checkpoints: the CPU, or a card by its maker's name."""
    import torch

    return device.type if device.type == "cpu" else torch.cuda.get_device_name(device)


def out_of_memory(error: BaseException) -> SystemProblem | None:
    """Return what to tell a user whose device or machine is full; None if the error is another one."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return SystemProblem(
            "memory: expected enough for this model and text, found less. Close other programs, or take a smaller model or "
            "text; in `train`, a smaller --hidden or --batch."
        )
    torch = sys.modules.get("torch")
    if not isinstance(error, getattr(torch, "OutOfMemoryError", ())):  # it may not be there, or not yet whole
        return None
    return SystemProblem(
        "device memory: expected enough for this model and batch, found less. Compute with --device cpu; in `train`, a "
        "smaller --batch or --set train.segment=16 takes less."
    )
