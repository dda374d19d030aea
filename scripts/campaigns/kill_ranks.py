"""Kill a random rank of a torchrun job again and again, and compare the end with that of one process that nobody disturbed.

    python scripts/campaigns/kill_ranks.py --kills 20 --seed 1

torchrun's agent starts all ranks again after each kill (--max-restarts); the same command finds its job in the run folder and
goes on from the last checkpoint. Kills come at random moments, while processes start, read and train. Ends with exit 1 if
tensors, metrics or samples differ.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})

from tests.cli.test_train import digest  # noqa: E402  # the checkout may not be installed

FLAGS = [
    "--steps", "6000", "--hidden", "24", "--layers", "2", "--dropout", "0.2", "--batch", "4", "--window", "16", "--threads", "1",
    "--set", "train.eval_every=2000", "--set", "train.save_every=50", "-q",
]  # fmt: skip


def children(agent: int) -> list[int]:
    """Return the processes that an agent has started and that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:  # gone meanwhile
            continue
        if fields and fields[1] == str(agent) and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def disturbed(command: list[str], kills: int, ranks: int, rng: random.Random) -> tuple[int, int, float]:
    """Run a job and kill ranks of it; return its exit code, the kills, and the seconds it took."""
    began = time.monotonic()
    with open("torchrun.log", "w") as log:
        agent = subprocess.Popen(command, stdout=log, stderr=log)
        done = 0
        while agent.poll() is None and done < kills:
            time.sleep(rng.uniform(0.5, 8.0))
            here = children(agent.pid)
            if len(here) == ranks:  # otherwise the agent is just ending or starting them
                os.kill(rng.choice(here), signal.SIGKILL)
                done += 1
        return agent.wait(), done, time.monotonic() - began


def main() -> int:
    """Kill, compare and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LSTMLM_CACHE"] = f"{folder}/cache"
        Path("text.txt").write_bytes((ROOT / "data/stories.txt").read_bytes()[:60_000])
        train = ["-m", "lstmlm", "train", "text.txt", *FLAGS, "--set", f"train.accumulate={given.ranks}"]
        if code := subprocess.run([sys.executable, *train, "--out", "whole"]).returncode:
            return code
        agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(given.ranks), "--max-restarts", "1000"]
        code, done, seconds = disturbed([*agent, *train, "--out", "run"], given.kills, given.ranks, random.Random(given.seed))
        same = code == 0 and digest(Path("run")) == digest(Path("whole"))
        bits = "the same bits" if same else "OTHER BITS"
        print(f"{done} kills of one of {given.ranks} ranks in {seconds:.0f} s, exit {code}: {bits}")
        if not same:
            print(Path("torchrun.log").read_text()[-4000:])
        if done < given.kills:
            print(f"expected {given.kills} kills, found {done}: the run was over. Give it more steps.")
    return 0 if same and done == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
