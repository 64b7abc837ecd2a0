"""What the workers of one test session have in common."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil


def session_folder(tmp_path_factory):
    """Return a folder that every worker of this test session has."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def locked(path):
    """Have the lock ``path`` to yourself."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(path, make):
    """Return what ``make()`` returns (made of what JSON has); only the first worker calls it, and ``path`` keeps it."""
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def folder_once(tmp_path_factory, name, make):
    """Return the folder ``name`` as ``make(folder)`` left it for the first worker that asked; the others wait for it.

    What ``make`` raises, or a worker that dies meanwhile, leaves nothing: whoever asks next begins anew.
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
