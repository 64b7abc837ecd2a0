#!/bin/sh
# Sees that a container engine answers. Installs Debian's and starts it where none does and this user may.
#
#   engine.sh [--tests]     --tests also installs what only the tests need (a registry, Podman, a C compiler, faketime)
#
# Exit 0: an engine answers. Exit 3: none does and this user may not change that; the commands to type were printed.
set -eu

packages="docker.io iptables mmdebstrap uidmap"
[ "${1:-}" = --tests ] && packages="$packages docker-registry podman runc netavark slirp4netns catatonit gcc libc6-dev faketime"
log=${TMPDIR:-/tmp}/reprobox-engine-$(id -u).log

probe="from reprobox.engines.connection import connect; connect()"
answers() { .venv/bin/python -c "$probe" 2>/dev/null; }
answers_root() { $as_root .venv/bin/python -c "$probe" 2>/dev/null; }

missing() {
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s ' "$package"
    done
}

say() { echo "make: $*" >&2; }

if answers && { [ "${1:-}" != --tests ] || [ -z "$(missing)" ]; }; then
    exit 0
fi

if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root=sudo
else
    answers && exit 0
    say "no container engine answers, and this user may not install one. Two commands that do:"
    say "    sudo apt-get install -y $packages"
    say "    sudo usermod -aG docker $(id -un) && newgrp docker"
    exit 3
fi

want=$(missing)
if [ -n "$want" ]; then
    command -v apt-get >/dev/null || { say "this is not a Debian: install ${want}by hand"; exit 3; }
    say "installing from Debian: $want(log: $log)"
    # Debian's registry listens on every interface once its service starts; the tests start one of their own.
    [ ! -d /run/systemd/system ] || $as_root systemctl mask docker-registry.service >/dev/null 2>&1 || true
    $as_root sh -c "{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $want; }" \
        >"$log" 2>&1 || { tail -5 "$log" >&2; exit 1; }
fi

answers && exit 0
if answers_root; then
    :
elif [ -d /run/systemd/system ]; then
    say "starting the docker service"
    $as_root systemctl start docker
else
    say "starting dockerd (log: $log)"
    # shellcheck disable=SC2024  # the log belongs to the caller
    setsid $as_root dockerd >>"$log" 2>&1 </dev/null &
    [ ! -d .make-logs ] || echo $! >.make-logs/dockerd.pid
fi
tries=0
until answers_root; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || { say "dockerd does not answer after a minute:"; tail -5 "$log" >&2; exit 1; }
    sleep 1
done

answers && exit 0
say "the engine answers root and not this user, who is not in its group. One command that changes it, for a new login:"
say "    sudo usermod -aG docker $(id -un) && newgrp docker"
exit 3
