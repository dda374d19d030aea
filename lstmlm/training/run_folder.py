"""The files of a run's folder by name, and what can be told of a run and its folder before a text is read."""

import contextlib
import os
import re
from itertools import count
from pathlib import Path

from lstmlm.errors import CheckpointError, printable
from lstmlm.storage import aside, atomic, checkpoint
from lstmlm.training import distributed

JOB = ".job"
"""Which torchrun job a run is of: started again by its agent, the same command goes on with it."""

TEACHER = "teacher.safetensors"
"""The model that --distill names, as it was when the run began: the run goes on with it, whatever becomes of the other one."""

JOURNALS = ("metrics.jsonl", "samples.txt", "clock.jsonl")
RUN = ("config.yaml", "best.safetensors", "last.safetensors")
"""Of which one at least lies in the folder of a run that has begun."""

OURS = (JOB, TEACHER, *RUN, *JOURNALS)
TENSORBOARD = "tensorboard"
SEVERAL = ("step-*.safetensors", f"{TENSORBOARD}/events.out.tfevents.*")
"""Files of a run, which a new one takes the place of with --overwrite; see `replaced`."""


def replaced(folder: Path) -> list[str]:
    """Return the names of the files in a run folder that --overwrite replaces: the run's, and TensorBoard's events of it."""
    return [*OURS, *(str(path.relative_to(folder)) for names in SEVERAL for path in sorted(folder.glob(names)))]


def started_again(folder: Path) -> bool:
    """Say whether torchrun has started the command again, and the run in the folder is of the same job: it is to be resumed."""
    begun = any((folder / name).exists() for name in ("last.safetensors", "config.yaml"))
    with contextlib.suppress(OSError, ValueError):
        job = distributed.job()
        return begun and job is not None and atomic.read_regular(folder / JOB, 1000).decode() == job
    return False


def lasting(name: str) -> str:
    """Return what a later command, started elsewhere, finds a text by: its path, or its name if it comes along or is stdin."""
    return os.path.abspath(name) if name != "-" and os.path.exists(name) else name


def is_same(was: str, name: str) -> bool:
    """Say whether a file is that of a run: where it lay, or moved or copied from there, by its name and size."""
    with contextlib.suppress(OSError, ValueError):  # a checkpoint may be a stranger's, and name what cannot be a name
        if os.path.realpath(was) == os.path.realpath(name):
            return True
        if os.path.basename(was) == os.path.basename(name):
            return not os.path.exists(was) or os.path.getsize(was) == os.path.getsize(name)
    return False


def run_of(folder: Path) -> str:
    """Say of which text the run in a folder is, where that can be told."""
    for kind in ("last", "best"):
        with contextlib.suppress(CheckpointError):
            corpus = checkpoint.read_header(aside.once_put_back(folder, f"{kind}.safetensors")).meta["corpus"]
            sources = corpus.get("sources")
            text = sources[0] if isinstance(sources, list) and sources else corpus.get("name")
            return f"the run of {printable(str(text)[:200])}"
    return ""


def free_name(folder: Path) -> Path:
    """Return a name beside a folder's that is not taken: with the next number."""
    name = re.sub(r"-\d{1,6}$", "", folder.resolve().name) or "run"
    return next(path for number in count(2) if not (path := folder.parent / f"{name}-{number}").exists())


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0: there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
