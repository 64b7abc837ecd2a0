"""``reprobox lock``: from a project file to a lock, with as little change as the project's wishes allow, and back again."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.utils import canonicalize_name

from reprobox.errors import ArtefactError
from reprobox.images.artefacts import Downloader
from reprobox.images.bootstrap import CODENAME
from reprobox.images.debs import BASE_PACKAGES, AptRoot, merged, resolve_debs
from reprobox.images.lockmodel import PLATFORMS, VARIANTS, Inputs, Lock, LockedDeb, LockedSdist, LockedWheel, Missing
from reprobox.images.requirements import Requirements, read_requirements
from reprobox.images.resolve import Found, Resolution, Resolver
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

__all__ = ["DEBIAN", "LockRequest", "base_digest", "base_pins", "debian_digest", "difference", "make_lock"]

DEBIAN: Final = "debian"
"""What :attr:`Inputs.base` calls the Debian packages."""

_AT_ONCE: Final = 8
_NAMED: Final = 5  # packages that a sentence names


@dataclass(frozen=True, kw_only=True)
class LockRequest:
    """What a project wants locked.

    :param variant: the one image that is asked for; None for both, of which one that cannot be had is then left out.
    :param sdists: names whose source distribution may be taken.
    """

    variant: Variant | None
    requirements: Requirements
    apt: tuple[str, ...]
    sdists: tuple[str, ...]

    @classmethod
    def of(cls, project: ProjectFile, root: Path, *, allowed: Iterable[str] = ()) -> LockRequest:
        """Read what the project file, and the files it names, ask for.

        :param root: folder of the project, where files that list requirements lie.
        :param allowed: further names whose source distribution may be taken; none by default.
        :raises UsageError: a requirement is malformed, or a file cannot be read.
        """
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
        base: dict[str, str] = {variant: base_digest(variant) for variant in variants}
        return Inputs(
            variants=tuple(variants),
            python=self.requirements.texts,
            apt=self.apt,
            sdists=self.sdists,
            base={**base, DEBIAN: debian_digest()},
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
    resolver = Resolver(
        environment=environment, options=request.requirements.options, sdists=frozenset(request.sdists), say=report.say
    )
    preferred = _versions_of_the_project(kept)
    variants: list[Variant] = []
    files: list[tuple[Variant, Platform, Found]] = []
    missing: list[Missing] = []
    for variant in request.variants:
        report.say(f"resolving the packages of the {variant} image")
        for platform in PLATFORMS:
            try:
                answer = resolver.resolve(
                    request.requirements, base_pins(variant), variant=variant, platform=platform, preferred=preferred,
                    foreign=_only_elsewhere(variant),
                )  # fmt: skip
            except ArtefactError as error:
                if platform == "x86_64":
                    raise
                # Many packages have no wheel for it; that must not keep the others from their lock.
                report.say(f"{platform} is left as it was: {error.message}")
                answer = _as_it_was(request, variant, platform, kept)
            answer = _completed(answer, request, variant, platform, kept, cache)
            if platform == "x86_64" and answer.absent:
                if variant == request.variant or not variants:
                    raise _absent(variant, answer)
                report.say(f"the {variant} image is left out: {_absent(variant, answer).message}")
                break
            files += [(variant, platform, one) for one in answer.found]
            missing += [
                Missing(name=pin.name, version=pin.version, variant=variant, platform=platform) for pin in answer.absent
            ]
            if answer.absent:
                report.say(f"the {variant} image is not whole for {platform}: {_absent(variant, answer).message}")
            preferred = {**{one.name: one.version for one in answer.found if one.layer == "project"}, **preferred}
        else:
            variants.append(variant)
    wheels, sdists = _entries(files, kept, downloader=Downloader(cache=cache, environment=environment))
    lock = Lock(
        inputs=request.inputs(variants),
        wheels=wheels,
        sdists=sdists,
        debs=_debs(request, kept, cache=cache, report=report),
        missing=tuple(missing),
    )
    images = old.images if old else {}
    return replace(
        lock, images={v: images[v] for v in variants if v in images and old and old.digest(v) == lock.digest(v)}
    )


def difference(old: Lock | None, new: Lock) -> list[str]:
    """Return what changed in the packages between two locks, a line each, sorted by name."""

    def versions(lock: Lock | None) -> dict[str, str]:
        if lock is None:
            return {}
        table: dict[str, set[str]] = {}
        entries: tuple[LockedWheel | LockedSdist | LockedDeb, ...] = (*lock.wheels, *lock.sdists, *lock.debs)
        for one in entries:
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


def debian_digest() -> str:
    """Return the digest (``sha256:…``) of what the base's Debian packages follow from: the release and their names."""
    return f"sha256:{hashlib.sha256(' '.join([CODENAME, *sorted(BASE_PACKAGES)]).encode()).hexdigest()}"


def _only_elsewhere(variant: Variant) -> frozenset[str]:
    """Return the names that only the other variants' base holds."""
    others = {pin.name for other in VARIANTS if other != variant for pin in base_pins(other)}
    return frozenset(others - {pin.name for pin in base_pins(variant)})


def _absent(variant: Variant, answer: Resolution) -> ArtefactError:
    named = ", ".join(map(str, answer.absent[:_NAMED]))
    more = f" and {len(answer.absent) - _NAMED} more" if len(answer.absent) > _NAMED else ""
    return ArtefactError(
        f"no index of this machine has {named}{more}, which the {variant} image holds",
        remedy="configure an index for pip that serves it (index-url, extra-index-url, find-links)",
    )


def _versions_of_the_project(lock: Lock | None) -> dict[str, str]:
    if lock is None:
        return {}
    wheels = {wheel.name: wheel.version for wheel in lock.wheels if wheel.layer == "project"}
    return wheels | {one.name: one.version for one in lock.sdists}


def _completed(
    answer: Resolution,
    request: LockRequest,
    variant: Variant,
    platform: Platform,
    kept: Lock | None,
    cache: ArtefactCache,
) -> Resolution:
    """Take the files of the lock there is where the versions are the same; fill in what no index of this machine has."""
    locked = {wheel.name: wheel for wheel in kept.wheels_for(variant, platform)} if kept else {}
    found, absent = [], []
    for one in answer.found:
        wheel, hashes = locked.get(one.name), request.requirements.hashes.get(one.name)
        same = (
            wheel and wheel.version == one.version and one.layer == "project" and (not hashes or wheel.sha256 in hashes)
        )
        found.append(_as_found(wheel) if wheel and same and wheel.sha256 != one.sha256 else one)
    for pin in answer.absent:
        wheel = locked.get(pin.name)
        # The list of the base is of x86_64, and so are its hashes.
        cached = [path for digest in pin.hashes for path in cache.named(digest)] if platform == "x86_64" else []
        if wheel and wheel.version == pin.version:
            found.append(_as_found(wheel))
        elif cached:
            path = cached[0]
            size, sha256 = path.stat().st_size, path.parent.name
            found.append(
                Found(
                    name=pin.name, version=pin.version, file=path.name, sha256=sha256, url="", layer="base", size=size
                )
            )
        else:
            absent.append(pin)
    return Resolution(found=tuple(found), absent=tuple(absent))


def _as_it_was(request: LockRequest, variant: Variant, platform: Platform, kept: Lock | None) -> Resolution:
    """Return what the lock there is has of one image, where it was made for the same wishes; else nothing."""
    wanted = request.inputs([variant])
    if kept is None or (kept.inputs.python, kept.inputs.base.get(variant)) != (wanted.python, wanted.base[variant]):
        return Resolution(found=())
    lacking = {one.name for one in kept.missing_for(variant, platform)}
    return Resolution(
        found=tuple(_as_found(wheel) for wheel in kept.wheels_for(variant, platform)),
        absent=tuple(pin for pin in base_pins(variant) if pin.name in lacking),
    )


def _as_found(wheel: LockedWheel) -> Found:
    return Found(
        name=wheel.name, version=wheel.version, file=wheel.file, sha256=wheel.sha256, url="", layer=wheel.layer,
        size=wheel.size, requires=wheel.requires,
    )  # fmt: skip


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
    known = (
        {one.sha256: one.size for one in kept.wheels} | {one.sha256: one.size for one in kept.sdists} if kept else {}
    )

    def size(one: Found) -> int | None:
        return one.size or known.get(one.sha256) or (downloader.size(one.url) if one.url else None)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(files, pool.map(size, files.values()), strict=True))


def _debs(request: LockRequest, kept: Lock | None, *, cache: ArtefactCache, report: Reporter) -> tuple[LockedDeb, ...]:
    same_base = kept is not None and kept.inputs.base.get(DEBIAN) == debian_digest()
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
