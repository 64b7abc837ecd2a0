"""Building the image: what goes into it, what it stands on, and which id it got.

Nothing here prints, exits or imports docker before a function that needs it is called, so that asking for the local
image's name costs a start of the command line nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reprobox.engines.store import Builder, Reporter
from reprobox.errors import UsageError
from reprobox.images.sources import Variant, input_digest, local_tag
from reprobox.reference import parse

if TYPE_CHECKING:
    from pathlib import Path

    from reprobox.engines.store import ImageStore

__all__ = [
    "BuildRequest",
    "BuildResult",
    "Builder",
    "Reporter",
    "Variant",
    "build",
    "input_digest",
    "local_tag",
]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build.

    :param variant: ``cpu`` (default) or ``cuda``; chooses the lock.
    :param base: an image reference, an image id (``sha256:…``) or ``bootstrap``; None (default) takes the base the lock
        names, else pulls Debian's slim image, else bootstraps one.
    :param wheelhouses: folders that are searched for the lock's wheels before pip is asked; none by default.
    :param tag: one more name for the image, beside :func:`local_tag`.
    :param name: what it is called on this machine; :func:`local_tag` by default.
    :param offline: take wheels and packages from this machine alone; False by default.
    :param builder: ``classic`` (the engine's own) or ``buildkit``; None (default) is the first that the engine takes.
    :param no_cache: build every step again even if the image is already there; False by default.
    :param compiler: have the C++ compiler that torch.compile needs in the image; True by default.
    """

    variant: Variant = "cpu"
    base: str | None = None
    wheelhouses: tuple[Path, ...] = ()
    tag: str | None = None
    name: str | None = None
    offline: bool = False
    builder: Builder | None = None
    no_cache: bool = False
    compiler: bool = True

    def __post_init__(self) -> None:
        """Refuse a bad tag before anything is done. :raises UsageError: it is no name, or names what there cannot be."""
        if self.tag is not None and parse(self.tag).digest:
            raise UsageError(f"the tag {self.tag!r} has a digest", remedy="name the image as NAME:TAG")


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """The image that was built or found.

    ``image_id`` is the OCI config digest and ``engine_id`` what the engine calls the image; they differ on engines with
    the containerd image store. ``builder`` is who built it, and ``way`` how it came to be the same on every machine
    (``classic+normalised``, ``buildkit+normalised``); both are None where no Dockerfile was carried out. ``base`` is what
    the image records of its base (``sha256:…`` or ``bootstrap@sha256:…``), ``input`` the :func:`input_digest`, ``lock``
    the SHA-256 of the lock file, ``seconds`` wall time. ``verification`` is what building twice showed (see
    :func:`reprobox.images.rebuild.build_verified`), and None where that was not asked for.
    """

    image_id: str
    engine_id: str
    builder: Builder | None
    way: str | None = None
    reused: bool
    variant: Variant
    tag: str
    base: str
    input: str
    lock: str
    seconds: float
    verification: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the document of schema ``reprobox.build/1``."""
        return {"schema": "reprobox.build/1", **asdict(self), "seconds": round(self.seconds, 3)}


def build(request: BuildRequest, *, store: ImageStore, report: Reporter) -> BuildResult:
    """Build the image of ``request``, or return the one that is already there with the same inputs.

    :raises UsageError: ``base`` is not an image reference.
    :raises ArtefactError: a wheel of the lock cannot be had.
    :raises BuildError: a step failed; the log's tail is its detail.
    :raises EngineError: the engine refused, or the base cannot be pulled.
    """
    from reprobox.images.pipeline import run_build

    return run_build(request, store=store, report=report)
