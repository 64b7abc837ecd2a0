#!/bin/sh
# Brings a base image to what the box needs: Python with venv, CA certificates, tini, and for torch.compile a C++ compiler
# and Python's headers, which COMPILER=0 leaves out.
#
#   prepare-base.sh --check   exit 0 when nothing is missing, else print what is and exit 3
#   prepare-base.sh           install what is missing with apt-get and leave no trace of having done so
#
# Does nothing on a bootstrapped base, which is why that one builds without a network.
set -eu

missing=""
[ -x /usr/bin/python3 ] || missing="$missing python3"
/usr/bin/python3 -IS -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ "${COMPILER:-1}" != 0 ]; then
    headers=$(/usr/bin/python3 -IS -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null) || headers=/
    [ -f "$headers/Python.h" ] || missing="$missing libpython3-dev"
    command -v g++ >/dev/null 2>&1 || missing="$missing g++"
fi
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
[ -x /usr/bin/tini ] || missing="$missing tini"
missing="${missing# }"

if [ "${1:-}" = --check ]; then
    [ -z "$missing" ] && exit 0
    echo "$missing"
    exit 3
fi
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "reprobox: this base lacks $missing and has no apt-get to install them with;" \
        "take a Debian base, or add them (as /usr/bin/python3, /usr/bin/tini) to yours" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# One package name per word, so unquoted.
# shellcheck disable=SC2086
apt-get install -q -y --no-install-recommends $missing
apt-get clean

# The packages' own bytecode remembers the dates of its sources; every date of the image is changed in the end.
PYTHONHASHSEED=0 /usr/bin/python3 -IS -W ignore -m compileall -q -f --invalidation-mode unchecked-hash \
    /usr/lib/python3 /usr/lib/python3.*

# Dates and host-dependent caches: none of it is used again, and all of it differs from one build to the next.
find /var/log -type f -delete
find /var/lib/apt/lists -mindepth 1 -delete
rm -f /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old
