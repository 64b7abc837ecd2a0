"""A project's own image: reprobox's for one variant, and one layer with the packages that the project adds.

The wheels are unpacked on this machine, which runs nothing of theirs, and compiled by the image's own Python in a box
without a network; what comes back is packed into a layer whose bytes depend on nothing else. Torch is in the layers
below, so that all projects share it, and a changed package sends one small layer.
"""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from reprobox import __version__, reference
from reprobox.engines.digests import config_digest, patient
from reprobox.errors import ArtefactError, BuildError, EngineError, LockError
from reprobox.images import BuildResult, archive, local_tag
from reprobox.images.artefacts import ArtefactCache, artefact_folder
from reprobox.images.fetching import artefacts_of, fetch, this_platform
from reprobox.images.layers import Entry, Layer, entries_of_folder, entries_of_tar, write_layer
from reprobox.images.lockedbase import base_of_debs, locked_base_key
from reprobox.images.lockfile import Lock, LockedImage, read_lock, write_lock
from reprobox.images.locking import base_digest
from reprobox.images.pipeline import cache_folder, run_build
from reprobox.images.sources import ImageInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import docker
    from reprobox.images import BuildRequest, Reporter, Variant
    from reprobox.images.fetching import Fetched
    from reprobox.images.lockfile import Platform
    from reprobox.images.pipeline import Surroundings

__all__ = ["PACKAGES", "build_project", "note_in_lock", "project_input", "project_tag"]

PACKAGES: Final = "opt/project"
"""Where in the image the project's packages are."""

_BIN: Final = "/opt/venv/bin"
_PYTHON: Final = f"{_BIN}/python"
_PTH: Final = "opt/venv/lib/python3.11/site-packages/reprobox_project.pth"
_TAIL: Final = 30
_SEE_DOCTOR: Final = "see `reprobox doctor`"


def project_input(lock: Lock, variant: Variant) -> str:
    """Return the SHA-256, in hex, over what decides the project's image: this reprobox's own inputs and the lock's."""
    parts = f"{ImageInput.read(variant).digest}\n{lock.digest(variant)}\n"
    return hashlib.sha256(parts.encode()).hexdigest()


def project_tag(lock: Lock, variant: Variant) -> str:
    """Return what the project's image is called on this machine: two projects with the same lock share it."""
    return f"reprobox-project:{__version__.replace('+', '.')}-{variant}-{project_input(lock, variant)[:12]}"


def build_project(
    lock: Lock,
    request: BuildRequest,
    *,
    client: docker.DockerClient,
    report: Reporter,
    within: Surroundings | None = None,
) -> BuildResult:
    """Build the image of ``lock`` for the request's variant, or return the one that is there already.

    :raises ArtefactError: the lock lacks a package for this machine, or one cannot be had.
    :raises BuildError: a step failed.
    """
    started = time.monotonic()
    made_of, tag = project_input(lock, request.variant), project_tag(lock, request.variant)
    if not request.no_cache and (found := _present(client, tag, made_of)) is not None:
        report.say(f"the image {tag} is already there; nothing to build")
        return _result(found, request, tag=tag, made_of=made_of, client=client, started=started, reused=True)
    if missing := lock.missing_for(request.variant):
        raise ArtefactError(
            f"the lock lacks {missing[0].name} {missing[0].version} for {request.variant} on this machine",
            remedy="write it where an index serves it: reprobox lock",
        )
    ours = lock.inputs.base.get(request.variant)
    if ours is not None and ours != base_digest(request.variant):
        raise LockError(
            "reprobox.lock was written with the packages of another reprobox", remedy="write it again: reprobox lock"
        )
    if sdists := lock.sdists_for(request.variant):
        raise ArtefactError(
            f"{sdists[0]} has no wheel, and only wheels are installed",
            remedy=f"build its wheel once (pip wheel {sdists[0].name}) and give it with --wheelhouse",
        )
    platform = this_platform()
    fetched = fetch(
        artefacts_of(lock, (request.variant,), (platform,)),
        cache=ArtefactCache(root=artefact_folder(), say=report.say),
        report=report,
        offline=request.offline,
        wheelhouses=request.wheelhouses,
    )
    cache = cache_folder()
    with TemporaryDirectory(dir=_made(cache / "contexts"), prefix="project-") as made:
        scratch = Path(made)
        base = _base(lock, request, fetched, platform, scratch, client, report, within)
        wheels = [fetched.files[w.sha256] for w in lock.wheels_for(request.variant, platform, layer="project")]
        layers = [_layer(wheels, base.engine_id, scratch, client, report)] if wheels else []
        image = archive.assemble(
            archive.described(client, base.engine_id),
            layers,
            changes=_changes(client, base.engine_id, made_of, lock.digest(request.variant)),
            said=[f"reprobox: {len(wheels)} packages of the project"] * len(layers),
        )
        archive.load(client, image, tag=tag, scratch=scratch)
    found = _present(client, tag, made_of)
    if found is None:
        raise BuildError(f"the engine loaded {tag} and does not have it", remedy="run it again")
    return _result(found, request, tag=tag, made_of=made_of, client=client, started=started, reused=False)


def _base(
    lock: Lock,
    request: BuildRequest,
    fetched: Fetched,
    platform: Platform,
    scratch: Path,
    client: docker.DockerClient,
    report: Reporter,
    within: Surroundings | None,
) -> BuildResult:
    """Return reprobox's own image for the variant; on exactly the Debian packages of the lock, where it names any."""
    wheelhouse = _made(scratch / "wheelhouse")
    for wheel in lock.wheels_for(request.variant, platform, layer="base"):
        (wheelhouse / wheel.file).symlink_to(fetched.files[wheel.sha256].resolve())
    asked = replace(request, tag=None, wheelhouses=(wheelhouse, *request.wheelhouses))
    if debs := lock.debs_for(platform):
        standing_on = base_of_debs(client, debs, fetched.files, cache=cache_folder() / "base", report=report)
        name = f"{local_tag(request.variant)}-{locked_base_key(debs)[:12]}"
        asked = replace(asked, base=standing_on, name=name)
    return run_build(asked, client=client, report=report, within=within)


def note_in_lock(path: Path, variant: Variant, built: BuildResult, *, torch: str) -> str | None:
    """Write what was built to ``[images.<variant>]`` of the lock at ``path``; return what a person should know of it.

    :raises BuildError: the lock names another image that was made of the very same: the promise does not hold.
    :raises LockError: the lock cannot be read or written.
    """
    lock = read_lock(path)
    if lock is None:
        return None
    known = lock.images.get(variant)
    if known is not None and known.config_digest == built.image_id:
        return None
    if known is not None and known.input == built.input:
        raise BuildError(
            f"this build gave {built.image_id}, and {path.name} names {known.config_digest}, made of the same",
            remedy="see `reprobox build --verify`, and report what it shows",
        )
    image = LockedImage(config_digest=built.image_id, input=built.input, torch=torch)
    write_lock(path, lock.with_image(variant, image))
    return f"{path.name} names {built.image_id} as its {variant} image now; commit it"


def _layer(wheels: Iterable[Path], base: str, scratch: Path, client: docker.DockerClient, report: Reporter) -> Layer:
    """Return the layer of the unpacked wheels, compiled by the Python of the image ``base``."""
    unpacked = scratch / "packages"
    unpacked.mkdir()
    for wheel in sorted(wheels):
        _unpack(wheel, unpacked)
    with _compiled(unpacked, base, client, report) as tar:
        prefix = Path(PACKAGES).name.encode()
        entries = [
            replace(entry, name=PACKAGES.encode() + entry.name.removeprefix(prefix), uid=0, gid=0)
            for entry in entries_of_tar(tar)
        ]
        return write_layer([*entries, _pth()], scratch)


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
        schemes,
        interpreter=_PYTHON,
        script_kind="posix",
        destdir=str(folder),
        overwrite_existing=False,
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


@contextmanager
def _compiled(folder: Path, base: str, client: docker.DockerClient, report: Reporter) -> Iterator[IO[bytes]]:
    """Give a tar of ``project/…`` with its bytecode, which the Python of ``base`` wrote in a box without a network."""
    import docker.errors

    # One process, and the hash seed fixed: what marshal writes depends on both. A file in another Python's syntax is
    # left as it is, as pip leaves it.
    script = (
        f"PYTHONHASHSEED=0 {_PYTHON} -I -W ignore -m compileall -q --invalidation-mode unchecked-hash /{PACKAGES} "
        "|| test $? = 1"
    )
    try:
        with (
            patient(client),
            _removed(
                client.containers.create(
                    base,
                    [script],
                    entrypoint=["/bin/sh", "-c"],
                    network_mode="none",
                    user="0:0",
                    labels={"reprobox.stage": "project"},
                )
            ) as box,
            TemporaryFile(dir=folder.parent) as tar,
        ):
            report.say("compiling the project's packages")
            with _packed(folder / PACKAGES) as packed:
                box.put_archive("/opt", packed)
            box.start()
            code = box.wait()["StatusCode"]
            if code != 0:
                said = box.logs(tail=_TAIL).decode(errors="replace")
                raise BuildError(
                    f"the project's packages could not be compiled (exit code {code})",
                    remedy="see what the compiler said with --debug",
                    detail=said,
                )
            chunks, _ = box.get_archive(f"/{PACKAGES}")
            for chunk in chunks:
                tar.write(chunk)
            tar.seek(0)
            yield tar
    except docker.errors.APIError as error:
        raise EngineError(
            "the engine could not compile the project's packages", remedy=_SEE_DOCTOR, detail=str(error)
        ) from error


@contextmanager
def _removed(box: Any) -> Iterator[Any]:
    try:
        yield box
    finally:
        box.remove(force=True)


@contextmanager
def _packed(folder: Path) -> Iterator[IO[bytes]]:
    """Give ``folder`` as the tar that the engine unpacks under /opt."""
    with TemporaryDirectory(dir=folder.parent) as made:
        layer = write_layer(entries_of_folder(folder, at=folder.name), Path(made))
        with layer.open() as tar:
            yield tar


def _pth() -> Entry:
    line = f"/{PACKAGES}\n".encode()
    return Entry(name=_PTH.encode(), kind="file", mode=0o644, size=len(line), content=lambda: io.BytesIO(line))


def _changes(client: docker.DockerClient, base: str, made_of: str, lock: str) -> dict[str, Any]:
    environment: list[str] = client.images.get(base).attrs["Config"]["Env"]
    return {
        "Env": [_with_scripts(entry) for entry in environment],
        "Labels": {"reprobox.project": made_of, "reprobox.project-lock": lock},
    }


def _with_scripts(entry: str) -> str:
    name, _, value = entry.partition("=")
    # Behind the environment's own programs: no package of a project may stand in for python.
    return f"PATH={value.replace(_BIN, f'{_BIN}:/{PACKAGES}/bin', 1)}" if name == "PATH" else entry


def _present(client: docker.DockerClient, tag: str, made_of: str) -> Mapping[str, Any] | None:
    """Return the engine's description of the project's image where it is the one that would be built."""
    import docker.errors

    try:
        found: dict[str, Any] = client.images.get(tag).attrs
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        raise EngineError(
            f"the engine could not say whether it has {tag}", remedy=_SEE_DOCTOR, detail=str(error)
        ) from error
    labels = found["Config"].get("Labels") or {}
    return found if labels.get("reprobox.project") == made_of else None


def _result(
    image: Mapping[str, Any],
    request: BuildRequest,
    *,
    tag: str,
    made_of: str,
    client: docker.DockerClient,
    started: float,
    reused: bool,
) -> BuildResult:
    engine_id, labels = str(image["Id"]), image["Config"]["Labels"]
    if request.tag:
        wanted = reference.parse(request.tag)
        client.api.tag(engine_id, wanted.name, tag=wanted.tag or "latest")
    return BuildResult(
        image_id=config_digest(client, engine_id),
        engine_id=engine_id,
        builder=None if reused else request.builder,
        way=None if reused else f"{request.builder}+normalised",
        reused=reused,
        variant=request.variant,
        tag=request.tag or tag,
        base=labels["reprobox.base"],
        input=made_of,
        lock=f"sha256:{labels['reprobox.project-lock']}",
        seconds=time.monotonic() - started,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
