"""Several processes, as torchrun starts them, against one: forked from this one, which has torch already."""

import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from lstmlm.cli import corpora
from lstmlm.errors import UsageError
from lstmlm.training import distributed
from lstmlm.training.distributed import SIGNALS, ProcessGroup, Shards, from_environment, job, shards_for
from tests import test_end_to_end as processes
from tests.cli.test_train import digest
from tests.test_end_to_end import FLAGS, ended, signal_at

BITS = [*FLAGS, "--precision", "float32"]
_here = processes._here
_warm = processes._warm


def start(size: int, *flags: str, run_id: str = "none", before: dict[int, Callable[[], None]] | None = None) -> list[int]:
    """Fork the processes of a run, each with the environment that torchrun would give it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def prepare(rank: int) -> Callable[[], None]:
        def environment() -> None:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": run_id,
            }  # fmt: skip
            (before or {}).get(rank, lambda: None)()

        return environment

    return [processes.train(*flags, before=prepare(rank)) for rank in range(size)]


def together(size: int, *flags: str, before: dict[int, Callable[[], None]] | None = None) -> list[int]:
    """Train with several processes to the end; return their exit codes."""
    return [ended(pid) for pid in start(size, *flags, before=before)]


@pytest.fixture
def whole() -> dict[str, str]:
    """Return digests of the run that one process makes in two shards."""
    assert ended(processes.train(*BITS, "--out", "whole", "--set", "train.accumulate=2")) == 0, Path("err.txt").read_text()
    return digest(Path("whole"))


@pytest.mark.slow
def test_two_are_one(whole: dict[str, str]) -> None:
    """Two processes leave the bits that one leaves with as many shards: weights, moments, state, losses and samples."""
    assert together(2, *BITS, "--out", "two") == [0, 0], Path("err.txt").read_text()

    assert digest(Path("two")) == whole
    assert Path("err.txt").read_text().count("saved two/best.safetensors") == 1  # one of them speaks


@pytest.mark.slow
def test_two_with_a_teacher_are_one() -> None:
    """Two processes that learn from a teacher too leave the bits that one leaves with as many shards, and go on to them."""
    assert ended(processes.train(*BITS, "--out", "teacher", "--members", "2", "--seed", "3")) == 0
    taught = (*BITS, "--distill", "teacher", "--set", "train.accumulate=2")
    assert ended(processes.train(*taught, "--out", "whole")) == 0, Path("err.txt").read_text()
    expected = digest(Path("whole"))

    assert together(2, *taught, "--out", "two") == [0, 0], Path("err.txt").read_text()
    assert digest(Path("two")) == expected

    further = (*BITS[2:], "--resume", "--steps", "30")
    assert ended(processes.train(*further, "--out", "whole")) == 0, Path("err.txt").read_text()
    assert together(2, *further, "--out", "two") == [0, 0], Path("err.txt").read_text()
    assert digest(Path("two")) == digest(Path("whole")) != expected


def test_who_waits_alone_is_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the others never come, as when torchrun is killed while it starts them, joining ends in minutes and not in hours."""
    assert timedelta(minutes=1) <= distributed.JOINING <= timedelta(minutes=10)
    monkeypatch.setattr(distributed, "JOINING", timedelta(seconds=2))
    began = time.monotonic()
    pids = start(3, *BITS, "--out", "alone", before={2: lambda: os._exit(9)})

    assert [ended(pid) for pid in pids] == [5, 5, 9]
    assert time.monotonic() - began < 60
    assert "found one lost" in Path("err.txt").read_text()
    assert not Path("alone").exists()


def test_who_has_joined_may_work_for_hours(monkeypatch: pytest.MonkeyPatch, whole: dict[str, str]) -> None:
    """Once all have met, one may read a text for longer than joining may take."""
    monkeypatch.setattr(distributed, "JOINING", timedelta(seconds=8))
    read = corpora.open_named

    def slowly(*args: Any, **more: Any) -> Any:
        time.sleep(12)
        return read(*args, **more)

    monkeypatch.setattr("lstmlm.cli.train_worker.open_named", slowly)

    assert together(2, *BITS, "--out", "slow") == [0, 0], Path("err.txt").read_text()
    assert digest(Path("slow")) == whole


@pytest.mark.slow
def test_four_are_one() -> None:
    """Shards are added in the same order whether one process has all four of them, two have two, or four have one."""
    assert ended(processes.train(*BITS, "--out", "one", "--set", "train.accumulate=4")) == 0
    assert together(2, *BITS, "--out", "two", "--set", "train.accumulate=4") == [0, 0]
    assert together(4, *BITS, "--out", "four") == [0] * 4

    assert digest(Path("one")) == digest(Path("two")) == digest(Path("four"))


@pytest.mark.slow
def test_other_numbers_of_processes(whole: dict[str, str]) -> None:
    """A run goes on with one process, and again with two, to the same bits: the state is saved by stream."""
    assert together(2, *BITS, "--out", "run", before={1: stop_at(9)}) == [143, 143]
    assert ended(processes.train(*BITS, "--out", "run", "--resume", before=signal_at(16, signal.SIGINT))) == 130
    assert together(2, *BITS, "--out", "run", "--resume") == [0, 0], Path("err.txt").read_text()

    assert digest(Path("run")) == whole


def stop_at(step: int) -> Callable[[], None]:
    """Let TERM come to a process that does not lead while it computes a step."""

    def prepare() -> None:
        honest = Shards.gradient
        steps = [0]

        def gradient(self: Shards, *args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if steps[0] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return honest(self, *args, **kwargs)

        Shards.gradient = gradient  # type: ignore[method-assign]  # in a process of its own

    return prepare


def test_a_signal_to_one_stops_all(whole: dict[str, str]) -> None:
    """A signal to any process stops all after the same step, with one checkpoint and an exit code that is not 0."""
    assert together(2, *BITS, "--out", "run", before={1: stop_at(9)}) == [143, 143]
    told = Path("err.txt").read_text()

    assert told.count("stopped at step") == 1
    assert "Traceback" not in told
    assert processes.resume("run") == 0


@pytest.mark.slow
def test_killed_and_started_again(whole: dict[str, str]) -> None:
    """When one is killed the others leave; the same command in the same job goes on, to the same bits."""
    for rank in (1, 0):
        pids = start(2, *BITS, "--out", "run", run_id="a-job", before={rank: killed_at(7)})
        codes = [ended(pid) for pid in pids]
        assert codes[rank] == -signal.SIGKILL
        assert codes[1 - rank] == 5
    assert [ended(pid) for pid in start(2, *BITS, "--out", "run", run_id="a-job")] == [0, 0], Path("err.txt").read_text()

    assert digest(Path("run")) == whole
    assert "Traceback" not in Path("err.txt").read_text()
    assert [ended(pid) for pid in start(2, *BITS, "--out", "run", run_id="another")] != [0, 0]  # it is not theirs


def killed_at(step: int) -> Callable[[], None]:
    """Kill a process in a step, counted from where it began."""

    def prepare() -> None:
        stop_at(step)()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill = lambda pid, number: _kill(pid, signal.SIGKILL)

    return prepare


_kill = os.kill


def test_a_mistake_is_said_once() -> None:
    """What the command line does wrong is said by rank 0, and nobody waits for anybody."""
    assert together(2, *BITS, "--out", "run", "--set", "train.accumulate=5") == [2, 2]
    told = Path("err.txt").read_text()

    assert told.count("error:") == 1
    assert "expected at most as many shards as the batch has streams (4), found 10" in told


def test_shards_cover_the_batch() -> None:
    """Every stream is in just one shard, whatever the numbers, and the processes hold them in order."""
    for batch, count, size in ((16, 4, 2), (7, 3, 1), (10, 6, 3), (5, 5, 5)):
        shards = [Shards(ProcessGroup(rank, size), [torch.zeros(3)], batch, count) for rank in range(size)]
        streams = [s for shard in shards for first, n in shard.own for s in range(first, first + n)]

        assert streams == list(range(batch))
        assert shards[0].rows == [sum(n for _, n in shard.own) for shard in shards]


def test_sums() -> None:
    """The gradient of a batch is the sum of those of its shards, added pairwise; loss and states come along."""
    gradient = torch.zeros(4)
    shards = Shards(ProcessGroup(), [gradient], 6, 3)
    values = torch.tensor([1e8, -1e8, 1.0])

    def one(first: int, count: int, state: Tensor | None) -> tuple[float, Tensor]:
        gradient.add_(values[first // 2])
        return float(first), torch.full((count,), float(first))

    found = shards.gradient(one, [None] * 3, signal=SIGNALS[1])

    assert gradient.tolist() == [0.0] * 4  # 1e8 + (-1e8 + 1): in another order it would be 1
    assert found.loss == 6.0
    assert [state.tolist() for state in found.states] == [[0.0] * 2, [2.0] * 2, [4.0] * 2]
    assert found.signal == SIGNALS[1]


def test_how_many_shards() -> None:
    """There are as many shards as wanted, or the next number that the processes can share; not more than streams."""
    assert [shards_for(*given) for given in ((1, 1, 8), (1, 2, 8), (4, 2, 8), (2, 4, 8), (3, 2, 8))] == [1, 2, 4, 4, 6]
    with pytest.raises(UsageError, match="expected at most as many shards"):
        shards_for(3, 3, 2)


def test_environment() -> None:
    """Without torchrun's variables a process is alone; with them it has its place, and nonsense is refused."""
    theirs = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}

    assert from_environment({}) == ProcessGroup()
    assert from_environment(theirs) == ProcessGroup(3, 4, 1, 2)
    for wrong in ({"RANK": "4"}, {"WORLD_SIZE": "many"}, {"RANK": "-1"}):
        with pytest.raises(UsageError, match="expected RANK below WORLD_SIZE"):
            from_environment(theirs | wrong)
    for place in ({"MASTER_ADDR": ""}, {"MASTER_PORT": "abc"}, {"MASTER_PORT": "70000"}, {"MASTER_PORT": "-1"}):
        with pytest.raises(UsageError, match="expected a host and its port"):
            from_environment(theirs | place)


def test_job() -> None:
    """A job is named by its --rdzv-id, or by the agent that started the process; without torchrun there is none."""
    assert job({}) is None
    assert job({"TORCHELASTIC_RUN_ID": "mine"}) == "mine"
    own = job({"TORCHELASTIC_RUN_ID": "none"})

    assert own == job({"TORCHELASTIC_RUN_ID": "none"})
    assert own is not None
    assert str(os.getppid()) in own


def test_who_is_started_again_meets_nobody_dead() -> None:
    """All of one start agree on a name that no earlier one had, though the store of torchrun's agent still holds theirs."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("lstmlm", "dead")
    server.set("lstmlm dead", " of-one of-two")
    server.set("lstmlm dead 1", "of-one")

    def attempt(rank: int) -> str:
        time.sleep(0.0 if rank else 0.4)  # the first comes last: until then the others know only the dead one's name
        return distributed._attempt(TCPStore("127.0.0.1", server.port), rank, 3)

    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            names.append(set(pool.map(attempt, range(3))))

    assert [len(each) for each in names] == [1, 1]
    assert names[0] != names[1]
    assert "dead" not in names[0] | names[1]
