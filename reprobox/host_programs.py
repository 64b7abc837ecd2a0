"""Programs of this machine that reprobox starts: none of them out of the project, which a box can write."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from reprobox.errors import UsageError
from reprobox.project import Project

__all__ = ["find_program", "host_environment", "is_of_the_project", "path_outside", "python_command"]


def find_program(name: str) -> str | None:
    """Return the path of the first program ``name`` on PATH that is not in the project; ``None`` where there is none."""
    return shutil.which(name, path=path_outside(os.environ.get("PATH", os.defpath)))


def path_outside(folders: str) -> str:
    """Return PATH, or another such list, without what is relative or in the project: a box can put programs there."""
    root = _root()
    words = (word for word in folders.split(os.pathsep) if os.path.isabs(word))  # noqa: PTH117  # an empty word is the current folder
    return os.pathsep.join(word for word in words if not _is_in(root, word))


def is_of_the_project(path: str) -> bool:
    """Return whether ``path``, or what it leads to, is in the project of the current folder."""
    return _is_in(_root(), path)


def _root() -> Path | None:
    try:
        return Project.find(Path()).root
    except UsageError:
        return None  # there is no project here, and no box


def _is_in(root: Path | None, path: str) -> bool:
    return root is not None and any(Path(place).is_relative_to(root) for place in (path, os.path.realpath(path)))


def python_command(*arguments: str) -> list[str]:
    """Return the command of the Python that runs reprobox, for ``-m`` and ``-c``: the current folder is not on its path.

    ``-P`` and not ``-I``: pip may be in the person's own site-packages.
    """
    return [sys.executable, "-P", *arguments]


def host_environment() -> dict[str, str]:
    """Return this process's variables for a program of the host: neither PATH nor PYTHONPATH leads into the project."""
    environment = dict(os.environ)
    for name in ("PATH", "PYTHONPATH"):
        if name in environment:
            environment[name] = path_outside(environment[name])
    if not environment.get("PYTHONPATH"):
        environment.pop("PYTHONPATH", None)  # an empty one is the current folder
    return environment
