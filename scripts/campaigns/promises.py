"""Try what the README promises, and print the table of it: promise, cases, survived, command.

    python scripts/campaigns/promises.py            # runs the tests behind each promise: some minutes
    python scripts/campaigns/promises.py --count    # counts the cases alone

A case is one input, one command line or one moment; where a test goes through many of them, they are counted here by what the
test goes through. The long campaigns print their own figures: crash_campaign.py and fuzz_checkpoint.py.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import corpora  # noqa: E402  # the checkout may not be installed
from tests.cli import test_mistakes  # noqa: E402  # as above
from tests.config import test_run_config  # noqa: E402  # the checkout may not be installed
from tests.storage import test_header  # noqa: E402  # the checkout may not be installed

PROMISES: list[tuple[str, str, Callable[[int], int]]] = [
    ("Every write can fail", "tests/storage/test_atomic.py tests/cli/test_train.py -k 'failing or kill or power or bad_disk'",
     lambda n: n),
    ("Damage is seen: flipped bits, every truncation", "tests/storage/test_checkpoint.py -k seen",
     lambda n: n),
    ("Hostile files run nothing and eat nothing", "tests/storage/test_header.py", lambda _: len(test_header.HOSTILE)),
    ("Any text", "tests/data/test_corpus.py tests/data/test_sources.py tests/cli/test_any_text.py",
     lambda _: len(corpora.ACCEPTED) + len(corpora.REFUSED)),
    ("Any config", "tests/config/test_run_config.py", lambda _: len(test_run_config.HOSTILE)),
    ("A mistake gets help", "tests/cli/test_mistakes.py", lambda _: len(test_mistakes.rows())),
    ("Clean pipes", "tests/cli/test_pipes.py",
     lambda n: n),
    ("From every step the same end", "tests/training/test_resume.py -k 'two_hundred or far'", lambda _: 199 + 3),
    ("Other conditions are said or refused", "tests/cli/test_conditions.py",
     lambda n: n),
    ("What is not finite is seen", "tests/training/test_trainer.py tests/training/test_resume.py "
     "-k 'stepped or diverged or huge or finite'",
     lambda n: n - 1 + 30),
    ("Two at once, read while written", "tests/storage/test_run_dir.py tests/test_survival.py -k 'lock or wins or thousand'",
     lambda n: n),
    ("Tight places, other systems", "tests/test_survival.py -k 'not signals and not full and not killed and not loads'",
     lambda n: n),
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
    parser.add_argument("--count", action="store_true", help="count the cases, run nothing")
    given = parser.parse_args()
    broken = 0
    print("| promise | cases | survived | command |\n|---|---|---|---|")
    for promise, tests, cases in PROMISES:
        number, whole = tried(tests, given.count)
        broken += not whole
        survived = "not tried" if given.count else "all" if whole else "not all"
        print(f"| {promise} | {cases(number):,} | {survived} | `pytest {tests}` |", flush=True)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
