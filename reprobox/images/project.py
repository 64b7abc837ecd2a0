"""A project's own image: reprobox's for one variant, and one layer with the packages that the project adds.

Torch is in the layers below that one, so that all projects share it, and a changed package sends one small layer.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from reprobox.errors import ArtefactError, BuildError, LockError
from reprobox.folders import cache_folder
from reprobox.images import BuildResult, archive
from reprobox.images.artefacts import ArtefactCache, artefact_folder
from reprobox.images.bootstrap import COMPILER
from reprobox.images.debs import BASE_PACKAGES
from reprobox.images.fetching import artefacts_of, fetch, this_platform
from reprobox.images.lockedbase import base_of_debs, locked_base_key
from reprobox.images.lockfile import read_lock, write_lock
from reprobox.images.locking import base_digest
from reprobox.images.lockmodel import LockedImage
from reprobox.images.packages import BIN, PACKAGES, packages_layer
from reprobox.images.pipeline import build_result, run_build
from reprobox.images.project_name import project_name
from reprobox.images.sources import ImageInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reprobox.engines.store import ImageStore, StoredImage
    from reprobox.images import BuildRequest, Reporter, Variant
    from reprobox.images.fetching import Fetched
    from reprobox.images.lockmodel import Lock, LockedDeb, Platform
    from reprobox.images.pipeline import Surroundings

__all__ = ["build_project", "note_in_lock"]

_SEE_DOCTOR: Final = "see `reprobox doctor`"


def build_project(
    lock: Lock,
    request: BuildRequest,
    *,
    store: ImageStore,
    report: Reporter,
    within: Surroundings | None = None,
) -> BuildResult:
    """Build the image of ``lock`` for the request's variant, or return the one that is there already.

    :raises ArtefactError: the lock lacks a package for this machine, or one cannot be had.
    :raises BuildError: a step failed.
    """
    started = time.monotonic()
    name = project_name(lock, request.variant, compiler=request.compiler)
    made_of, tag = name.input, name.tag
    lock_digest = lock.digest(request.variant)
    result = partial(
        build_result, request, tag=tag, made_of=made_of, lock=f"sha256:{lock_digest}", store=store, started=started
    )
    if not request.no_cache and (found := _present(store, tag, made_of)) is not None:
        report.say(f"the image {tag} is already there; nothing to build")
        return result(found, reused=True)
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
        base = _base(lock, request, fetched, platform, scratch, store, report, within)
        wheels = [fetched.files[w.sha256] for w in lock.wheels_for(request.variant, platform, layer="project")]
        sdists = [fetched.files[one.sha256] for one in lock.sdists_for(request.variant, platform)]
        layers = []
        if wheels or sdists:
            layers.append(
                packages_layer(wheels, sdists, image=base.engine_id, scratch=scratch, store=store, report=report)
            )
        image = archive.assemble(
            archive.described(store, base.engine_id),
            layers,
            changes=_changes(store, base.engine_id, made_of, lock_digest),
            said=[f"reprobox: {len(wheels) + len(sdists)} packages of the project"] * len(layers),
        )
        archive.load(store, image, tag=tag, scratch=scratch)
    found = _present(store, tag, made_of)
    if found is None:
        raise BuildError(f"the engine loaded {tag} and does not have it", remedy="run it again")
    return result(found, reused=False, builder=base.builder)


def _base(
    lock: Lock,
    request: BuildRequest,
    fetched: Fetched,
    platform: Platform,
    scratch: Path,
    store: ImageStore,
    report: Reporter,
    within: Surroundings | None,
) -> BuildResult:
    """Return reprobox's own image for the variant; on exactly the Debian packages of the lock, where it names any."""
    wheelhouse = _made(scratch / "wheelhouse")
    for wheel in lock.wheels_for(request.variant, platform, layer="base"):
        (wheelhouse / wheel.file).symlink_to(fetched.files[wheel.sha256].resolve())
    asked = replace(request, tag=None, wheelhouses=(wheelhouse, *request.wheelhouses))
    if debs := lock.debs_for(platform):
        names = base_names(lock, debs, compiler=request.compiler)
        standing_on = base_of_debs(
            store, debs, fetched.files, names=names, cache=cache_folder() / "base", report=report
        )
        ours = ImageInput.read(request.variant, compiler=request.compiler).tag
        name = f"{ours}-{locked_base_key(debs, names)[:12]}"
        asked = replace(asked, base=standing_on, name=name)
    return run_build(asked, store=store, report=report, within=within)


def base_names(lock: Lock, debs: Sequence[LockedDeb], *, compiler: bool) -> tuple[str, ...]:
    """Return the Debian packages that the base is to have; the lock lists those of the C++ compiler among all others."""
    if compiler:
        return tuple(sorted(deb.name for deb in debs))
    return tuple(sorted({*BASE_PACKAGES, *lock.inputs.apt} - (set(COMPILER) - set(lock.inputs.apt))))


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


def _changes(store: ImageStore, base: str, made_of: str, lock: str) -> dict[str, Any]:
    return {
        "Env": [_with_scripts(entry) for entry in store.inspect(base).environment],
        "Labels": {"reprobox.project": made_of, "reprobox.project-lock": lock},
    }


def _with_scripts(entry: str) -> str:
    name, _, value = entry.partition("=")
    # Behind the environment's own programs: no package of a project may stand in for python.
    return f"PATH={value.replace(BIN, f'{BIN}:/{PACKAGES}/bin', 1)}" if name == "PATH" else entry


def _present(store: ImageStore, tag: str, made_of: str) -> StoredImage | None:
    """Return the engine's description of the project's image where it is the one that would be built."""
    found = store.find(tag)
    return found if found is not None and found.labels.get("reprobox.project") == made_of else None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
