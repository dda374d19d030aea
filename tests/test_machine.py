import os
from pathlib import Path

import pytest

from lstmlm import machine


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have eight processors, all of them this process's."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def group(root: Path, cgroup: str, values: dict[str, str]) -> Path:
    """Write the files of control groups."""
    for name, text in {"proc/self/cgroup": cgroup, **values}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sys/fs/cgroup/job/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/job/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/job/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "300000 100000\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, 3),
        ({"sys/fs/cgroup/job/cpu.max": "what\n"}, 8),
        ({}, 8),
    ],
)
def test_a_container_has_fewer_processors(tmp_path: Path, values: dict[str, str], expected: int) -> None:
    """A quota of processor time, of this group or one around it, is a number of threads, rounded up; nonsense is none."""
    assert machine.cpus(group(tmp_path, "0::/job\n", values), {}) == expected


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    """It is the one that the system lists, or where it lists none something that still says what kind it is."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t: fpu\n", encoding="utf-8")

    assert machine.cpu_name(tmp_path) == "Some CPU: fast"
    assert machine.cpu_name(tmp_path / "nowhere")


def test_an_older_container(tmp_path: Path) -> None:
    """Control groups of version 1 say the same in other files; -1 and huge numbers are no limits."""
    values = {
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "400000\n", "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }  # fmt: skip
    root = group(tmp_path, "4:cpu,cpuacct:/box\n3:memory:/box\n", values)

    assert machine.cpus(root, {}) == 4
    assert machine.memory(root) == 1_000_000


def test_a_bound_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `taskset` and OMP_NUM_THREADS say counts, the smaller one; a word that is no number does not."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    asked = ("1", "2,4", "9", "0", "all", "")

    assert [machine.cpus(tmp_path, {"OMP_NUM_THREADS": number}) for number in asked] == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(("bound", "expected"), [(range(8), 4), ({0, 4}, 1), ({0, 1, 4}, 2), ({2}, 1)])
def test_threads_of_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: set[int], expected: int) -> None:
    """Of the processors that share a core one is counted, however many of them the process may use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(bound))
    siblings = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)
    }

    assert machine.cpus(group(tmp_path, "", siblings), {}) == expected


@pytest.mark.parametrize(("limit", "bounded"), [("500000000\n", True), ("max\n", False)])
def test_a_container_has_less_memory(tmp_path: Path, limit: str, bounded: bool) -> None:
    """The container's memory holds where it is less than the machine's."""
    whole = machine.memory(tmp_path)
    root = group(tmp_path, "0::/a/b\n", {"sys/fs/cgroup/a/memory.max": limit})

    assert whole is None or whole > 500_000_000
    assert machine.memory(root) == (500_000_000 if bounded else whole)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LSTMLM_CACHE wins over XDG_CACHE_HOME, an absolute one of which wins over the home folder; no home, no cache.

    On Windows %LOCALAPPDATA% stands for the home folder.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("LSTMLM_CACHE", raising=False)
    assert machine.cache_folder() == tmp_path / ".cache" / "lstmlm"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert machine.cache_folder() == tmp_path / "xdg" / "lstmlm"

    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "own"))
    assert machine.cache_folder() == tmp_path / "own"

    monkeypatch.delenv("LSTMLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert machine.cache_folder() is None

    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert machine.cache_folder() is None
    monkeypatch.setattr(machine, "WINDOWS", True)
    assert machine.cache_folder() == tmp_path / "local" / "lstmlm"


def test_memory_of_this_process(tmp_path: Path) -> None:
    """What the system says of this process is what it has, and had at most; where nothing is said, a number all the same."""
    status = "Name:\tpython\nVmHWM:\t  3000 kB\nVmRSS:\t  2000 kB\n"
    now, most = machine.memory_used()

    assert machine.memory_used(group(tmp_path, "", {"proc/self/status": status})) == (2_048_000, 3_072_000)
    assert 10**6 < now <= most
    assert machine.memory_used(tmp_path / "elsewhere")[1] > 10**6
