"""The layer of a project's packages: wheels unpacked here, source distributions built and all compiled in the image.

A wheel runs nothing of its own when it is unpacked. What a source distribution runs, it runs in a box without a network.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reprobox.errors import ArtefactError
from reprobox.images.context import EPOCH
from reprobox.images.inside import Task, done_inside
from reprobox.images.layers import Entry, Layer, entries_of_tar, write_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reprobox.engines.store import ImageStore
    from reprobox.images import Reporter

__all__ = ["BIN", "PACKAGES", "packages_layer"]

PACKAGES: Final = "opt/project"
"""Where in the image the project's packages are."""

BIN: Final = "/opt/venv/bin"
_PYTHON: Final = f"{BIN}/python"
_PTH: Final = "opt/venv/lib/python3.11/site-packages/reprobox_project.pth"

# One process, and the hash seed fixed: what marshal writes depends on both. A file in another Python's syntax is left as
# it is, as pip leaves it.
_COMPILEALL: Final = "-m compileall -q --invalidation-mode unchecked-hash"
_COMPILE: Final = f"PYTHONHASHSEED=0 {_PYTHON} -I -W ignore {_COMPILEALL} /{PACKAGES} || test $? = 1"
# With the project's wheels in sight: a build backend that the image lacks can be one of the project's packages.
_BUILD: Final = (
    f"mkdir /opt/built && cd /opt/sdists && PYTHONPATH=/{PACKAGES} PYTHONHASHSEED=0 SOURCE_DATE_EPOCH={EPOCH} "
    f"{_PYTHON} -m pip wheel --quiet --no-index --no-deps --no-build-isolation --no-cache-dir "
    "--disable-pip-version-check --wheel-dir /opt/built ./*"
)


def packages_layer(
    wheels: Iterable[Path],
    sdists: Sequence[Path],
    *,
    image: str,
    scratch: Path,
    store: ImageStore,
    report: Reporter,
) -> Layer:
    """Return the layer of these files, installed for the Python of ``image``.

    :raises ArtefactError: a wheel cannot be unpacked, or holds a file of another.
    :raises BuildError: a source distribution cannot be built there.
    """
    unpacked = scratch / "packages"
    home = unpacked / PACKAGES
    home.mkdir(parents=True)
    for wheel in sorted(wheels, key=lambda path: path.name):
        _unpack(wheel, unpacked)
    if sdists:
        report.say(f"building {', '.join(path.name for path in sdists)} in the image, with the network off")
        for wheel in _built(sdists, home, image, scratch, store):
            _unpack(wheel, unpacked)
    report.say("compiling the project's packages")
    compile_all = Task(
        script=_COMPILE,
        given={f"/{PACKAGES}": home},
        back=f"/{PACKAGES}",
        name="compiling the project's packages",
        remedy="see what the compiler said with --debug",
    )
    with done_inside(image, compile_all, scratch, store) as tar:
        prefix = home.name.encode()
        entries = [
            replace(entry, name=PACKAGES.encode() + entry.name.removeprefix(prefix), uid=0, gid=0)
            for entry in entries_of_tar(tar)
        ]
        return write_layer([*entries, _pth()], scratch)


def _built(sdists: Sequence[Path], home: Path, image: str, scratch: Path, store: ImageStore) -> list[Path]:
    """Return the wheels of the source distributions, built by the image's own pip and compiler."""
    sources, wheels = scratch / "sdists", scratch / "built"
    sources.mkdir()
    wheels.mkdir()
    for sdist in sdists:
        # Unpacked here, for pip would do it in a folder of a random name, which a compiler writes into what it makes.
        try:
            shutil.unpack_archive(sdist, sources, filter="data")
        except (shutil.ReadError, tarfile.TarError, OSError, TypeError, ValueError) as error:
            raise ArtefactError(f"{sdist.name} cannot be unpacked ({error})", remedy="fetch it again") from error
    task = Task(
        script=_BUILD,
        given={f"/{PACKAGES}": home, "/opt/sdists": sources},
        back="/opt/built",
        name=f"building {', '.join(sorted(path.name for path in sdists))}",
        remedy="see why with --debug; where its build backend is missing, add that to the project's packages",
    )
    with done_inside(image, task, scratch, store) as tar, tarfile.open(fileobj=tar, mode="r:") as archive:
        archive.extractall(wheels, filter="data")
    return sorted(wheels.rglob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    """Install a wheel under ``folder`` as it will lie in the image, without running anything of it.

    :raises ArtefactError: it is no wheel, or it would write outside.
    """
    from installer import install
    from installer.destinations import SchemeDictionaryDestination
    from installer.exceptions import InstallerError
    from installer.sources import WheelFile

    home = f"/{PACKAGES}"
    schemes = {"purelib": home, "platlib": home, "scripts": f"{home}/bin", "headers": f"{home}/include", "data": home}
    destination = SchemeDictionaryDestination(
        schemes, interpreter=_PYTHON, script_kind="posix", destdir=str(folder), overwrite_existing=False
    )
    try:
        with WheelFile.open(wheel) as source:
            install(source, destination, additional_metadata={"INSTALLER": b"reprobox\n"})
    except FileExistsError as error:
        raise ArtefactError(
            f"{wheel.name} holds a file that another package holds as well: {error}", remedy="drop one of the two"
        ) from error
    except (InstallerError, ValueError, KeyError, OSError) as error:
        raise ArtefactError(f"{wheel.name} cannot be unpacked ({error})", remedy="fetch it again") from error


def _pth() -> Entry:
    line = f"/{PACKAGES}\n".encode()
    return Entry(name=_PTH.encode(), kind="file", mode=0o644, size=len(line), content=lambda: io.BytesIO(line))
