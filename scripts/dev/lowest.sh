#!/usr/bin/env bash
# Try the lowest versions that pyproject.toml allows: a scratch environment with each lower bound, and the fast tests in it.
# Usage: [TORCH=VERSION] lowest.sh [pytest's own]; TORCH takes another torch, where the lowest would bring gigabytes for CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
python="$scratch/venv/bin/python"
"$python" - > "$scratch/lowest.txt" << 'END'
import os
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for wanted in project["dependencies"] + project["optional-dependencies"]["dev"]:
    bound = re.match(r"([\w-]+)>=([\d.]+)[^;]*(;.*)?", wanted)
    if bound and bound[1] not in ("ruff", "mypy"):  # they check the source, which is the same
        version = os.environ.get("TORCH", bound[2]) if bound[1] == "torch" else bound[2]
        print(f"{bound[1]}=={version}{bound[3] or ''}")
END
cat "$scratch/lowest.txt" >&2
"$python" -m pip install --quiet --disable-pip-version-check -r "$scratch/lowest.txt"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
"$python" -m pytest -m "not slow" "$@"
