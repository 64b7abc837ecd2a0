"""``reprobox selftest``: proves that this machine gives the same bits, and compares it with another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.cli.choice import find_subject
from reprobox.cli.console import BuildConsole, cell, say
from reprobox.cli.flags import FLAGS, GPU_FLAGS, RunCommand, takes
from reprobox.errors import CertificateError, SelfTestError, UsageError
from reprobox.recipe import Profile
from reprobox.runs.interrupts import SIGNAL_BASE, Interrupted, Interrupts
from reprobox.selftest.certificate import Certificate, Comparison, Tolerance, compare, keep
from reprobox.selftest.proof import carry_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.selftest.proof import Subject

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_TAKEN = ("seed", "force_seed", "self_test")
TAKES = tuple(
    flag
    for flag in FLAGS
    if (flag.group == "The recipe" and flag.dest not in _TAKEN)
    or flag.dest in (*GPU_FLAGS, "engine", "image", "pull", "env", "env_file")
)
"""The options of ``run`` that change what is tested."""


@app.command(cls=RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@takes(TAKES)
def selftest(
    values: Mapping[str, Any],
    repeat: Annotated[
        str | None, typer.Option("--repeat", metavar="N", help="Times in one process, 2 to 1000; 3 by default.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option("--cases", metavar="NAMES", help="Only these: names or patterns, by commas.")
    ] = None,
    save: Annotated[str | None, typer.Option("--save", metavar="FILE", help="Write the certificate to FILE.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE", help="Compare with a certificate of another machine.")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option("--tolerance", metavar="ATOL[,RTOL]", help="How far apart is close; exact by default."),
    ] = None,
    as_json: Annotated[bool | None, typer.Option("--json", help="Print one JSON document.")] = None,
) -> int:
    """Prove that this machine, with this image and recipe, gives the same bits every time.

    Every case runs several times in one process and once in another, with other memory and busy cores.
    """
    times = _repeat(repeat)
    allowed = _tolerance(tolerance)
    if tolerance is not None and against is None:
        raise UsageError("--tolerance says how close another certificate must be", remedy="add --against FILE")
    theirs = None if against is None else Certificate.read(Path(against))
    try:
        with find_subject(values) as subject:
            document = _carried_out(subject, times, cases or "", quiet=bool(as_json))
    except Interrupted as error:
        return SIGNAL_BASE + error.number
    certificate = Certificate.of(document, subject.fingerprint) if document["passed"] else None
    comparison = None if theirs is None or certificate is None else compare(certificate, theirs, allowed)
    if as_json:
        extra = {} if comparison is None else {"comparison": comparison.to_json()}
        print(
            json.dumps(
                {**document, "fingerprint": {**subject.fingerprint, "box": document["fingerprint"]}, **extra}, indent=2
            )
        )
    else:
        _print(document)
        if comparison is not None:
            _print_comparison(comparison, whole=not cases)
    for failure in document["failures"]:
        say(f"self-test: {failure}")
    _keep(certificate, save)
    return int(not document["passed"] or (comparison is not None and comparison.differs))


def _carried_out(subject: Subject, repeat: int, cases: str, *, quiet: bool) -> dict[str, Any]:
    if subject.recipe.profile is Profile.OFF:
        raise UsageError("profile off fixes nothing, so there is nothing to test", remedy="choose strict, warn or fast")
    with Interrupts(say) as interrupts, BuildConsole(quiet=quiet) as console:
        document = carry_out(
            subject,
            tier="full",
            repeat=repeat,
            cases=cases,
            check=interrupts.raise_if_pending,
            progress=lambda _case, done, total: console.progress("self-test", done, total),
        )
    if document is None:
        remedy = "choose another --image" if subject.engine.isolates else None
        raise SelfTestError(f"there is nothing to test: {subject.without_torch}", remedy=remedy)
    return document


def _keep(certificate: Certificate | None, save: str | None) -> None:
    """Keep the certificate for later starts, and write it to where it was asked for.

    :raises CertificateError: when it cannot be written to where it was asked for.
    """
    if certificate is None:
        if save is not None:
            say(f"nothing is written to {save}: a self-test that failed has no certificate")
        return
    try:
        keep(certificate)
    except CertificateError as error:
        say(f"the certificate is not kept: {error}")
    if save is not None:
        certificate.save(Path(save))


def _repeat(text: str | None) -> int:
    if text is None:
        return 3
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 2 <= int(text) <= 1000:
        raise UsageError(f"--repeat cannot be {text!r}", remedy="give a number from 2 to 1000")
    return int(text)


def _tolerance(text: str | None) -> Tolerance:
    if text is None:
        return Tolerance()
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 <= number < float("inf") for number in numbers):
        raise UsageError(f"--tolerance cannot be {text!r}", remedy="give ATOL or ATOL,RTOL, such as 1e-5,1e-3")
    return Tolerance(atol=numbers[0], rtol=numbers[1] if len(numbers) == 2 else 0.0)


def _print(document: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("case", "device", "dtype", "verdict"):
        table.add_column(heading, no_wrap=heading != "verdict", overflow="fold")
    table.add_column("ms", justify="right")
    for case in document["cases"]:
        verdict = case["verdict"] if "message" not in case else f"{case['verdict']}: {case['message']}"
        words = (case["name"], case["device"], case["dtype"], verdict, f"{case['ms']:.0f}")
        table.add_row(*(cell(str(word)) for word in words))
    console = Console()
    console.print(table)
    verdicts = [case["verdict"] for case in document["cases"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    in_force = sum(knob["verdict"] == "in force" for knob in document["knobs"])
    console.print(cell(f"{counts}; {in_force} of {len(document['knobs'])} knobs read back in force"))


def _print_comparison(comparison: Comparison, *, whole: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("case", "compared", "largest deviation"):
        table.add_column(heading)
    rows = [
        row for row in comparison.cases if whole or row[1] != "only there"
    ]  # of a few cases, the others are not missed
    for name, agreement, deviation in rows:
        table.add_row(cell(name), agreement, "" if not deviation else f"{deviation:.3g}")
    console = Console()
    console.print(table)
    agreements = [agreement for _, agreement, _ in rows]
    console.print(cell(", ".join(f"{agreements.count(a)} {a}" for a in dict.fromkeys(agreements))))
    for name, (ours, other) in comparison.fingerprints.items():
        console.print(cell(f"{name}: here {_shown(ours)}, there {_shown(other)}"))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
