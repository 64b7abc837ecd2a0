"""The Debian base without a registry: made by mmdebstrap from the machine's own apt sources, bit for bit.

The tar is wrapped as a ``docker load`` archive around a config with a fixed date, so the image id follows from the tar:
``docker import`` would stamp the time of day into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from reprobox.errors import BuildError
from reprobox.host_programs import find_program, host_environment
from reprobox.images.archive import CREATED, Image, load
from reprobox.images.context import EPOCH
from reprobox.images.layers import Layer
from reprobox.images.wheels import sha256_of
from reprobox.programs import child

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reprobox.engines.store import ImageStore
    from reprobox.images import Reporter

CODENAME: Final = "bookworm"
PACKAGES: Final = ("ca-certificates", "python3", "python3-venv", "tini")
"""What docker/prepare-base.sh asks of any base, compiler apart."""

COMPILER: Final = ("libpython3-dev", "g++")
"""What torch.compile needs beside them: Inductor has g++ compile C++ that includes Python.h."""

SCRIPT: Final = 2
"""Version of what :func:`_command` does; a change of it makes every cached base stale."""

_RELEASES: Final = frozenset({CODENAME, f"{CODENAME}-updates", f"{CODENAME}-security"})
# No program of a box reads them: documents, shell completion, time with leap seconds, mainframes' character sets, Python
# to be linked into other programs, link-time optimisation, sanitizers, and the profilers of binutils. docs/images.md has
# what they weigh.
_LEFT_OUT: Final = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/bash-completion/*",
    "/usr/share/zoneinfo/right/*",
    "/usr/lib/*/gconv/IBM*",
    "/usr/lib/*/gconv/EBCDIC*",
    "/usr/lib/python3*/config-*/*.a",
    "/usr/lib/gcc/*/lto1",
    "/usr/bin/*lto-dump*",
    "/usr/lib/gcc/*san.a",
    "/usr/lib/*/lib?san.so.*",
    "/usr/lib/*/libhwasan.so.*",
    "/usr/bin/*gp-*",
    "/usr/bin/*gprofng*",
    "/usr/lib/*/gprofng/*",
    "/usr/lib/*/libgprofng.so.*",
    "/usr/bin/*-dwp",
    "/usr/bin/tini-static",
)
# Debian's own step from /bin to /usr/bin needs perl, 50 MB that stay; this one makes the links first.
_MERGED_USR: Final = "/usr/share/mmdebstrap/hooks/merged-usr"
_PYTHON: Final = "/usr/bin/python3 -IS -W ignore -m compileall -q -f --invalidation-mode unchecked-hash"
# In the order they run. The first two take out the host's traces and the backups dpkg and debconf keep. The last is
# needed because the dates of files newer than the fixed one are turned back in the tar: bytecode that remembers the
# date of its source would then be stale, and every start of Python would compile its library again.
_HOOKS: Final = (
    'rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/hostname "$1"/etc/resolv.conf',
    'rm -f "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old',
    ': > "$1"/etc/machine-id',
    f'chroot "$1" {_PYTHON} /usr/lib/python3 $(cd "$1" && echo /usr/lib/python3.*)',
)
_TAIL: Final = 30


@dataclass(frozen=True, kw_only=True)
class Target:
    """One index of packages apt knows: its ``deb`` line and where its downloaded list lies."""

    line: str
    listing: Path


def bootstrap(
    store: ImageStore, *, cache: Path, report: Reporter, packages: Sequence[str] = PACKAGES + COMPILER
) -> str:
    """Make the base, or take it from ``cache``, load it into the engine and return its image id (``sha256:…``).

    ``packages`` are Debian's names of what is in it beside the minimal system; by default all the box needs.

    :raises BuildError: apt has no lists of Debian bookworm, or mmdebstrap is missing or failed.
    :raises EngineError: the engine did not take the image.
    """
    targets = apt_targets()
    note = cache / "by-input" / _key(targets, packages)
    tar_digest = noted_digest(note)
    if tar_digest and name_base(store, image_id := base_config(tar_digest)[0]):
        report.say(f"the bootstrapped base {image_id} is already in the engine")
        return image_id
    tar = cache / f"{tar_digest}.tar"
    if tar_digest and tar.is_file() and sha256_of(tar) != tar_digest:
        report.say(f"the cached base {tar} is damaged and will be made again")
        tar.unlink()
    if not tar_digest or not tar.is_file():
        tar = make_base(targets, cache=cache, report=report, packages=packages)
        tar_digest = tar.stem
        note_digest(note, tar_digest)
    return load_base(store, tar, tar_digest)


def apt_targets() -> tuple[Target, ...]:
    """Return the package indices of bookworm's main component that this machine's apt has fetched.

    :raises BuildError: there are none, or this is no Debian.
    """
    layout = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)|$(RELEASE)|$(COMPONENT)|$(FILENAME)"
    try:
        answer = subprocess.run(
            ["apt-get", "indextargets", "--format", layout, "Created-By: Packages", "Origin: Debian"],
            check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=host_environment(),
        ).stdout  # fmt: skip
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise _cannot("apt-get does not run here", detail=str(getattr(error, "stderr", error))) from error
    targets = []
    for row in answer.splitlines():
        line, release, component, listing = row.rsplit("|", 3)
        if release in _RELEASES and component == "main" and Path(listing).is_file():
            targets.append(Target(line=line, listing=Path(listing)))
    if not any(target.line.split()[2] == CODENAME for target in targets):
        raise _cannot(
            f"apt on this machine has no package lists of Debian {CODENAME}", remedy="run apt-get update first"
        )
    return tuple(targets)


def make_base(
    targets: Sequence[Target], *, cache: Path, report: Reporter, packages: Sequence[str] = PACKAGES + COMPILER
) -> Path:
    """Run mmdebstrap on ``targets`` and return the tar in ``cache``, named by its SHA-256.

    Twice from the same lists gives the same bytes; it takes half a minute to a minute.

    :raises BuildError: mmdebstrap is missing or failed; the tail of what it said is the detail.
    """
    if find_program("mmdebstrap") is None:
        raise _cannot("mmdebstrap is not installed", remedy="run apt-get install mmdebstrap")
    cache.mkdir(parents=True, exist_ok=True)
    report.say(f"making the Debian {CODENAME} base with mmdebstrap (about a minute)")
    with TemporaryDirectory(dir=cache, prefix=".make-") as made:
        tar = Path(made) / "base.tar"
        tail: deque[str] = deque(maxlen=_TAIL)
        with child(
            _command(tar, packages), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", umask=0o022,
            env=host_environment() | {"SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        ) as process:  # fmt: skip
            if process.stdin:
                process.stdin.write("".join(f"{target.line}\n" for target in targets))
                process.stdin.close()
            for line in process.stdout or ():
                tail.append(line.rstrip())
                report.log(line.rstrip())
        if process.returncode:
            raise _cannot(f"mmdebstrap failed with exit status {process.returncode}", detail="\n".join(tail))
        digest = sha256_of(tar)
        return tar.replace(cache / f"{digest}.tar")


def base_config(tar_digest: str) -> tuple[str, bytes]:
    """Return the image id and the config of the base whose layer is the tar with this SHA-256."""
    config: dict[str, Any] = {
        "architecture": "amd64",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/bash"]},
        "created": CREATED,
        "history": [{"created": CREATED, "created_by": f"reprobox bootstrap {SCRIPT}"}],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{tar_digest}"], "type": "layers"},
    }
    text = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return f"sha256:{hashlib.sha256(text).hexdigest()}", text


def load_base(store: ImageStore, tar: Path, tar_digest: str) -> str:
    """Load the base tar into the engine as an image of one layer and return its id.

    :raises EngineError: the engine refused it.
    """
    image_id, config = base_config(tar_digest)
    layer = Layer(diff_id=f"sha256:{tar_digest}", size=tar.stat().st_size, path=tar)
    load(store, Image(config=config, layers=(layer,)), tag=tag_of(image_id), scratch=tar.parent)
    return image_id


def tag_of(image_id: str) -> str:
    """Return the local name of a base that no registry names; BuildKit finds no base by id alone."""
    return f"reprobox-base:{image_id.removeprefix('sha256:')[:12]}"


def _command(tar: Path, packages: Sequence[str]) -> list[str]:
    command = ["mmdebstrap", "--variant=minbase", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}"]
    command += ["--architectures=amd64", "--components=main", f"--include={','.join(('usr-is-merged', *packages))}"]
    command += [f"--hook-dir={_MERGED_USR}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    command += [f"--customize-hook={hook}" for hook in _HOOKS]
    return [*command, CODENAME, str(tar), "-"]


def _key(targets: Sequence[Target], packages: Sequence[str]) -> str:
    """Digest what decides the base: the package lists, the packages and this script, its own version included."""
    parts = [f"script {SCRIPT}", " ".join(_command(Path("base.tar"), packages))]
    parts += [f"{target.line.split()[2]} {sha256_of(target.listing)}" for target in targets]
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def noted_digest(note: Path) -> str | None:
    """Return the SHA-256 of the base that :func:`note_digest` wrote down, or None where there is none."""
    digest = note.read_text(encoding="ascii").strip() if note.is_file() else ""
    return digest if len(digest) == hashlib.sha256().digest_size * 2 else None


def name_base(store: ImageStore, image_id: str) -> bool:
    """Give a base that the engine has its name (:func:`tag_of`) again, and tell whether the engine has it."""
    named = store.find(tag_of(image_id))
    if named is not None and store.image_id(named) == image_id:
        return True
    found = store.find(image_id)
    if found is None:
        return False
    store.tag(found.engine_id, tag_of(image_id))  # the build asks by this name, and someone may have removed it
    return True


def note_digest(note: Path, digest: str) -> None:
    """Write down which base was made of what ``note`` is named by, whole or not at all."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=note.parent, prefix=".write-") as made:
        new = Path(made) / note.name
        new.write_text(digest, encoding="ascii")
        new.replace(note)


def _cannot(why: str, *, remedy: str | None = None, detail: str | None = None) -> BuildError:
    other = "pass an image with --base REF"
    return BuildError(
        f"the base cannot be bootstrapped: {why}", remedy=f"{remedy}, or {other}" if remedy else other, detail=detail
    )
