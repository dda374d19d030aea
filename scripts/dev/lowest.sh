#!/usr/bin/env bash
# Try the lowest versions that pyproject.toml allows: a scratch environment with each lower bound, and the fast tests in it.
# Usage: lowest.sh [pytest's own]
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
python="$scratch/venv/bin/python"
"$python" - > "$scratch/lowest.txt" << 'END'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
tools = ("ruff", "mypy")  # they check the source, which is the same
for wanted in project["dependencies"] + project["optional-dependencies"]["dev"]:
    if ">=" in wanted and not wanted.startswith(tools):
        print(wanted.replace(">=", "=="))
END
cat "$scratch/lowest.txt" >&2
"$python" -m pip install --quiet --disable-pip-version-check -r "$scratch/lowest.txt"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
"$python" -m pytest -m "not slow" "$@"
