"""What this process may use of its machine: processors and memory, as the system, its container and its job allow; and a folder.

`cpus` gives the number of threads where none was asked for, and `processors` the most that may wait for each other; `memory` is
what a run or a checkpoint has to fit into, `memory_used` what this process has of it; `cache_folder` is for compiled kernels and
the ids of large texts.
"""

import contextlib
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

WINDOWS = os.name == "nt"

_NONE = 1 << 60  # bytes: what cgroups of version 1 say where there is no limit is more


def cpu_name(root: Path = Path("/")) -> str:
    """Return what the system calls this CPU, or its architecture where it has no name for it."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, name = line.partition(":")
        if key.strip() == "model name":
            return name.strip()
    return platform.processor() or platform.machine()


def processors() -> set[int]:
    """Return the processors that this process is bound to by their numbers, two of a core apart."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpus(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Return how many cores this process may use: those it is bound to, or as few as its container or OMP_NUM_THREADS say.

    Two threads of one core count as one: they share what computes.

    Args:
        root: Where /proc and /sys are.
        environment: Of the process.
    """
    topology = root / "sys/devices/system/cpu"
    found = len({_text(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in processors()})
    found = min(found, os.cpu_count() or 1)
    for group in _groups(root, "cpu"):
        quota = _text(group / "cpu.max").split() or [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
        with contextlib.suppress(ValueError):
            if len(quota) == 2 and int(quota[0]) > 0 and int(quota[1]) > 0:
                found = min(found, math.ceil(int(quota[0]) / int(quota[1])))
    asked = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        found = min(found, int(asked))
    return max(1, found)


def memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or its container's; None where nothing says so.

    Args:
        root: Where /proc and /sys are.
    """
    names = getattr(os, "sysconf_names", {})
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if "SC_PHYS_PAGES" in names else []
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _text(group / name)
            if limit.isdecimal() and int(limit) < _NONE:
                found.append(int(limit))
    return min(found, default=None)


def memory_used(root: Path = Path("/")) -> tuple[int, int]:
    """Return the bytes of memory that this process has now, and the most that it had; 0 where nothing says so.

    Args:
        root: Where /proc is.
    """
    lines = dict(line.partition(":")[::2] for line in _text(root / "proc/self/status").splitlines())
    now, most = (int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    if not most:
        with contextlib.suppress(ImportError):
            import resource

            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return now or most, most


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of both versions, from its own up to the outermost."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / ("" if number == "0" else controller)
            folder = top / path.lstrip("/")
            while True:
                yield folder
                if folder == top or top not in folder.parents:
                    break
                folder = folder.parent


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def cache_folder() -> Path | None:
    """Return the folder for caches: $LSTMLM_CACHE, $XDG_CACHE_HOME/lstmlm or ~/.cache/lstmlm; None where there is no home.

    On Windows lstmlm in %LOCALAPPDATA% comes before the last of them.
    """
    if given := os.environ.get("LSTMLM_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the standard says that a relative one is to be ignored
        return Path(base) / "lstmlm"
    if WINDOWS and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "lstmlm"
    try:
        return Path.home() / ".cache" / "lstmlm"
    except RuntimeError:
        return None


def ids_folder() -> Path:
    """Return the folder for the ids of large texts: that for caches, or where there is no home one below the working folder."""
    return cache_folder() or Path(".cache", "lstmlm")
