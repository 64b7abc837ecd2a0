"""One check and what it finds; carrying out a table of them, whatever one of them does."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from reprobox.errors import ReproboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reprobox.doctor.patient import Patient

__all__ = ["ALTOGETHER_SECONDS", "Check", "Finding", "Verdict", "examine", "fail", "ok", "skipped", "warn"]

ALTOGETHER_SECONDS = 25.0
"""Whatever hangs, an examination is over by then: every check has its own limit, and never more than what is left."""

UNDO_SECONDS = 3.0
_POLL_SECONDS = 0.1


class Verdict(StrEnum):
    """What a check comes to. A warning is for what works and will surprise somebody."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A verdict, what was seen, and what to do about it."""

    verdict: Verdict
    seen: str
    remedy: str | None = None


def ok(seen: str) -> Finding:
    """Return that all is well, and what was seen."""
    return Finding(verdict=Verdict.OK, seen=seen)


def warn(seen: str, remedy: str | None = None) -> Finding:
    """Return what works and will surprise somebody."""
    return Finding(verdict=Verdict.WARN, seen=seen, remedy=remedy)


def fail(seen: str, remedy: str | None = None) -> Finding:
    """Return what does not work."""
    return Finding(verdict=Verdict.FAIL, seen=seen, remedy=remedy)


def skipped(seen: str) -> Finding:
    """Return why there was nothing to look at."""
    return Finding(verdict=Verdict.SKIPPED, seen=seen)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at.

    ``needs`` are the checks without which this one says nothing; ``only`` tells why it does not apply to this machine,
    or ``None``. ``seconds`` is what it may take, and ``hung`` what it means when it takes longer: what was seen, and the
    remedy. ``undo`` takes back what a check has begun that was given up.
    """

    name: str
    look: Callable[[Patient], Finding]
    needs: tuple[str, ...] = ()
    only: Callable[[Patient], str | None] | None = None
    seconds: float = 5.0
    hung: tuple[str, str | None] | None = None
    undo: Callable[[Patient], Any] | None = None


def examine(
    patient: Patient,
    checks: Sequence[Check],
    *,
    interrupt: Callable[[], None] = lambda: None,
    altogether: float = ALTOGETHER_SECONDS,
) -> Iterator[tuple[Check, Finding]]:
    """Yield each check with what it found, in their order, as soon as it is known.

    A check that breaks or hangs is a failed one, never an error of this function.

    :param interrupt: called now and then; what it raises (a signal that came) ends the examination.
    :param altogether: seconds that all checks may take together.
    """
    deadline = time.monotonic() + altogether
    without: dict[str, str] = {}
    for check in checks:
        finding = _not_to_be_looked_at(check, patient, without)
        if finding is None:
            left = deadline - time.monotonic()
            if left <= 0:
                without[check.name] = "was not looked at"
                finding = skipped("there was no time left for it: something before it hangs")
            else:
                finding = _looked_at(check, patient, min(check.seconds, left), interrupt)
        if finding.verdict is Verdict.FAIL:
            without[check.name] = "failed"
        yield check, finding


def _not_to_be_looked_at(check: Check, patient: Patient, without: dict[str, str]) -> Finding | None:
    if check.only is not None and (why := check.only(patient)) is not None:
        return skipped(why)
    if missing := [name for name in check.needs if name in without]:
        return skipped(f"needs {missing[0]}, which {without[missing[0]]}")
    return None


def _looked_at(check: Check, patient: Patient, limit: float, interrupt: Callable[[], None]) -> Finding:
    """Look in a thread of its own, which is left behind where it hangs."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_safely(check, patient)), name="reprobox-doctor", daemon=True)
    thread.start()
    end = time.monotonic() + limit
    finding = None
    try:
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            interrupt()
            thread.join(min(left, _POLL_SECONDS))
        # Before anything is undone, of which the thread would find something of its own.
        finding = found[0] if found else None
    finally:
        if check.undo is not None and finding is None:
            _within(UNDO_SECONDS, partial(check.undo, patient))
    if finding is not None:
        return finding
    seen, remedy = check.hung or ("it hangs", None)
    return fail(f"{seen} (not done after {limit:.0f} s)", remedy)


def _safely(check: Check, patient: Patient) -> Finding:
    try:
        return check.look(patient)
    except ReproboxError as error:
        return fail(error.message, error.remedy)
    except Exception as error:  # noqa: BLE001  # a check that breaks is a finding like any other
        return fail(
            f"the check itself broke ({type(error).__name__}: {error})", "report this, with what `reprobox doctor` says"
        )


def _within(seconds: float, work: Callable[[], Any]) -> None:
    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, name="reprobox-doctor-undo", daemon=True)
    thread.start()
    thread.join(seconds)
