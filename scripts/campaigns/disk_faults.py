"""Let calls on the way to the disk fail in real processes, and start many at once: no run may be lost, none differ in a bit.

    python scripts/campaigns/disk_faults.py --cases 40 --seed 1
    python scripts/campaigns/disk_faults.py --races 2 20

A library is preloaded into `lstmlm train` as a user would start it. At the n-th open, write, fsync, truncate, rename, unlink,
mkdir or close below the run folder it kills the process, sends TERM, cuts a write short, or refuses the call, once or from then
on. It does so to a new run, one begun with --overwrite over another, one begun with --from, one with two members, and one that is
resumed. Afterwards a model can be read wherever one could before, and going on ends in the bits of a run that nobody disturbed:
the new one, or the old one where the new one was not committed. --races begins so many trainings at the same moment in a folder
that does not exist: one runs, the others are refused. Ends with exit 1 if any of this did not hold. Linux with a C compiler.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lstmlm.errors import CheckpointError  # noqa: E402  # the checkout may not be installed
from lstmlm.storage import aside, checkpoint, run_dir  # noqa: E402  # as above
from tests.cli.conftest import TEXT  # noqa: E402  # as above
from tests.cli.test_train import digest  # noqa: E402  # as above

FLAGS = [
    "--steps", "24", "--layers", "2", "--batch", "4", "--window", "12", "-q",
    "--set", "train.save_every=6", "--set", "train.eval_every=8",
]  # fmt: skip
OLD, NEW = ["--hidden", "5", *FLAGS], ["--hidden", "9", *FLAGS]
SCENARIOS = {
    "new": NEW,
    "overwrite": [*NEW, "--overwrite"],
    "from": [*FLAGS, "--from", "parent"],
    "members": [*NEW, "--members", "2"],
    "resume": ["--resume", "-q"],
}
ACTIONS = ("kill", "term", "cut", "refuse", "broken")
CODES = {"kill": {-9}, "term": {0, 143, -15}, "cut": {0}, "refuse": {0, 5}, "broken": {0, 5}}


def train(folder: Path, flags: list[str], **shim: str) -> tuple[int, str]:
    """Train in a real process; return its exit code and what it said."""
    command = [sys.executable, "-m", "lstmlm", "train", "text.txt", "--out", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **shim}, timeout=600)
    return done.returncode, done.stderr


def laid(scenario: str, folder: Path) -> None:
    """Lay out what a scenario begins with."""
    shutil.rmtree(folder, ignore_errors=True)
    if scenario in ("overwrite", "resume"):
        shutil.copytree("old" if scenario == "overwrite" else "half", folder)


def strike(library: Path, scenario: str, action: str, at: int, whole: dict[str, dict[str, str]]) -> str:
    """Disturb one run and go on with it; return what was wrong, or nothing."""
    folder = Path("run").resolve()
    laid(scenario, folder)
    shim = {"LD_PRELOAD": str(library), "SHIM_FOLDER": str(folder), "SHIM_AT": str(at), "SHIM_ACTION": action}
    code, said = train(folder, SCENARIOS[scenario], **shim)
    if "Traceback" in said or code not in CODES[action] | {0}:
        return f"exit {code}: {said[-300:]}"
    if scenario in ("overwrite", "resume"):
        try:
            run_dir.load(folder, "last")
        except CheckpointError as error:
            return f"no model to read: {error}"
    expected, flags = whole[scenario], ["--resume", "-q"]
    if any((folder / name).exists() for name in (aside.ASIDE, aside.MOVING)):
        expected = whole["old"]
    elif (folder / "last.safetensors").exists():
        if scenario == "overwrite" and checkpoint.read(folder / "last.safetensors").meta["config"]["model"]["hidden"] == 5:
            expected = whole["old"]
    elif not (folder / "config.yaml").exists():  # nothing of it was committed
        flags = [*SCENARIOS[scenario], *(["--overwrite"] if folder.exists() and scenario != "overwrite" else [])]
    code, said = train(folder, flags)
    if code:
        return f"going on with {' '.join(flags)}: exit {code}: {said[-300:]}"
    if digest(folder) != expected:
        return "other bits"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != run_dir.LOCK]
    return f"left behind: {left}" if left or not (folder / "config.yaml").exists() else ""


def race(count: int, expected: dict[str, str]) -> str:
    """Begin several trainings at once in a new folder; return what was wrong, or nothing."""
    folder = Path("race")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "lstmlm", "train", "text.txt", "--out", str(folder), *NEW]
    together = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(count)]
    codes = Counter(process.wait() for process in together)
    if codes[0] != 1 or codes[0] + codes[2] + codes[5] != count:
        return f"exit codes {dict(codes)}"
    return "" if digest(folder) == expected else "other bits"


def prepare(library: Path) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Compile the library and make the undisturbed runs; return their digests, and how many calls each scenario makes."""
    source = Path(__file__).with_name("disk_shim.c")
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    for name, flags in (("old", OLD), ("parent", OLD), ("half", NEW)):
        stop = {"LD_PRELOAD": str(library), "SHIM_FOLDER": str(Path("half").resolve()), "SHIM_AT": "250", "SHIM_ACTION": "kill"}
        code, said = train(Path(name).resolve(), flags, **(stop if name == "half" else {}))
        assert code == (-9 if name == "half" else 0), said
    whole, calls = {"old": digest(Path("old"))}, {}
    folder = Path("run").resolve()
    for scenario, flags in SCENARIOS.items():
        laid(scenario, folder)
        log = Path("calls").resolve()
        code, said = train(folder, flags, LD_PRELOAD=str(library), SHIM_FOLDER=str(folder), SHIM_LOG=str(log))
        assert code == 0, said
        whole[scenario] = digest(folder)
        calls[scenario] = int.from_bytes(log.read_bytes()[:8], sys.byteorder)
        log.unlink()
    return whole, calls


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--races", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    os.environ.update({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LSTMLM_KERNEL": "eager"})
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LSTMLM_CACHE"] = str(Path(folder) / "cache")
        whole, calls = prepare(Path("shim.so").resolve())
        wrong = []
        for case in range(asked.cases):
            scenario, action = list(SCENARIOS)[case % len(SCENARIOS)], rng.choice(ACTIONS)
            # Half of them early: that is where a run is begun.
            at = rng.randint(1, calls[scenario] if rng.random() < 0.5 else min(60, calls[scenario]))
            if found := strike(Path("shim.so").resolve(), scenario, action, at, whole):
                wrong.append(f"{scenario}, {action} at call {at} of {calls[scenario]}: {found}")
                print(wrong[-1], flush=True)
        for count in asked.races:
            if found := race(count, whole["new"]):
                wrong.append(f"{count} at once: {found}")
                print(wrong[-1], flush=True)
        print(f"calls: {calls}\n{asked.cases} disturbed runs and {len(asked.races)} races: {len(wrong)} not as they should be")
        os.chdir(ROOT)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
