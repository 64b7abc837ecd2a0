"""Which run a process on a GPU belongs to, and which boxes have GPUs, learnt without ever waiting long for an engine."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from reprobox.errors import EngineError, ReproboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reprobox.engines import Engine, GpuBox

__all__ = ["BoxesSeen", "runs_of_processes"]

PATIENCE_SECONDS = 2.0
ASK_AGAIN_SECONDS = 30.0
"""An engine that was not there is not looked for at each refresh: looking for Podman can start a program."""

_PROC = Path("/proc")
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_RUN_FOLDER = re.compile(
    rb"(?:^|\0)REPROBOX_RUN_DIR=[^\0]*/\.reprobox/runs/([0-9]{8}T[0-9]{6}\.[0-9]{3}-[0-9a-f]{4})/box/out(?:\0|$)"
)


class BoxesSeen:
    """The boxes that have GPUs, asked for in a thread of its own: an engine that hangs holds nobody up.

    :param find: returns the engine; its errors are the answer that there are no boxes.

    ``hung`` and ``error`` say why the last answer may not be all there is.
    """

    def __init__(self, find: Callable[[], Engine]) -> None:
        self.hung = False
        self.error: ReproboxError | None = None
        self._find = find
        self._answers: SimpleQueue[tuple[GpuBox, ...] | ReproboxError] = SimpleQueue()
        self._ask_at = float("-inf")
        self._boxes: tuple[GpuBox, ...] = ()

    def now(self) -> tuple[GpuBox, ...]:
        """Return the boxes: those of now, or, where the engine says nothing for two seconds, those it told last."""
        # Who has kept us waiting once is not waited for again.
        patience = 0.0 if self.hung else PATIENCE_SECONDS
        if not self.hung:
            if time.monotonic() < self._ask_at:
                return self._boxes
            threading.Thread(target=self._ask, name="reprobox-boxes", daemon=True).start()
        try:
            answer = self._answers.get(timeout=patience)
        except Empty:
            self.hung = True
            return self._boxes
        self.hung = False
        if isinstance(answer, ReproboxError):
            self.error, self._boxes = answer, ()
            self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
        else:
            self.error, self._boxes = None, answer
        return self._boxes

    def _ask(self) -> None:
        try:
            self._answers.put(self._find().gpu_boxes())
        except ReproboxError as error:
            self._answers.put(error)
        except Exception as error:  # noqa: BLE001 - GPUs can be shown whatever an engine's library fails with
            why = f"the engine could not be asked ({type(error).__name__}: {error})"
            self._answers.put(EngineError(why, remedy="see `reprobox doctor`"))


def runs_of_processes(boxes: Iterable[GpuBox]) -> Callable[[int], str | None]:
    """Return a function that gives the id of the run that a pid belongs to, or ``None`` where it cannot be told.

    A process in a box is known by its cgroup, which any user may read; one of a run on this machine itself by its
    environment, which only its own user and root may.
    """
    by_container = {box.container: box.run_id for box in boxes if box.container and box.run_id}

    def run_of(pid: int) -> str | None:
        return _of_a_box(pid, by_container) or _of_this_machine(pid)

    return run_of


def _of_a_box(pid: int, by_container: dict[str, str]) -> str | None:
    if not by_container:
        return None
    try:
        cgroups = (_PROC / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((by_container[found] for found in _CONTAINER.findall(cgroups) if found in by_container), None)


def _of_this_machine(pid: int) -> str | None:
    try:
        match = _RUN_FOLDER.search((_PROC / str(pid) / "environ").read_bytes())
    except OSError:
        return None
    return match[1].decode() if match else None
