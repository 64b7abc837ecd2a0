"""Where reprobox keeps things of a user's own, also for a user without a home."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cache_folder", "data_folder"]


def cache_folder() -> Path:
    """Return reprobox's folder in the user's cache: what can be made again."""
    from platformdirs import user_cache_path

    return _of_the_user(lambda: user_cache_path("reprobox"), "cache")


def data_folder() -> Path:
    """Return reprobox's folder in the user's data: what cannot be made again."""
    from platformdirs import user_data_path

    return _of_the_user(lambda: user_data_path("reprobox"), "data")


def _of_the_user(asked: Callable[[], Path], kind: str) -> Path:
    """Return what platformdirs says, or a folder of the user's own for temporary things where there is no home.

    Its path would else count from the current folder (``~/.cache`` to the letter), and that is the project.
    """
    try:
        folder = asked()
    except RuntimeError:  # platformdirs 4.4 and newer; older ones give a path with ~ in it
        folder = Path()
    return folder if folder.is_absolute() else _without_a_home() / kind


def _without_a_home() -> Path:
    """Return a folder that this user alone may write; another one where another user was there first."""
    folder = Path(tempfile.gettempdir()) / f"reprobox-of-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if ours else Path(tempfile.mkdtemp(prefix="reprobox-"))
