"""A self-test's result with the fingerprint of what it was made on: kept, looked up again, and compared."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reprobox.errors import CertificateError
from reprobox.files import parse_json, read_at_most, write_json
from reprobox.folders import cache_folder
from reprobox.recipe import Profile
from reprobox.selftest.fingerprint import differences, key

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Agreement", "Certificate", "Comparison", "Tolerance", "certificates_folder", "compare", "find", "keep"]

SCHEMA = "reprobox.certificate/1"
SAMPLES = 16
"""How many elements a case keeps (``box.selftest.measure.POSITIONS``, whose module takes torch)."""

LARGEST_BYTES = 16 << 20

Tier = Literal["start", "full", "custom"]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a self-test that passed found: where, when, and per case the digest and the numbers beside it."""

    fingerprint: Mapping[str, Any]
    box: Mapping[str, Any]
    tier: Tier
    date: str
    cases: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, document: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> Certificate:
        """Make the certificate of a self-test's ``document``. :raises CertificateError: when the test did not pass."""
        if not document.get("passed"):
            raise CertificateError(
                "a self-test that failed has no certificate", remedy="see what failed with `reprobox selftest`"
            )
        return cls.parse(
            {
                "schema": SCHEMA,
                "fingerprint": fingerprint,
                "box": document.get("fingerprint"),
                "tier": document.get("tier"),
                "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "cases": document.get("cases"),
            }
        )

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read a certificate. :raises CertificateError: when the file cannot be read or is none."""
        try:
            document = parse_json(read_at_most(path, LARGEST_BYTES))
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "not JSON"
            raise CertificateError(
                f"the certificate {path} cannot be read ({reason})", remedy="make one with `reprobox selftest --save`"
            ) from error
        return cls.parse(document, str(path))

    @classmethod
    def parse(cls, document: Any, name: str = "the self-test's result") -> Certificate:
        """Check a certificate's document field by field. :raises CertificateError: naming what is wrong with it."""

        def check(holds: bool, what: str) -> None:
            if not holds:
                raise CertificateError(
                    f"{name} is no certificate of this reprobox ({what})",
                    remedy="make it again with `reprobox selftest`",
                )

        check(isinstance(document, dict), "not a JSON object")
        check(document.get("schema") == SCHEMA, f"its schema is {document.get('schema')!r}")
        check(isinstance(document.get("fingerprint"), dict), "it has no fingerprint")
        check(isinstance(document.get("box"), dict), "it does not say which libraries it was made with")
        check(document.get("tier") in ("start", "full", "custom"), "its tier is unknown")
        check(_is_date(document.get("date")), "it has no date")
        cases = document.get("cases")
        check(isinstance(cases, list) and bool(cases), "it has no cases")
        for case in cases:
            check(_is_case(case), "one of its cases is malformed")
        strict = document["fingerprint"].get("profile") == Profile.STRICT
        check(not strict or all(case["verdict"] != "different" for case in cases), "it is of a test that failed")
        return cls(
            fingerprint=document["fingerprint"],
            box=document["box"],
            tier=document["tier"],
            date=document["date"],
            cases=tuple(cases),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the document that :meth:`read` reads."""
        return {
            "schema": SCHEMA,
            "date": self.date,
            "tier": self.tier,
            "fingerprint": dict(self.fingerprint),
            "box": dict(self.box),
            "cases": [dict(case) for case in self.cases],
        }

    def save(self, path: Path) -> None:
        """Write the certificate to ``path``, whole or not at all. :raises CertificateError: when it cannot."""
        try:
            write_json(path, self.to_json())
        except OSError as error:
            raise CertificateError(
                f"the certificate cannot be written to {path} ({error.strerror})",
                remedy="name a file that you may write",
            ) from error


def _is_case(case: Any) -> bool:
    if not isinstance(case, dict) or not all(
        isinstance(case.get(k), str) for k in ("name", "device", "dtype", "verdict")
    ):
        return False
    if case["verdict"] not in ("same", "different", "unsupported"):
        return False
    if case["verdict"] == "unsupported":
        return True
    digest, sample = case.get("digest"), case.get("sample")
    return (
        isinstance(digest, str)
        and re.fullmatch(r"[0-9a-f]{32}", digest) is not None
        and isinstance(sample, list)
        and len(sample) == SAMPLES
        and all(map(_is_number, (case.get("norm"), case.get("max_abs"), *sample)))
    )


def _is_number(text: Any) -> bool:
    """Say whether ``text`` is a float as ``float.hex`` writes it."""
    try:
        return isinstance(text, str) and float.fromhex(text).hex() == text
    except (ValueError, OverflowError):
        return False


def _is_date(text: Any) -> bool:
    try:
        return isinstance(text, str) and len(text) >= len("2000-01-01") and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


# --- the cache --------------------------------------------------------------------------------------------------------


def certificates_folder() -> Path:
    """Return where this user's certificates are kept on this machine."""
    return cache_folder() / "certificates"


def find(fingerprint: Mapping[str, Any], tier: Tier = "start") -> Certificate | None:
    """Return the certificate kept for exactly this ``fingerprint`` and at least this ``tier``, if there is a sound one.

    One that is torn, of another schema or of something else is passed over: it will be made again.
    """
    for kept in ("full", "start") if tier == "start" else ("full",):
        try:
            certificate = Certificate.read(certificates_folder() / f"{key(fingerprint)}-{kept}.json")
        except CertificateError:
            continue
        if certificate.fingerprint == fingerprint and certificate.tier == kept:
            return certificate
    return None


def keep(certificate: Certificate) -> None:
    """Keep ``certificate`` for later starts; one of a few chosen cases is not kept.

    :raises CertificateError: when it cannot be written.
    """
    if certificate.tier != "custom":
        home = certificates_folder()
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CertificateError(f"{home} cannot be made ({error.strerror})", remedy="set XDG_CACHE_HOME") from error
        certificate.save(home / f"{key(certificate.fingerprint)}-{certificate.tier}.json")


# --- comparing --------------------------------------------------------------------------------------------------------

Agreement = Literal["agree", "close", "differ", "unsupported", "only here", "only there"]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far apart two numbers may be and still be close: ``atol + rtol * |theirs|``. Exact by default."""

    atol: float = 0.0
    rtol: float = 0.0

    def allows(self, ours: float, theirs: float) -> bool:
        """Say whether ``ours`` is close to ``theirs``; not-a-number is close to itself alone."""
        if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
            return True
        finite = math.isfinite(ours) and math.isfinite(theirs)
        return finite and abs(ours - theirs) <= self.atol + self.rtol * abs(theirs)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two certificates side by side.

    ``cases`` holds, per case, how it compares and the largest deviation among the numbers kept (absolute; infinite where
    one alone is not a number; ``None`` where one side has none). ``fingerprints`` is what the two were made on, where
    that differs.
    """

    cases: tuple[tuple[str, Agreement, float | None], ...]
    fingerprints: Mapping[str, tuple[Any, Any]]

    @property
    def differs(self) -> bool:
        """Whether any case differs."""
        return any(agreement == "differ" for _, agreement, _ in self.cases)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as `--json` prints it."""
        return {
            "differs": self.differs,
            "cases": [
                # JSON has no infinity
                {"case": name, "agreement": a, "largest_deviation": "inf" if d == math.inf else d}
                for name, a, d in self.cases
            ],
            "fingerprint_differences": {name: list(pair) for name, pair in self.fingerprints.items()},
        }


def compare(ours: Certificate, theirs: Certificate, tolerance: Tolerance | None = None) -> Comparison:
    """Compare ``ours`` with ``theirs`` case by case. Devices are matched by kind and index, not by UUID.

    :raises CertificateError: where the two have no case in common: nothing would differ, and nothing be shown.
    """
    sides = [{_name(case): case for case in certificate.cases} for certificate in (ours, theirs)]
    if not sides[0].keys() & sides[1].keys():
        here, there = (", ".join(sorted({str(case["device"]) for case in c.cases})) for c in (ours, theirs))
        raise CertificateError(
            f"the two certificates have no case in common (here on {here or 'nothing'}, there on {there or 'nothing'})",
            remedy="make both on the same kind of device, with the same --cases",
        )
    rows: list[tuple[str, Agreement, float | None]] = []
    for name in [*sides[0], *(name for name in sides[1] if name not in sides[0])]:
        mine, other = sides[0].get(name), sides[1].get(name)
        if mine is None or other is None:
            rows.append((name, "only there" if mine is None else "only here", None))
        else:
            rows.append((name, *_compare_case(mine, other, tolerance or Tolerance())))
    apart = differences({**ours.fingerprint, "box": ours.box}, {**theirs.fingerprint, "box": theirs.box})
    return Comparison(cases=tuple(rows), fingerprints=apart)


def _compare_case(
    mine: Mapping[str, Any], other: Mapping[str, Any], tolerance: Tolerance
) -> tuple[Agreement, float | None]:
    if "unsupported" in (mine["verdict"], other["verdict"]):
        return ("unsupported" if mine["verdict"] == other["verdict"] else "differ"), None
    if mine["digest"] == other["digest"]:
        return "agree", 0.0
    pairs = list(zip(_numbers(mine), _numbers(other), strict=False))
    deviation = max(_deviation(a, b) for a, b in pairs)
    # Equal numbers of unequal tensors: what differs is not among the few that are kept.
    exact = tolerance.atol == tolerance.rtol == 0
    close = not exact and all(tolerance.allows(a, b) for a, b in pairs)
    return ("close" if close else "differ"), deviation


def _deviation(ours: float, theirs: float) -> float:
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    apart = abs(ours - theirs)
    return math.inf if math.isnan(apart) else apart


def _numbers(case: Mapping[str, Any]) -> list[float]:
    return [float.fromhex(text) for text in (case["norm"], case["max_abs"], *case["sample"])]


def _name(case: Mapping[str, Any]) -> str:
    return f"{case['name']}[{case['dtype']}] {case['device']}"
