"""What the image of a project's lock is called here, and made of: all that a run asks where nothing changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reprobox import __version__
from reprobox.images.sources import ImageInput

if TYPE_CHECKING:
    from reprobox.images.lockmodel import Lock
    from reprobox.images.sources import Variant

__all__ = ["ProjectName", "project_name", "project_tag"]


@dataclass(frozen=True, kw_only=True)
class ProjectName:
    """One image of a project.

    :param input: the SHA-256, in hex, over what decides it: this reprobox's own inputs and the lock's.
    :param tag: what it is called on this machine: two projects with the same lock share it.
    :param compiler: whether it has the C++ compiler.
    """

    input: str
    tag: str
    compiler: bool


def project_name(lock: Lock, variant: Variant, *, compiler: bool | None = None) -> ProjectName:
    """Return what the project's image with or without a ``compiler`` is called and made of.

    By default that of the image the lock names: the one without only where that was built and noted.
    """
    files, locked, known = ImageInput.read(variant), lock.digest(variant), lock.images.get(variant)

    def made_of(*, compiler: bool) -> str:
        parts = f"{replace(files, compiler=compiler).digest}\n{locked}\n"
        return hashlib.sha256(parts.encode()).hexdigest()

    if compiler is None:
        compiler = known is None or not known.input or known.input != made_of(compiler=False)
    digest = made_of(compiler=compiler)
    tag = f"reprobox-project:{__version__.replace('+', '.')}-{variant}-{digest[:12]}"
    return ProjectName(input=digest, tag=tag, compiler=compiler)


def project_tag(lock: Lock, variant: Variant) -> str:
    """Return what the image that the lock names is called on this machine."""
    return project_name(lock, variant).tag
