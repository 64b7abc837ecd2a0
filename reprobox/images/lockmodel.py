"""What a ``reprobox.lock`` says, as plain data; ``lockfile.py`` reads and writes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, get_args

from reprobox.images.sources import Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PLATFORMS",
    "VARIANTS",
    "Inputs",
    "Layer",
    "Lock",
    "LockedDeb",
    "LockedImage",
    "LockedPackage",
    "LockedSdist",
    "LockedWheel",
    "Missing",
    "Platform",
]

Platform = Literal["x86_64", "aarch64"]
Layer = Literal["base", "project"]

VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)
PLATFORMS: Final[tuple[Platform, ...]] = get_args(Platform)


@dataclass(frozen=True, kw_only=True)
class LockedPackage:
    """One file of a Python package; ``size`` in bytes, None where the index did not say."""

    name: str
    version: str
    file: str
    sha256: str
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class LockedWheel(LockedPackage):
    """One wheel.

    :param layer: ``base`` for what reprobox's own image holds, ``project`` for what the project adds.
    :param variants: images it goes into; ``platforms``: machines it is for.
    :param requires: names of the packages it needs on those platforms, so that a missing one is noticed without a network.
    """

    # A lock's text and seals have the fields in the order in which they are declared.
    layer: Layer = "project"
    variants: tuple[Variant, ...]
    platforms: tuple[Platform, ...]
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LockedSdist(LockedPackage):
    """One source distribution that was allowed by name: built in the box, with the network off, for its variants."""

    variants: tuple[Variant, ...]
    platforms: tuple[Platform, ...] = PLATFORMS
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LockedDeb:
    """One Debian package; ``architecture`` is its own (``amd64``, ``arm64`` or ``all``), ``size`` in bytes."""

    name: str
    version: str
    architecture: str
    file: str
    sha256: str
    size: int | None = None
    platforms: tuple[Platform, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.architecture})"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A package that no index of the machine that wrote the lock served for this variant and platform."""

    name: str
    version: str
    variant: Variant
    platform: Platform


@dataclass(frozen=True, kw_only=True)
class LockedImage:
    """One image that was built from the lock; empty texts are not known.

    ``config_digest`` names its content, ``input`` all that it was made of (``project_name.ProjectName.input``), ``repo_digest``
    what a registry answered to a push; ``driver`` is the least NVIDIA driver it runs with.
    """

    config_digest: str
    input: str = ""
    repo_digest: str = ""
    torch: str = ""
    cuda: str = ""
    cudnn: str = ""
    driver: str = ""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the lock was made of, as texts, so that a difference can be named.

    :param variants: images that are locked.
    :param python: requirements, normalised and sorted; ``apt``: Debian packages asked for beside the base's.
    :param sdists: names whose source distribution may be taken.
    :param base: digest of reprobox's own list for each variant, and ``debian`` for the base's Debian packages.
    """

    variants: tuple[Variant, ...] = ()
    python: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    sdists: tuple[str, ...] = ()
    base: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A whole ``reprobox.lock``."""

    inputs: Inputs
    wheels: tuple[LockedWheel, ...] = ()
    sdists: tuple[LockedSdist, ...] = ()
    debs: tuple[LockedDeb, ...] = ()
    missing: tuple[Missing, ...] = ()
    images: Mapping[str, LockedImage] = field(default_factory=dict)

    def wheels_for(
        self, variant: Variant, platform: Platform = "x86_64", *, layer: Layer | None = None
    ) -> tuple[LockedWheel, ...]:
        """Return the wheels of one image, sorted by name; those of one layer where ``layer`` is given."""
        return tuple(
            wheel
            for wheel in self.wheels
            if variant in wheel.variants and platform in wheel.platforms and layer in (None, wheel.layer)
        )

    def sdists_for(self, variant: Variant, platform: Platform = "x86_64") -> tuple[LockedSdist, ...]:
        """Return the source distributions that are built for one image."""
        return tuple(one for one in self.sdists if variant in one.variants and platform in one.platforms)

    def debs_for(self, platform: Platform = "x86_64") -> tuple[LockedDeb, ...]:
        """Return the Debian packages of the base on one platform, sorted by name."""
        return tuple(deb for deb in self.debs if platform in deb.platforms)

    def missing_for(self, variant: Variant, platform: Platform = "x86_64") -> tuple[Missing, ...]:
        """Return what the lock lacks for one image; it cannot be built there while this is not empty."""
        return tuple(one for one in self.missing if (one.variant, one.platform) == (variant, platform))

    def digest(self, variant: Variant, platform: Platform = "x86_64") -> str:
        """Return the SHA-256, in hex, over what decides one image: a project image's tag is made of it.

        Inputs that led to the same packages, and what the lock says of images already built, are no part of it.
        """
        parts = [f"{variant} {platform}"]
        parts += [f"deb {deb.file} {deb.sha256}" for deb in self.debs_for(platform)]
        parts += [f"{wheel.layer} {wheel.file} {wheel.sha256}" for wheel in self.wheels_for(variant, platform)]
        parts += [f"sdist {one.file} {one.sha256}" for one in self.sdists_for(variant, platform)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def with_image(self, variant: Variant, image: LockedImage) -> Lock:
        """Return the lock with what was built for ``variant`` noted."""
        return replace(self, images={**self.images, variant: image})
