#!/usr/bin/env bash
# Make the pictures of the READMEs from networks trained here: "pictures.sh" those of README.md, from the bundled stories (2 to 5
# minutes on two cores); "pictures.sh units" that of data/README.md, from Python's own sources (some minutes more).
set -euo pipefail
cd "$(dirname "$0")/../.."
bash scripts/setup.sh
root="$PWD"
lstmlm="$root/.venv/bin/lstmlm"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
if [ "${1:-}" = units ]; then
  "$root/.venv/bin/python" "$root/scripts/data/get_data.py" python --out python.txt
  "$lstmlm" train python.txt --steps 3500 --hidden 256 --layers 1 --set model.forget_span=400 --set model.forget_share=1
  units=""
  for feature in line 're:^ +' "re:'[^'\n]+'"; do # the position in the line, indentation, being inside quotes
    "$lstmlm" inspect --find "$feature" --top 1
    units+="${units:+,}$("$lstmlm" inspect --find "$feature" --json \
      | "$root/.venv/bin/python" -c 'import json, sys; best = json.load(sys.stdin)["units"][0]; print(best["layer"], best["unit"], sep=":")')"
  done
  "$lstmlm" inspect --file - --show cell --units "$units" --svg "$root/scripts/pictures/units.svg" << 'END'
def parse(lines, source):
    header = lines[0].split('\t')
    for name in header:
        if name == 'end':
            return 1
END
else
  "$lstmlm" train stories --steps 1200 --hidden 256 --layers 1 --batch 16 --window 128 --seed 1 \
    --set model.forget_span=400 --set model.forget_share=1 --set train.eval_every=100
  "$lstmlm" inspect "Bob is a baker. Dan ran home." --show forget,cell,surprise --top 4 --svg "$root/scripts/pictures/gates.svg"
  "$lstmlm" info runs/stories --svg "$root/scripts/pictures/run.svg"
  browser="$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)"
  if [ -n "$browser" ]; then # the page, in a window of 1240 x 1000
    "$lstmlm" inspect "Bob is a baker. Dan ran home." --against "Bob is a baker. Bob ran home." --html page.html
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$scratch/profile" --window-size=1240,1000 \
      --screenshot="$root/scripts/pictures/page.png" "file://$scratch/page.html"
  fi
fi
