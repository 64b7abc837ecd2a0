"""Programs that reprobox starts on this machine: none outlives the command that wanted it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final

from reprobox.stopping import undivided

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["child"]

CHILD_GRACE_SECONDS: Final = 10
"""How long a program that we started may take to end; mmdebstrap takes its mounts away first."""


@contextlib.contextmanager
def child(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program, and wait for it at the end of the block; where that is left by an exception, end it first.

    It has a process group of its own, which is ended as a whole, and hears no Ctrl-C but through us.

    :param options: those of :class:`subprocess.Popen`.
    :raises OSError: it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        with undivided():
            process = stack.enter_context(subprocess.Popen(words, process_group=0, **options))
            stack.push(lambda kind, _error, _trace: _end(process) if kind else None)
        yield process


def _end(process: subprocess.Popen[Any]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(CHILD_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
