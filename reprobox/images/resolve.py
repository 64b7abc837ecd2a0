"""Requirements to exact wheels: one variant on one platform at a time, with the base image's pins held fast."""

from __future__ import annotations

import os
import re
import tomllib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

from reprobox.errors import ArtefactError
from reprobox.images.uv import UvFailed, folder_for_uv, run_uv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reprobox.images.lockmodel import Layer, Platform
    from reprobox.images.requirements import Requirements
    from reprobox.images.sources import Variant
    from reprobox.images.wheels import Pin

__all__ = ["PYTHON", "Found", "Resolution", "Resolver", "environment_of", "tags_of"]

PYTHON: Final = "3.11"
"""Version of CPython in the image."""

_GLIBC: Final = 28  # as images/wheels.py: what the locks' wheels are for
_AT_ONCE: Final = 8
_NO_SOURCE: Final = ("building from source is disabled", "no usable wheels")
"""What uv says where a package has no wheel that fits, and it may not build one."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One file that a resolution chose, and where uv saw it: an address that is used and never written down."""

    name: str
    version: str
    file: str
    sha256: str
    url: str
    layer: Layer
    size: int | None = None
    requires: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The files for one variant on one platform; ``absent`` are the base's pins that no index serves there."""

    found: tuple[Found, ...]
    absent: tuple[Pin, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """Runs uv with one environment; see :func:`reprobox.images.uv.environment_for_uv`.

    :param sdists: names whose source distribution will do where there is no wheel.
    :param say: told before the build code of one of them is run.
    """

    environment: Mapping[str, str]
    options: Sequence[str] = ()
    sdists: frozenset[str] = field(default_factory=frozenset)
    say: Callable[[str], None] = lambda _line: None
    _built: dict[Platform, set[str]] = field(default_factory=lambda: defaultdict(set), init=False)

    def resolve(
        self,
        asked: Requirements,
        base: Sequence[Pin],
        *,
        variant: Variant,
        platform: Platform,
        preferred: Mapping[str, str],
        foreign: frozenset[str] = frozenset(),
    ) -> Resolution:
        """Resolve ``asked`` together with the pins of the base image.

        :param preferred: versions by name that are kept where the requirements allow.
        :param foreign: names that only the other variants' base holds; a lock lists them, and they are left out.
        :raises ArtefactError: no set of versions fits, or a package has no wheel for the platform.
        """
        lines = [line for line in asked.lines if not (asked.locked and Requirement(line).name in foreign)]
        limits = asked.constraints
        absent: tuple[Pin, ...] = ()
        try:
            try:
                packages = self._packages([*map(str, base), *lines], limits, platform, preferred=preferred)
            except UvFailed:
                absent = self._absent(base, platform)
                if not absent:
                    raise
                left = [str(pin) for pin in base if pin not in absent]
                excluded = [pin.name for pin in absent]
                packages = self._packages([*left, *lines], limits, platform, preferred=preferred, excluded=excluded)
            requires = self._requires(packages, asked, platform, excluded=[pin.name for pin in absent])
        except UvFailed as error:
            raise ArtefactError(
                f"the packages of {variant} for {platform} cannot be resolved: {error.cause.rstrip('.')}",
                remedy="change the requirement; the packages of reprobox's own image cannot be changed by a project",
                detail=error.detail,
            ) from error
        return Resolution(
            found=tuple(self._chosen(one, asked, base, platform, requires) for one in packages), absent=absent
        )

    def locate(self, wanted: Iterable[tuple[str, str]], platform: Platform) -> dict[str, str]:
        """Return the addresses of all files of these names and versions, by SHA-256; those no index has are left out."""
        wanted = list(wanted)

        def files(lines: Sequence[str]) -> dict[str, str]:
            packages = self._packages(lines, (), platform, alone=True)
            found = {file.get("hashes", {}).get("sha256"): file["url"] for one in packages for file in _files(one)}
            return {digest: url for digest, url in found.items() if digest}

        lines = [f"{name}=={version}" for name, version in wanted]
        if not lines:
            return {}
        try:
            return files(lines)
        except UvFailed:
            # One that is nowhere must not hide the others.
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found: dict[str, str] = {}
                for one in pool.map(lambda line: _or_nothing(files, [line]), lines):
                    found.update(one)
                return found

    def _absent(self, base: Sequence[Pin], platform: Platform) -> tuple[Pin, ...]:
        def is_absent(pin: Pin) -> bool:
            return not _or_nothing(lambda lines: self._packages(lines, (), platform, alone=True), [str(pin)])

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return tuple(pin for pin, gone in zip(base, pool.map(is_absent, base), strict=True) if gone)

    def _packages(
        self,
        lines: Sequence[str],
        constraints: Sequence[str],
        platform: Platform,
        *,
        preferred: Mapping[str, str] | None = None,
        excluded: Sequence[str] = (),
        alone: bool = False,
    ) -> list[dict[str, Any]]:
        environment = environment_of(platform)
        while True:
            built = frozenset(self._built[platform])
            with folder_for_uv() as folder:
                output = folder / "pylock.toml"
                if preferred:  # uv keeps what an earlier output names
                    entries = "".join(f'[[packages]]\nname = "{n}"\nversion = "{v}"\n' for n, v in preferred.items())
                    output.write_text(f'lock-version = "1.0"\ncreated-by = "reprobox"\n{entries}', encoding="utf-8")
                words = self._command(folder, lines, constraints, platform, excluded)
                words += ["--no-deps"] if alone else []
                words += ["--format", "pylock.toml", "--no-annotate", "--output-file", str(output)]
                try:
                    run_uv(words, "uv cannot resolve the packages", environment=self.environment, folder=folder)
                except UvFailed as error:
                    if not self._may_build_more(error.detail or "", platform, built):
                        raise
                    continue
                packages = tomllib.loads(output.read_text(encoding="utf-8")).get("packages", [])
                packages = [_with_addresses(one, folder) for one in packages]
            applies = (one for one in packages if _applies(one.get("marker"), environment))
            return sorted(applies, key=lambda one: str(one["name"]))

    def _may_build_more(self, said: str, platform: Platform, before: frozenset[str]) -> bool:
        """Let uv build what it lacks a wheel of, where that is allowed; return whether it is worth another try.

        uv asks a package's own build backend what it needs, on this machine: it must do that for no other package.
        """
        if not any(words in said for words in _NO_SOURCE):
            return False
        names = {name for name in self.sdists - before if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", said)}
        for name in sorted(names - self._built[platform]):
            self.say(
                f"{name} has no wheel: its own build code is run on this machine, to tell what it needs (allow-sdist)"
            )
        self._built[platform] |= names
        return bool(names)

    def _command(
        self,
        folder: Path,
        lines: Sequence[str],
        constraints: Sequence[str],
        platform: Platform,
        excluded: Sequence[str],
    ) -> list[str]:
        texts = {"asked.in": [*self.options, *lines], "limits.in": list(constraints), "excluded.in": list(excluded)}
        for name, content in texts.items():
            (folder / name).write_text("".join(f"{line}\n" for line in content), encoding="utf-8")
        words = ["pip", "compile", str(folder / "asked.in"), "--constraints", str(folder / "limits.in"), "--no-header"]
        words += ["--excludes", str(folder / "excluded.in")]
        words += ["--no-index"] if self.environment.get("UV_NO_INDEX", "0") not in ("", "0", "false") else []
        words += ["--python-version", PYTHON, "--python-platform", f"{platform}-manylinux_2_{_GLIBC}"]
        # In uv, a name that may not be taken as a wheel is the exception to "no source at all".
        return [
            *words,
            "--only-binary",
            ":all:",
            *(word for name in sorted(self._built[platform]) for word in ("--no-binary", name)),
        ]

    def _requires(
        self, packages: Sequence[Mapping[str, Any]], asked: Requirements, platform: Platform, excluded: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        """Return what each package needs of the others; uv writes it the other way round, beside each line."""
        with folder_for_uv() as folder:
            pins = [f"{one['name']}=={one['version']}" for one in packages]
            words = self._command(folder, pins, asked.constraints, platform, excluded)
            text = run_uv(
                [*words, "--annotate", "--annotation-style", "line", "--quiet"],
                "uv cannot tell what the packages need",
                environment=self.environment,
                folder=folder,
            )
        needs: dict[str, set[str]] = {}
        for line in text.splitlines():
            match = re.match(r"([a-z0-9-]+)(?:\[[^\]]*\])?==\S+.*?# via (.*)", line)
            for parent in match[2].split(", ") if match else ():
                if match and re.fullmatch(r"[a-z0-9-]+", parent):
                    needs.setdefault(parent, set()).add(match[1])
        return {name: tuple(sorted(children)) for name, children in needs.items()}

    def _chosen(
        self,
        package: Mapping[str, Any],
        asked: Requirements,
        base: Sequence[Pin],
        platform: Platform,
        requires: Mapping[str, tuple[str, ...]],
    ) -> Found:
        name, version = canonicalize_name(package["name"]), str(package["version"])
        pin = next((pin for pin in base if pin.name == name), None)
        # The base's own list is of x86_64; on another platform its versions hold, and any file of theirs will do.
        wanted = frozenset(pin.hashes) if pin and platform == "x86_64" else asked.hashes.get(name)
        ranks = {tag: rank for rank, tag in enumerate(tags_of(platform))}
        best: tuple[int, dict[str, Any]] | None = None
        for file in _files(package):
            digest = file.get("hashes", {}).get("sha256")
            rank = _rank(file["name"], ranks)
            if name in self.sdists and rank is None and file["name"].endswith((".tar.gz", ".zip")):
                rank = len(ranks)
            if digest and rank is not None and (wanted is None or digest in wanted) and (not best or rank < best[0]):
                best = (rank, file)
        if best is None:
            what = "with the hash that is asked for" if wanted else f"for CPython {PYTHON} on {platform}"
            raise ArtefactError(
                f"no index of this machine has a wheel of {name} {version} {what}",
                remedy="take another version"
                if wanted
                else f"take another version, or let its source be built in the box: --allow-sdist {name}",
            )
        file = best[1]
        return Found(
            name=name,
            version=_version_in(file["name"]),
            file=file["name"],
            sha256=file["hashes"]["sha256"],
            url=file["url"],
            size=file.get("size"),
            layer="base" if pin else "project",
            requires=requires.get(name, ()),
        )


def tags_of(platform: Platform) -> list[Tag]:
    """Return the wheel tags that fit the image on ``platform``, the best first."""
    version = (int(PYTHON.split(".")[0]), int(PYTHON.split(".")[1]))
    names = [f"manylinux_2_{minor}_{platform}" for minor in range(_GLIBC, 16, -1)]
    names += [f"manylinux2014_{platform}"]
    if platform == "x86_64":
        names += [f"manylinux_2_{minor}_x86_64" for minor in range(16, 11, -1)]
        names += ["manylinux2010_x86_64"]
        names += [f"manylinux_2_{minor}_x86_64" for minor in range(11, 4, -1)]
        names += ["manylinux1_x86_64"]
    names += [f"linux_{platform}"]
    return [*cpython_tags(version, platforms=names), *compatible_tags(version, f"cp{PYTHON.replace('.', '')}", names)]


def environment_of(platform: Platform) -> dict[str, str]:
    """Return what markers are judged by: the image's Python on ``platform``."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{PYTHON}.2",
        "os_name": "posix",
        "platform_machine": platform,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{PYTHON}.2",
        "python_version": PYTHON,
        "sys_platform": "linux",
        "extra": "",
    }


def _applies(marker: object, environment: dict[str, str]) -> bool:
    if not marker:
        return True
    parsed = Requirement(f"x ; {marker}").marker
    return parsed is None or parsed.evaluate(environment)


def _with_addresses(package: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the package with an address for each of its files.

    A file may have a path alone, from the folder of its list on (PEP 751). That folder goes, and the address stays.
    """

    def with_address(file: Mapping[str, Any]) -> dict[str, Any]:
        if "url" in file or "path" not in file:
            return dict(file)
        path = os.path.abspath(folder / file["path"])  # noqa: PTH100  # a link's own name is the wheel's
        return {**file, "url": Path(path).as_uri()}

    return {
        **package,
        "wheels": [with_address(file) for file in package.get("wheels", [])],
        **({"sdist": with_address(package["sdist"])} if "sdist" in package else {}),
    }


def _files(package: Mapping[str, Any]) -> list[dict[str, Any]]:
    files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    return [{**file, "name": _file_name(file)} for file in files if "url" in file]


def _file_name(file: Mapping[str, Any]) -> str:
    return str(file.get("name") or unquote(urlsplit(file["url"]).path.rpartition("/")[2]))


def _rank(name: str, ranks: Mapping[Tag, int]) -> int | None:
    if not name.endswith(".whl"):
        return None
    tags = parse_wheel_filename(name)[3]
    return min((ranks[tag] for tag in tags if tag in ranks), default=None)


def _version_in(file: str) -> str:
    """Return the version as the file has it: ``2.13.0`` of an index may be ``2.13.0+cpu`` of the file."""
    parsed = parse_wheel_filename(file)[1] if file.endswith(".whl") else parse_sdist_filename(file)[1]
    return str(parsed)


def _or_nothing(function: Any, lines: Sequence[str]) -> Any:
    try:
        return function(lines)
    except UvFailed:
        return {}
