"""Signals during a run: the first is passed on, the second repeats it, the third kills."""

from __future__ import annotations

import signal
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from reprobox.errors import EngineError, EngineUnavailable
from reprobox.stopping import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from reprobox.engines import Box

__all__ = ["SIGNAL_BASE", "Interrupted", "Interrupts", "reaches"]

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that mean "end": the third of them kills."""

HANDED_ON = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
"""Signals that mean what the command makes of them, and come as often as they are sent."""

SIGNAL_BASE = 128
"""A command ended by signal n has the exit code 128 + n, as a shell says it."""

KILL_AT = 3
ANSWER_SECONDS = 5

HOLD_SECONDS = 2
"""How long after the start of a box its first signal waits for the box to say that it is up.

The kernel drops a signal that reaches the first process of a container before that process handles it: of boxes sent
TERM right after their start, one in a hundred ran on. A box that says nothing (another image's) is up within this time.
"""


class Interrupted(Exception):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
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
        self._ended = False
        self._late = False
        self._previous: dict[int, object] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def raise_if_pending(self) -> None:
        """Raise :class:`Interrupted` if a signal came already."""
        if self._first is not None:
            raise Interrupted(self._first)

    def forward_to(
        self,
        box: Box,
        *,
        give_up: Callable[[], None],
        resize: Callable[[], None] | None = None,
        is_up: Callable[[], bool] = lambda: True,
    ) -> None:
        """From now on hand every signal, those that came during the start included, to ``box``.

        :param give_up: called when the killing signal does not reach the box, because its engine does not answer.
        :param resize: called when the terminal's size changes.
        :param is_up: says whether the box, started this moment, would get a signal; asked again for ``HOLD_SECONDS``.
        """
        if resize is not None:
            self._catch(signal.SIGWINCH)
        self._thread = threading.Thread(
            target=self._forward, args=(box, give_up, resize, is_up), name="reprobox-signals", daemon=True
        )
        self._thread.start()

    def after_the_end(self) -> Callable[[], bool]:
        """Hand no signal on any more, for the command is over; return what says whether one that means "end" came since."""
        self._ended = True
        self._late = False
        return lambda: self._late

    def interrupt(self, number: int) -> None:
        """Act as if this process had been sent ``number``."""
        if number in FORWARDED:
            self._first = self._first or number
            self._late = True
        if not self._ended:
            self._queue.put(number)

    def _forward(
        self,
        box: Box,
        give_up: Callable[[], None],
        resize: Callable[[], None] | None,
        is_up: Callable[[], bool],
    ) -> None:
        count = 0
        held_until = time.monotonic() + HOLD_SECONDS
        while (number := self._queue.get()) is not None:
            if number == signal.SIGWINCH:
                if resize is not None:
                    resize()
                continue
            while time.monotonic() < held_until and not is_up() and not self._over.wait(0.01):
                pass
            count += number in FORWARDED
            name = signal_name(number)
            last = count >= KILL_AT
            if count > 1 and number in FORWARDED:
                self._say("killing the command" if last else f"{name} sent again; once more kills the command")
            if not reaches(box, signal.SIGKILL if last else number, self._say):
                self._say(f"the engine does not answer, so {name} has not reached the command")
                if last:
                    give_up()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt(number)

    def __enter__(self) -> Self:
        for number in (*FORWARDED, *HANDED_ON):
            # A signal the caller ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._catch(number)
        return self

    def _catch(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._over.set()
            self._queue.put(None)
            self._thread.join(timeout=5)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def reaches(box: Box, number: int, refused: Callable[[str], None] = lambda _why: None) -> bool:
    """Send a signal, and say whether the engine took it in time; a hung one must not hold up the next signal.

    :param refused: told why, where the engine took it and did not send it.
    """
    taken = threading.Event()

    def send() -> None:
        try:
            box.signal(number)
        except EngineUnavailable:
            return
        except EngineError as error:
            refused(str(error))
        taken.set()

    threading.Thread(target=send, daemon=True).start()
    return taken.wait(ANSWER_SECONDS)
