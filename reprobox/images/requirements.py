"""The Python packages a project asks for, whichever file it lists them in, as plain requirements."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reprobox.errors import UsageError
from reprobox.files import read_at_most
from reprobox.images.uv import environment_for_uv, folder_for_uv, run_uv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Requirements", "index_options", "normalised", "read_requirements"]

_LARGEST: Final = 8 << 20
_HASH: Final = re.compile(r"\s--hash=sha256:([0-9a-f]{64})")
_INDEX_OPTION: Final = re.compile(
    r"(-i|--index-url|--extra-index-url|-f|--find-links|--no-index|--trusted-host)(?=[\s=]|$)"
)
_PYLOCK: Final = re.compile(r"pylock(\.[^.]+)?\.toml")
_FILE_OPTION: Final = re.compile(r"(-r|--requirement|-c|--constraint)[\s=]\s*(.+)")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What is asked for.

    :param lines: normalised requirements, sorted; ``constraints``: limits on what comes along.
    :param options: lines about indexes of a requirements file; uv is told of them, and nothing keeps them.
    :param hashes: SHA-256 of the files that will do, by name, where the input said.
    :param locked: the input is itself a lock, and lists what its packages need as well.
    """

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hashes: dict[str, frozenset[str]] = field(default_factory=dict)
    locked: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Return what a lock remembers of them."""
        return (*self.lines, *(f"-c {line}" for line in self.constraints))


def read_requirements(given: str | tuple[str, ...], root: Path) -> Requirements:
    """Return the requirements of the project file's key ``python``: a list of them, or a file below ``root``.

    A file is a requirements file, a ``pyproject.toml`` (its ``[project] dependencies``), a ``uv.lock`` or a
    ``pylock.toml``.

    :raises UsageError: a requirement is malformed, or is no package of an index; the file cannot be read.
    """
    if isinstance(given, tuple):
        return _made(given, source="python")
    path = root / given
    if path.name == "uv.lock":
        return _of_uv_lock(path)
    if path.name == "pyproject.toml":
        return _made(_dependencies(_toml(path), path), source=given)
    if _PYLOCK.fullmatch(path.name):
        return _of_pylock(_toml(path), given)
    listed = _Listed()
    listed.take(path)
    return _made(listed.lines, source=given, constraints=listed.constraints, options=listed.options)


def index_options(given: str | tuple[str, ...], root: Path) -> tuple[str, ...]:
    """Return the lines about indexes that :func:`read_requirements` would, and do nothing else: no uv is started.

    :raises UsageError: the file cannot be read.
    """
    if isinstance(given, tuple) or _is_another_kind(root / given):
        return ()
    listed = _Listed()
    listed.take(root / given)
    return tuple(listed.options)


def _is_another_kind(path: Path) -> bool:
    """Whether a file is none of pip's requirements files, and so has no lines about indexes that are followed."""
    return path.name in ("uv.lock", "pyproject.toml") or bool(_PYLOCK.fullmatch(path.name))


def normalised(text: str, *, source: str) -> str:
    """Return one requirement in one spelling. :raises UsageError: it is none, or names where to fetch it from."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise UsageError(
            f"{source}: {text!r} is no requirement ({str(error).splitlines()[0]})",
            remedy="write it as NAME, NAME==VERSION or NAME>=VERSION",
        ) from error
    if requirement.url is not None:
        raise UsageError(
            f"{source}: {requirement.name} is taken from an address, and a lock holds none",
            remedy="serve it from an index, or put its wheel into a folder that pip finds (find-links)",
        )
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _made(
    lines: Iterable[str],
    *,
    source: str,
    constraints: Iterable[str] = (),
    options: Iterable[str] = (),
    locked: bool = False,
) -> Requirements:
    kept: set[str] = set()
    hashes: dict[str, frozenset[str]] = {}
    for line in lines:
        text = normalised(line.partition(" --hash=")[0].strip(), source=source)
        kept.add(text)
        if found := frozenset(_HASH.findall(line)):
            name = Requirement(text).name
            hashes[name] = hashes.get(name, frozenset()) | found
    limits = {normalised(line.partition(" --hash=")[0].strip(), source=source) for line in constraints}
    return Requirements(
        lines=tuple(sorted(kept)),
        constraints=tuple(sorted(limits)),
        options=tuple(options),
        hashes=hashes,
        locked=locked,
    )


def _text(path: Path) -> str:
    try:
        return read_at_most(path, _LARGEST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = "not UTF-8 text" if isinstance(error, ValueError) else getattr(error, "strerror", None) or error
        raise UsageError(
            f"python: {path} cannot be read ({reason})",
            remedy="name a file of the project that lists requirements",
        ) from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"python: {path} is not valid TOML ({error})", remedy="correct it") from error


def _logical_lines(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if bare:
            yield bare


@dataclass
class _Listed:
    """What a requirements file lists, and the files that it names.

    ``seen`` holds each file with what it was read as: one that limits may be asked for as well.
    """

    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    seen: set[tuple[Path, bool]] = field(default_factory=set)

    def take(self, path: Path, *, limits: bool = False) -> None:
        """Read ``path``; its packages are asked for, or with ``limits`` only limit what comes along."""
        if (path.resolve(), limits) in self.seen:
            return
        self.seen.add((path.resolve(), limits))
        for line in _logical_lines(_text(path)):
            if match := _FILE_OPTION.fullmatch(line):
                asked = not limits and match[1] in ("-r", "--requirement")
                self.take(path.parent / match[2].strip("'\""), limits=not asked)
            elif _INDEX_OPTION.match(line):
                if line not in self.options:  # of a file that is read as both
                    self.options.append(line)
            elif line.startswith(("-e", "--editable", ".", "/")):
                raise UsageError(
                    f"{path}: {line!r} is no package of an index",
                    remedy="leave it out: the project itself is mounted in the box",
                )
            elif line.startswith("-"):
                raise UsageError(f"{path}: the option {line!r} is not taken", remedy="leave it out")
            else:
                (self.constraints if limits else self.lines).append(line)


def _dependencies(document: dict[str, Any], path: Path) -> list[str]:
    project = document.get("project", {})
    listed = project.get("dependencies", []) if isinstance(project, dict) else None
    if not isinstance(listed, list) or not all(isinstance(line, str) for line in listed):
        raise UsageError(f"{path} has no list project.dependencies", remedy="write them under [project]")
    return listed


def _of_pylock(document: dict[str, Any], source: str) -> Requirements:
    lines = []
    packages = document.get("packages")
    if not isinstance(packages, list) or not all(isinstance(one, dict) and "name" in one for one in packages):
        raise UsageError(f"{source} has no list of packages", remedy="name a pylock.toml as PEP 751 describes it")
    for one in packages:
        if "version" not in one:
            raise UsageError(
                f"{source}: {one['name']} has no version: it is no package of an index", remedy="lock it from an index"
            )
        marker = f" ; {one['marker']}" if one.get("marker") else ""
        files = [*one.get("wheels", []), *([one["sdist"]] if "sdist" in one else [])]
        digests = [file.get("hashes", {}).get("sha256", "") for file in files]
        hashes = "".join(f" --hash=sha256:{digest}" for digest in digests if digest)
        lines.append(f"{one['name']}=={one['version']}{marker}{hashes}")
    return _made(lines, source=source, locked=True)


def _of_uv_lock(path: Path) -> Requirements:
    """Let uv read its own lock; it needs the project's pyproject.toml beside it, and no network."""
    _text(path)
    words = ["export", "--frozen", "--offline", "--no-dev", "--no-emit-workspace", "--no-header", "--no-annotate"]
    with folder_for_uv() as folder:
        text = run_uv(
            [*words, "--format", "requirements.txt", "--project", str(path.parent.resolve())],
            f"python: {path} cannot be read",
            environment=environment_for_uv({}),
            folder=folder,
        )
    return _made(_logical_lines(text), source=str(path), locked=True)
