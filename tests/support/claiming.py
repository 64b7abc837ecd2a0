"""What the tests of claims have in common: GPUs, a folder that every user can get to, and who claims in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

from reprobox.gpus import shared_folder
from reprobox.gpus.claims import Claims
from support.contenders import EIGHT, first_free
from support.others import Other, sleep_for_ever

RUN = "20261121T035544.123-1f3a"
UUIDS = [gpu.uuid for gpu in EIGHT.gpus]


@contextlib.contextmanager
def a_folder_for_all():
    """A folder for claims that is still to be made, where every user can get, unlike pytest's own folders."""
    parent = Path(tempfile.mkdtemp(prefix="reprobox-claims-", dir="/tmp"))
    parent.chmod(0o1777)
    try:
        yield parent / "claims"
    finally:
        shutil.rmtree(parent)


def take(folder, run=RUN, count=1, **options):
    return Claims(folder).take(run, first_free(count), inventory=EIGHT, **options)


def held(folder):
    return [(holder.run, *holder.gpus) for holder in Claims(folder).holders()]


def holding(folder, run=RUN, *, uid=None, umask=None):
    """Another process that has a claim, and does nothing more."""

    def work(me):
        with take(folder, run):
            me.tell("taken")
            sleep_for_ever()

    other = Other(work, uid=uid, umask=umask)
    assert other.hear() == "taken"
    return other


def write_live(folder, name, data, *, mode=0o644):
    """A file that is minded, made by hand; the descriptor keeps it alive."""
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, shared_folder._FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    os.write(descriptor, data)
    os.fchmod(descriptor, mode)
    return descriptor


def claim_of(run=RUN, **fields):
    return json.dumps({"schema": "reprobox.claim/1", "run": run, "gpus": UUIDS[:1], **fields}).encode()
