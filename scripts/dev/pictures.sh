#!/usr/bin/env bash
# Make the pictures of README.md, scripts/pictures/gates.svg and run.svg, from a network that it trains on the bundled stories (2 to 5
# minutes on two cores); with "units", that of data/README.md from one trained on Python's own sources. Usage: pictures.sh [units]
set -euo pipefail
cd "$(dirname "$0")/../.."
bash scripts/setup.sh
lstmlm=.venv/bin/lstmlm
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if [ "${1:-}" = units ]; then
  .venv/bin/python scripts/data/get_data.py python --out "$scratch/python.txt"
  "$lstmlm" train "$scratch/python.txt" --out "$scratch/run" --steps 3500 --hidden 256 --layers 1 --set model.forget_span=400
  printf "def parse_line(text):\n    for part in text.split(','):\n        if part == 'end':\n            return (1, [2, 3])\n" \
    | "$lstmlm" inspect --file - -m "$scratch/run" --show cell --top 3 --svg scripts/pictures/units.svg
else
  "$lstmlm" train stories --out "$scratch/run" --steps 1200 --hidden 256 --layers 1 --batch 16 --window 128 --seed 1 \
    --set model.forget_span=400 --set train.eval_every=100
  "$lstmlm" inspect "Bob is a baker. Dan ran home." -m "$scratch/run" --show forget,cell,surprise --top 4 --svg scripts/pictures/gates.svg
  "$lstmlm" info "$scratch/run" --svg scripts/pictures/run.svg
fi
