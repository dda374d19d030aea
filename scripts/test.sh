#!/usr/bin/env bash
# Set up and run every check: ruff, mypy --strict, pytest in two processes. Usage: test.sh [--fast] [pytest's own]; --fast leaves out the
# tests marked slow.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(-n 2)
if [ "${1:-}" = --fast ]; then
  tests+=(-m "not slow")
  shift
fi
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "${tests[@]}" "$@"
