"""Root file systems of other Debians with what runs containers there, made once on a machine and kept in its cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.engine import missing
from support.once import locked

ENGINES = (
    *("docker.io", "docker-cli", "docker-buildx", "containerd", "runc"),
    *("podman", "crun", "netavark", "aardvark-dns"),
    *("docker-registry", "iptables", "nftables", "iproute2", "ca-certificates"),
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reprobox-tests"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def trixie():
    """Return Debian 13's root file system with its engines: 600 MB, a minute and a half to make."""
    return _made("trixie", ENGINES)


def sid():
    """Return Debian sid's root file system with Apptainer, which no release has: 270 MB, half a minute to make."""
    return _made("sid", ("apptainer", "ca-certificates"), "Acquire::Check-Valid-Until false")


def _made(suite, packages, *settings):
    """Return a folder of the cache, which is everybody's and is not to be changed."""
    recipe = hashlib.sha256(" ".join((suite, *packages)).encode()).hexdigest()[:12]
    root = CACHE / f"{suite}-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{root.name}.lock"):
        if not root.exists():
            for left in CACHE.glob(f".{root.name}-*"):
                shutil.rmtree(left)
            made = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=CACHE))
            _make(made, suite, packages, settings)
            made.rename(root)
    return root


def _make(folder, suite, packages, settings):
    if shutil.which("mmdebstrap") is None:
        missing("mmdebstrap is not installed (scripts/engine.sh --tests installs it)")
    options = ["--variant=minbase", f"--include={','.join(packages)}", *(f"--aptopt={each}" for each in settings)]
    source = f"deb [signed-by={KEYRING}] {_mirror()} {suite} main"
    done = subprocess.run(
        ["mmdebstrap", *options, suite, folder, source], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _mirror():
    """Return the place from which this machine's apt takes Debian, which has its other releases as well."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(SUITE)", "Created-By: Packages", "Origin: Debian"]
    try:
        rows = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        rows = []
    found = [
        place
        for place, _, suite in (row.partition(" ") for row in rows)
        if not suite.endswith(("-security", "-updates"))
    ]
    if not found:
        missing("apt on this machine has no package lists of Debian (apt-get update fetches them)")
    return found[0]
