#!/usr/bin/env bash
# Set up, train on the bundled stories for about a minute, then sample, measure and show the run.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
lstmlm=.venv/bin/lstmlm
run=runs/stories
if [ -e "$run/best.safetensors" ]; then
  echo "demo: $run is there already; remove it to train again" >&2
elif [ -e "$run/last.safetensors" ] || [ -e "$run/config.yaml" ]; then # it was stopped
  "$lstmlm" train --resume "$run"
else
  "$lstmlm" train stories --out "$run" --minutes "${MINUTES:-1}"
fi
echo; echo "--- lstmlm sample -m $run --prompt 'Bob is' --seed 1"
"$lstmlm" sample -m "$run" --prompt "Bob is" --length 400 --seed 1
echo; echo "--- lstmlm eval -m $run"
"$lstmlm" eval -m "$run"
echo; echo "--- lstmlm info $run"
"$lstmlm" info "$run"
