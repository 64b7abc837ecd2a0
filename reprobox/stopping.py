"""TERM, HUP and Ctrl-C as exceptions, so that what a command has begun is taken back before it ends."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Stopped", "signal_name", "signals_raise", "undivided"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def signal_name(number: int) -> str:
    """Return ``SIGTERM`` and the like; of those without a name of their own, how far they are from the first."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


class Stopped(BaseException):
    """A signal asked this process to end; like KeyboardInterrupt, no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
        self.number = number


class _Held:
    """How many blocks are not to be interrupted now, and which signal came meanwhile."""

    depth = 0
    came: int | None = None


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Have TERM, HUP and INT raise :class:`Stopped` while the block lasts; a second one ends the process at once.

    A signal that the caller ignores (nohup) stays ignored.
    """
    previous: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        if _Held.depth:
            _Held.came = number
        else:
            raise Stopped(number)

    for each in SIGNALS:
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            previous[int(each)] = signal.signal(each, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Put a signal off to the end of the block, in which something is begun and it is noted how to take it back."""
    _Held.depth += 1
    try:
        yield
    finally:
        _Held.depth -= 1
        if not _Held.depth and _Held.came is not None:
            came, _Held.came = _Held.came, None
            raise Stopped(came)
