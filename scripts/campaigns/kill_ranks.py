"""Kill ranks of a torchrun job in every phase of it, and compare the end with that of one process that nobody disturbed.

    python scripts/campaigns/kill_ranks.py                 # two ranks: every phase of four jobs, then each phase without restarts
    python scripts/campaigns/kill_ranks.py --ranks 4 --jobs new

torchrun's agent starts all ranks again after each kill (--max-restarts); the same command finds its job in the run folder and
goes on from the last checkpoint. One job is new, one is begun with --overwrite over an older run, one with --from, one has two
members. A rank, drawn each time, dies while it starts, joins, reads, begins, takes a step, validates, saves or ends, and at
random moments. Without restarts the others have to end within a minute, with one message at most, an exit code that is not 0,
and nobody left behind. Ends with exit 1 if anything else came out, or other tensors, metrics or samples.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

FLAGS = [
    "--steps", "400", "--hidden", "24", "--layers", "2", "--dropout", "0.2", "--batch", "4", "--window", "16", "--threads", "1",
    "--set", "train.eval_every=60", "--set", "train.save_every=20", "-q",
]  # fmt: skip
JOBS = {"new": [], "overwrite": ["--overwrite"], "from": ["--from", "parent"], "members": ["--members", "2"]}
PHASES: dict[str, tuple[str, str, int]] = {
    "joining": ("torch.distributed", "init_process_group", 1),
    "reading": ("lstmlm.cli.corpora", "open_named", 1),
    "beginning": ("lstmlm.training.trainer", "Trainer.begin", 1),
    "the first step": ("lstmlm.training.distributed", "Shards.gradient", 1),
    "a later step": ("lstmlm.training.distributed", "Shards.gradient", 30),
    "validating": ("lstmlm.training.trainer", "Trainer._validate", 1),
    "saving": ("lstmlm.training.trainer", "Trainer.save", 2),
    "ending": ("lstmlm.training.trainer", "Trainer._score_best", 1),
}
"""Where a rank dies: module, function, and before which call of it. "starting" is before all, "some moment" at a random one."""

WITHIN = 60.0  # seconds from a death to the end of all


def rank() -> NoReturn:
    """Be a rank: train, and die where the plan says."""
    sys.argv = ["lstmlm", *sys.argv[2:]]
    plan = json.loads(os.environ["KILL_PLAN"])
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if start < len(plan) and plan[start]["rank"] == int(os.environ["RANK"]):
        phase = plan[start]["phase"]
        if phase == "starting":
            die(phase)
        if phase == "some moment":
            threading.Timer(plan[start]["after"], die, [phase]).start()
        else:
            lay_trap(phase)
    from lstmlm.__main__ import main

    main()


def die(phase: str) -> None:
    """Note when and where, and be killed."""
    with Path("deaths").open("a") as log:
        log.write(f"{time.time()} {phase}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def lay_trap(phase: str) -> None:
    """Let this process die before a call of a function."""
    module, path, count = PHASES[phase]
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    honest: Callable[..., Any] = getattr(owner, name)
    left = [count]

    def deadly(*given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            die(phase)
        return honest(*given, **named)

    setattr(owner, name, deadly)
    if name == "open_named":  # has been imported by name
        importlib.import_module("lstmlm.cli.train_worker").__dict__[name] = deadly


def torchrun(ranks: int, restarts: int, plan: list[dict[str, Any]], flags: list[str]) -> tuple[int, list[str], float]:
    """Run a job whose ranks die as planned; return its exit code, the phases of deaths, and the seconds after the last."""
    Path("deaths").write_text("")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    command += [__file__, "--as-rank", "train", "text.txt", *FLAGS, *flags]
    with open("torchrun.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "KILL_PLAN": json.dumps(plan)}).returncode
    deaths = [line.split(" ", 1) for line in Path("deaths").read_text().splitlines()]
    return code, [phase for _, phase in deaths], time.time() - float(deaths[-1][0]) if deaths else 0.0


def left_behind(folder: str) -> list[str]:
    """Return the processes that still work in a folder, other than this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == folder and int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:  # gone meanwhile
            continue
    return found


def lay(job: str, out: str) -> None:
    """Lay out what a job begins with."""
    shutil.rmtree(out, ignore_errors=True)
    if job == "overwrite":
        shutil.copytree("parent", out)


def through_all(job: str, ranks: int, rng: random.Random) -> str:
    """Kill ranks of a job in every phase, started again each time; return what was wrong, or nothing."""
    from tests.cli.test_train import digest

    phases = ["starting", "some moment", "some moment", *PHASES]
    phases.remove("ending")
    rng.shuffle(phases)
    phases.append("ending")  # what is left to do after it is too short for the others
    plan = [{"phase": phase, "rank": rng.randrange(ranks), "after": rng.uniform(0.5, 5.0)} for phase in phases]
    lay(job, "run")
    code, died, _ = torchrun(ranks, len(plan) + 5, plan, [*JOBS[job], "--set", f"train.accumulate={ranks}", "--out", "run"])
    if code or set(phases) - set(died) - {"some moment"}:
        return f"exit {code}, died {died} of {phases}\n" + Path("torchrun.log").read_text()[-3000:]
    if digest(Path("run")) != digest(Path(f"whole-{job}")):
        return f"other bits after {plan}"
    print(f"{job:10} {len(died):3} kills of one of {ranks} ranks: the same bits", flush=True)
    return ""


def without_restarts(phase: str, ranks: int, rng: random.Random) -> str:
    """Kill one rank of a job that is not started again; return what was wrong with the end of the others, or nothing."""
    lay("new", "lone")
    plan = [{"phase": phase, "rank": rng.randrange(ranks), "after": 0.0}]
    code, died, seconds = torchrun(ranks, 0, plan, ["--out", "lone"])
    log = Path("torchrun.log").read_text()
    said = [line for line in log.splitlines() if line.startswith(("error: ", "fault"))]
    orphans = left_behind(os.getcwd())
    if not code or died != [phase] or seconds > WITHIN or len(said) > 1 or orphans:
        return f"{phase}: exit {code}, {seconds:.0f} s, {said}, left behind {orphans}\n{log[-3000:]}"
    print(f"{phase:15} rank {plan[0]['rank']} of {ranks} died: exit {code} in {seconds:.1f} s, {len(said)} message", flush=True)
    return ""


def main() -> int:
    """Kill, compare and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=list(JOBS))
    parser.add_argument("--lone", nargs="*", choices=["starting", *PHASES], default=["starting", *PHASES], metavar="PHASE",
                        help="phases in which one dies and none is started again")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LSTMLM_CACHE"] = f"{folder}/cache"
        Path("text.txt").write_bytes((ROOT / "data/stories.txt").read_bytes()[:60_000])
        alone = [sys.executable, "-m", "lstmlm", "train", "text.txt", *FLAGS, "--set", f"train.accumulate={given.ranks}"]
        subprocess.run([*alone, "--seed", "2", "--out", "parent"], check=True)
        for job in given.jobs:
            lay(job, f"whole-{job}")
            subprocess.run([*alone, *JOBS[job], "--out", f"whole-{job}"], check=True)
            wrong += filter(None, [through_all(job, given.ranks, rng)])
        for phase in given.lone:
            wrong += filter(None, [without_restarts(phase, given.ranks, rng)])
        os.chdir(ROOT)
    print(
        *wrong,
        f"{len(given.jobs)} jobs and {len(given.lone)} deaths without restarts: {len(wrong)} not as they should be",
        sep="\n",
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        rank()
    sys.exit(main())
