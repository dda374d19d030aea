"""The command `lstmlm train` in a process of another rank than 0: it computes, and prints nothing.

What to do is broadcast to it; only an error that rank 0 cannot know of, such as a text that this machine does not have, it
shows itself.
"""

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lstmlm.cli import STARTED, signals
from lstmlm.cli.corpora import open_named
from lstmlm.config import run_config
from lstmlm.config.setting import Value
from lstmlm.display.console import Console
from lstmlm.errors import Diverged, Stopped, TextError, UsageError, printable
from lstmlm.training.distributed import PeerLostError, ProcessGroup


@dataclass(frozen=True)
class TextMessage:
    """What rank 0 broadcasts first: the text that each process opens for itself.

    config: Of the run; sizes may be open.
    names: Of the text.
    how: What else `corpora.open_named` is told.
    """

    config: dict[str, Any]
    names: list[str]
    how: dict[str, Any]


@dataclass(frozen=True)
class RunMessage:
    """What rank 0 broadcasts then: the run that all train.

    config: No size open.
    fingerprint: Of the text.
    resumes: It goes on from the checkpoint that is broadcast next.
    tunes: It starts from the model that is broadcast next.
    teaches: The teacher that it learns from is broadcast before that.
    changed: See `run_setup.Start`.
    steps: An estimate where the budget is in minutes.
    device: Where rank 0 computes.
    kernel: With which one.
    """

    config: dict[str, Any]
    fingerprint: str
    resumes: bool
    tunes: bool
    teaches: bool
    changed: dict[str, list[Value]]
    steps: int
    device: str
    kernel: str


def send(group: ProcessGroup, message: TextMessage | RunMessage | None) -> None:
    """Broadcast a message of rank 0; None: there is nothing to train."""
    group.broadcast_bytes(json.dumps(message and asdict(message)).encode())


def run(group: ProcessGroup) -> None:
    """Train along with rank 0, which names the texts: each machine has its own copy, or a shared one.

    Args:
        group: The processes.

    Raises:
        SystemExit: With the exit code of what went wrong, of which rank 0 has spoken.
        TextError: With what rank 0 does not know.
    """
    try:
        _run(group)
    except (PeerLostError, Stopped, Diverged, UsageError) as error:
        raise SystemExit(error.exit_code) from None
    except TextError as error:
        raise TextError(f"rank {group.rank} on {printable(socket.gethostname())}: {error}") from None


def _run(group: ProcessGroup) -> None:
    received = json.loads(group.broadcast_bytes())
    if received is None:
        return
    texts = TextMessage(**received)
    config = run_config.from_dict(texts.config, "rank 0")
    with group.local_rank_zero_first():
        corpus = open_named(texts.names, config, **texts.how)
    asked = RunMessage(**json.loads(group.broadcast_bytes()))
    config = run_config.from_dict(asked.config, "rank 0")
    if corpus.fingerprint != asked.fingerprint:
        raise TextError(
            f"text {printable(' '.join(texts.names))}: expected the text that rank 0 reads ({asked.fingerprint[:12]}), found "
            f"another one ({corpus.fingerprint[:12]}). Copy it to this machine."
        )

    import torch

    from lstmlm import kernels
    from lstmlm.model import devices
    from lstmlm.training import malloc, teacher, tuning
    from lstmlm.training.events import Clock
    from lstmlm.training.launch import sizes, threads
    from lstmlm.training.trainer import Trainer

    malloc.tune_malloc()
    torch.set_num_threads(threads(config, group))
    device, kernel, _ = devices.with_kernel(
        asked.device,
        config.train.kernel,
        config.train.precision,
        None,
        group.local_rank,
        group.local_size,
        keep=asked.kernel,
    )
    kernel, _ = kernels.at_sizes(kernel, device, *sizes(config, corpus))
    taught = None
    if asked.teaches:
        weight = config.train.distill_weight
        taught = teacher.of(group.broadcast_checkpoint(None), corpus.tokenizer, kernel, device, weight)
    with signals.caught(Console(quiet=True)) as caught:
        clock = Clock(STARTED)
        trainer = Trainer(config, corpus, kernel, Path(), {}, lambda record: None, clock, caught, group, device, taught)
        if asked.resumes:
            trainer.restore(group.broadcast_checkpoint(None), asked.changed)
        elif asked.tunes:
            trainer.start_from(tuning.weights_of(group.broadcast_checkpoint(None), corpus.tokenizer), asked.steps)
        trainer.begin()
        trainer.run()
