"""What takes long to make and never changes, made once for the whole session: the workers share one folder."""

from __future__ import annotations

import fcntl
import os
import shutil


def once(tmp_path_factory, name, make):
    """Return the folder ``name`` as ``make(folder)`` left it for the first worker that asked; the others wait for it.

    What ``make`` raises, or a worker that dies meanwhile, leaves nothing: whoever asks next begins anew.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # a worker's own folder lies in the session's
    folder, made = session / f"once-{name}", session / f"once-{name}.made"
    with open(session / f"once-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
