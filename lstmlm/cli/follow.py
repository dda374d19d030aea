"""The door of `lstmlm train` for a process that does not lead: it computes, and says nothing.

What to do it is told; only an error that the leader cannot know of, such as a text that this machine does not have, it shows
itself.
"""

import json
import socket
from pathlib import Path

from lstmlm import config as settings
from lstmlm.cli import STARTED, signals
from lstmlm.cli.corpora import open_named
from lstmlm.console import Console
from lstmlm.distributed import PeerLostError, Team
from lstmlm.errors import Diverged, Stopped, TextError, UsageError, printable


def run(names: list[str], val: str | None, team: Team) -> None:
    """Train along with the leader.

    Args:
        names: The texts, as the command line names them; each machine has its own copy, or a shared one.
        val: The validation text.
        team: The processes.

    Raises:
        SystemExit: With the exit code of what went wrong, of which the leader has spoken.
        TextError: With what the leader does not know.
    """
    try:
        _run(names, val, team)
    except (PeerLostError, Stopped, Diverged, UsageError) as error:
        raise SystemExit(error.exit_code) from None
    except TextError as error:
        raise TextError(f"rank {team.rank} on {printable(socket.gethostname())}: {error}") from None


def _run(names: list[str], val: str | None, team: Team) -> None:
    begun = json.loads(team.tell())
    if begun is None:  # the leader only shows something
        return
    config = settings.from_dict(begun["config"], "rank 0")
    with team.one_first():
        corpus = open_named(names, config, val=val, symbols=begun["symbols"])
    told = json.loads(team.tell())
    config = settings.from_dict(told["config"], "rank 0")
    if corpus.fingerprint != told["corpus"]:
        raise TextError(
            f"corpus {printable(' '.join(names))}: expected the text that rank 0 reads ({told['corpus'][:12]}), found "
            f"another one ({corpus.fingerprint[:12]}). Copy it to this machine."
        )

    import torch

    from lstmlm import devices, kernels, memory
    from lstmlm.cli.train import threads, weights_of
    from lstmlm.progress import Clock
    from lstmlm.trainer import Trainer

    memory.keep()
    torch.set_num_threads(threads(config, team))
    device = devices.choose(told["device"], None, team.local_rank, team.local_size)
    kernel, _ = kernels.choose(config.train.kernel, config.train.precision, device.type)
    with signals.caught(Console(quiet=True)) as caught:
        trainer = Trainer(config, corpus, kernel, Path(), {}, lambda record: None, Clock(STARTED), caught, team, device)
        first = team.share(None) if told["starts"] else None
        if first and told["resumes"]:
            trainer.restore(first)
        elif first:
            trainer.load_model(weights_of(first))
        trainer.begin()
        trainer.run()
