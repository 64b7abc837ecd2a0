"""The self-test carried out in a box of its own, which has nothing of the user's in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import reprobox.box.selftest
from reprobox.engines import GPUS_LABEL, RUN_LABEL, BoxOptions, BoxSpec
from reprobox.errors import CertificateError, ReproboxError, SelfTestError
from reprobox.files import parse_json
from reprobox.limits import default_processes
from reprobox.recipe import Profile, Recipe, SelfTest
from reprobox.selftest.boxes import noted
from reprobox.selftest.certificate import Certificate, find, keep
from reprobox.selftest.fingerprint import fingerprint, is_certain, relevant_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reprobox.engines import Box, Engine, ImageInfo, Stream
    from reprobox.gpus import Gpu

__all__ = ["SEED", "Proof", "Subject", "carry_out", "prove"]

MOST_OUTPUT = 16 << 20
MOST_LINES = 1000
LONGEST_LINE = 1 << 16
"""Of the bytes that a self-test writes, its last lines on stderr and the end of one, no more is kept."""

SEED = 20200220
"""The self-test's own seed: what it finds does not depend on the run's."""

BOX_LAUNCHER = "/opt/reprobox/lib/reprobox/box/selftest/launch.py"
NO_TORCH = 3
"""Exit code of the self-test where its Python has no torch."""

_CANNOT = (126, 127)
CHECK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tested: a recipe on an engine, in an image, on devices, with the caller's variables."""

    engine: Engine
    image: ImageInfo | None
    recipe: Recipe
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    hides_gpus: bool = True

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See :func:`reprobox.selftest.fingerprint.fingerprint`."""
        return fingerprint(self.recipe, self.inside, self.image, self.gpus, self.driver, self.engine.info())

    @property
    def without_torch(self) -> str:
        """Which Python was asked where the self-test found no torch, and what to do about it."""
        if self.engine.isolates:
            return "the box's python has no torch"
        python = shutil.which("python", path=self.inside.get("PATH"))
        if python is None:
            return "there is no python on PATH; activate the environment that has torch"
        return f"{python} has no torch; activate the environment that has it, or type {python} -m pip install torch"

    @property
    def inside(self) -> dict[str, str | None]:
        """The variables that the command gets: the caller's, and without isolation those of this process as well."""
        return {**({} if self.engine.isolates else os.environ), **self.environment}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known before a command starts.

    ``verdict``: ``passed`` now, ``certificate`` (passed earlier, on exactly this), ``off``, or ``skipped`` where there is
    no torch to test: ``why`` says which Python that is.
    """

    verdict: Literal["passed", "certificate", "off", "skipped"]
    why: str = ""
    certificate: Certificate | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says of the self-test."""
        certificate = self.certificate
        return {
            "verdict": self.verdict,
            "tier": certificate.tier if certificate else None,
            "date": certificate.date if certificate else None,
            "cases": len(certificate.cases) if certificate else 0,
            "seconds": None if self.seconds is None else round(self.seconds, 2),
        }

    def summary(self) -> str | None:
        """Return the line that a person is told; ``None`` where there is nothing to tell."""
        if self.verdict == "skipped":
            return f"self-test skipped: {self.why}"
        if self.certificate is None:
            return None
        devices = ", ".join(dict.fromkeys(str(case["device"]) for case in self.certificate.cases))
        how = f"{self.seconds:.1f} s" if self.seconds is not None else f"certificate of {self.certificate.date[:10]}"
        return f"self-test {len(self.certificate.cases)} cases on {devices}: same bits ({how})"


def prove(
    subject: Subject,
    mode: SelfTest,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> Proof:
    """Return the proof that ``subject`` gives the same bits, by a certificate or by the self-test's start tier.

    :param check: called now and then; what it raises (a signal that came) ends the test.
    :raises SelfTestError: when the test fails: the command must not be started.
    """
    if mode is SelfTest.OFF or subject.recipe.profile is Profile.OFF:
        return Proof(verdict="off")
    made_on = subject.fingerprint
    if mode is SelfTest.AUTO and is_certain(made_on) and (certificate := find(made_on)) is not None:
        return Proof(verdict="certificate", certificate=certificate)
    began = time.monotonic()
    document = carry_out(subject, tier="start", check=check)
    if document is None:
        return Proof(verdict="skipped", why=subject.without_torch)
    if not document["passed"]:
        raise failed(document)
    certificate = Certificate.of(document, made_on)
    try:
        keep(certificate)
    except CertificateError as error:
        say(f"the certificate is not kept: {error}")
    return Proof(verdict="passed", certificate=certificate, seconds=time.monotonic() - began)


def failed(document: Mapping[str, Any]) -> SelfTestError:
    """Return the error that names what failed in ``document`` and what to try."""
    failures = [str(failure) for failure in document.get("failures") or ["no reason given"]]
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return SelfTestError(
        f"the self-test failed, so the command was not started: {failures[0]}{more}",
        remedy="see `reprobox selftest` for every case; --self-test off runs the command all the same",
        detail="\n".join(failures),
        failures=failures,
    )


def carry_out(
    subject: Subject,
    *,
    tier: Literal["start", "full"],
    repeat: int = 3,
    cases: str = "",
    check: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda _case, _done, _total: None,
) -> dict[str, Any] | None:
    """Run the self-test and return its document (``reprobox.selftest/1``); ``None`` where there is no torch to test.

    :param cases: comma-separated names or patterns; all of the tier without.
    :param progress: told the case that begins, how many are done, and of how many.
    :raises SelfTestError: when it could not be carried out.
    """
    output = bytearray()
    errors = _Lines(progress)

    def write(stream: Stream, data: bytes) -> None:
        check()
        if stream == "stdout":
            output.extend(data[: MOST_OUTPUT - len(output)])  # a document that is cut is none
        else:
            errors.feed(data)

    options = ["--tier", tier, "--repeat", str(repeat), *(["--cases", cases] if cases else [])]
    spec = _spec(subject, options)
    with noted(subject.engine, spec.run_id), subject.engine.create(spec) as box:
        box.attach()
        check()
        box.start()
        with _killed_when_raised(check, box):
            box.stream(write, errors.rest.append)
            ended = box.wait()
        check()
    if ended.code == NO_TORCH or (ended.code in _CANNOT and not output):
        return None
    document = _parsed(output)
    if document is None:
        raise SelfTestError(
            f"the self-test ended with exit code {ended.code} and no result: {errors.last()}",
            remedy="see what `reprobox --debug selftest` says, or use --self-test off",
            detail="\n".join(errors.rest),
        )
    return document


@contextlib.contextmanager
def _killed_when_raised(check: Callable[[], None], box: Box) -> Iterator[None]:
    """Kill ``box`` once ``check`` raises: a self-test that hangs, or is still importing torch, says nothing for long."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(CHECK_SECONDS):
            try:
                check()
            except BaseException:  # noqa: BLE001  # it is raised again where the self-test is waited for
                with contextlib.suppress(ReproboxError):
                    box.signal(signal.SIGKILL)
                return

    thread = threading.Thread(target=watch, name="reprobox-selftest", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _parsed(output: bytes | bytearray) -> dict[str, Any] | None:
    try:
        document = parse_json(bytes(output))
    except ValueError:
        return None
    return document if _is_result(document) else None


def _is_result(document: Any) -> bool:
    """Say whether ``document`` holds what is read of it here: the image that made it may be another's."""
    return (
        isinstance(document, dict)
        and document.get("schema") == "reprobox.selftest/1"
        and isinstance(document.get("passed"), bool)
        and isinstance(document.get("fingerprint"), dict)
        and _are(document.get("failures"), lambda failure: isinstance(failure, str))
        and _are(document.get("cases"), _is_case)
        and _are(document.get("knobs"), lambda knob: isinstance(knob, dict) and isinstance(knob.get("verdict"), str))
    )


def _are(entries: Any, sound: Callable[[Any], bool]) -> bool:
    return isinstance(entries, list) and all(map(sound, entries))


def _is_case(case: Any) -> bool:
    return (
        isinstance(case, dict)
        and all(isinstance(case.get(word), str) for word in ("name", "device", "dtype", "verdict"))
        and isinstance(case.get("message", ""), str)
        and isinstance(case.get("ms"), int | float)
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_OUTPUT:
        raise ValueError(value)
    return value


class _Lines:
    """The self-test's stderr: progress, a JSON object a line, and whatever else it says."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self._progress = progress
        self._pending = b""
        self.rest: deque[str] = deque(maxlen=MOST_LINES)

    def feed(self, data: bytes) -> None:
        *lines, pending = (self._pending + data).split(b"\n")
        self._pending = pending[-LONGEST_LINE:]
        for line in lines:
            text = line.decode(errors="replace")
            try:
                document = parse_json(text)
                self._progress(str(document["case"]), _count(document["done"]), _count(document["total"]))
            except (ValueError, KeyError, TypeError):
                self.rest.append(text)

    def last(self) -> str:
        said = [line for line in [*self.rest, self._pending.decode(errors="replace")] if line.strip()]
        return said[-1].strip() if said else "it said nothing"


def _spec(subject: Subject, options: list[str]) -> BoxSpec:
    local = not subject.engine.isolates
    run_id = f"selftest-{os.getpid()}-{time.time_ns()}"
    launcher = str(Path(reprobox.box.selftest.__file__).with_name("launch.py")) if local else BOX_LAUNCHER
    environment: dict[str, str | None] = {
        **relevant_environment(subject.inside),
        **subject.recipe.with_seed(SEED).to_variables(),
        "REPROBOX_QUIET": "on",
        "REPROBOX_SELFTEST": str(SelfTest.OFF),
    }
    if subject.hides_gpus or subject.gpus:
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in subject.gpus),
        }
    uid, gid = os.getuid(), os.getgid()
    scratch = "rw,exec,nosuid,nodev,mode=0700"
    return BoxSpec(
        run_id=run_id,
        name=f"reprobox-{run_id}",
        image=None if subject.image is None else subject.image.engine_id,
        command=("python", launcher, *options),
        directory="/",
        environment=environment if local else {"HOME": "/home/box", "USER": "box", "LOGNAME": "box", **environment},
        user=f"{uid}:{gid}",
        tmpfs={"/tmp": "rw,exec,nosuid,nodev,mode=1777", "/home/box": f"{scratch},uid={uid},gid={gid}"},
        network="none",
        shm_bytes=1 << 30,
        gpus=tuple(gpu.uuid for gpu in subject.gpus),
        options=BoxOptions(pids_limit=default_processes()),
        labels={
            RUN_LABEL: run_id,
            **({GPUS_LABEL: ",".join(gpu.uuid for gpu in subject.gpus)} if subject.gpus else {}),
        },
        log=False,
    )
