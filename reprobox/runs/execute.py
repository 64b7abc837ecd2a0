"""A plan carried out, so that nothing is lost: attach before start, stream to the end, wait, record, remove.

The pattern, and what each step is for, was measured against Docker Engine: attaching after the start lost output in 15
of 15 trials, removing automatically lost the exit code, and the end of the stream is not the end of the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from reprobox.engines import removed_or_told
from reprobox.errors import BoxError, EngineUnavailable, RecordError, ReproboxError, SelfTestError
from reprobox.files import write_json
from reprobox.recipe import Profile
from reprobox.runs.finish import conclude, finish
from reprobox.runs.given import write_box_files
from reprobox.runs.hashes import file_hashes
from reprobox.runs.interrupts import SIGNAL_BASE, Interrupted, Interrupts, reaches
from reprobox.runs.logs import RunLogs
from reprobox.runs.manifest import Outcome, now
from reprobox.runs.plan import kept_from_boxes
from reprobox.runs.redaction import redacted_message
from reprobox.runs.secrets import write_secrets
from reprobox.runs.store import HANDED_OVER, SELFTEST_FAILED
from reprobox.runs.streams import Input, Output, Terminal
from reprobox.selftest.proof import Subject, prove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reprobox.engines import Box, Engine, Exit, Stream
    from reprobox.runs.plan import RunPlan
    from reprobox.runs.store import RunRecord

__all__ = ["Outside", "execute"]

READER_GONE_GRACE_SECONDS = 10
STAGE_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What a run is connected to at this end.

    ``say`` tells a person a line, and ``warn`` one that only the person can silence, no project file.
    ``started`` is called once the command has taken the box over.
    """

    interrupts: Interrupts
    say: Callable[[str], None]
    warn: Callable[[str], None] | None = None
    output: Output = field(default_factory=Output)
    started: Callable[[], None] | None = None


class _Departure:
    """Whether the box is left to itself, and why: the keys for it were typed, or its engine does not answer a signal."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.detached = False
        self.gave_up = False

    def detach(self) -> None:
        self.detached = True
        self._box.leave()

    def give_up(self) -> None:
        self.gave_up = True
        self._box.leave()


def execute(plan: RunPlan, engine: Engine, record: RunRecord, manifest: dict[str, Any], outside: Outside) -> int:
    """Carry ``plan`` out and return the exit code to end with: the command's own, or reprobox's.

    The manifest in ``record`` is valid at every moment and complete when this returns or raises.

    :raises ReproboxError: when the engine or reprobox failed; nothing of the run is left but its record, and, where the
        engine went away, the box: `reprobox runs wait` finds it.
    """
    say = cache(outside.say)  # a disk that stays full is no news

    def update(**fields: object) -> None:
        manifest.update(redacted_message(fields, plan.request.secrets.values()))
        record.write_or_tell(manifest, say)

    with record.held():
        _begin(record, manifest)
        try:
            logs = RunLogs(record.folder, keep=plan.request.log, say=outside.say)
            try:
                ended = _run(plan, engine, record, logs, outside, update)
            except EngineUnavailable:
                logs.leave()
                raise
            except BaseException:
                logs.close()
                raise
            finally:
                manifest["streams"] = logs.to_json()
            if ended is None:
                logs.leave()
                outside.say(f"left to itself; `reprobox runs attach {record.id}` comes back to it")
                return 0
            logs.close()
        except SelfTestError as error:
            finish(record, manifest, outside.interrupts.after_the_end(), outside.say, outside.warn)
            update(
                outcome=str(Outcome.REFUSED),
                stage=SELFTEST_FAILED,
                end=now(),
                exit_code=error.exit_code,
                exit_code_of="reprobox",
                message=str(error),
                self_test={"verdict": "failed", "failures": error.failures},
            )
            raise
        except Interrupted as error:
            code = SIGNAL_BASE + error.number
            finish(record, manifest, lambda: True)  # whoever sent the signal waits, and no output is this run's
            update(
                outcome=str(Outcome.INTERRUPTED),
                end=now(),
                exit_code=code,
                exit_code_of="reprobox",
                message=f"{error} came before the command was started",
            )
            return code
        except BaseException as error:
            stage = record.stage()
            if not isinstance(error, EngineUnavailable):  # then the box may live, and with it what it was given
                finish(record, manifest, outside.interrupts.after_the_end(), outside.say, outside.warn)
            update(
                outcome=str(Outcome.FAILED),
                stage=stage,
                end=now(),
                exit_code=error.exit_code if isinstance(error, ReproboxError) else ReproboxError.exit_code,
                exit_code_of="reprobox",
                message=str(error) or type(error).__name__,
            )
            raise
        receipts = finish(record, manifest, outside.interrupts.after_the_end(), outside.say, outside.warn)
        if plan.recipe.profile is not Profile.OFF and record.stage() == HANDED_OVER:
            outside.say(receipts.summary())
        update(**conclude(ended, record.stage(), outside.say))
        return ended.code


def _begin(record: RunRecord, manifest: dict[str, Any]) -> None:
    """Write the first manifest. :raises RecordError: where it cannot be written: nothing is started that has no record."""
    try:
        record.write(manifest)
    except OSError as error:
        raise RecordError(
            f"the run's record cannot be written to {record.folder} ({error.strerror})",
            remedy="make room there, or make it writable for this user",
        ) from error


def _run(
    plan: RunPlan,
    engine: Engine,
    record: RunRecord,
    logs: RunLogs,
    outside: Outside,
    update: Callable[..., None],
) -> Exit | None:
    """Make the box, start it and stay with it to its end; return ``None`` where it was left to itself."""
    interrupts, request = outside.interrupts, plan.request
    update(inputs=file_hashes(request.project.root, request.inputs, interrupts.raise_if_pending))
    write_box_files(record.box_folder, plan.recipe, request.owner)
    if plan.secrets is not None:
        write_secrets(record, plan.secrets, request.secrets, request.owner)
    _make_caches(plan)
    interrupts.raise_if_pending()
    with removed_or_told(engine.create(plan.box), outside.say) as box, contextlib.ExitStack() as stack:
        # After the box is made, so that you hear what the engine refuses without waiting for the self-test.
        update(self_test=_prove(plan, engine, record, outside))
        update(outcome=str(Outcome.CREATED))
        box.attach()
        interrupts.raise_if_pending()
        departure = _Departure(box)
        ours = not request.detached
        terminal = Terminal() if request.terminal and ours else None
        box.start()

        def resize() -> None:
            if terminal is not None:
                box.resize(*terminal.size())

        resize()
        update(outcome=str(Outcome.RUNNING), start=now())
        if terminal is not None and request.stdin:
            stack.enter_context(terminal)
        interrupts.forward_to(
            box,
            give_up=departure.give_up,
            resize=resize if terminal else None,
            is_up=lambda: record.stage() is not None,
        )
        if request.stdin and ours:
            stack.enter_context(Input(box, departure.detach if terminal and engine.isolates else None))
        if outside.started is not None:
            stack.enter_context(_watch_for_the_start(record, outside.started))
        try:
            box.stream(_writer(outside, logs, box), outside.say)
            if departure.detached:
                return None
            if not departure.gave_up:
                return box.wait()
        except EngineUnavailable as error:
            raise EngineUnavailable(
                error.message,
                remedy=f"{error.remedy}; `reprobox runs wait {record.id}` then takes it up",
                detail=error.detail,
            ) from error
        raise EngineUnavailable(
            "the engine does not answer, so the command could not be killed and may still run",
            remedy=f"see to the engine; `reprobox runs stop {record.id}` then ends the command",
        )


def _prove(plan: RunPlan, engine: Engine, record: RunRecord, outside: Outside) -> dict[str, Any]:
    """See that this machine gives the same bits, now or by a certificate; return what the manifest says of it.

    :raises SelfTestError: when it does not: the command is not started.
    """
    request = plan.request
    subject = Subject(
        engine=engine,
        image=plan.image,
        recipe=plan.recipe,
        gpus=request.gpus,
        driver=plan.driver,
        environment=request.environment,
        hides_gpus=engine.isolates or request.gpus_were_asked_for,
    )
    proof = prove(subject, request.selftest, outside.say, outside.interrupts.raise_if_pending)
    if (line := proof.summary()) is not None:
        outside.say(line)
    if proof.certificate is not None:
        write_json(record.folder / "selftest.json", proof.certificate.to_json())
    return proof.to_json()


def _make_caches(plan: RunPlan) -> None:
    # These folders are among the mounts where the command could otherwise make them.
    guarded = [folder for folder in kept_from_boxes() if any(m.source == str(folder) for m in plan.box.mounts)]
    for folder in (*plan.caches, *guarded):
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                if plan.request.owner[0] != os.getuid():
                    folder.chmod(0o1777)  # the box's user is another (-u), who has a cache of its own
        except OSError as error:
            raise BoxError(
                f"the cache folder {folder} cannot be made ({error.strerror})",
                remedy="set XDG_CACHE_HOME to a folder that you may write",
            ) from error


@contextlib.contextmanager
def _watch_for_the_start(record: RunRecord, started: Callable[[], None]) -> Iterator[None]:
    """Call ``started`` once the command has taken the box over."""
    over = threading.Event()
    told = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if record.has_handed_over():
                started()
                told.set()
                return
            over.wait(STAGE_POLL_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        over.set()
        thread.join()
        if record.stage() == HANDED_OVER and not told.is_set():  # it was over before the next look
            started()
    finally:
        over.set()


def _writer(outside: Outside, logs: RunLogs, box: Box) -> Callable[[Stream, bytes], None]:
    """Write the command's output; when nobody reads its stdout any more, end the command (docker leaves it running)."""
    told = False

    def write(stream: Stream, data: bytes) -> None:
        nonlocal told
        logs.write(stream, data)
        if not outside.output.write(stream, data) and stream == "stdout" and not told:
            told = True
            outside.interrupts.interrupt(signal.SIGTERM)
            killer = threading.Timer(READER_GONE_GRACE_SECONDS, reaches, args=(box, signal.SIGKILL))
            killer.daemon = True
            killer.start()

    return write
