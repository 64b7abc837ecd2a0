"""The Debian base from exactly the packages a lock names: no network, no package lists, the same bytes every time."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from reprobox.errors import ArtefactError, BuildError
from reprobox.host_programs import host_environment
from reprobox.images.bootstrap import (
    CODENAME,
    SCRIPT,
    Target,
    base_config,
    load_base,
    make_base,
    name_base,
    note_digest,
    noted_digest,
    tag_of,
)
from reprobox.images.context import EPOCH
from reprobox.images.debs import ARCHITECTURES
from reprobox.images.wheels import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reprobox.engines.store import ImageStore
    from reprobox.images import Reporter
    from reprobox.images.lockmodel import LockedDeb

__all__ = ["base_of_debs", "locked_base_key", "make_locked_base"]

_ONE_ESSENTIAL: Final = "dpkg"  # without it there is no Debian to make, and mmdebstrap says so less well


def base_of_debs(
    store: ImageStore,
    debs: Sequence[LockedDeb],
    files: Mapping[str, Path],
    *,
    cache: Path,
    report: Reporter,
    names: Sequence[str] | None = None,
) -> str:
    """Make the base of these packages, or take it from ``cache``, load it into the engine and return its image id.

    :param files: path of each package by SHA-256, as :func:`reprobox.images.fetching.fetch` gives them.
    :param names: what is asked for, and brings what it needs; all of ``debs`` by default.
    :raises ArtefactError: a package is not among ``files``, or is not what the lock says.
    :raises BuildError: mmdebstrap is missing or failed.
    :raises EngineError: the engine did not take the image.
    """
    note = cache / "by-lock" / locked_base_key(debs, names)
    digest = noted_digest(note)
    if digest and name_base(store, image_id := base_config(digest)[0]):
        report.say(f"the base {tag_of(image_id)} of the lock is already in the engine")
        return image_id
    tar = cache / f"{digest}.tar"
    if not digest or not tar.is_file() or sha256_of(tar) != digest:
        tar = make_locked_base(debs, files, cache=cache, report=report, names=names)
        digest = tar.stem
        note_digest(note, digest)
    return load_base(store, tar, digest)


def make_locked_base(
    debs: Sequence[LockedDeb],
    files: Mapping[str, Path],
    *,
    cache: Path,
    report: Reporter,
    names: Sequence[str] | None = None,
) -> Path:
    """Run mmdebstrap on a local repository of these packages and return the tar in ``cache``, named by its SHA-256.

    :raises ArtefactError, BuildError: as :func:`base_of_debs`.
    """
    if _ONE_ESSENTIAL not in {deb.name for deb in debs}:
        raise ArtefactError("the lock names no Debian packages of a base", remedy="lock again: reprobox lock --upgrade")
    with _repository(debs, files) as folder:
        line = f"deb [trusted=yes] copy:{folder} ./"
        asked = _names(debs, names)
        return make_base([Target(line=line, listing=folder / "Packages")], cache=cache, report=report, packages=asked)


def locked_base_key(debs: Sequence[LockedDeb], names: Sequence[str] | None = None) -> str:
    """Return the SHA-256, in hex, over what decides the base: the packages and the version of our own script."""
    parts = [f"script {SCRIPT}", *sorted(f"{deb.file} {deb.sha256}" for deb in debs)]
    if (asked := _names(debs, names)) != _names(debs):
        parts.append(f"only {' '.join(asked)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _names(debs: Sequence[LockedDeb], names: Sequence[str] | None = None) -> list[str]:
    return sorted(deb.name for deb in debs) if names is None else sorted(names)


@contextmanager
def _repository(debs: Sequence[LockedDeb], files: Mapping[str, Path]) -> Iterator[Path]:
    """Give a folder that apt takes for a Debian repository of this release, with just these packages.

    It is under /tmp, where the user that apt drops its privileges to may read.
    """
    with TemporaryDirectory(prefix="reprobox-debs-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        stanzas = []
        for deb in sorted(debs, key=lambda one: one.file):
            path = files.get(deb.sha256)
            if path is None:
                raise ArtefactError(f"{deb.file} is not in the cache", remedy="fetch it: reprobox fetch")
            copy = folder / f"{deb.sha256}.deb"  # a plain name: apt writes %3a of an epoch differently in each place
            shutil.copyfile(path, copy)
            copy.chmod(0o644)
            if sha256_of(copy) != deb.sha256:
                raise ArtefactError(f"{path} is not what the lock says", remedy="fetch it again: reprobox fetch")
            stanzas.append(_stanza(copy, deb))
        packages = "\n".join(stanzas).encode()
        for name, content in (("Packages", packages), ("Release", _release(packages).encode())):
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o644)
        yield folder


def _stanza(path: Path, deb: LockedDeb) -> str:
    """Return what an index of packages says of one: its own control fields, and its file."""
    try:
        done = subprocess.run(
            ["dpkg-deb", "--field", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
            env=host_environment() | {"LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise BuildError(
            "the base cannot be made: dpkg-deb is not installed", remedy="run apt-get install dpkg mmdebstrap"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ArtefactError(
            f"{deb.file} is no Debian package", remedy="lock again: reprobox lock --upgrade", detail=error.stderr
        ) from error
    return f"{done.stdout.rstrip()}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {deb.sha256}\n"


def _release(packages: bytes) -> str:
    """Return the file by which mmdebstrap knows which release's essential packages are meant."""
    date = datetime.fromtimestamp(EPOCH, tz=UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    architectures = " ".join(ARCHITECTURES.values())
    return (
        f"Origin: Debian\nLabel: Debian\nSuite: {CODENAME}\nCodename: {CODENAME}\nDate: {date}\n"
        f"Architectures: {architectures}\nComponents: main\nSHA256:\n"
        f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
    )
