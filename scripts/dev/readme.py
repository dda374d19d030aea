"""Bring the generated part of README.md up to date: the table of settings."""

import argparse
import sys
from pathlib import Path

from lstmlm.config import run_config

README = Path(__file__).resolve().parents[2] / "README.md"


def updated(text: str) -> str:
    """Return the README with its generated part made anew."""
    before, begin, rest = text.partition("<!-- settings -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    if not end:
        raise SystemExit("README.md: expected a part between `<!-- settings -->` and `<!-- end -->`, found none")
    return before + begin + run_config.key_table().strip() + end + after


def main() -> None:
    """Write the README, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if check:
        sys.exit(0 if old == new else "README.md is out of date: run python scripts/dev/readme.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
