#!/usr/bin/env bash
# Measure a bare machine with a CUDA device: gpu_first_hour.sh OUT [TEXT]. Needs python3 with triton and what pyproject.toml lists; fetches nothing.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/scripts/bench" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
timeout "${LIMIT:-200}" python3 scripts/bench/gpu_first_hour.py "$@" 2>&1 | tee "$1/gpu.log"
