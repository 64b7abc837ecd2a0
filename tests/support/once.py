"""What takes long to make and never changes, made once for the whole session: the workers share one folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil


def session_folder(tmp_path_factory):
    """Return the folder that every worker of this session has."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def locked(path):
    """Hold the lock at ``path``; other processes that ask for it wait."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(tmp_path_factory, name, make):
    """Return the folder ``name`` as ``make(folder)`` left it for the first worker that asked; the others wait for it.

    What ``make`` raises, or a worker that dies meanwhile, leaves nothing: the next worker that asks starts over.
    """
    session = session_folder(tmp_path_factory)
    folder, made = session / f"once-{name}", session / f"once-{name}.made"
    with locked(session / f"once-{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
