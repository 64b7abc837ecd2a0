"""A run that goes on without its command line: minded by a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from reprobox.runs.interrupts import SIGNAL_BASE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["in_background"]


def in_background(work: Callable[[Callable[[], None]], int]) -> int:
    """Call ``work(started)`` in a process that outlives this one; return 0 once it has called ``started``.

    Until then its stderr is this process's, so that a person sees why it does not start; then it has no streams. Returns
    the exit code of ``work`` where it ends without having called ``started``. A signal until then is passed on to it.
    """
    reader, writer = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # full, or nobody reads it: the run is started all the same
            if stream is not None:  # closed by the caller
                stream.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return _await_start(reader, child)
    os.close(reader)
    code = 125
    try:
        # A session of its own: the terminal's Ctrl-C and its closing are not for this run any more.
        os.setsid()
        _let_go(0)
        code = work(lambda: _report_start(writer))
    finally:
        os._exit(code)


def _await_start(reader: int, child: int) -> int:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    if os.read(reader, 1):
        return 0
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else SIGNAL_BASE - code


def _report_start(writer: int) -> None:
    _let_go(1, 2)
    os.write(writer, b"\n")
    os.close(writer)


def _let_go(*descriptors: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    os.close(nothing)
