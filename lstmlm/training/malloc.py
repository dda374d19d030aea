"""Large buffers stay with the process: what a step frees, the next one finds again, without a page fault.

`tune_malloc` sets the C library's allocator before training or scoring, `freeze_gc` keeps Python's collector off torch's
import, and `import_torch_meanwhile` has that done while a text is read; the commands call them. `give_back` is for `step_timing`,
which takes the memory of networks that are not trained.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library


def tune_malloc() -> bool:
    """Ask malloc not to give memory back to the system, and not to map large buffers apart.

    torch frees every activation after each step. By default each large one is unmapped then, and its pages are mapped,
    zeroed and faulted in again in the next step.

    Returns:
        Whether the C library accepted it; elsewhere than on Linux with glibc nothing changes but the speed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_TOP_PAD, 64 << 20))


def give_back() -> None:
    """Give back to the system what is free, once: after work of other sizes than what comes next."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@contextmanager
def freeze_gc() -> Iterator[None]:
    """Leave out the search for garbage while modules are imported, and never search in what they made.

    Importing torch makes hundreds of thousands of objects that all stay; to look through them again and again takes a fifth of
    the import.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if running:
            gc.enable()


def import_torch_meanwhile() -> None:
    """Begin to import torch in a thread of its own; whoever imports it next waits for what is left of it.

    What goes wrong there goes wrong again, and is said, where torch is needed. The process ends without waiting for it.
    """
    Thread(target=_import_torch, name="import torch", daemon=True).start()


def _import_torch() -> None:
    with suppress(BaseException), freeze_gc():
        import torch  # noqa: F401 - to have it
