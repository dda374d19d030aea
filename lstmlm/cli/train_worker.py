"""The command `lstmlm train` in a process of another rank than 0: it computes, and prints nothing.

What to do is broadcast to it; only an error that rank 0 cannot know of, such as a text that this machine does not have, it
shows itself.
"""

import json
import socket
from pathlib import Path

from lstmlm.cli import STARTED, signals
from lstmlm.cli.corpora import open_named
from lstmlm.config import run_config
from lstmlm.display.console import Console
from lstmlm.errors import Diverged, Stopped, TextError, UsageError, printable
from lstmlm.training.distributed import PeerLostError, ProcessGroup


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
    begun = json.loads(group.broadcast_bytes())
    if begun is None:  # rank 0 only shows something
        return
    config = run_config.from_dict(begun["config"], "rank 0")
    names, val = begun["names"], begun["val"]
    with group.local_rank_zero_first():
        corpus = open_named(names, config, val=val, symbols=begun["symbols"])
    told = json.loads(group.broadcast_bytes())
    config = run_config.from_dict(told["config"], "rank 0")
    if corpus.fingerprint != told["corpus"]:
        raise TextError(
            f"corpus {printable(' '.join(names))}: expected the text that rank 0 reads ({told['corpus'][:12]}), found "
            f"another one ({corpus.fingerprint[:12]}). Copy it to this machine."
        )

    import torch

    from lstmlm import kernels
    from lstmlm.model import devices
    from lstmlm.training import malloc, tuning
    from lstmlm.training.events import Clock
    from lstmlm.training.launch import sizes, threads
    from lstmlm.training.trainer import Trainer

    malloc.tune_malloc()
    torch.set_num_threads(threads(config, group))
    device, kernel, _ = devices.with_kernel(
        told["device"],
        config.train.kernel,
        config.train.precision,
        None,
        group.local_rank,
        group.local_size,
        keep=told["kernel"],
    )
    kernel, _ = kernels.at_sizes(kernel, device, *sizes(config, corpus))
    with signals.caught(Console(quiet=True)) as caught:
        trainer = Trainer(config, corpus, kernel, Path(), {}, lambda record: None, Clock(STARTED), caught, group, device)
        first = group.broadcast_checkpoint(None) if told["starts"] else None
        if first and told["resumes"]:
            trainer.restore(first, told["changed"])
        elif first:
            trainer.start_from(tuning.weights_of(first, corpus.tokenizer), told["steps"])
        trainer.begin()
        trainer.run()
