"""What the workers of one test session have in common."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os


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
