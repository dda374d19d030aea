"""The processes of one run, as torchrun starts them: their ranks, their shares of the streams, and how their parts become one.

`joined` gives the `ProcessGroup` of this process, for `train`; the trainer sums gradients through `Shards`.

The batch of a step is cut into shards of neighbouring streams. Each gives a gradient of its own, and these are added pairwise
in the order of the shards, in whichever process they were made: the sum has the same bits for one process as for two, four or
any power of two that divides the number of shards.
"""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from lstmlm.errors import SystemProblem, UsageError, printable
from lstmlm.storage.checkpoint import Blob, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

JOINING = timedelta(minutes=5)  # torchrun starts all at once; where it was killed meanwhile, nobody else ends those that wait
WAIT = timedelta(hours=24)  # one may read a text of any size while the others wait; that a process has died is seen at once
SIGNALS = (1, 2, 15)  # HUP, INT, TERM
_EXTRAS = 2 + len(SIGNALS)  # what travels with a gradient: the loss, whether to save, and who was signalled

_State = TypeVar("_State")


class PeerLostError(SystemProblem):
    """Another process of the run has ended, or cannot be reached."""


@dataclass
class ProcessGroup:
    """The processes of a run, seen from one of them; alone it talks to nobody.

    rank: Counted from 0, which alone writes and speaks.
    size: W, the number of processes.
    local_rank: Counted from 0 on this machine.
    local_size: Processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def broadcast_floats(self, *values: float) -> list[float]:
        """Return rank 0's numbers; whoever follows says as many, which do not count."""
        if self.size == 1:
            return list(values)
        import torch

        numbers = torch.tensor(values, dtype=torch.float64)
        self._broadcast(numbers)
        return [float(number) for number in numbers]

    def broadcast_bytes(self, said: bytes = b"") -> bytes:
        """Return what rank 0 says."""
        if self.size == 1:
            return said
        import torch

        buffer = bytearray(said) if self.is_rank_zero else bytearray(int(self.broadcast_floats(0)[0]))
        if self.is_rank_zero:
            self.broadcast_floats(len(said))
        if buffer:
            self._broadcast(torch.frombuffer(buffer, dtype=torch.uint8))
        return bytes(buffer)

    def broadcast_checkpoint(self, saved: Checkpoint | None) -> Checkpoint:
        """Return rank 0's checkpoint: only its machine needs to have the file."""
        if self.size == 1:
            assert saved is not None
            return saved
        if saved is not None and self.is_rank_zero:
            parts = [[name, blob.dtype, list(blob.shape), len(blob.data)] for name, blob in saved.tensors.items()]
            self.broadcast_bytes(json.dumps([saved.kind, saved.meta, parts]).encode())
            self.broadcast_bytes(b"".join(bytes(blob.data) for blob in saved.tensors.values()))
            return saved
        kind, meta, parts = json.loads(self.broadcast_bytes())
        data, start = memoryview(self.broadcast_bytes()), 0
        tensors = {}
        for name, dtype, shape, length in parts:
            tensors[name] = Blob(dtype, tuple(shape), data[start : start + length])
            start += length
        return Checkpoint(kind, meta, tensors)

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Let one process of each machine go through the block before the others: what it leaves there, they find."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            import torch
            import torch.distributed as dist

            with _reaching():
                dist.all_reduce(torch.zeros(1))  # by the CPU's backend: a barrier would take a GPU that nobody has chosen

    def gather_rows(self, part: "Tensor", counts: Sequence[int]) -> "Tensor | None":
        """Return the rows of all, in the order of ranks, to rank 0; None to the others.

        Args:
            part: This process's rows. (counts[rank], S)
            counts: Rows of each process.
        """
        if self.size == 1:
            return part
        import torch
        import torch.distributed as dist

        with _reaching():
            if not self.is_rank_zero:
                dist.send(part.contiguous(), 0)
                return None
            parts = [part] + [part.new_empty(count, *part.shape[1:]) for count in counts[1:]]
            for rank, other in enumerate(parts[1:], start=1):
                dist.recv(other, rank)
        return torch.cat(parts)

    def ordered_all_reduce(self, flat: "Tensor", scratch: "Tensor") -> None:
        """Replace what each has by the sum of all, added pairwise in the order of ranks.

        Each adds up one part of it: twice its bytes come and go, as with any all-reduce, but in an order that is known.

        Args:
            flat: (n), n a multiple of W.
            scratch: As large.
        """
        import torch.distributed as dist

        parts = scratch.view(self.size, -1)
        with _reaching():
            dist.all_to_all_single(parts, flat.view(self.size, -1))
            _add_pairwise(parts, 0, self.size)
            dist.all_gather(list(flat.view(self.size, -1)), parts[0])

    def _broadcast(self, tensor: "Tensor") -> None:
        import torch.distributed as dist

        with _reaching():
            dist.broadcast(tensor, 0)


@dataclass(frozen=True)
class StepResult(Generic[_State]):
    """What a step has found, the same in every process but for its own states.

    loss: Mean over the whole batch; may be a tensor that nobody has waited for.
    states: After the window, one for each shard of this process.
    save: Whether rank 0 wants to save after this step.
    signal: The signal that came to any of them.
    """

    loss: "float | Tensor"
    states: list[_State]
    save: bool
    signal: int | None


class Shards:
    """The batch of a run in shards, of which each process has its own.

    Args:
        group: The processes.
        gradients: Where a shard's gradient is left, and the sum afterwards.
        batch: B.
        count: Shards in all, a multiple of W.
    """

    def __init__(self, group: ProcessGroup, gradients: "Sequence[Tensor]", batch: int, count: int) -> None:
        import torch

        self.group, self.count = group, count
        bounds = [batch * shard // count for shard in range(count + 1)]
        each = count // group.size
        self.own = [(bounds[s], bounds[s + 1] - bounds[s]) for s in range(group.rank * each, (group.rank + 1) * each)]
        self.rows = [bounds[(r + 1) * each] - bounds[r * each] for r in range(group.size)]
        self._gradients = list(gradients)
        self._length = sum(g.numel() for g in self._gradients)
        if count == 1:
            return
        size = math.ceil((self._length + _EXTRAS) / group.size) * group.size
        device = self._gradients[0].device
        self._sums = [torch.zeros(size, device=device) for _ in range(1 + math.ceil(math.log2(each)))]
        self._received = torch.zeros(size if group.size > 1 else 0, device=device)

    def gradient(
        self,
        one: "Callable[[int, int, _State | None], tuple[float | Tensor, _State]]",
        states: "Sequence[_State | None]",
        *,
        save: bool = False,
        signal: int | None = None,
    ) -> StepResult[_State]:
        """Leave the gradient of the whole batch where a shard's would be.

        Args:
            one: Given first stream, number of streams and state, adds a shard's part of the mean's gradient to the gradients,
                which are zero, and returns its part of the mean and the state after it.
            states: Before the window, one for each shard of this process.
            save: Whether rank 0 wants to save.
            signal: What came to this process.
        """
        if self.count == 1:
            loss, state = one(*self.own[0], states[0])
            return StepResult(loss, [state], save, signal)
        after: list[_State] = []
        self._run(one, states, after, 0, len(self.own), 0)
        total = self._sums[0]
        extras = total[self._length : self._length + _EXTRAS]
        extras[1] = float(save and self.group.is_rank_zero)
        for index, number in enumerate(SIGNALS):
            extras[2 + index] = float(signal == number)
        if self.group.size > 1:
            self.group.ordered_all_reduce(total, self._received)
        self._copy(total, back=True)
        loss, wanted, *signalled = extras.tolist()
        came = [number for number, times in zip(SIGNALS, signalled, strict=True) if times]
        return StepResult(loss, after, bool(wanted), came[-1] if came else None)

    def _run(
        self,
        one: "Callable[[int, int, _State | None], tuple[float | Tensor, _State]]",
        states: "Sequence[_State | None]",
        after: list[_State],
        low: int,
        high: int,
        level: int,
    ) -> None:
        """Leave the sum of the shards `low` to `high` of this process in the scratch of a level."""
        scratch = self._sums[level]
        if high - low == 1:
            loss, state = one(*self.own[low], states[low])
            after.append(state)
            self._copy(scratch)
            scratch[self._length :] = 0.0
            scratch[self._length] = loss
            return
        middle = (low + high) // 2
        self._run(one, states, after, low, middle, level)
        self._run(one, states, after, middle, high, level + 1)
        scratch.add_(self._sums[level + 1])

    def _copy(self, flat: "Tensor", *, back: bool = False) -> None:
        start = 0
        for gradient in self._gradients:
            part = flat[start : start + gradient.numel()].view(gradient.shape)
            start += gradient.numel()
            if back:
                gradient.copy_(part)
            else:
                part.copy_(gradient)
                gradient.zero_()


def shards_for(wanted: int, size: int, batch: int) -> int:
    """Return the number of shards: as many as wanted, or the next multiple that W processes can share.

    Raises:
        UsageError: There are fewer streams than that.
    """
    count = math.lcm(wanted, size)
    if count > batch:
        of = f" for {size} processes" if size > 1 else ""
        raise UsageError(
            f"train.accumulate={wanted}{of}: expected at most as many shards as the batch has streams ({batch}), found {count}. "
            "Take a larger --batch, or fewer of them."
        )
    return count


def job(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the torchrun job that this process is of, the same when it is started again; None without torchrun.

    It is the user's --rdzv-id; torchrun's own agent, where none was given.
    """
    name = environment.get("TORCHELASTIC_RUN_ID")
    if name is None or name != "none":
        return name
    agent, began = os.getppid(), ""
    with contextlib.suppress(OSError, IndexError):
        began = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]  # its start, as numbers are used again
    return f"{socket.gethostname()} {agent} {began}".strip()


def from_environment(environment: Mapping[str, str] = os.environ) -> ProcessGroup:
    """Return the group that torchrun's variables describe; without them, a process alone.

    Raises:
        UsageError: They make no sense.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return ProcessGroup()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(environment.get(name, "0")) for name in names)
    except ValueError:
        rank, size, local_rank, local_size = -1, 0, 0, 0
    if not 0 <= rank < size:
        found = ", ".join(f"{name}={printable(environment.get(name, ''))}" for name in names)
        raise UsageError(f"environment: expected RANK below WORLD_SIZE, found {found}. Start it with torchrun, or unset them.")
    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    if not address or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        found = f"MASTER_ADDR={printable(address)}, MASTER_PORT={printable(port[:20])}"
        raise UsageError(f"environment: expected a host and its port, found {found}. Start it with torchrun, or unset them.")
    return ProcessGroup(rank, size, local_rank, max(1, local_size))


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Meet the other processes of the run, if torchrun started any.

    Raises:
        PeerLostError: They cannot be reached.
    """
    group = from_environment()
    if group.size == 1:
        yield group
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, _set_pg_timeout
    from torch.distributed.rendezvous import rendezvous

    with _reaching():
        store, rank, size = next(rendezvous("env://", timeout=JOINING))
        store = PrefixStore(_attempt(store, rank, size), store)
        # gloo for the CPU's tensors, NCCL for a GPU's
        dist.init_process_group(store=store, rank=rank, world_size=size, timeout=JOINING)
        _set_pg_timeout(WAIT)
    yield group
    dist.destroy_process_group()  # not after an error: whoever waits for this process sees its end


def _attempt(store: "Store", rank: int, size: int) -> str:
    """Agree on a name for this start of the processes, under which they find each other and nobody else.

    torchrun's agent keeps its store when it starts them again, with the addresses of those that are dead. So rank 0 draws a name
    and waits until all have answered to it with one of their own; a name is known to be new by the answer that is in its list.

    Raises:
        RuntimeError: They have not all come in time.
    """
    own, deadline = os.urandom(8).hex(), time.monotonic() + JOINING.total_seconds()
    if rank == 0:
        store.set("lstmlm", own)
        answers = [store.get(f"lstmlm {own} {other}").decode() for other in range(1, size)]
        store.set(f"lstmlm {own}", " ".join(["", *answers]))
        return own
    while time.monotonic() < deadline:
        name = store.get("lstmlm").decode()
        store.set(f"lstmlm {name} {rank}", own)
        with contextlib.suppress(RuntimeError):  # not yet, or never
            store.wait([f"lstmlm {name}"], timedelta(seconds=1))
            if own in store.get(f"lstmlm {name}").decode():
                return name
            time.sleep(0.05)
    raise RuntimeError("timed out")


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Turn torch's errors of lost connections into one that is shown in a line."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            f"torchrun: expected every process of the run, found one lost ({printable(str(error).splitlines()[0][-120:])}). "
            "The last checkpoint is whole: start the command again with --resume, or let torchrun do it with --max-restarts."
        ) from error


def _add_pairwise(parts: "Tensor", low: int, high: int) -> None:
    """Add rows `low` to `high` into the first of them."""
    if high - low == 1:
        return
    middle = (low + high) // 2
    _add_pairwise(parts, low, middle)
    _add_pairwise(parts, middle, high)
    parts[low].add_(parts[middle])
