#!/usr/bin/env bash
# Build the C for every kind of CPU that can be run here, check it, and compare the text of one seed. Usage: check_builds.sh [OPTIMISATION]
# The builds: x86-64 with AVX-512, with AVX2 and with neither, as far as this CPU has them; aarch64 with and without its dot product,
# where Debian's cross compiler (gcc-aarch64-linux-gnu) and qemu-user-static are installed. All CPUs with FMA must write the same text to the last bit.
# Windows' own team runs here, by tests/kernels/windows. For Windows and macOS the sources are compiled only, where zig is (pip install ziglang).
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
  "$@" "${kept[@]}" tests/kernels/builds.c "$sources"/*.c -o "$scratch/$name" -lm
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
check windows-team "" $cc -D_WIN32 "-D__declspec(x)=" -Itests/kernels/windows -march=native
if command -v aarch64-linux-gnu-gcc qemu-aarch64-static > /dev/null; then
  check aarch64 "qemu-aarch64-static -cpu cortex-a72" aarch64-linux-gnu-gcc -static # which has no dot product
  check aarch64-dotprod "qemu-aarch64-static -cpu max" aarch64-linux-gnu-gcc -static -march=armv8.2-a+dotprod
else
  echo "aarch64: left out: there is no aarch64-linux-gnu-gcc, or no qemu-aarch64-static"
fi

zig=()
for words in zig ".venv/bin/python -m ziglang" "python3 -m ziglang"; do
  if [ ${#zig[@]} = 0 ] && $words version > /dev/null 2>&1; then read -ra zig <<< "$words"; fi
done
if [ ${#zig[@]} = 0 ]; then
  echo "Windows, macOS: left out: there is no zig"
else
  export ZIG_LOCAL_CACHE_DIR="$scratch/zig"
  for target in x86_64-windows-gnu aarch64-windows-gnu x86_64-macos aarch64-macos; do
    of_target=(-shared)
    case "$target" in
      *windows*) for flag in "${kept[@]}"; do [ "$flag" = -pthread ] || of_target+=("$flag"); done ;;
      *) of_target+=(-fPIC "${kept[@]}") ;;
    esac
    if [[ "$target" == x86_64* ]]; then of_target+=(-mcpu=x86_64_v3); fi
    if "${zig[@]}" cc -target "$target" "${of_target[@]}" "$sources"/*.c -o "$scratch/$target"; then
      echo "$target: compiled"
    else
      failed=1
    fi
  done
fi
exit "$failed"
