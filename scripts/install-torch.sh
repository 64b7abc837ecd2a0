#!/bin/sh
# Installs torch and numpy beside reprobox: the lock's own wheels on the lock's Python, else what pip resolves.
set -eu
python=.venv/bin/python
if "$python" -c 'import platform, sys; raise SystemExit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64")'
then
    exec "$python" -m pip install --no-deps --require-hashes -r docker/locks/cpu.txt
fi
exec "$python" -m pip install -e '.[torch]'
