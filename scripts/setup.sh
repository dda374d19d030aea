#!/usr/bin/env bash
# Make .venv at the top of the checkout with the versions of scripts/constraints.txt; a second call finds it done. Usage: setup.sh [extra]
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${1:-}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: expected Python 3.11 or newer, found $("$python" --version 2>&1). Set PYTHON to one." >&2
  exit 2
}
want="$(cat pyproject.toml scripts/constraints.txt | cksum)"
mark=".venv/.installed${extra:+-$extra}" # one file an extra, with the pins installed last: earlier pins that come back are installed again
if [ -x .venv/bin/lstmlm ] && [ "$(cat "$mark" 2>/dev/null)" = "$want" ]; then
  exit 0
fi
echo "setup: installing into .venv (once; torch is the large part)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
for other in .venv/.installed*; do # what other pins left here is about to change
  [ "$(cat "$other" 2>/dev/null)" = "$want" ] || rm -f "$other"
done
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location -c scripts/constraints.txt -e ".${extra:+[$extra]}"
echo "$want" > "$mark"
