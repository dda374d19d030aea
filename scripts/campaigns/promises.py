"""Try all that is promised, tests and campaigns, and print the table of it: promise, cases, survived, command.

    python scripts/campaigns/promises.py --write            # all of it, into tests/README.md: about an hour on two quiet cores
    python scripts/campaigns/promises.py --kills 20         # with fewer kills, faults and forgeries in each campaign
    python scripts/campaigns/promises.py --kills 0          # the tests alone: some minutes
    python scripts/campaigns/promises.py --count            # counts the cases of the tests, runs nothing

A case is one input, one command line or one moment; where a test goes through many of them, they are counted here by what the
test goes through. A campaign says itself what came out, in its last line. Ends with exit 1 if a promise was broken.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import corpora  # noqa: E402  # the checkout may not be installed
from tests.cli import test_mistakes  # noqa: E402  # as above
from tests.config import test_run_config  # noqa: E402  # as above
from tests.storage import test_header  # noqa: E402  # as above

README = ROOT / "tests" / "README.md"
BEGIN, END = "<!-- promises -->\n", "<!-- end -->"

PROMISES: list[tuple[str, str, Callable[[int], str]]] = [
    ("Every write can fail: each call refused, killed or cut short, and syncs lost",
     "tests/storage/test_atomic.py tests/storage/test_aside.py tests/storage/test_journal.py tests/cli/test_train.py "
     "-k 'failing or kill or power or bad_disk'",
     lambda n: f"{n} tests, each for all calls"),
    ("Damage is seen: flipped bits, every truncation", "tests/storage/test_checkpoint.py -k seen",
     lambda n: f"{n} tests, each for all places"),
    ("From every step the same end", "tests/training/test_resume.py -k 'two_hundred or far'", lambda _: str(199 + 3)),
    ("Other conditions are said, or refused", "tests/cli/test_conditions.py", str),
    ("Hostile checkpoints run nothing and take no memory", "tests/storage/test_header.py",
     lambda _: str(len(test_header.HOSTILE))),
    ("Any text, or the offset and the way out",
     "tests/data/test_corpus.py tests/data/test_sources.py tests/cli/test_any_text.py",
     lambda _: f"{len(corpora.ACCEPTED) + len(corpora.REFUSED)}, the small ones through train, resume, eval and sample"),
    ("Any config: refused with key, line and range", "tests/config/test_run_config.py",
     lambda _: f"{len(test_run_config.HOSTILE):,}"),
    ("A mistake gets help, and the fix that is offered works", "tests/cli/test_mistakes.py",
     lambda _: str(len(test_mistakes.rows()))),
    ("Clean pipes", "tests/cli/test_pipes.py", str),
    ("NaN and infinity are seen and stepped back from", "tests/training/test_trainer.py tests/training/test_resume.py "
     "-k 'stepped or diverged or huge or finite'",
     lambda n: str(n - 1 + 30)),
    ("Two at once; read while written (1,000 loads)",
     "tests/storage/test_run_dir.py tests/test_survival.py -k 'lock or wins or thousand'", str),
    ("Tight places, other systems", "tests/test_survival.py -k 'not signals and not full and not killed and not loads'", str),
]  # fmt: skip


def campaigns(kills: int) -> list[tuple[str, str, str]]:
    """Return the campaigns at a size: promise, cases, and command below this folder."""
    if not kills:
        return []
    crash, some = "crash_campaign.py --kills", "" if kills >= 100 else " --jobs new --lone joining"
    return [
        ("kill -9 changes no bit, nor loses an older run", f"{kills} kills", f"{crash} {kills} --seed 1"),
        ("The same, native kernel", f"{kills} kills", f"{crash} {kills} --seed 2 --kernel native"),
        ("The same with two members", f"{kills} kills", f"{crash} {kills} --seed 3 --kernel native --members 2"),
        ("INT, TERM, HUP", f"{kills * 2 // 3} signals", f"crash_campaign.py --signals {kills * 2 // 3}"),
        ("Calls of a real process on the way to the disk fail; starts race", f"{kills // 3} calls, races of 2, 2 and 20",
         f"disk_faults.py --cases {kills // 3} --races 2 2 20 --seed 1"),
        ("Ranks of torchrun die in every phase", "two ranks", f"kill_ranks.py --seed 1{some}"),
        ("The same with four", "four ranks", "kill_ranks.py --ranks 4 --jobs new --lone joining reading saving --seed 2"),
        ("Whatever is read is used rightly or refused", f"{kills * 2} s", f"fuzz.py --seconds {kills * 2} --seed 1"),
    ]  # fmt: skip


def tried(tests: str, count: bool) -> tuple[int, bool]:
    """Run or only collect the tests of a promise; return how many there are, and whether all of those that ran passed."""
    command = [sys.executable, "-m", "pytest", "--tb=no", "-o", "addopts=--import-mode=importlib", *shlex.split(tests)]
    done = subprocess.run(
        [*command, *(["--collect-only"] if count else [])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    numbers = re.findall(r"(\d+)(?:/\d+)? (?:passed|tests collected|test collected)", done.stdout)
    return int(numbers[-1]) if numbers else 0, done.returncode == 0


def main() -> int:
    """Print the table; 1 if any promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="how many in each campaign")
    parser.add_argument("--count", action="store_true", help="count the cases of the tests, run nothing")
    parser.add_argument("--write", action="store_true", help="put the table into tests/README.md")
    given = parser.parse_args()
    rows, broken, began = [], 0, time.monotonic()

    def row(promise: str, cases: str, survived: str, command: str) -> None:
        rows.append(f"| {promise} | {cases} | {survived} | `{command}` |")
        print(rows[-1], flush=True)

    print("| promise | cases | survived | command |\n|---|---|---|---|")
    for promise, tests, cases in PROMISES:
        number, whole = tried(tests, given.count)
        broken += not whole
        row(promise, cases(number), "not tried" if given.count else "all" if whole else "NOT ALL", f"pytest {tests}")
    for promise, many, command in [] if given.count else campaigns(given.kills):
        script, *flags = command.split()
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script)), *flags], capture_output=True, text=True, check=False
        )
        broken += bool(done.returncode)
        said = (done.stdout.strip() or "it said nothing").splitlines()[-1]
        row(promise, many, said if not done.returncode else f"NOT ALL: {said}", f"python scripts/campaigns/{command}")
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, {broken} promises broken", file=sys.stderr)
    if given.write:
        before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        table = "\n".join(["| promise | cases | survived | command |", "|---|---|---|---|", *rows, ""])
        README.write_text(before + begin + table + END + rest.partition(END)[2], encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
