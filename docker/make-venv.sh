#!/bin/sh
# Makes /opt/venv from a folder of wheels and nothing else: make-venv.sh LOCK WHEELS PYTHON
#
# LOCK is a hash-pinned requirements file, WHEELS the folder that holds exactly those wheels, PYTHON the version they
# are for (3.11). Runs without a network.
set -eu
lock=$1 wheels=$2 wanted=$3

found=$(/usr/bin/python3 -IS -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "$wanted" ]; then
    echo "reprobox: the base has Python $found and the lock's wheels are for Python $wanted;" \
        "take a base whose /usr/bin/python3 is $wanted, or bootstrap one (reprobox build --base bootstrap)" >&2
    exit 1
fi

/usr/bin/python3 -m venv /opt/venv
/opt/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir --root-user-action=ignore \
    --no-index --no-deps --require-hashes --no-compile --find-links "$wheels" --requirement "$lock"

/opt/venv/bin/python -IS "${0%/*}/trim-venv.py" /opt/venv

# Hash-based bytecode that is never checked again: `import torch` needs no stat per file, and the bytes carry no date.
# One process, because what marshal writes for a shared string depends on what that process compiled before.
# The one file left out is written in the syntax of Python 3.12; torch imports it there only.
PYTHONHASHSEED=0 /opt/venv/bin/python -W ignore -m compileall -q -f --invalidation-mode unchecked-hash \
    -x '/torch/testing/_internal/py312_intrinsics\.py$' /opt/venv/lib
