"""Sharing an image through a registry: pushed and pulled by digest, and held against the lock."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from reprobox import reference
from reprobox.errors import EngineError, LockError, RegistryError, UsageError
from reprobox.images.lockfile import LOCK_NAME, read_lock, write_lock
from reprobox.images.lockmodel import VARIANTS
from reprobox.images.project_name import project_tag

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reprobox.engines.store import ImageStore
    from reprobox.engines.transfer import Patience
    from reprobox.images import Reporter, Variant
    from reprobox.images.lockmodel import Lock
    from reprobox.reference import Reference

__all__ = ["Pulled", "Pushed", "image_of_lock", "note_in_lock", "pull_image", "pull_locked", "push_image"]


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """An image that the engine and a registry both have.

    ``repo_digest`` is ``NAME@sha256:…``, what to write wherever it is to be pulled again; ``image_id`` the OCI config
    digest; ``engine_id`` what the engine calls it; ``seconds`` wall time.
    """

    SCHEMA: ClassVar[str]

    reference: str
    repo_digest: str
    image_id: str
    engine_id: str
    lock: str | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the document of the schema that ``SCHEMA`` names."""
        return {"schema": self.SCHEMA, **asdict(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, kw_only=True)
class Pulled(_Shared):
    """An image that was fetched, or that the engine had by its digest; ``lock`` is what it was held against, if it was."""

    SCHEMA = "reprobox.pull/1"


@dataclass(frozen=True, kw_only=True)
class Pushed(_Shared):
    """An image that was pushed; ``lock`` is the one that its digest was written to, if it was."""

    SCHEMA = "reprobox.push/1"


def pull_image(
    wanted: Reference,
    *,
    store: ImageStore,
    report: Reporter,
    patience: Patience | None = None,
    image_id: str | None = None,
    lock: str | None = None,
) -> Pulled:
    """Fetch ``wanted`` from its registry and return exactly what was fetched; an older image never takes its place.

    :param image_id: the OCI config digest it must have; any by default.
    :param lock: where ``image_id`` was read, for messages.
    :raises RegistryError: it could not be had, or is another image than ``image_id``; then what was fetched is let go.
    """
    started = time.monotonic()
    had = store.ids(hidden=True) if image_id else ()
    digest = store.pull(wanted, report, patience=patience)
    name = f"{wanted.name}@{digest}"
    fetched = store.inspect(name)  # by digest: the tag may name another image by now
    found = store.image_id(fetched)
    if image_id not in {None, found}:
        if fetched.engine_id not in had:
            with contextlib.suppress(EngineError):
                store.remove(name)
        raise RegistryError(
            f"{name} is the image {found}, and {lock} names {image_id}; it is not used",
            remedy="push the image of the lock there, or write the lock of that image",
        )
    return Pulled(
        reference=str(wanted),
        repo_digest=name,
        image_id=found,
        engine_id=fetched.engine_id,
        lock=lock,
        seconds=time.monotonic() - started,
    )


def pull_locked(
    path: Path,
    repository: str | None,
    variant: str | None,
    *,
    store: ImageStore,
    report: Reporter,
    patience: Patience | None = None,
) -> Pulled:
    """Fetch the image that the lock at ``path`` names, by digest, from ``repository``, which no lock names.

    :param variant: ``cpu`` or ``cuda``; None takes the one image of a lock that has one.
    :raises UsageError: no repository is given, or it is none; or the lock has several images and no ``variant`` is given.
    :raises LockError: the lock names no such image, or it was never pushed.
    :raises RegistryError: as :func:`pull_image`.
    """
    lock, chosen = image_of_lock(path, variant)
    locked = lock.images[chosen]
    if repository is None:
        raise UsageError(
            f"{path.name} does not say which repository has its image",
            remedy="give it: --from HOST/NAME, or image = in the project file",
        )
    wanted = replace(reference.parse(repository), tag=None, digest=locked.repo_digest)
    pulled = pull_image(
        wanted, store=store, report=report, patience=patience, image_id=locked.config_digest, lock=str(path)
    )
    _name_as_built(store, pulled, lock, chosen)
    return pulled


def push_image(
    image: str,
    target: Reference,
    *,
    store: ImageStore,
    report: Reporter,
    patience: Patience | None = None,
) -> Pushed:
    """Push ``image`` (a name or an id) as ``target``; afterwards the engine has it under that name too.

    Where it fails, the name means again what it meant before.

    :raises UsageError: ``target`` has a digest, which only the registry can give.
    :raises ImageNotFound: the engine does not have the image.
    :raises RegistryError: the registry refused, failed or stalled, or has something else now.
    """
    started = time.monotonic()
    if target.digest:
        raise UsageError(f"{target} has a digest, which follows from the image", remedy="give NAME:TAG to push it as")
    named = target if target.tag else replace(target, tag="latest")
    found = store.inspect(image)
    image_id = store.image_id(found)
    with _tagged(store, found.engine_id, named):
        digest = store.push(named, report, patience=patience)
        repo_digest = f"{named.name}@{digest}"
        known = store.find(repo_digest)  # Podman keeps no digest of what it pushed
        same = known is None or known.engine_id == found.engine_id
    if not same:
        raise RegistryError(f"{repo_digest} is not the image that was pushed", remedy="push it again")
    return Pushed(
        reference=str(named),
        repo_digest=repo_digest,
        image_id=image_id,
        engine_id=found.engine_id,
        lock=None,
        seconds=time.monotonic() - started,
    )


def image_of_lock(path: Path, variant: str | None) -> tuple[Lock, Variant]:
    """Return the lock at ``path``, and which of its images is meant: one that was pushed once.

    :raises UsageError: the lock has several and no ``variant`` is given.
    :raises LockError: there is no lock, it has no such image, or that was never pushed.
    """
    lock = read_lock(path)
    if lock is None:
        raise LockError(f"there is no {path}", remedy="write one with `reprobox lock`, or pull an image by its name")
    if variant is None and len(lock.images) > 1:
        raise UsageError(
            f"{path.name} has the images {' and '.join(sorted(lock.images))}", remedy="choose one with --variant"
        )
    chosen = next((each for each in VARIANTS if each in lock.images and variant in {None, each}), None)
    if chosen is None:
        what = f"{variant} image" if variant else "image"
        raise LockError(f"{path} names no {what} yet", remedy="build it: reprobox build")
    if not lock.images[chosen].repo_digest:
        raise LockError(
            f"the {chosen} image of {path} was never pushed", remedy="push it where it was built: reprobox push"
        )
    return lock, chosen


def note_in_lock(folder: Path, variant: str, pushed: Pushed, report: Reporter) -> Pushed:
    """Write the digest of ``pushed`` to ``[images.<variant>]`` of the project's lock, where that names this very image.

    :param folder: the project's; without a lock in it, nothing is done.
    :raises LockError: the lock cannot be read or written.
    """
    path = folder / LOCK_NAME
    lock = read_lock(path)
    if lock is None:
        return pushed
    locked = lock.images.get(variant)
    if locked is None or locked.config_digest != pushed.image_id:
        what = f"another {variant} image ({locked.config_digest})" if locked else f"no {variant} image yet"
        report.say(f"{LOCK_NAME} names {what}, so the digest was not written to it")
        return pushed
    digest = pushed.repo_digest.partition("@")[2]
    images = {**lock.images, variant: replace(locked, repo_digest=digest)}
    write_lock(path, replace(lock, images=images))
    report.say(f"the digest is in {LOCK_NAME}; commit it")
    return replace(pushed, lock=str(path))


def _name_as_built(store: ImageStore, pulled: Pulled, lock: Lock, variant: Variant) -> None:
    """Give the image the name it has where it was built: runs look for it, and pruning leaves it alone."""
    store.tag(pulled.engine_id, project_tag(lock, variant))


@contextlib.contextmanager
def _tagged(store: ImageStore, engine_id: str, named: Reference) -> Iterator[None]:
    """Give the image the name it is pushed under, and take it away again, or give it back, where the block fails."""
    name = str(named)
    before = store.find(name)
    store.tag(engine_id, name)
    try:
        yield
    except BaseException:
        with contextlib.suppress(EngineError):
            if before is not None:
                store.tag(before.engine_id, name)
            elif len(store.inspect(engine_id).names) > 1:  # an image goes with its last name
                store.remove(name)
        raise
