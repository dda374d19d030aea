"""Kill a training process at random moments, resume it to the end, and compare its bits with an uninterrupted run.

    python scripts/crash_campaign.py --kills 300 --seed 1

Half of the kills come after a random time, half at a random call on the way to the disk; some runs are killed several
times before they may end. The processes are forked from this one, which has torch already, so that no time goes by in which
nothing can be lost; each tenth one is started from nothing instead, and may be killed while it imports. Ends with exit 1
if any run ended with other tensors, metrics or samples.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

from tests import test_end_to_end as processes  # noqa: E402  # the checkout may not be installed
from tests.cli.test_train import digest  # noqa: E402  # as above


def fresh(out: str, *flags: str) -> int:
    """Start a process from nothing; return its number."""
    command = [sys.executable, "-m", "lstmlm", "train", "text.txt", *processes.FLAGS, "--out", out, "-q", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid


def killed(pid: int, after: float) -> str:
    """Kill a process after some seconds; say whether it was still there."""
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return "at a random moment" if processes.ended(pid) == -signal.SIGKILL else "too late"


def kill_once(rng: random.Random, out: str, index: int, seconds: float, started: float) -> str:
    """Let a run go on and be killed; say how."""
    way = ["--resume" if Path(out, "config.yaml").exists() else "--overwrite"]
    if index % 10 == 9:
        return killed(fresh(out, *way), rng.random() * started).replace("at a", "of a new process at a")
    if index % 2:
        return killed(processes.train(*processes.FLAGS, "--out", out, *way), rng.random() * seconds)
    before: Callable[[], None] = processes.die_at(rng.randint(1, 140))
    pid = processes.train(*processes.FLAGS, "--out", out, *way, before=before)
    return "at a call on the way to the disk" if processes.ended(pid) == -signal.SIGKILL else "too late"


def main() -> int:
    """Run the campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.update({"LSTMLM_CACHE": f"{folder}/cache", "LSTMLM_KERNEL": "eager"})
        Path("text.txt").write_text(processes.TEXT, encoding="utf-8")
        Path("warm").mkdir()
        processes.warm(Path("warm"))
        began = time.monotonic()
        assert processes.resume("whole") == 0
        seconds = time.monotonic() - began
        expected = digest(Path("whole"))
        began = time.monotonic()
        assert processes.ended(fresh("first")) == 0
        started = time.monotonic() - began
        assert digest(Path("first")) == expected
        how: Counter[str] = Counter()
        wrong: list[str] = []
        runs = 0
        while (done := sum(how.values()) - how["too late"]) < given.kills:
            out = f"run{runs}"
            runs += 1
            for _ in range(min(rng.choice((1, 1, 2, 3, 5)), given.kills - done)):
                how[kill_once(rng, out, sum(how.values()), seconds, started)] += 1
            code = processes.resume(out)
            if code != 0 or digest(Path(out)) != expected:
                wrong.append(f"{out} (exit {code})")
        for name, count in sorted(how.items()):
            print(f"{count:5}  killed {name}")
        print(f"{runs - len(wrong)} of {runs} runs ended with the bits of the uninterrupted one: {', '.join(wrong) or 'all'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
