"""``reprobox lock``: from a project file to a lock, with as little change as the project's wishes allow, and back again."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from reprobox.errors import ArtefactError
from reprobox.images.artefacts import Downloader
from reprobox.images.bootstrap import CODENAME
from reprobox.images.debs import BASE_PACKAGES, AptRoot, merged, resolve_debs
from reprobox.images.lockmodel import PLATFORMS, VARIANTS, Inputs, Lock, LockedDeb, LockedSdist, LockedWheel, Missing
from reprobox.images.requirements import Requirements, read_requirements
from reprobox.images.resolve import Found, Resolution, Resolver, environment_of
from reprobox.images.sources import ImageInput
from reprobox.images.uv import environment_for_uv, pip_configuration
from reprobox.images.wheels import Pin, parse_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reprobox.images import Reporter
    from reprobox.images.artefacts import ArtefactCache
    from reprobox.images.lockmodel import Platform
    from reprobox.images.sources import Variant
    from reprobox.project_file import ProjectFile

__all__ = ["LockRequest", "base_digest", "base_pins", "check_lock", "difference", "make_lock"]

_DEBIAN: Final = "debian"
_AT_ONCE: Final = 8


@dataclass(frozen=True, kw_only=True)
class LockRequest:
    """What a project wants locked.

    :param variant: the one image that is asked for; None for both, of which one that cannot be had is then left out.
    :param root: folder of the project, where files that list requirements lie.
    """

    variant: Variant | None
    requirements: Requirements
    apt: tuple[str, ...]
    sdists: tuple[str, ...]

    @classmethod
    def of(cls, project: ProjectFile, root: Path, *, allowed: Iterable[str] = ()) -> LockRequest:
        """Read what the project file, and the files it names, ask for; ``allowed`` are further names for sdists.

        :raises UsageError: a requirement is malformed, or a file cannot be read.
        """
        from packaging.utils import canonicalize_name

        names = {canonicalize_name(name) for name in (*project.allow_sdist, *allowed)}
        return cls(
            variant=project.variant,
            requirements=read_requirements(project.python, root),
            apt=tuple(sorted(set(project.apt))),
            sdists=tuple(sorted(names)),
        )

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Return the variants to try."""
        return (self.variant,) if self.variant else VARIANTS

    def inputs(self, variants: Sequence[Variant]) -> Inputs:
        """Return what a lock of these variants is made of."""
        base = {variant: base_digest(variant) for variant in variants}
        return Inputs(
            variants=tuple(variants),
            python=self.requirements.texts,
            apt=self.apt,
            sdists=self.sdists,
            base={**base, _DEBIAN: _debian_digest()},
        )


def base_pins(variant: Variant) -> tuple[Pin, ...]:
    """Return the packages of reprobox's own image, which a project cannot change."""
    return parse_lock(ImageInput.read(variant).lock, source=f"docker/locks/{variant}.txt")


def base_digest(variant: Variant) -> str:
    """Return the digest (``sha256:…``) of the list that :func:`base_pins` reads."""
    return f"sha256:{hashlib.sha256(ImageInput.read(variant).lock.encode()).hexdigest()}"


def make_lock(
    request: LockRequest, old: Lock | None, *, cache: ArtefactCache, report: Reporter, upgrade: bool = False
) -> Lock:
    """Resolve everything and return the lock.

    What ``old`` pins is kept where the request allows, unless ``upgrade``. What is fetched are lists, not packages.

    :raises ArtefactError: no set of packages fits, or the variant that is asked for cannot be had.
    :raises BuildError: this machine's apt knows no Debian of the base's release.
    """
    kept = None if upgrade else old
    environment = environment_for_uv(pip_configuration())
    resolver = Resolver(environment=environment, options=request.requirements.options, sdists=frozenset(request.sdists))
    variants: list[Variant] = []
    files: list[tuple[Variant, Platform, Found]] = []
    missing: list[Missing] = []
    preferred = {one.name: one.version for one in (*kept.wheels, *kept.sdists) if _is_projects(one)} if kept else {}
    foreign = {v: frozenset(p.name for w in VARIANTS if w != v for p in base_pins(w)) for v in VARIANTS}
    for variant in request.variants:
        report.say(f"resolving the packages of the {variant} image")
        pins = base_pins(variant)
        own = frozenset(pin.name for pin in pins)
        for platform in PLATFORMS:
            answer = resolver.resolve(
                request.requirements, pins, variant=variant, platform=platform, preferred=preferred,
                foreign=foreign[variant] - own,
            )  # fmt: skip
            answer = _completed(answer, variant, platform, kept, cache)
            files += [(variant, platform, one) for one in answer.found]
            missing += [
                Missing(name=pin.name, version=pin.version, variant=variant, platform=platform) for pin in answer.absent
            ]
            if answer.absent:
                named = ", ".join(map(str, answer.absent))
                report.say(f"no index of this machine has {named} of the {variant} image for {platform}")
            preferred = {**{one.name: one.version for one in answer.found if one.layer == "project"}, **preferred}
        variants.append(variant)
    wheels, sdists = _entries(files, kept, downloader=Downloader(cache=cache, environment=environment))
    lock = Lock(
        inputs=request.inputs(variants),
        wheels=wheels,
        sdists=sdists,
        debs=_debs(request, kept, cache=cache, report=report),
        missing=tuple(missing),
    )
    same = {v: old.images[v] for v in variants if old and v in old.images and old.digest(v) == lock.digest(v)}
    return replace(lock, images=same)


def check_lock(request: LockRequest, lock: Lock) -> list[str]:
    """Return what the project and its lock disagree on, a sentence each; empty where they agree. Needs no network."""
    wanted = request.inputs(lock.inputs.variants)
    found = [
        f"{v} is not locked" for v in ([request.variant] if request.variant else []) if v not in lock.inputs.variants
    ]
    if request.variant and set(lock.inputs.variants) - {request.variant}:
        found.append(
            f"the project asks for {request.variant} alone, and the lock has {', '.join(lock.inputs.variants)}"
        )
    for what, new, old in (
        ("python", wanted.python, lock.inputs.python),
        ("apt", wanted.apt, lock.inputs.apt),
        ("allow-sdist", wanted.sdists, lock.inputs.sdists),
    ):
        found += [
            f"{what}: the project asks for {text}, which the lock does not know" for text in new if text not in old
        ]
        found += [
            f"{what}: the lock was made for {text}, which the project no longer asks for"
            for text in old
            if text not in new
        ]
    for name, digest in wanted.base.items():
        if lock.inputs.base.get(name) != digest:
            whose = "the Debian packages of the base" if name == _DEBIAN else f"reprobox's own {name} image"
            found.append(f"base: {whose} changed since the lock was made")
    for variant in lock.inputs.variants:
        for platform in PLATFORMS:
            found += _gaps(request, lock, variant, platform)
    for platform in PLATFORMS:
        found += _deb_gaps(request, lock, platform)
    return list(dict.fromkeys(found))


def difference(old: Lock | None, new: Lock) -> list[str]:
    """Return what changed in the packages between two locks, a line each, sorted by name."""

    def versions(lock: Lock | None) -> dict[str, str]:
        if lock is None:
            return {}
        table: dict[str, set[str]] = {}
        for one in (*lock.wheels, *lock.sdists, *lock.debs):
            table.setdefault(one.name, set()).add(one.version)
        return {name: ", ".join(sorted(several)) for name, several in table.items()}

    before, after = versions(old), versions(new)
    lines = []
    for name in sorted(before.keys() | after.keys()):
        match before.get(name), after.get(name):
            case None, version:
                lines.append(f"+ {name} {version}")
            case version, None:
                lines.append(f"- {name} {version}")
            case one, other if one != other:
                lines.append(f"  {name} {one} -> {other}")
    return lines


def _debian_digest() -> str:
    return f"sha256:{hashlib.sha256(' '.join([CODENAME, *sorted(BASE_PACKAGES)]).encode()).hexdigest()}"


def _is_projects(one: LockedWheel | LockedSdist) -> bool:
    return isinstance(one, LockedSdist) or one.layer == "project"


def _completed(
    answer: Resolution, variant: Variant, platform: Platform, kept: Lock | None, cache: ArtefactCache
) -> Resolution:
    """Fill in what no index of this machine has, from the lock there is or from a file in the cache."""
    found, absent = list(answer.found), []
    locked = {wheel.name: wheel for wheel in kept.wheels_for(variant, platform, layer="base")} if kept else {}
    for pin in answer.absent:
        wheel = locked.get(pin.name)
        cached = (
            [(digest, path) for digest in pin.hashes for path in cache.named(digest)] if platform == "x86_64" else []
        )
        if wheel and wheel.version == pin.version:
            found.append(
                Found(
                    name=pin.name,
                    version=pin.version,
                    file=wheel.file,
                    sha256=wheel.sha256,
                    url="",
                    layer="base",
                    size=wheel.size,
                    requires=wheel.requires,
                )  # fmt: skip
            )
        elif cached:
            digest, path = cached[0]
            found.append(
                Found(
                    name=pin.name,
                    version=pin.version,
                    file=path.name,
                    sha256=digest,
                    url="",
                    layer="base",
                    size=path.stat().st_size,
                )  # fmt: skip
            )
        else:
            absent.append(pin)
    return Resolution(found=tuple(found), absent=tuple(absent))


def _entries(
    files: Sequence[tuple[Variant, Platform, Found]], kept: Lock | None, *, downloader: Downloader
) -> tuple[tuple[LockedWheel, ...], tuple[LockedSdist, ...]]:
    """Return one entry for each file, and more only where it serves some variants on some platforms alone."""
    sizes = _sizes({one.sha256: one for _, _, one in files}, kept, downloader)
    places: dict[tuple[Any, ...], dict[Variant, set[Platform]]] = {}
    for variant, platform, one in files:
        same = (one.name, one.version, one.file, one.sha256, one.layer, one.requires)
        places.setdefault(same, {}).setdefault(variant, set()).add(platform)
    wheels, sdists = [], []
    for (name, version, file, sha256, layer, requires), by_variant in places.items():
        groups: dict[tuple[Platform, ...], list[Variant]] = {}
        for variant in VARIANTS:
            if variant in by_variant:
                groups.setdefault(tuple(p for p in PLATFORMS if p in by_variant[variant]), []).append(variant)
        for platforms, variants in groups.items():
            entry: dict[str, Any] = {
                "name": name, "version": version, "file": file, "sha256": sha256, "size": sizes.get(sha256),
                "variants": tuple(variants), "platforms": platforms, "requires": requires,
            }  # fmt: skip
            if file.endswith(".whl"):
                wheels.append(LockedWheel(**entry, layer=layer))
            else:
                sdists.append(LockedSdist(**entry))
    return tuple(wheels), tuple(sdists)


def _sizes(files: Mapping[str, Found], kept: Lock | None, downloader: Downloader) -> dict[str, int | None]:
    known = {one.sha256: one.size for one in (*kept.wheels, *kept.sdists) if one.size} if kept else {}

    def size(one: Found) -> int | None:
        return one.size or known.get(one.sha256) or (downloader.size(one.url) if one.url else None)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(files, pool.map(size, files.values()), strict=True))


def _debs(request: LockRequest, kept: Lock | None, *, cache: ArtefactCache, report: Reporter) -> tuple[LockedDeb, ...]:
    same_base = kept is not None and kept.inputs.base.get(_DEBIAN) == _debian_digest()
    if kept and kept.debs and same_base and kept.inputs.apt == request.apt:
        return kept.debs
    found: list[LockedDeb] = []
    for platform in PLATFORMS:
        root = AptRoot(folder=cache.root.parent / "apt" / platform, platform=platform)
        try:
            root.update(report)
            found += resolve_debs(
                root, request.apt, kept={deb.name: deb.version for deb in kept.debs_for(platform)} if kept else None
            )
        except ArtefactError as error:
            if platform == "x86_64":
                raise
            report.say(f"the lock has no Debian packages for {platform}: {error.message}")
    return merged(found)


def _gaps(request: LockRequest, lock: Lock, variant: Variant, platform: Platform) -> list[str]:
    """Return what one image lacks, or has in another version than it should."""
    where = f"{variant} on {platform}"
    have: dict[str, LockedWheel | LockedSdist] = {one.name: one for one in lock.wheels_for(variant, platform)}
    have |= {one.name: one for one in lock.sdists_for(variant, platform)}
    excused = {one.name for one in lock.missing_for(variant, platform)}
    found = []
    pins = {pin.name: pin for pin in base_pins(variant)}
    for pin in pins.values():
        one = have.get(pin.name)
        if one is None:
            if pin.name not in excused:
                found.append(f"{where}: {pin} of reprobox's own image is not in the lock")
        elif one.version != pin.version or (platform == "x86_64" and one.sha256 not in pin.hashes):
            found.append(f"{where}: the lock has {one}, and reprobox's own image has another {pin}")
    environment = environment_of(platform)
    for line in request.requirements.lines:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        one = have.get(requirement.name)
        if one is None:
            foreign = (
                request.requirements.locked and requirement.name not in pins and _is_base_elsewhere(requirement.name)
            )
            if requirement.name not in excused and not foreign:
                found.append(f"{where}: {requirement.name} is not in the lock")
        elif not requirement.specifier.contains(one.version, prereleases=True):
            found.append(f"{where}: the lock has {one}, and the project asks for {line}")
        elif wanted := request.requirements.hashes.get(requirement.name):
            if one.sha256 not in wanted and requirement.name not in pins:
                found.append(f"{where}: the file of {one} is none of those the project's list has hashes of")
    for line in request.requirements.constraints:
        limit = Requirement(line)
        one = have.get(limit.name)
        if one and not SpecifierSet(str(limit.specifier)).contains(one.version, prereleases=True):
            found.append(f"{where}: the lock has {one}, outside the constraint {line}")
    for one in have.values():
        found += [
            f"{where}: {name}, which {one} needs, is not in the lock"
            for name in one.requires
            if name not in have and name not in excused
        ]
    return found


def _is_base_elsewhere(name: str) -> bool:
    return any(pin.name == name for variant in VARIANTS for pin in base_pins(variant))


def _deb_gaps(request: LockRequest, lock: Lock, platform: Platform) -> list[str]:
    have = {deb.name for deb in lock.debs_for(platform)}
    if not have and platform != "x86_64":
        return []  # said when the lock was written: the machine's sources do not serve it
    return [
        f"Debian on {platform}: {name} is not in the lock"
        for name in sorted({*BASE_PACKAGES, *request.apt})
        if name not in have
    ]
