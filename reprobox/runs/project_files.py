"""The project files and locks at and below a project's folder, and what a run did to them.

They decide what the next run does, from there or from a folder below, and a box can write most of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["changes_told", "project_file_changes", "project_files", "protected_files"]

OWN: Final = ("reprobox.toml", "reprobox.lock")
"""Files that are reprobox's alone, so that no command has to write them in a box."""

_SHARED: Final = "pyproject.toml"
_NAMES: Final = (*OWN, _SHARED)
_NOT_LOOKED_INTO: Final = (".git", ".reprobox")
_MOST_ENTRIES: Final = 20_000
_MOST_FILES: Final = 1000
_LARGEST: Final = 1 << 20
_MOST_BYTES: Final = 4 << 20
_NAMED: Final = 5
UNSEEN: Final = "…"
"""The key that stands for what was not looked at: there was too much."""


def protected_files(root: Path) -> list[Path]:
    """Return the project file and the lock of the project at ``root``, those that are there, to be read-only in a box."""
    found = []
    for name in OWN:
        try:
            path = (root / name).resolve(strict=True)
        except (OSError, RuntimeError):
            continue
        if path.is_file() and path.is_relative_to(root):
            found.append(path)
    return found


def project_files(root: Path) -> dict[str, str]:
    """Return a digest of each project file and lock at or below ``root``, by its path there.

    Of a ``pyproject.toml`` its table ``[tool.reprobox]`` alone counts. Folders near the root are looked at first, and
    20,000 entries, 1000 files and 4 MiB are the most; where there is more, the result has the key ``…``.
    """
    found: dict[str, str] = {}
    budget = _MOST_BYTES
    for path in _candidates(root):
        name = "" if path is None else os.path.relpath(path, root)
        if path is None or len(found) >= _MOST_FILES or budget <= 0:
            found[UNSEEN] = "unseen"
            break
        data = _read(path)
        budget -= len(data or b"")
        digest = _digest(path, data)
        if digest is not None:
            found[name] = digest
    return found


def project_file_changes(before: object, root: Path) -> dict[str, str]:
    """Return what is ``new``, ``changed`` or ``gone`` of the project files at or below ``root`` since ``before``."""
    if not isinstance(before, dict):
        return {}  # the record is of an older reprobox
    after = project_files(root)
    names = sorted({name for name in (*before, *after) if isinstance(name, str)} - {UNSEEN})
    changes = {
        name: "new" if name not in before else "gone" if name not in after else "changed"
        for name in names
        if before.get(name) != after.get(name) and not (UNSEEN in after and name not in after)
    }
    if UNSEEN in after and UNSEEN not in before:
        changes[UNSEEN] = "unseen"
    return changes


def changes_told(changes: Mapping[str, str]) -> str | None:
    """Return the line that says so, or ``None`` where nothing is different."""
    named = [(name, what) for name, what in changes.items() if name != UNSEEN]
    words = [f"{name if name.isprintable() else ascii(name)} is {what}" for name, what in named[:_NAMED]]
    if len(named) > _NAMED:
        words.append(f"{len(named) - _NAMED} more are different")
    if UNSEEN in changes:
        words.append("there are now too many files to look at all of them")
    if not words:
        return None
    return f"project files are not what they were before this run: {', '.join(words)}; look at them before the next run"


def _candidates(root: Path) -> Iterator[Path | None]:
    """Give each path whose name is a project file's or lock's, nearest first; ``None`` where there is too much."""
    entries, level = 0, [str(root)]
    while level:
        below: list[str] = []
        for folder in level:
            try:
                with os.scandir(folder) as listed:
                    for entry in listed:
                        entries += 1
                        if entries > _MOST_ENTRIES:
                            yield None
                            return
                        if entry.is_dir(follow_symlinks=False):
                            if entry.name not in _NOT_LOOKED_INTO:
                                below.append(entry.path)
                        elif entry.name in _NAMES:
                            yield Path(entry.path)
            except OSError:
                continue  # no run can be started from a folder that cannot be read
        level = below


def _read(path: Path) -> bytes | None:
    """Return the content of a plain file, also behind a link, up to 1 MiB; ``None`` for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return file.read(_LARGEST + 1)
    except OSError:
        return None


def _digest(path: Path, data: bytes | None) -> str | None:
    if path.name == _SHARED:
        table = None if data is None or len(data) > _LARGEST else _table(data)
        if table is None:
            return None
        data = json.dumps(table, sort_keys=True, default=str).encode()
    try:
        link = str(path.readlink()) if path.is_symlink() else ""
    except OSError:
        return None  # it went away just now
    return hashlib.sha256(os.fsencode(link) + b"\0" + (b"" if data is None else data)).hexdigest()


def _table(data: bytes) -> Any:
    """Return ``[tool.reprobox]`` of a pyproject.toml, or ``None``."""
    if b"reprobox" not in data and b"\\" not in data:  # without an escape the name stands there as it is
        return None
    try:
        tool = tomllib.loads(data.decode()).get("tool")
    except (ValueError, RecursionError):
        return None
    return tool.get("reprobox") if isinstance(tool, dict) else None
