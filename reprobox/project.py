"""The project a command belongs to: the folder that is mounted, and where in it the caller stands."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from reprobox.errors import UsageError
from reprobox.files import read_at_most

__all__ = ["WORKSPACE", "Project", "settings_folder"]

WORKSPACE = PurePosixPath("/workspace")
"""Where the project is mounted in the box."""

_LARGEST = 1 << 20  # as where the file is read for its keys

_SYSTEM = frozenset(
    Path(name)
    for name in (
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/var",
    )
)
"""Folders that are a machine's and no project's."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """The project's root folder and the caller's folder inside it (both absolute)."""

    root: Path
    directory: Path

    @classmethod
    def find(cls, directory: Path) -> Project:
        """Return the project around ``directory``: the nearest ancestor with reprobox.toml, [tool.reprobox] or .git.

        Without one, the folder itself is the project.

        :raises UsageError: where that would be ``/`` or the home folder, which a box must not be given.
        """
        try:
            directory = directory.resolve(strict=True)
            home = Path.home().resolve()
        except OSError as error:
            raise UsageError(
                f"the current folder cannot be read ({error.strerror})", remedy="change into another"
            ) from error
        except RuntimeError:
            home = None  # a user without HOME and without a passwd entry
        root = next((folder for folder in (directory, *directory.parents) if _marks_a_project(folder)), directory)
        if root in _SYSTEM or root == home or (home is not None and root in home.parents):
            raise UsageError(
                f"the project folder would be {root}, all of which the box could then read and write",
                remedy="change into a folder of the project's own (one with reprobox.toml or .git)",
            )
        return cls(root=root, directory=directory)

    @property
    def box_directory(self) -> PurePosixPath:
        """The caller's folder as the box sees it."""
        return WORKSPACE / self.directory.relative_to(self.root).as_posix()


def _marks_a_project(folder: Path) -> bool:
    if (folder / "reprobox.toml").is_file() or (folder / ".git").exists():
        return True
    pyproject = folder / "pyproject.toml"
    if not pyproject.is_file():
        return False
    try:
        tool = tomllib.loads(read_at_most(pyproject, _LARGEST).decode()).get("tool")
    except (OSError, ValueError, RecursionError):
        return False  # not readable, not UTF-8, not TOML, a number too long, or nested too deeply
    return isinstance(tool, dict) and "reprobox" in tool


def settings_folder() -> Path:
    """Return the project's folder, or the current one where no run could be made: for commands that need no project."""
    try:
        return Project.find(Path()).root
    except UsageError:
        return Path()
