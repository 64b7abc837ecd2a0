#!/usr/bin/env bash
# Installs reprobox into a virtual environment of its own and puts that on PATH.
#
# SETUP_VERSION   release to install; empty for the checkout this action is part of
# SETUP_EXTRAS    extras, by commas
# SETUP_LOCK      lock file the cache is keyed by
set -euo pipefail

venv=$RUNNER_TEMP/reprobox-venv
root=$(cd "${BASH_SOURCE[0]%/*}/../../.." && pwd)
extras=${SETUP_EXTRAS:+[$SETUP_EXTRAS]}

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "::error title=reprobox::this runner's python3 is $(python3 -V 2>&1); reprobox needs 3.11 (actions/setup-python)"
    exit 1
fi

python3 -m venv "$venv"
if [ -n "${SETUP_VERSION:-}" ]; then
    wanted="reprobox$extras==$SETUP_VERSION"
else
    wanted="$root$extras"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wanted"
version=$("$venv/bin/reprobox" --version)

# Of a project without a lock, the cache belongs to the release alone.
lock=${version#reprobox }
if [ -f "${SETUP_LOCK:-}" ]; then
    lock=$(sha256sum "$SETUP_LOCK" | cut -d' ' -f1)
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/reprobox

echo "$venv/bin" >>"$GITHUB_PATH"
{
    echo "version=${version#reprobox }"
    echo "lock=$lock"
    # Not the certificates of the self-test: every machine proves itself.
    echo "cache-path<<REPROBOX_EOF"
    printf '%s\n' "$cache/artefacts" "$cache/wheels" "$cache/base"
    echo "REPROBOX_EOF"
} >>"$GITHUB_OUTPUT"
echo "$version from $wanted"
