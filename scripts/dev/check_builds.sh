#!/usr/bin/env bash
# Build the C for every kind of CPU that can be run here, check it, and compare the text of one seed. Usage: check_builds.sh [OPTIMISATION]
# The builds: x86-64 with AVX-512, with AVX2 and with neither, as far as this CPU has them; aarch64 with and without its dot product,
# where Debian's cross compiler (gcc-aarch64-linux-gnu) and qemu-user-static are installed. All CPUs with FMA must write the same text to the last bit.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
sources=lstmlm/kernels
read -ra flags <<< "$(sed -n 's/^FLAGS = (\(.*\))$/\1/p' "$sources/build.py" | tr -d '",')"
kept=() # as the package builds it, but for what makes a shared object of it
for flag in "${flags[@]}"; do
  case "$flag" in -shared | -fPIC) ;; -O3) kept+=("${1:--O3}") ;; *) kept+=("$flag") ;; esac
done
expected="" failed=0

check() { # check NAME RUNNER COMPILER FLAGS...
  local name="$1" runner="$2"
  shift 2
  "$@" "${kept[@]}" tests/kernels/builds.c "$sources/native.c" "$sources/generate.c" -o "$scratch/$name" -lm
  if ! found="$($runner "$scratch/$name" 2> "$scratch/said")"; then
    echo "$name: $(cat "$scratch/said")"
    failed=1
  elif [ -n "$expected" ] && [ "$found" != "$expected" ]; then
    printf '%s: another text:\n%s\nexpected\n%s\n' "$name" "$found" "$expected"
    failed=1
  else
    expected="$found"
    echo "$name: right, and the same text ($(cat "$scratch/said"))"
  fi
}

cc="${CC:-gcc}"
if [ "$(uname -m)" = x86_64 ]; then
  has() { grep -qw "$1" /proc/cpuinfo; }
  if has avx512f; then check avx512 "" $cc -march=native; fi
  if has avx512_vnni && has avx512bw; then check avx512-without-vnni "" $cc -march=native -mno-avx512vnni; fi
  if has avx2 && has fma; then check avx2 "" $cc -march=x86-64-v3; fi
  if has fma; then check no-vectors "" $cc -march=x86-64 -mfma; fi
else
  check "$(uname -m)" "" $cc
fi
if command -v aarch64-linux-gnu-gcc qemu-aarch64-static > /dev/null; then
  check aarch64 "qemu-aarch64-static -cpu cortex-a72" aarch64-linux-gnu-gcc -static # which has no dot product
  check aarch64-dotprod "qemu-aarch64-static -cpu max" aarch64-linux-gnu-gcc -static -march=armv8.2-a+dotprod
else
  echo "aarch64: left out: there is no aarch64-linux-gnu-gcc, or no qemu-aarch64-static"
fi
exit "$failed"
