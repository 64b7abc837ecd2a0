"""The end of a run, for its record: by the process that stayed with it, or by one that found it later."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from reprobox.errors import BoxError, CommandNotExecutable, CommandNotFound, UsageError
from reprobox.runs.hashes import file_hashes
from reprobox.runs.interrupts import SIGNAL_BASE
from reprobox.runs.manifest import Outcome, now
from reprobox.runs.project_files import changes_told, project_file_changes
from reprobox.runs.receipts import Receipts, read_receipts
from reprobox.runs.secrets import remove_secrets
from reprobox.runs.store import HANDED_OVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from reprobox.engines import Exit
    from reprobox.runs.store import RunRecord

__all__ = ["conclude", "finish"]

ENGINE_STOPPED = (SIGNAL_BASE + signal.SIGTERM, SIGNAL_BASE + signal.SIGKILL)
"""How a command ends when its engine is stopped: TERM, ten seconds later KILL."""


ENTRYPOINT_CODES = (UsageError.exit_code, BoxError.exit_code, CommandNotExecutable.exit_code, CommandNotFound.exit_code)


def finish(
    record: RunRecord,
    manifest: dict[str, Any],
    stop: Callable[[], object] = lambda: False,
    say: Callable[[str], None] = lambda _line: None,
    warn: Callable[[str], None] | None = None,
) -> Receipts:
    """Take over what the box reported, remove what was made for it alone, and note receipt and outputs in ``manifest``.

    What the run did to project files is noted as well, and ``warn`` is told (``say`` where there is none).

    :param stop: asked while the outputs are hashed; where it says yes, the others are left out, and ``say`` is told.
    """
    record.collect()
    remove_secrets(record)
    receipts = read_receipts(record.folder)
    manifest["receipt"] = receipts.to_json()
    changes = project_file_changes(manifest.get("project_files"), record.project)
    manifest["project_file_changes"] = changes
    if (line := changes_told(changes)) is not None:
        (warn or say)(line)
    stopped = False

    def enough() -> bool:
        nonlocal stopped
        stopped = stopped or bool(stop())
        return stopped

    # Not where the manifest says: one that came with a repository may name any folder.
    manifest["outputs"] = file_hashes(record.project, manifest.get("outputs") or {}, enough)
    if stopped:
        say("a signal came while the outputs were hashed, so the hashes of some are not on record")
    return receipts


def conclude(ended: Exit, stage: str | None, say: Callable[[str], None]) -> dict[str, object]:
    """Return what the manifest says of an end: the outcome, the exit code and whose it is; tell what needs telling."""
    # The command may write the stage as well; it cannot have the entrypoint end with a code that is not the entrypoint's.
    handed_over = stage == HANDED_OVER or (ended.code < SIGNAL_BASE and ended.code not in ENTRYPOINT_CODES)
    whose = "command" if handed_over else "reprobox"
    message: str | None = None
    if ended.out_of_memory and ended.code == SIGNAL_BASE + signal.SIGKILL:
        outcome, message = Outcome.OUT_OF_MEMORY, "the command ran out of memory and was killed"
    elif ended.removed:
        outcome, message = Outcome.FAILED, "somebody else removed the box while the command ran, and ended it so"
        whose = "engine"
        say(message)
    elif ended.engine_was_away and ended.code in ENGINE_STOPPED:
        outcome, message = Outcome.ENGINE_STOPPED, "the engine stopped or was restarted, and ended the command"
        whose = "engine"
        say(message)
    elif not handed_over and ended.code > SIGNAL_BASE:
        outcome, message = Outcome.INTERRUPTED, "the box was ended by a signal before the command was started"
    elif not handed_over:
        outcome, message = Outcome.REFUSED, ended.error or "the box refused; its sentence is on stderr"
    else:
        outcome = Outcome.EXITED
    if ended.out_of_memory:
        say(message or "a process of the command ran out of memory and was killed; the command itself went on")
    return {
        "outcome": str(outcome),
        "stage": HANDED_OVER if handed_over else stage,
        "end": now(),
        "exit_code": ended.code,
        "exit_code_of": whose,
        "message": message,
        "out_of_memory": ended.out_of_memory,
    }
