"""Everything a lock names, brought into the cache: from folders, by address, through pip, and through apt."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reprobox.errors import ArtefactError, LockError
from reprobox.images.artefacts import Downloader
from reprobox.images.debs import AptRoot, download
from reprobox.images.lockmodel import PLATFORMS, LockedDeb, LockedSdist, LockedWheel
from reprobox.images.resolve import Resolver
from reprobox.images.uv import environment_for_uv, pip_configuration
from reprobox.images.wheels import Pin, fetch_with_pip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reprobox.images import Reporter
    from reprobox.images.artefacts import ArtefactCache
    from reprobox.images.lockmodel import Lock, Platform
    from reprobox.images.sources import Variant

__all__ = ["Fetched", "artefacts_of", "fetch", "locked_variants", "this_platform"]

Artefact = LockedWheel | LockedSdist | LockedDeb

_AT_ONCE: Final = 6
_NAMED: Final = 8  # missing files that a sentence names


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch came to: each file's path by SHA-256, and how many were there before."""

    files: Mapping[str, Path]
    cached: int

    def to_json(self) -> dict[str, Any]:
        """Return the document of schema ``reprobox.fetch/1``."""
        files = [
            {"file": path.name, "sha256": sha256, "size": path.stat().st_size, "path": str(path)}
            for sha256, path in sorted(self.files.items(), key=lambda one: one[1].name)
        ]
        return {
            "schema": "reprobox.fetch/1",
            "cached": self.cached,
            "fetched": len(files) - self.cached,
            "files": files,
        }


def artefacts_of(lock: Lock, variants: Sequence[Variant], platforms: Sequence[Platform]) -> tuple[Artefact, ...]:
    """Return the files of these images, each once."""
    found: dict[str, Artefact] = {}
    for platform in platforms:
        for variant in variants:
            packages: tuple[Artefact, ...] = (*lock.wheels_for(variant, platform), *lock.sdists_for(variant, platform))
            found.update((one.sha256, one) for one in packages)
        found.update((deb.sha256, deb) for deb in lock.debs_for(platform))
    return tuple(found.values())


def locked_variants(lock: Lock, asked: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return the variants to work on: ``asked``, or all that are locked. :raises LockError: one is not locked."""
    for variant in asked:
        if variant not in lock.inputs.variants:
            raise LockError(
                f"the {variant} image is not in the lock", remedy="ask for it in the project file, and lock again"
            )
    return tuple(asked) or lock.inputs.variants


def this_platform() -> Platform:
    """Return this machine's platform. :raises ArtefactError: there are no images for it."""
    machine = os.uname().machine
    found: Platform | None = next((platform for platform in PLATFORMS if platform == machine), None)
    if found is None:
        raise ArtefactError(f"there are no images for {machine}", remedy=f"use one of {', '.join(PLATFORMS)}")
    return found


def fetch(
    artefacts: Sequence[Artefact],
    *,
    cache: ArtefactCache,
    report: Reporter,
    offline: bool = False,
    wheelhouses: Sequence[Path] = (),
    options: Sequence[str] = (),
    apt: Path | None = None,
) -> Fetched:
    """Return every file of ``artefacts`` from the cache, fetched before where it was not there or was damaged.

    :param offline: whether the network is left alone.
    :param wheelhouses: folders to take files from first.
    :param options: lines about indexes, as of a requirements file.
    :param apt: folder for apt's lists; beside the cache by default.
    :raises ArtefactError: some files cannot be had; it names them, and what came is kept.
    """
    for folder in wheelhouses:
        if not folder.is_dir():
            raise ArtefactError(
                f"the wheelhouse {folder} is not a folder", remedy="pass the folder that holds the files"
            )
    job = _Fetch(cache=cache, report=report, options=tuple(options), apt=apt or cache.root.parent / "apt")
    files = job.from_cache(artefacts)
    cached = len(files)
    files |= job.from_folders(_left(artefacts, files), (*wheelhouses, cache.root.parent / "wheels"))
    if not offline:
        job.by_address(_left(artefacts, files), files)
        job.through_pip(_left(artefacts, files), files)
        job.through_apt(_left(artefacts, files), files)
    if missing := _left(artefacts, files):
        raise _missing(missing, offline=offline, problems=job.problems)
    return Fetched(files=files, cached=cached)


class _Fetch:
    def __init__(self, *, cache: ArtefactCache, report: Reporter, options: tuple[str, ...], apt: Path) -> None:
        self.cache, self.report, self.options, self.apt = cache, report, options, apt
        self.problems: dict[str, ArtefactError] = {}
        self._lock = threading.Lock()
        self._done = 0

    def from_cache(self, artefacts: Sequence[Artefact]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looks = pool.map(lambda one: self.cache.find(one.sha256, one.file), artefacts)
            for count, (one, path) in enumerate(zip(artefacts, looks, strict=True), start=1):
                self.report.progress("verifying files", count, len(artefacts))
                if path:
                    files[one.sha256] = path
        return files

    def from_folders(self, artefacts: Sequence[Artefact], folders: Sequence[Path]) -> dict[str, Path]:
        """Take files by name; the cache of wheels of earlier versions has a folder for each hash."""
        files = {}
        for one in artefacts:
            for folder in folders:
                for path in (folder / one.file, folder / one.sha256 / one.file):
                    if path.is_file() and (placed := self.cache.add(path, one.sha256, one.file)):
                        files[one.sha256] = placed
        return files

    def by_address(self, artefacts: Sequence[Artefact], files: dict[str, Path]) -> None:
        wanted = [one for one in artefacts if not isinstance(one, LockedDeb)]
        if not wanted:
            return
        environment = environment_for_uv(pip_configuration())
        downloader = Downloader(cache=self.cache, environment=environment)
        addresses = self._addresses(wanted, environment)
        there = [one for one in wanted if one.sha256 in addresses]
        if not there:
            return
        total = sum(one.size for one in there if one.size) if all(one.size for one in there) else None
        self.report.say(f"fetching {len(there)} Python packages")
        self._done = 0

        def came(count: int) -> None:
            with self._lock:
                self._done += count
                self.report.progress("fetching packages (bytes)", self._done, total)

        def bring(one: Artefact) -> None:
            try:
                files[one.sha256] = downloader.fetch(addresses[one.sha256], one.sha256, one.file, came)
            except ArtefactError as error:
                self.problems[one.sha256] = error

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # The largest first: the others come beside it.
            list(pool.map(bring, sorted(there, key=lambda one: -(one.size or 0))))

    def through_pip(self, artefacts: Sequence[Artefact], files: dict[str, Path]) -> None:
        """Let pip try what could not be fetched by address: it knows more ways to prove who one is."""
        for platform in PLATFORMS:
            some = [one for one in artefacts if isinstance(one, LockedWheel) and platform in one.platforms]
            for one in some:
                if one.sha256 in files:
                    continue
                pin = Pin(name=one.name, version=one.version, hashes=(one.sha256,))
                try:
                    with fetch_with_pip(pin, folder=self.cache.root, report=self.report, platform=platform) as wheel:
                        if placed := self.cache.add(wheel, one.sha256, one.file):
                            files[one.sha256] = placed
                except ArtefactError as error:
                    self.problems.setdefault(one.sha256, error)
                except OSError as error:
                    self.problems.setdefault(one.sha256, self.cache.not_kept(one.file, error))

    def through_apt(self, artefacts: Sequence[Artefact], files: dict[str, Path]) -> None:
        debs = [one for one in artefacts if isinstance(one, LockedDeb)]
        for platform in PLATFORMS:
            root = AptRoot(folder=self.apt / platform, platform=platform)
            # The lists of an earlier day may still do; where they do not, today's are asked for.
            for fresh in (False, True):
                some = [deb for deb in debs if platform in deb.platforms and deb.sha256 not in files]
                if some and (fresh or root.is_ready):
                    self._some_debs(root, some, files, fresh=fresh)

    def _some_debs(self, root: AptRoot, debs: Sequence[LockedDeb], files: dict[str, Path], *, fresh: bool) -> None:
        self.report.say(f"fetching {len(debs)} Debian packages ({root.architecture}) with apt")
        try:
            if fresh:
                root.update(self.report)
            for count, (deb, path) in enumerate(download(root, debs, self.report), start=1):
                self.report.progress("fetching Debian packages", count, len(debs))
                if placed := self.cache.add(path, deb.sha256, deb.file):
                    files[deb.sha256] = placed
        except ArtefactError as error:
            self.problems.update((deb.sha256, error) for deb in debs)

    def _addresses(self, wanted: Sequence[LockedWheel | LockedSdist], environment: Mapping[str, str]) -> dict[str, str]:
        names = frozenset(one.name for one in wanted if isinstance(one, LockedSdist))
        resolver = Resolver(environment=environment, options=self.options, sdists=names, say=self.report.say)
        found: dict[str, str] = {}
        for platform in PLATFORMS:
            rest = [one for one in wanted if platform in one.platforms and one.sha256 not in found]
            # uv takes one version of a package at a time.
            while rest:
                some = {one.name: one for one in rest}
                found |= resolver.locate(((one.name, one.version) for one in some.values()), platform)
                rest = [one for one in rest if one is not some[one.name]]
        return found


def _left(artefacts: Sequence[Artefact], files: Mapping[str, Path]) -> list[Artefact]:
    return [one for one in artefacts if one.sha256 not in files]


def _missing(missing: Sequence[Artefact], *, offline: bool, problems: Mapping[str, ArtefactError]) -> ArtefactError:
    names = [one.file for one in missing]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED]) + more
    if offline:
        return ArtefactError(
            f"the cache lacks {listed}",
            remedy="fetch without --offline, or pass --wheelhouse DIR",
            detail="\n".join(names),
        )
    first = next((problems[one.sha256] for one in missing if one.sha256 in problems), None)
    elsewhere = "configure an index (pip) or a mirror (apt) that serves the exact file, or pass --wheelhouse DIR"
    return ArtefactError(
        f"{listed} cannot be had: {first.message if first else 'no source has them'}",
        # No source is at fault where this machine cannot keep what came.
        remedy=first.remedy if first and isinstance(first.__cause__, OSError) else elsewhere,
        detail="\n".join([*names, *(error.detail or "" for error in problems.values())]),
    )
