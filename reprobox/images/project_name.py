"""What the image of a project's lock is called here, and made of: all that a run asks where nothing changed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from reprobox import __version__
from reprobox.images.sources import ImageInput

if TYPE_CHECKING:
    from reprobox.images.lockmodel import Lock
    from reprobox.images.sources import Variant

__all__ = ["project_input", "project_tag"]


def project_input(lock: Lock, variant: Variant) -> str:
    """Return the SHA-256, in hex, over what decides the project's image: this reprobox's own inputs and the lock's."""
    parts = f"{ImageInput.read(variant).digest}\n{lock.digest(variant)}\n"
    return hashlib.sha256(parts.encode()).hexdigest()


def project_tag(lock: Lock, variant: Variant) -> str:
    """Return what the project's image is called on this machine: two projects with the same lock share it."""
    return f"reprobox-project:{__version__.replace('+', '.')}-{variant}-{project_input(lock, variant)[:12]}"
