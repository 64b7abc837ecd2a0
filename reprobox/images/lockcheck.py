"""Whether a project and its ``reprobox.lock`` agree, told without a network and without a package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from reprobox.images.debs import BASE_PACKAGES
from reprobox.images.locking import DEBIAN, base_pins
from reprobox.images.lockmodel import PLATFORMS, VARIANTS
from reprobox.images.resolve import environment_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reprobox.images.locking import LockRequest
    from reprobox.images.lockmodel import Lock, LockedSdist, LockedWheel, Platform
    from reprobox.images.sources import Variant

__all__ = ["check_lock"]


def check_lock(request: LockRequest, lock: Lock) -> list[str]:
    """Return what the project and its lock disagree on, a sentence each; empty where they agree."""
    found = [*_variants(request, lock), *_inputs(request, lock)]
    for platform in PLATFORMS:
        for variant in lock.inputs.variants:
            found += _Image(request, lock, variant, platform).gaps()
        found += _deb_gaps(request, lock, platform)
    return list(dict.fromkeys(found))


def _variants(request: LockRequest, lock: Lock) -> Iterator[str]:
    locked = lock.inputs.variants
    if request.variant and locked != (request.variant,):
        yield f"variant: the project asks for {request.variant}, and the lock is of {' and '.join(locked) or 'none'}"
    elif not locked:
        yield "variant: the lock is of no image"


def _inputs(request: LockRequest, lock: Lock) -> Iterator[str]:
    wanted = request.inputs(lock.inputs.variants)
    for what, new, old in (
        ("python", wanted.python, lock.inputs.python),
        ("apt", wanted.apt, lock.inputs.apt),
        ("allow-sdist", wanted.sdists, lock.inputs.sdists),
    ):
        yield from (
            f"{what}: the project asks for {text}, which the lock does not know" for text in new if text not in old
        )
        gone = (text for text in old if text not in new)
        yield from (f"{what}: the lock was made for {text}, which the project no longer asks for" for text in gone)
    for name, digest in wanted.base.items():
        if lock.inputs.base.get(name) != digest:
            whose = "the list of Debian packages" if name == DEBIAN else f"the list of the {name} image's packages"
            yield f"base: {whose} of reprobox changed since the lock was made"


class _Image:
    """One variant on one platform."""

    def __init__(self, request: LockRequest, lock: Lock, variant: Variant, platform: Platform) -> None:
        self.request, self.platform = request.requirements, platform
        self.where = f"{variant} on {platform}"
        self.have: Mapping[str, LockedWheel | LockedSdist] = {
            **{one.name: one for one in lock.wheels_for(variant, platform)},
            **{one.name: one for one in lock.sdists_for(variant, platform)},
        }
        self.excused = {one.name for one in lock.missing_for(variant, platform)}
        self.pins = {pin.name: pin for pin in base_pins(variant)}

    def gaps(self) -> Iterator[str]:
        """Give what the image lacks, or has in another version than it should."""
        if not self.have and self.platform != "x86_64":
            return  # the packages could not be resolved there, which was said when the lock was written
        for told in (self._base, self._asked, self._constraints, self._needed):
            yield from (f"{self.where}: {line}" for line in told())

    def _base(self) -> Iterator[str]:
        for pin in self.pins.values():
            one = self.have.get(pin.name)
            if one is None:
                if pin.name not in self.excused:
                    yield f"{pin} of reprobox's own image is not in the lock"
            elif one.version != pin.version:
                yield f"the lock has {one}, and reprobox's own image {pin}"
            elif self.platform == "x86_64" and one.sha256 not in pin.hashes:
                yield f"the lock has another file of {one} than reprobox's own image"

    def _asked(self) -> Iterator[str]:
        environment = environment_of(self.platform)
        for line in self.request.lines:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            one, hashes = self.have.get(requirement.name), self.request.hashes.get(requirement.name)
            if one is None:
                if requirement.name not in self.excused and not self._is_of_another_image(requirement.name):
                    yield f"{requirement.name} is not in the lock"
            elif not requirement.specifier.contains(one.version, prereleases=True):
                yield f"the lock has {one}, and the project asks for {line}"
            elif hashes and one.sha256 not in hashes and requirement.name not in self.pins:
                yield f"the file of {one} is none of those that the project's list has hashes of"

    def _constraints(self) -> Iterator[str]:
        for line in self.request.constraints:
            limit = Requirement(line)
            one = self.have.get(limit.name)
            if one and not limit.specifier.contains(one.version, prereleases=True):
                yield f"the lock has {one}, outside the constraint {line}"

    def _needed(self) -> Iterator[str]:
        for one in self.have.values():
            for name in one.requires:
                if name not in self.have and name not in self.excused:
                    yield f"{name}, which {one} needs, is not in the lock"

    def _is_of_another_image(self, name: str) -> bool:
        """Whether a project's own lock lists a package that only reprobox's image of another variant has."""
        return self.request.locked and any(pin.name == name for variant in VARIANTS for pin in base_pins(variant))


def _deb_gaps(request: LockRequest, lock: Lock, platform: Platform) -> Iterator[str]:
    have = {deb.name for deb in lock.debs_for(platform)}
    if not have and platform != "x86_64":
        return  # the machine that wrote the lock had no source of them, and said so
    for name in sorted({*BASE_PACKAGES, *request.apt}):
        if name not in have:
            yield f"Debian on {platform}: {name} is not in the lock"
