"""Hashes of a run's inputs and outputs, for its record."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reprobox.project import Project

__all__ = ["file_hashes", "parse_artefact"]

_CHUNK = 1 << 20


def parse_artefact(text: str, project: Project, flag: str) -> str:
    """Return a path given to ``--input`` or ``--output`` as it lies in the project.

    :raises UsageError: where it leads out of the project.
    """
    path = Path(os.path.normpath(project.directory / text))
    if "\0" in text or not text or not path.is_relative_to(project.root) or path == project.root:
        raise UsageError(
            f"{flag} cannot be {text!r}", remedy=f"give a file or folder inside the project ({project.root})"
        )
    return path.relative_to(project.root).as_posix()


def file_hashes(root: Path, paths: Iterable[str], stop: Callable[[], object] = lambda: False) -> dict[str, str | None]:
    """Return the sha256 of each file at or below ``paths`` (relative to ``root``); ``None`` for what is no readable file.

    Links are not followed: a command could have left one that leads out of the project. Nor are paths that do.

    :param stop: asked at every file and every MiB; once it says yes, what is not hashed yet stays ``None``. It may raise.
    """
    return {name: _sha256(root, root / name, stop) for path in paths for name in _files(root, path)}


def _files(root: Path, path: str) -> Iterator[str]:
    start = root / path
    if not _is_inside(root, start) or not _is_folder(start):
        yield path
        return
    for folder, folders, names in os.walk(start):
        folders.sort()
        for name in sorted(names):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _is_inside(root: Path, path: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(root)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False  # nothing is there, or no file can have this name


def _sha256(root: Path, path: Path, stop: Callable[[], object]) -> str | None:
    if stop():
        return None
    try:
        if not _is_inside(root, path) or path.parent.resolve() != path.parent:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                if stop():
                    return None
            return digest.hexdigest()
    except (OSError, ValueError):
        return None
