"""Bring the generated parts of README.md up to date: the list of rooms and the table of settings."""

import argparse
import ast
import sys
from pathlib import Path

from lstmlm import config

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RIVER = (
    *("errors.py", "units.py", "memory.py", "settings.py", "settings_yaml.py", "schema.py", "config.py", "tokenizer.py"),
    *("sources.py", "digest.py", "decoding.py", "ids.py", "cache.py", "packing.py", "corpus.py", "streams.py", "cell.py"),
    *("dropout.py", "kernels/pointwise.py", "kernels/eager.py", "kernels/build.py", "kernels/native.py", "kernels/generate.py"),
    *("graph.py", "lstm.py", "model.py", "ensemble.py", "wavefront.py", "backprop.py", "optim.py", "step.py", "members.py"),
    *("evaluate.py", "sampler.py", "dynamic.py", "baselines.py", "gates.py", "gate_pictures.py", "gate_page.py", "marks.py"),
    *("features.py", "reach.py", "ragged.py", "fill.py", "lines.py", "recipe.py", "disk.py"),
    *("header.py", "checkpoint.py", "runs.py", "times.py", "progress.py", "distributed.py", "trainer.py", "devices.py", "api.py"),
    *("console.py", "live.py", "board.py", "drawings.py", "pictures.py"),
)


def rooms() -> str:
    """Return one line for each module, in the order of the river, and what is new at the end."""
    package = ROOT / "lstmlm"
    names = [p.relative_to(package).as_posix() for p in sorted(package.rglob("*.py")) if not p.name.startswith("__")]
    names.sort(key=lambda name: (RIVER.index(name) if name in RIVER else len(RIVER), name))
    lines = ["| room | one line |", "|---|---|"]
    for name in names:
        text = ast.get_docstring(ast.parse((package / name).read_text(encoding="utf-8"))) or ""
        lines.append(f"| `{name}` | {' '.join(text.split(chr(10) * 2)[0].split()).rstrip('.')} |".replace("|C", "C"))
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return the README with its generated parts made anew."""
    for mark, part in (("rooms", rooms()), ("settings", config.key_table().strip())):
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise SystemExit(f"README.md: expected a part between `<!-- {mark} -->` and `<!-- end -->`, found none")
        text = before + begin + part + end + after
    return text


def main() -> None:
    """Write the README, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if check:
        sys.exit(0 if old == new else "README.md is out of date: run python scripts/readme.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
