"""Many processes that want a GPU at the same instant; a lock of the kernel for each GPU sees whether two ever have it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import time
from collections import Counter
from functools import partial

from reprobox.errors import GpusTaken
from reprobox.gpus.claims import by_gpu
from reprobox.gpus.inventory import Gpu, Inventory
from support.others import Other

EIGHT = Inventory(
    gpus=tuple(Gpu(index=i, uuid=f"GPU-{i:08x}-0000-0000-0000-000000000000", name="a GPU") for i in range(8))
)
_PF_EXITING = 0x4
"""A flag of ``/proc/PID/stat`` (Linux, include/linux/sched.h)."""


def first_free(count=1, inventory=EIGHT, pause=0.0):
    """What ``auto`` does, at its most contested: everybody wants the first that is free."""

    def choose(holders):
        taken = by_gpu(holders, inventory)
        free = [gpu for gpu in inventory.gpus if gpu.uuid not in taken]
        time.sleep(pause)
        if len(free) < count:
            raise GpusTaken("all are taken", remedy="wait")
        return free[:count]

    return choose


class Oracle:
    """One locked file for each GPU, held while a run has it."""

    def __init__(self, folder):
        self._files = {gpu.uuid: os.open(folder / gpu.uuid, os.O_RDWR | os.O_CREAT) for gpu in EIGHT.gpus}

    @contextlib.contextmanager
    def having(self, gpu):
        """Give whether nobody else has it."""
        descriptor = self._files[gpu.uuid]
        alone = self._locked(descriptor)
        if alone:
            os.pwrite(descriptor, f"{os.getpid():10d}".encode(), 0)
        try:
            yield alone
        finally:
            if alone:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    @staticmethod
    def _locked(descriptor):
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A killed process loses its descriptors one after the other: its claim can end before this lock does.
                if not _is_ending(os.pread(descriptor, 10, 0)):
                    return False
            else:
                return True


def _is_ending(pid):
    try:
        with open(f"/proc/{int(pid)}/stat", "rb") as file:
            state, *rest = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {b"Z", b"X"} or bool(int(rest[5]) & _PF_EXITING)


def contend(folder, take, *, contenders=120, killed=40, hold=0.01):
    """Let ``contenders`` processes take a GPU once each, and kill some of them at random.

    Returns how many had one alone, shared one, failed, and were killed.

    :param take: called with an id and ``choose``; gives a context whose value has the chosen ``gpus``.
    """
    starter, go = os.pipe()

    def work(me, number):
        os.close(go)
        random.seed(os.getpid())
        oracle = Oracle(folder)  # a description of its own: locks of forked descriptors are one lock
        os.read(starter, 1)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                with take(f"run-{number}") as claim, contextlib.ExitStack() as having:
                    alone = [having.enter_context(oracle.having(gpu)) for gpu in claim.gpus]
                    time.sleep(random.uniform(0, hold))
                    me.tell("alone" if all(alone) else "shared")
                return
            except GpusTaken:
                time.sleep(random.uniform(0, 0.05))
        me.tell("never had one")

    others = [Other(partial(work, number=number)) for number in range(contenders)]
    try:
        os.close(starter)
        os.close(go)
        for other in random.sample(others, killed):
            time.sleep(random.uniform(0, 0.01))
            other.send(signal.SIGKILL)
        return Counter(_outcome(other) for other in others)
    finally:
        for other in others:
            other.end()


def _outcome(other):
    try:
        return other.hear(timeout=90)
    except EOFError:
        return "killed" if other.wait() == -signal.SIGKILL else "failed"
