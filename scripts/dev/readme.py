"""Bring the generated tables of the READMEs up to date: settings, presets, a line for each script, and the runs of *Quality*."""

import argparse
import ast
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from lstmlm.config import run_config
from lstmlm.units import counted

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", *(f"{folder}/README.md" for folder in ("lstmlm", "configs", "data", "scripts", "tests")))


def first_sentence(path: Path) -> str:
    """Return the first sentence of a script's docstring, or of the comment that a shell script or a preset begins with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    else:
        lines = [line for line in text.splitlines() if not line.startswith("#!")]
        said = " ".join(line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return " ".join(said.split()).partition(". ")[0].rstrip(".")


def presets() -> str:
    """Return a table of the presets."""
    rows = [f"| `{name}` | {first_sentence(ROOT / 'configs' / f'{name}.yaml')} |" for name in run_config.presets()]
    return "\n".join(["| preset | what it is for |", "|---|---|", *rows])


def scripts() -> str:
    """Return a table of the scripts, folder by folder."""
    folder = ROOT / "scripts"
    found = [path for path in folder.rglob("*") if path.suffix in (".py", ".sh")]
    names = sorted((path.relative_to(folder).as_posix() for path in found), key=lambda name: (name.count("/"), name))
    rows = [f"| `scripts/{name}` | {first_sentence(folder / name)} |" for name in names]
    return "\n".join(["| script | what it does |", "|---|---|", *rows])


def quality() -> str:
    """Return a table of the runs that `experiment.py quality` has recorded, and of the mean where there are several."""
    record = ROOT / "scripts" / "experiments" / "results" / "quality.jsonl"
    runs = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    scores = "warm", "cold256", "cold64"
    rows = ["| asked for | seed | wall time | steps | parameters | " + " | ".join(scores) + " |", "|" + "---|" * 8]
    for asked, group in itertools.groupby(runs, key=lambda run: (run["label"], run["minutes"], run["also"])):
        mine = list(group)
        name = ", ".join([asked[0], counted(asked[1], "minute"), *([f"`{' '.join(asked[2])}`"] if asked[2] else [])])
        for run in mine:
            facts = f"{run['seconds']:,.1f} s", f"{run['steps']:,}", f"{run['parameters']:,}"
            found = (f"{run[score]:.4f}" for score in scores)
            rows.append(f"| {name if run is mine[0] else ''} | " + " | ".join([str(run["seed"]), *facts, *found]) + " |")
        if len(mine) > 1:
            means = (f"{statistics.fmean(run[score] for run in mine):.4f}" for score in scores)
            rows.append("| mean | | | | | " + " | ".join(means) + " |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": run_config.key_table,
    "presets": presets,
    "scripts": scripts,
    "quality": quality,
}


def updated(text: str) -> str:
    """Return a README with its generated tables made anew.

    Raises:
        SystemExit: A table begins and has no end.
    """
    for name, table in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        if not begin:
            continue
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise SystemExit(f"README: expected `<!-- end -->` after `<!-- {name} -->`, found none. Add it where the table ends.")
        text = before + begin + table().strip() + end + after
    return text


def main() -> None:
    """Write the READMEs, or with --check say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is out of date")
    check = parser.parse_args().check
    stale = []
    for name in DOCUMENTS:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = updated(old)
        if old != new:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: out of date. Run python scripts/dev/readme.py")


if __name__ == "__main__":
    main()
