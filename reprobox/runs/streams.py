"""A run's streams at this end: where the command's output goes, where its input comes from, and the terminal between."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import threading
import tty
from typing import TYPE_CHECKING, Any, Self

from reprobox.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from reprobox.engines import Box, Stream

__all__ = ["Input", "Output", "Terminal"]

_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""The reader has gone, the terminal has, or the caller closed the stream before it started us."""

_CHUNK = 1 << 16
_PIPE_BYTES = 1 << 20
"""A larger pipe spares reader and writer most of their waiting for each other: about twice the throughput."""

LEAVE_KEYS = b"\x10\x11"
"""Ctrl-P Ctrl-Q, as in Docker: leave the box to itself."""


class Output:
    """This process's stdout and stderr as the command's: bytes, unbuffered, and whether anyone still reads them.

    :param ends_the_command: whether the command is ended where they cannot be written: as the error says then.
    :param lets_go: whether what cannot be written is let go instead: a detached run's is in its log.
    """

    def __init__(
        self, stdout: int = 1, stderr: int = 2, *, ends_the_command: bool = False, lets_go: bool = False
    ) -> None:
        self._lets_go = lets_go
        self._ends_the_command = ends_the_command
        self._descriptors: dict[Stream, int] = {"stdout": stdout, "stderr": stderr}
        self._closed: set[Stream] = set()
        for descriptor in (stdout, stderr):
            with contextlib.suppress(OSError):  # no pipe, or closed
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def write(self, stream: Stream, data: bytes) -> bool:
        """Write all of ``data``, waiting for a slow reader; return whether the stream still has a reader."""
        if stream in self._closed:
            return False
        descriptor = self._descriptors[stream]
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                select.select([], [descriptor], [])
            except OSError as error:
                if error.errno not in _NOBODY_READS and not self._lets_go:
                    stopped, again = (
                        (", so the command was stopped", "run it again")
                        if self._ends_the_command
                        else ("", "look again")
                    )
                    raise OutputError(
                        f"the command's {stream} cannot be written ({error.strerror}){stopped}",
                        remedy=f"make room where the output goes, and {again}",
                    ) from error
                self._closed.add(stream)
                return False
        return True


class Input:
    """Hands this process's standard input to a box, from a thread of its own: reading and writing must not wait on each other.

    :param leave: called when the keys that leave a box are typed; ``None`` where they are the command's like any other.
    """

    def __init__(self, box: Box, leave: Callable[[], None] | None = None, descriptor: int = 0) -> None:
        self._box = box
        self._leave = leave
        self._descriptor = descriptor
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="reprobox-input", daemon=True)

    def _pump(self) -> None:
        held = b""
        while data := self._read():
            if self._leave is not None:
                data = held + data
                if LEAVE_KEYS in data:
                    self._box.feed(data[: data.index(LEAVE_KEYS)])
                    self._leave()
                    return
                # The first of the two keys waits for what is typed next.
                held = LEAVE_KEYS[:1] if data.endswith(LEAVE_KEYS[:1]) else b""
                data = data[: len(data) - len(held)]
            self._box.feed(data)
        if held:
            self._box.feed(held)
        self._box.end_input()

    def _read(self) -> bytes:
        with contextlib.suppress(OSError, ValueError):  # a stdin that was closed before we were started
            ready, _, _ = select.select([self._descriptor, self._wake], [], [])
            if self._descriptor in ready:
                return os.read(self._descriptor, _CHUNK)
        return b""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._waker)
        # It may sit in a write that the box never reads; a daemon thread does not keep the process.
        self._thread.join(timeout=0.2)
        if not self._thread.is_alive():
            os.close(self._wake)


class Terminal:
    """The caller's terminal as the command's: raw while the ``with`` block lasts, and then as it was."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def size(self) -> tuple[int, int]:
        """Return rows and columns; 24 by 80 where the terminal does not say."""
        try:
            columns, rows = os.get_terminal_size(self._descriptor)
        except OSError:
            return 24, 80
        return rows, columns

    def __enter__(self) -> Self:
        with contextlib.suppress(termios.error):
            self._before = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor, termios.TCSADRAIN)  # what was typed already is kept
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)
