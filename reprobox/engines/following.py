"""The engine's log of a box, followed: each stream is read by a thread, and the pieces are handed to one reader."""

from __future__ import annotations

import contextlib
import threading
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, Self

from docker.errors import DockerException

from reprobox.engines.connection import engine_errors
from reprobox.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reprobox.engines.base import Stream

__all__ = ["Followed"]

POLL_SECONDS = 0.2
MOST_PIECES = 16
"""How many pieces are read ahead of a slow reader; they are of the engine's size, some 16 KiB."""


class Followed:
    """The pieces that ``log_of(stream)`` yields, without the first ``skip[stream]`` bytes, until all streams have ended.

    Yields ``None`` while nothing comes. The ``with`` block's end closes what is still open, so that a reader that has
    enough, or fails, waits for nobody.
    """

    def __init__(self, log_of: Callable[[Stream], Any], skip: Mapping[Stream, int]) -> None:
        self._log_of = log_of
        self._skip = dict(skip)
        self._pieces: Queue[tuple[Stream, bytes] | None] = Queue(MOST_PIECES)
        self._logs: list[Any] = []
        self._over = threading.Event()

    def _follow(self, stream: Stream) -> None:
        left = self._skip[stream]
        with contextlib.suppress(EngineError), engine_errors("follow the box's log"):
            log = self._log_of(stream)
            self._logs.append(log)
            if self._over.is_set():
                _close(log)
            for data in log:
                fresh, left = data[left:], max(0, left - len(data))
                if fresh:
                    self._hand((stream, fresh))
                if self._over.is_set():
                    return
        self._hand(None)

    def _hand(self, piece: tuple[Stream, bytes] | None) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Full):
                self._pieces.put(piece, timeout=POLL_SECONDS)
                return

    def __iter__(self) -> Iterator[tuple[Stream, bytes] | None]:
        following = len(self._skip)
        while following:
            try:
                piece = self._pieces.get(timeout=POLL_SECONDS)
            except Empty:
                yield None
                continue
            if piece is None:
                following -= 1
            else:
                yield piece

    def __enter__(self) -> Self:
        for stream in self._skip:
            threading.Thread(target=self._follow, args=(stream,), name=f"reprobox-{stream}-log", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for log in self._logs:
            _close(log)


def _close(log: Any) -> None:
    # One that has ended, a generator that its thread is in, a connection over SSH: none of them can be closed.
    with contextlib.suppress(OSError, ValueError, AttributeError, DockerException):
        log.close()
