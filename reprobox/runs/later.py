"""A run looked at by another process: its output, its end, and what to do where the process that minded it was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, Any

from reprobox.engines import EngineName, FoundBox, Stream, open_engine, removed_or_told
from reprobox.errors import EngineError, EngineUnavailable, RecordError
from reprobox.runs.finish import conclude, finish
from reprobox.runs.logs import HEAD_BYTES, RunLogs, read_log, read_on
from reprobox.runs.manifest import Outcome, now
from reprobox.runs.streams import Input, Output, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reprobox.engines import Engine
    from reprobox.runs.interrupts import Interrupts
    from reprobox.runs.store import RunRecord

__all__ = ["NOBODY_SAW_THE_END", "attach", "complete_if_over", "output", "stop", "unfinished", "wait"]

NOBODY_SAW_THE_END = "nobody saw the command's end"

FOLLOW_SECONDS = 0.1
STOP_SECONDS = 10

UNKNOWN_SECONDS = 1
"""How long a process that has just begun to mind a run may take to write down which it is."""

REMOVAL_SECONDS = 3
"""How long a box that somebody removes may still be listed by its engine."""


def unfinished(record: RunRecord, manifest: dict[str, Any]) -> bool:
    """Say whether the run's end is not on record: it still runs, or whoever minded it was killed or lost its engine."""
    return manifest.get("end") is None or record.box_folder.exists()


def wait(
    record: RunRecord,
    say: Callable[[str], None],
    write: Callable[[Stream, bytes], object] = lambda _stream, _data: None,
) -> dict[str, Any]:
    """Wait for the run's end and return its manifest, completed; ``write`` is given its output.

    A run that nobody minds any more is taken over: its output is caught up with from the engine's log, its exit code
    read, its record completed and its box removed.

    :raises ReproboxError: when its engine does not answer.
    """
    _follow(record, write)
    manifest = record.manifest()
    if not unfinished(record, manifest):
        return manifest
    with record.held():
        manifest = record.manifest()
        if unfinished(record, manifest):
            _take_over(record, manifest, write, say)
    return manifest


def complete_if_over(record: RunRecord, manifest: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Complete the record of a run that is over and whose end nobody saw; return its manifest as it is then."""
    if not unfinished(record, manifest) or record.holder() is not None:
        return manifest
    _, box = _found(record, manifest)
    if box is not None and box.running:
        return manifest
    return wait(record, say)


def attach(record: RunRecord, interrupts: Interrupts, say: Callable[[str], None]) -> int | None:
    """Connect this process's streams to the run's command; return its exit code, or ``None`` when the keys to leave came.

    :raises RecordError: when the run is over, or its engine has no box to attach to.
    """
    manifest = complete_if_over(record, record.manifest(), say)
    engine, box = _found(record, manifest) if unfinished(record, manifest) else (None, None)
    if engine is None or box is None or not box.running:
        raise RecordError(
            f"run {record.id} has no running box to attach to", remedy=f"see `reprobox runs logs {record.id}`"
        )
    options = manifest.get("options") or {}
    terminal = Terminal() if options.get("terminal") and os.isatty(0) else None
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        box.leave()

    def resize() -> None:
        if terminal is not None:
            box.resize(*terminal.size())

    console = Output()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_unless_removed(engine, record))
        box.attach()
        resize()
        if options.get("stdin"):
            stack.enter_context(terminal or contextlib.nullcontext())
            stack.enter_context(Input(box, leave if terminal else None))
        interrupts.forward_to(box, give_up=leave, resize=resize if terminal else None)
        box.stream(lambda stream, data: None if console.write(stream, data) else leave(), say)
    if left:
        return None
    manifest = wait(record, say)
    if manifest["exit_code"] is None:
        say(manifest.get("message") or NOBODY_SAW_THE_END)
        return EngineError.exit_code
    code: int = manifest["exit_code"]
    return code


def stop(record: RunRecord, seconds: int | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Send the run's command TERM, and KILL after ``seconds``; return its manifest, completed.

    :raises ReproboxError: when its engine does not answer.
    """
    manifest = record.manifest()
    if not unfinished(record, manifest):
        return manifest
    box = _box_of(_engine_of(manifest), record)
    if box is not None and _has_started(box):
        box.stop(seconds)
    else:
        # A command on this machine itself, and one that is about to be started, is ended by the process that minds it.
        _stop_minder(record, STOP_SECONDS if seconds is None else seconds)
    return wait(record, say)


def _has_started(box: FoundBox) -> bool:
    """Say whether the box was started; one that is gone is as good."""
    try:
        return box.started() is not None
    except EngineUnavailable:
        raise
    except EngineError:
        return True


def _stop_minder(record: RunRecord, seconds: float) -> None:
    """Send TERM to the process that minds the run, if one does, and twice more after ``seconds``: the third kills."""
    _terminate(record)
    deadline = time.monotonic() + seconds
    while record.holder() is not None and time.monotonic() < deadline:
        time.sleep(FOLLOW_SECONDS)
    for _ in range(2):
        if record.holder() is not None:
            _terminate(record)
            time.sleep(FOLLOW_SECONDS)


def _terminate(record: RunRecord) -> None:
    """Send TERM to the process that minds the run.

    :raises RecordError: where the lock's number means nobody here, or somebody else: it is of another machine or container.
    """
    deadline = time.monotonic() + UNKNOWN_SECONDS
    while (minder := record.holder()) is not None:
        if minder.is_here:
            try:
                os.kill(minder.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise RecordError(
                    f"run {record.id} is minded by a process of another user ({minder.pid})",
                    remedy="stop it as that user",
                ) from error
            return
        if time.monotonic() > deadline:
            raise RecordError(
                f"run {record.id} is minded elsewhere: on another machine, in another container, or by another reprobox",
                remedy="stop it there",
            )
        time.sleep(FOLLOW_SECONDS)


def output(record: RunRecord) -> Iterator[tuple[Stream, bytes]]:
    """Yield the run's output so far. :raises RecordError: when none was kept."""
    paths = _logs(record)
    if not paths:
        raise RecordError(
            f"the output of run {record.id} was not kept", remedy="it was run with --no-log, or never started"
        )
    for stream, path in paths.items():
        for data in read_log(path):
            yield stream, data


def _logs(record: RunRecord) -> dict[Stream, Path]:
    streams: tuple[Stream, ...] = ("stdout", "stderr")
    return {stream: path for stream in streams if _is_file(path := record.folder / f"{stream}.log")}


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _follow(record: RunRecord, write: Callable[[Stream, bytes], object]) -> None:
    """Write the output that whoever minds the run keeps, until nobody minds it any more."""
    places: dict[Stream, int] = {"stdout": 0, "stderr": 0}

    def write_on() -> None:
        for stream, path in _logs(record).items():
            for place, data in read_on(path, places[stream]):
                places[stream] = place
                write(stream, data)

    while record.holder() is not None:
        write_on()
        time.sleep(FOLLOW_SECONDS)
    write_on()  # what a minder that was killed had kept, in segments too
    streams = record.manifest().get("streams") or {}
    for stream, path in _logs(record).items():
        total = streams.get(f"{stream}_bytes")
        if total is None or total == places[stream]:
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A log whose middle was left out ends like the output: counted from its end, the place is the same.
            file.seek(max(min(places[stream], HEAD_BYTES), size - (total - places[stream])))
            while data := file.read(1 << 20):
                write(stream, data)


def _take_over(
    record: RunRecord,
    manifest: dict[str, Any],
    write: Callable[[Stream, bytes], object],
    say: Callable[[str], None],
) -> None:
    engine, box = _found(record, manifest)
    seen_to_the_end = False
    if box is not None:
        with _unless_removed(engine, record), removed_or_told(box, say):
            _stay_with(box, record, manifest, write, say)
            seen_to_the_end = True
            if not record.write_or_tell(manifest, say):
                box.leave()  # it knows the end, which is on no record
    if not seen_to_the_end:
        _give_up(record, manifest, "reprobox was killed while it minded this run, and nobody saw the command's end")
        record.write_or_tell(manifest, say)


@contextlib.contextmanager
def _unless_removed(engine: Engine, record: RunRecord) -> Iterator[None]:
    """Leave the block without an error where it failed because somebody removes the run's box in this moment."""
    try:
        yield
    except EngineUnavailable:
        raise
    except EngineError:
        # A box is listed until its files are gone as well; any other failure is worth telling.
        deadline = time.monotonic() + REMOVAL_SECONDS
        while engine.find(record.id) is not None:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _stay_with(
    box: FoundBox,
    record: RunRecord,
    manifest: dict[str, Any],
    write: Callable[[Stream, bytes], object],
    say: Callable[[str], None],
) -> None:
    """Stay with a box to its end, in the place of the process that was killed."""
    if (started := box.started()) is None:
        _give_up(record, manifest, "reprobox was killed before the command was started")
        return
    logs = RunLogs(record.folder, keep=bool(_logs(record)), say=say)

    def both(stream: Stream, data: bytes) -> None:
        logs.write(stream, data)
        write(stream, data)

    try:
        box.catch_up({stream: logs.delivered(stream) for stream in logs.counts}, both, say)
        ended = box.wait()
    except BaseException:
        logs.leave()
        box.leave()
        raise
    logs.close()
    manifest["streams"] = logs.to_json()
    manifest["start"] = manifest.get("start") or started
    finish(record, manifest, say=say)
    manifest.update(conclude(ended, record.stage(), say))


def _give_up(record: RunRecord, manifest: dict[str, Any], message: str) -> None:
    logs = RunLogs(record.folder, keep=bool(_logs(record)), say=lambda _line: None)
    logs.close()
    manifest["streams"] = logs.to_json()
    finish(record, manifest)
    if manifest.get("end") is not None:
        return  # the engine failed before it had made a box, and that is on record
    started = manifest.get("start") is not None
    manifest.update(
        outcome=str(Outcome.LOST if started else Outcome.FAILED),
        stage=record.stage(),
        end=now(),
        exit_code=None if started else EngineError.exit_code,
        exit_code_of="reprobox",
        message=message,
    )


def _found(record: RunRecord, manifest: dict[str, Any]) -> tuple[Engine, FoundBox | None]:
    """Return the run's engine, and its box if there still is one.

    :raises RecordError: where another engine answers than the one the run was made by: that it has no box says nothing.
    """
    engine = _engine_of(manifest)
    box = _box_of(engine, record)
    if box is None and (made_by := (manifest.get("engine") or {}).get("id")):
        answers = engine.info().details.get("id")
        if answers != made_by:
            raise RecordError(
                f"run {record.id} was made by another {engine.name} than the one that answers ({made_by}, not {answers})",
                remedy="ask as the user, and with the DOCKER_HOST, CONTAINER_HOST or docker context, that it was made with",
            )
    return engine, box


def _box_of(engine: Engine, record: RunRecord) -> FoundBox | None:
    """Return the run's box. :raises RecordError: where it is another project's: a record may have come with a repository."""
    box = engine.find(record.id)
    if box is not None and box.project not in (None, str(record.project)):
        raise RecordError(
            f"the box of run {record.id} is of another project ({box.project})",
            remedy=f"look at it from there; to be rid of this record, remove {record.folder}",
        )
    return box


def _engine_of(manifest: dict[str, Any]) -> Engine:
    name = str((manifest.get("engine") or {}).get("name"))
    try:
        return open_engine(EngineName(name))
    except ValueError as error:
        raise RecordError(
            f"the run was made by an engine this reprobox does not know ({name})", remedy="upgrade reprobox"
        ) from error
