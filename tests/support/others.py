"""Processes of other users, forked: their interpreter may lie where another user cannot read."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback

import pytest

SOMEBODY = 1000
NOBODY = 65534


def require_root():
    """Skip, with the reason, where this user cannot act as another."""
    if os.geteuid() != 0:
        pytest.skip("acting as several users needs root")


class Other:
    """A forked process that calls ``work(self)``. What it tells with :meth:`tell` is heard here with :meth:`hear`."""

    def __init__(self, work, *, uid=None, umask=None):
        self._reader, self._writer = os.pipe()
        self._status = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work, uid, umask)
        os.close(self._writer)

    def _run(self, work, uid, umask):
        code = 1
        try:
            os.close(self._reader)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            if umask is not None:
                os.umask(umask)
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work(self)
            code = 0
        except BaseException:
            self.tell(traceback.format_exc())
        finally:
            os._exit(code)

    def tell(self, word):
        data = pickle.dumps(word)
        os.write(self._writer, len(data).to_bytes(4, "little") + data)

    def hear(self, timeout=30):
        """The next word; an ``EOFError`` where the process ended without one."""
        return pickle.loads(self._read(int.from_bytes(self._read(4, timeout), "little"), timeout))

    def _read(self, count, timeout):
        data = b""
        until = time.monotonic() + timeout
        while len(data) < count:
            if not select.select([self._reader], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"process {self.pid} says nothing")
            if not (more := os.read(self._reader, count - len(data))):
                raise EOFError(f"process {self.pid} has ended")
            data += more
        return data

    def send(self, number):
        if self._status is None:
            os.kill(self.pid, number)

    def wait(self):
        """How it ended, as ``subprocess`` counts."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def end(self):
        self.send(signal.SIGKILL)
        status = self.wait()
        os.close(self._reader)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def sleep_for_ever():
    while True:
        signal.pause()
