"""Kill a training process at random moments, resume it to the end, and compare its bits with an uninterrupted run.

    python scripts/campaigns/crash_campaign.py --kills 300 --seed 1
    python scripts/campaigns/crash_campaign.py --kills 300 --seed 2 --kernel native --members 2
    python scripts/campaigns/crash_campaign.py --signals 200

A third of the runs are new ones, a third are begun with --overwrite over an older one, and a third with --from. Where nothing of
a run was committed, its command is given again; until something is, the older one can be read. Half of the kills come after a
random time, half at a random call on the way to the disk; some runs are killed several times before they may end. The processes
are forked from this one, which has torch already, so that no time goes by in which nothing can be lost; each tenth one is started
from nothing instead, and may be killed while it imports. With the native kernel each tenth one also finds an empty cache and may
be killed while its kernel is compiled; what goes on after it is started from nothing with what is left in that cache. --signals
sends INT, TERM and HUP instead, every third time a second one. Ends with exit 1 if any run ended with other tensors, metrics or
samples, or if an older one was lost.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

from lstmlm.errors import CheckpointError  # noqa: E402  # the checkout may not be installed
from lstmlm.storage import aside, run_dir  # noqa: E402  # as above
from tests import test_end_to_end as processes  # noqa: E402  # as above
from tests.cli.test_train import digest  # noqa: E402  # as above

BEGINNINGS: dict[str, list[str]] = {"new": [], "overwrite": ["--overwrite"], "from": ["--from", "parent"]}
OLDER = ["--hidden", "5", "--seed", "2"]  # unlike the run that takes its place


def fresh(out: str, *flags: str, cache: str = "cache") -> int:
    """Start a process from nothing; return its number."""
    command = [sys.executable, "-m", "lstmlm", "train", "text.txt", "--out", out, "-q", *flags]
    environment = {**os.environ, "LSTMLM_CACHE": os.path.abspath(cache)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment).pid


def way_on(out: str, beginning: str) -> list[str]:
    """Return the flag with which a run goes on, or those that begin it again where nothing of it was committed.

    Raises:
        CheckpointError: An older run can no longer be read, and no new one was committed.
    """
    folder = Path(out)
    if beginning == "overwrite":
        older = run_dir.load(folder, "last")[1].meta["config"]["model"]["hidden"] == 5
        set_aside = any((folder / name).exists() for name in (aside.ASIDE, aside.MOVING))
        return ["--overwrite"] if older or set_aside else ["--resume"]
    committed = folder / ("last.safetensors" if beginning == "from" else "config.yaml")
    return ["--resume"] if committed.exists() else [*BEGINNINGS[beginning], "--overwrite"]


def killed(pid: int, after: float) -> str:
    """Kill a process after some seconds; say whether it was still there."""
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return "at a random moment" if processes.ended(pid) == -signal.SIGKILL else "too late"


def cold(out: str) -> str:
    """Return the cache of a run whose kernel has still to be compiled."""
    return f"{out}-cache"


def kill_once(
    rng: random.Random, out: str, flags: list[str], index: int, seconds: float, started: float, compiling: float
) -> str:
    """Let a run go on and be killed; say how.

    Args:
        rng: Where the moments come from.
        out: The run folder.
        flags: Of `train`.
        index: How many were killed before.
        seconds: What a forked process takes for the whole run.
        started: What a new process takes for it.
        compiling: What a new process takes more where its cache is empty.
    """
    if index % 10 == 9:
        return killed(fresh(out, *flags), rng.random() * started).replace("at a", "of a new process at a")
    if index % 10 == 5 and os.environ["LSTMLM_KERNEL"] == "native":
        shutil.rmtree(cold(out), ignore_errors=True)
        pid = fresh(out, *flags, cache=cold(out))
        deadline = time.monotonic() + 60
        while not any(Path(cold(out)).glob(".native-*")) and time.monotonic() < deadline:
            time.sleep(0.01)  # until the compiler runs
        return killed(pid, rng.random() * compiling).replace("at a random moment", "while the kernel was compiled, or just after")
    if index % 2:
        return killed(processes.train(*flags, "--out", out), rng.random() * seconds)
    before: Callable[[], None] = processes.die_at(rng.randint(1, rng.choice((30, 140))))  # many early: there a run is begun
    pid = processes.train(*flags, "--out", out, before=before)
    return "at a call on the way to the disk" if processes.ended(pid) == -signal.SIGKILL else "too late"


def main() -> int:
    """Run the campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--signals", type=int, default=0, help="send so many signals instead")
    parser.add_argument("--kernel", choices=("eager", "native"), default="eager")
    parser.add_argument("--members", type=int, default=1, help="networks in each run")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    flags = processes.FLAGS
    flags += ["--members", str(given.members)]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.update({"LSTMLM_CACHE": f"{folder}/cache", "LSTMLM_KERNEL": given.kernel})
        Path("text.txt").write_text(processes.TEXT, encoding="utf-8")
        Path("warm").mkdir()
        processes.warm(Path("warm"))
        began = time.monotonic()
        assert processes.ended(processes.train(*flags, "--out", "whole")) == 0
        seconds = time.monotonic() - began
        expected = digest(Path("whole"))
        if given.signals:
            odd = processes.signalled(rng, given.signals, expected, within=2.0)
            print(*odd, f"{given.signals - len(odd)} of {given.signals} signals: right exit code in 2 s, same bits", sep="\n")
            return 1 if odd else 0
        began = time.monotonic()
        assert processes.ended(fresh("first", *flags)) == 0
        started = time.monotonic() - began
        assert digest(Path("first")) == expected
        began = time.monotonic()
        assert processes.ended(fresh("cold", *flags, cache="empty")) == 0
        compiling = max(0.1, time.monotonic() - began - started)
        assert digest(Path("cold")) == expected
        assert processes.ended(processes.train(*flags, *OLDER, "--out", "older")) == 0
        assert processes.ended(processes.train(*flags, "--seed", "3", "--out", "parent")) == 0
        assert processes.ended(processes.train(*flags, *BEGINNINGS["from"], "--out", "tuned")) == 0
        tuned = digest(Path("tuned"))
        how: Counter[str] = Counter()
        wrong: list[str] = []
        runs = 0
        while (done := sum(how.values()) - how["too late"]) < given.kills:
            beginning = list(BEGINNINGS)[runs % len(BEGINNINGS)]
            out = f"{beginning}{runs}"
            runs += 1
            if beginning == "overwrite":
                shutil.copytree("older", out)
            try:
                for _ in range(min(rng.choice((1, 1, 2, 3, 5)), given.kills - done)):
                    way = [*flags, *way_on(out, beginning)]
                    how[kill_once(rng, out, way, sum(how.values()), seconds, started, compiling)] += 1
                way = [*flags, *way_on(out, beginning)]
                new = Path(cold(out)).exists()  # a new process, with what is left of a kernel
                code = processes.ended(fresh(out, *way, cache=cold(out)) if new else processes.train(*way, "--out", out))
                if code != 0 or digest(Path(out)) != (tuned if beginning == "from" else expected):
                    wrong.append(f"{out} (exit {code})")
            except CheckpointError as error:
                wrong.append(f"{out} ({error})")
        for name, count in sorted(how.items()):
            print(f"{count:5}  killed {name}")
        print(f"{runs - len(wrong)} of {runs} runs ended with the bits of the uninterrupted one: {', '.join(wrong) or 'all'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
