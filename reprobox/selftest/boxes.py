"""The boxes of self-tests that were killed: no run's record names them, so a note does while they live."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.errors import EngineError
from reprobox.folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reprobox.engines import Engine

__all__ = ["noted", "notes_folder", "remove_left"]


def notes_folder() -> Path:
    """Return where this user's notes are kept; a home may be shared by machines, so each has its own."""
    return cache_folder() / "selftests" / platform.node()


@contextlib.contextmanager
def noted(engine: Engine, run_id: str) -> Iterator[None]:
    """Keep a note of the box ``run_id`` while the block lasts, locked: the lock ends with this process, however that ends."""
    if not engine.isolates:
        yield  # nobody can find a command that outlived its parent
        return
    with contextlib.ExitStack() as stack:
        # A box that cannot be noted is made all the same, as a certificate is not kept.
        with contextlib.suppress(OSError):
            folder = notes_folder()
            folder.mkdir(parents=True, exist_ok=True)
            note = folder / f"{engine.name}.{run_id}"
            hidden = folder / f".{note.name}"
            file = stack.enter_context(hidden.open("w"))
            stack.callback(hidden.unlink, missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.replace(note)
            stack.callback(note.unlink, missing_ok=True)
        yield


def remove_left(engine: Engine) -> None:
    """Remove the boxes of self-tests whose process is gone. Without any, that is a look into a folder.

    An engine that fails at it is asked again the next time.
    """
    try:
        notes = [Path(entry.path) for entry in os.scandir(notes_folder()) if entry.name.startswith(f"{engine.name}.")]
    except OSError:
        return
    for note in notes:
        with contextlib.suppress(OSError, EngineError), note.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if (box := engine.find(note.name.partition(".")[2])) is not None:
                box.remove()
            note.unlink(missing_ok=True)
