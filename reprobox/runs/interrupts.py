"""Signals during a run: the first is passed on, the second repeats it, the third kills."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = ["Interrupted", "Interrupts"]

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
KILL_AT = 3


class Interrupted(Exception):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Catches INT, TERM, HUP and QUIT for the length of a ``with`` block and hands them to the box once it runs.

    A handler only puts the number into a queue (reentrant by design); a thread of its own talks to the engine, because
    the main thread may be inside a request to it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._first: int | None = None
        self._previous: dict[int, object] = {}
        self._thread: threading.Thread | None = None

    def raise_if_pending(self) -> None:
        """Raise :class:`Interrupted` if a signal came already."""
        if self._first is not None:
            raise Interrupted(self._first)

    def forward_to(self, send: Callable[[int], None]) -> None:
        """From now on hand every signal, those that came during the start included, to ``send``."""
        self._thread = threading.Thread(target=self._forward, args=(send,), name="reprobox-signals", daemon=True)
        self._thread.start()

    def interrupt(self, number: int) -> None:
        """Act as if this process had been sent ``number``."""
        if self._first is None:
            self._first = number
        self._queue.put(number)

    def _forward(self, send: Callable[[int], None]) -> None:
        count = 0
        while (number := self._queue.get()) is not None:
            count += 1
            name = signal.Signals(number).name
            send(number if count < KILL_AT else signal.SIGKILL)
            if count > 1:
                self._say(
                    f"{name} sent again; once more kills the command" if count < KILL_AT else "killing the command"
                )

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt(number)

    def __enter__(self) -> Self:
        for number in FORWARDED:
            # A signal the caller ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=5)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
