"""Debian packages by name, version and hash: resolved and fetched by apt itself, in a folder of its own.

The private folder has the machine's sources of the base's Debian release and no installed packages, so the answer
follows from the sources alone, for either architecture, and nothing of the machine's own apt is changed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from reprobox.errors import ArtefactError
from reprobox.host_programs import host_environment
from reprobox.images.bootstrap import CODENAME, COMPILER, PACKAGES, apt_targets
from reprobox.images.lockmodel import LockedDeb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reprobox.images import Reporter
    from reprobox.images.lockmodel import Platform

__all__ = ["ARCHITECTURES", "BASE_PACKAGES", "AptRoot", "download", "merged", "resolve_debs"]

ARCHITECTURES: Final[Mapping[Platform, str]] = {"x86_64": "amd64", "aarch64": "arm64"}
"""What Debian calls each platform."""

BASE_PACKAGES: Final = ("apt", "usr-is-merged", *PACKAGES, *COMPILER)
"""What a base holds beside Debian's essential packages; usr-is-merged keeps out the perl that its other half needs."""

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_URI: Final = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+\.deb) (?P<size>\d+)")
_STANZA: Final = re.compile(r"^(Package|Version|Architecture|Size|SHA256|Filename): (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class AptRoot:
    """apt with a folder of its own, for one platform.

    :param folder: where its package lists are kept from one use to the next.
    """

    folder: Path
    platform: Platform

    @property
    def architecture(self) -> str:
        """Return what Debian calls the platform."""
        return ARCHITECTURES[self.platform]

    def update(self, report: Reporter) -> None:
        """Fetch the package lists of the machine's sources for this architecture.

        :raises ArtefactError: the sources cannot be reached, or do not have the architecture.
        :raises BuildError: apt on this machine knows no sources of the base's release.
        """
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.is_file() else ""
        lines = [target.line.replace("deb ", f"deb {signed}", 1) for target in apt_targets()]
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        (self.folder / "sources.list").write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")
        report.say(f"asking apt for the package lists of Debian {CODENAME} ({self.architecture})")
        said = self.run(
            "apt-get", ["update", "--error-on=any"], f"the package lists of {self.architecture} cannot be had"
        )
        report.log(said)

    @property
    def is_ready(self) -> bool:
        """Whether package lists have been fetched before."""
        return any((self.folder / "lists").glob("*_Packages*"))

    def run(self, program: str, arguments: Sequence[str], what: str, *, cwd: Path | None = None) -> str:
        """Run a program of apt on this folder and return what it printed. :raises ArtefactError: it failed."""
        try:
            with self._alone():
                done = subprocess.run(
                    [program, *self._options(), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                    errors="replace", check=False, cwd=cwd, env=host_environment() | {"LC_ALL": "C.UTF-8"},
                )  # fmt: skip
        except FileNotFoundError as error:
            raise ArtefactError(f"{what}: there is no {program} here", remedy="lock on a Debian machine") from error
        if done.returncode:
            lines = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
            raise ArtefactError(
                f"{what}: {lines[0] if lines else 'apt failed'}", remedy="see what apt's sources serve (apt-get update)",
                detail=done.stderr,
            )  # fmt: skip
        return done.stdout

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of reprobox out: apt itself would fail where it finds another at work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _options(self) -> list[str]:
        options = {
            "APT::Architecture": self.architecture,
            "APT::Architectures::": self.architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
            "Dir::Cache": str(self.folder / "cache"),
            "Dir::Etc::preferences": str(self.folder / "preferences"),
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::sourcelist": str(self.folder / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": str(self.folder / "state"),
            "Dir::State::lists": str(self.folder / "lists"),
            "Dir::State::status": str(self.folder / "status"),
        }
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def resolve_debs(
    root: AptRoot, wanted: Iterable[str], *, kept: Mapping[str, str] | None = None
) -> tuple[LockedDeb, ...]:
    """Return every package of a base with the packages ``wanted`` beside its own: the essential ones, and what all need.

    :param kept: versions by name that are taken while the sources still serve them.
    :raises ArtefactError: the sources have no such package, or packages exclude each other.
    """
    pins = [f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n" for name, version in (kept or {}).items()]
    (root.folder / "preferences").write_text("\n".join(pins), encoding="utf-8")
    names = sorted({*BASE_PACKAGES, *wanted})
    try:
        answer = root.run(
            "apt-get", ["--yes", "--print-uris", "install", "?essential", *names],
            f"the Debian packages for {root.platform} cannot be resolved",
        )  # fmt: skip
    finally:
        (root.folder / "preferences").unlink()
    files = [match["file"] for line in answer.splitlines() if (match := _URI.match(line))]
    versions = [(name, version.replace("%3a", ":")) for name, version, _ in (file.split("_", 2) for file in files)]
    shown = root.run(
        "apt-cache", ["show", *(f"{name}={version}" for name, version in versions)], "apt cannot show its packages"
    )
    debs = {(deb.name, deb.version): deb for deb in _stanzas(shown, root.platform)}
    lacking = [name for name, version in versions if (name, version) not in debs]
    if lacking:
        raise ArtefactError(f"apt's sources give no SHA-256 of {', '.join(lacking)}", remedy="take another source")
    return tuple(debs[one] for one in sorted(versions))


def merged(debs: Iterable[LockedDeb]) -> tuple[LockedDeb, ...]:
    """Return packages of several platforms with each file once."""
    together: dict[tuple[str, str], LockedDeb] = {}
    for deb in debs:
        known = together.get((deb.file, deb.sha256))
        platforms = sorted({*deb.platforms, *(known.platforms if known else ())}, key=list(ARCHITECTURES).index)
        together[deb.file, deb.sha256] = LockedDeb(**{**vars(deb), "platforms": tuple(platforms)})
    return tuple(sorted(together.values(), key=lambda deb: (deb.name, deb.version, deb.file)))


def download(root: AptRoot, debs: Sequence[LockedDeb], report: Reporter) -> Iterator[tuple[LockedDeb, Path]]:
    """Let apt download packages, a few at a time, and yield each file as it lies in a folder that then goes.

    What apt cannot find or fetch is not yielded. Each file still has to be checked against the lock.
    """
    for start in range(0, len(debs), 16):
        some = debs[start : start + 16]
        with TemporaryDirectory(dir=root.folder, prefix=".download-") as made:
            folder = Path(made)
            try:
                root.run("apt-get", ["--yes", "download", *map(_asked, some)], "apt cannot download", cwd=folder)
            except ArtefactError as error:
                report.log(error.detail or str(error))
                for deb in some:  # one that is no longer served must not keep the others
                    _download_alone(root, deb, folder, report)
            for deb in some:
                path = folder / deb.file
                if path.is_file():
                    yield deb, path


def _download_alone(root: AptRoot, deb: LockedDeb, folder: Path, report: Reporter) -> None:
    if (folder / deb.file).is_file():
        return
    try:
        root.run("apt-get", ["--yes", "download", _asked(deb)], "apt cannot download", cwd=folder)
    except ArtefactError as error:
        report.log(error.detail or str(error))


def _asked(deb: LockedDeb) -> str:
    return f"{deb.name}={deb.version}"


def _stanzas(text: str, platform: Platform) -> Iterator[LockedDeb]:
    for stanza in text.split("\n\n"):
        fields = dict(_STANZA.findall(stanza))
        if {"Package", "Version", "Architecture", "SHA256"} <= fields.keys():
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            yield LockedDeb(
                name=name,
                version=version,
                architecture=architecture,
                file=f"{name}_{version.replace(':', '%3a')}_{architecture}.deb",
                sha256=fields["SHA256"],
                size=int(fields["Size"]) if "Size" in fields else None,
                platforms=(platform,),
            )
