"""The image of a project that has a ``reprobox.lock``: the one on this machine, else a registry's, else built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reprobox.engines import image_store
from reprobox.errors import ImageNotFound, LockError, UsageError
from reprobox.images.lockfile import LOCK_NAME
from reprobox.images.lockmodel import Lock, LockedImage
from reprobox.images.project_name import project_name
from reprobox.reference import parse as parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reprobox.engines import Engine, ImageInfo
    from reprobox.images import Reporter, Variant

__all__ = ["LockedChoice", "locked_image", "locked_variant", "refuse_another"]


@dataclass(frozen=True, kw_only=True)
class LockedChoice:
    """What is known before the image is looked for.

    :param repository: HOST/NAME of the registry that has the image; ``None`` where the project names none.
    :param pull: ``never`` neither pulls nor builds; ``always`` pulls even what is here.
    :param before_it_is_built: called where the image has to be built; it may raise.
    """

    lock: Lock
    path: Path
    variant: Variant
    repository: str | None
    pull: str
    before_it_is_built: Callable[[], None] = lambda: None


def locked_variant(lock: Lock, *, gpus: bool, asked: bool) -> Variant:
    """Return which of the lock's images a run takes; without GPUs the CUDA image computes on the CPU.

    :raises UsageError: where GPUs were asked for, and the lock has no image that can use them.
    """
    there = lock.inputs.variants
    if gpus and "cuda" in there:
        return "cuda"
    if gpus and asked:
        raise UsageError(
            f"--gpus was given, and {LOCK_NAME} has the cpu image alone",
            remedy='add variant = "cuda" to the project file and write the lock again, or run with --gpus none',
        )
    return "cpu" if "cpu" in there or not there else "cuda"


def locked_image(engine: Engine, wanted: LockedChoice, report: Reporter) -> tuple[str, ImageInfo]:
    """Return the lock's image and what it is called here; fetched or built where it is missing.

    :raises LockError: where what is there, was fetched or was built is another image than the lock names.
    :raises ImageNotFound: where it is missing, and may be neither pulled nor built.
    """
    locked = wanted.lock.images.get(wanted.variant)
    ours = project_name(wanted.lock, wanted.variant)
    fetched = _by_digest(wanted, locked)
    if wanted.pull != "always" or fetched is None:
        for name in (ours.tag, *([fetched] if fetched else [])):
            if (found := _here(engine, name, ours.input)) is not None:
                return name, _checked(found, name, locked)
    if wanted.pull == "never":
        raise ImageNotFound(
            f"the image of {LOCK_NAME} is not on this machine", remedy="fetch or build it: reprobox build"
        )
    if fetched is not None:
        return fetched, _checked(engine.pull(fetched, report.say, None), fetched, locked)
    wanted.before_it_is_built()
    report.say(f"the image of {LOCK_NAME} is not on this machine; building it")
    from reprobox.images import BuildRequest
    from reprobox.images.project import build_project  # what a build needs takes longer to import than to decide this

    request = BuildRequest(variant=wanted.variant, compiler=ours.compiler)
    build_project(wanted.lock, request, store=image_store(engine), report=report)
    return ours.tag, _checked(engine.image(ours.tag), ours.tag, locked)


def refuse_another(reference: str, image: ImageInfo, lock: Lock) -> str | None:
    """Return what differs where ``image``, which was chosen by name, is none of the lock's images."""
    named = {locked.config_digest for locked in lock.images.values() if locked.config_digest}
    if not named or image.image_id in named:
        return None
    return f"{reference} is the image {image.image_id}, and {LOCK_NAME} names {' and '.join(sorted(named))}"


def _by_digest(wanted: LockedChoice, locked: LockedImage | None) -> str | None:
    if locked is None or not locked.repo_digest or wanted.repository is None:
        return None
    return str(replace(parse_reference(wanted.repository), tag=None, digest=locked.repo_digest))


def _here(engine: Engine, name: str, made_of: str) -> ImageInfo | None:
    try:
        found = engine.image(name)
    except ImageNotFound:
        return None
    return found if found.labels.get("reprobox.project") == made_of or "@" in name else None


def _checked(found: ImageInfo, name: str, locked: LockedImage | None) -> ImageInfo:
    if locked is None or not locked.config_digest or found.image_id == locked.config_digest:
        return found
    raise LockError(
        f"{name} is the image {found.image_id}, and {LOCK_NAME} names {locked.config_digest}",
        remedy="see `reprobox build --verify`; where the change is meant, write the lock again: reprobox lock",
    )
