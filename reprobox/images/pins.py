"""The package files an image was made of, as the lock it was built from pins them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from reprobox.images.lockfile import LOCK_NAME, read_lock
from reprobox.images.sources import ImageInput
from reprobox.images.wheels import parse_lock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reprobox.images.contents import ImageContents
    from reprobox.images.lockmodel import Lock, Platform
    from reprobox.images.sources import Variant

__all__ = ["PinnedFile", "Pins", "find_pins", "pins_of"]

_PLATFORMS: Final[Mapping[str, Platform]] = {"amd64": "x86_64", "arm64": "aarch64"}


class PinnedFile(Protocol):
    """A package file as a lock pins it."""

    @property
    def name(self) -> str:
        """Name of the package, normalised."""

    @property
    def version(self) -> str:
        """Exact version."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, 64 hex digits."""


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Package files of Python and of Debian; empty where no lock is known that the image was built from."""

    wheels: tuple[PinnedFile, ...] = ()
    debs: tuple[PinnedFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _OwnPin:
    name: str
    version: str
    sha256: str


def find_pins(contents: ImageContents, project: Path) -> Pins:
    """Return the package files of an image by the lock of the project folder, or by this reprobox's own list.

    :raises LockError: the project's lock is damaged.
    """
    return pins_of(contents, read_lock(project / LOCK_NAME))


def pins_of(contents: ImageContents, lock: Lock | None) -> Pins:
    """Return the package files of an image, from a lock that is certain to be the one it was built from, and no other.

    Certain is ``lock`` where the image carries its digest, or where it names the image by its config digest; and
    reprobox's own list where the image carries the digest of that.
    """
    variant, platform = contents.labels.get("reprobox.variant", ""), _PLATFORMS.get(contents.architecture)
    if variant not in ("cpu", "cuda"):
        return Pins()
    chosen = cast("Variant", variant)
    own = _own_pins(chosen, contents.labels.get("reprobox.lock", ""))
    if lock is None or platform is None:
        return Pins(wheels=own)
    built = lock.images.get(chosen)
    named = built is not None and built.config_digest == contents.image_id
    if not named and contents.labels.get("reprobox.project-lock") != lock.digest(chosen, platform):
        return Pins(wheels=own)
    wheels: list[PinnedFile] = [*lock.wheels_for(chosen, platform), *lock.sdists_for(chosen, platform)]
    return Pins(wheels=tuple(wheels), debs=lock.debs_for(platform))


def _own_pins(variant: Variant, digest: str) -> tuple[PinnedFile, ...]:
    text = ImageInput.read(variant).lock
    if digest != f"sha256:{hashlib.sha256(text.encode()).hexdigest()}":
        return ()
    pins = parse_lock(text, source=f"docker/locks/{variant}.txt")
    # Of a pin with several hashes it is not known which of the files was installed.
    return tuple(
        _OwnPin(name=pin.name, version=pin.version, sha256=pin.hashes[0]) for pin in pins if len(pin.hashes) == 1
    )
