#!/usr/bin/env bash
# Set up and run every check: ruff, mypy --strict, pytest. Usage: test.sh [--fast] [pytest's own]; --fast leaves out the tests marked slow
# and runs the others in two processes.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=()
if [ "${1:-}" = --fast ]; then
  tests=(-m "not slow" -n 2)
  shift
fi
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest ${tests[@]+"${tests[@]}"} "$@"
