#!/bin/sh
# Everything of reprobox that wants a GPU and no container engine, in one go: sh benchmarks/gpu.sh OUT.json [--cpu].
# Needs python3 (3.10 or newer) with torch on PATH, and nothing else: see benchmarks/gpu.py for what is measured.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if [ $# -lt 1 ]; then
    echo "usage: sh benchmarks/gpu.sh OUT.json [--cpu] [--rounds N] [--parts selftest,controls,tax]" >&2
    exit 2
fi
out=$1
shift
exec env PYTHONPATH="$(dirname "$here")" PYTHONDONTWRITEBYTECODE=1 "${PYTHON:-python3}" "$here/gpu.py" --json "$out" "$@"
