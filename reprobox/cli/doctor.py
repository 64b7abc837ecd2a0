"""``reprobox doctor``: what is wrong with this machine, and what to do about it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import printable, say, table_console
from reprobox.cli.options import JsonOption
from reprobox.project import settings_folder
from reprobox.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from reprobox.doctor import Check, Finding

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "skipped": "-"}
_PLAIN_MARKS = {"ok": "+", "warn": "!", "fail": "x", "skipped": "-"}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def doctor(
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="E", help="docker (podman where there is none), podman or local.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="REF", help="The image runs take; reprobox's own by default.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Look for what keeps runs from working on this machine: engine, image, GPUs, memory, clock, network.

    Nothing is changed. Ends with 1 where a check failed.
    """
    settings = Settings.load({"engine": engine, "image": image}, settings_folder())
    from reprobox.doctor import CHECKS, Patient, examine
    from reprobox.runs.interrupts import SIGNAL_BASE, Interrupted, Interrupts

    patient = Patient(settings=settings, directory=Path())
    found: list[tuple[Check, Finding]] = []
    console = table_console()
    try:
        with Interrupts(say) as interrupts:
            for check, finding in examine(patient, CHECKS, interrupt=interrupts.raise_if_pending):
                found.append((check, finding))
                if not as_json:
                    _print(console, check, finding)
    except Interrupted as error:
        return SIGNAL_BASE + error.number
    verdicts = [str(finding.verdict) for _, finding in found]
    if as_json:
        print(json.dumps({"schema": "reprobox.doctor/1", "checks": [_entry(*pair) for pair in found]}, indent=2))
    else:
        counts = [f"{verdicts.count(verdict)} {word}" for verdict, word in _words(verdicts).items()]
        console.print(", ".join(counts), soft_wrap=True, highlight=False, markup=False)
    return int("fail" in verdicts)


def _words(verdicts: list[str]) -> dict[str, str]:
    warnings = "warning" if verdicts.count("warn") == 1 else "warnings"
    words = {"ok": "ok", "warn": warnings, "fail": "failed", "skipped": "skipped"}
    return {verdict: word for verdict, word in words.items() if verdict in verdicts or verdict == "fail"}


def _entry(check: Check, finding: Finding) -> dict[str, str | None]:
    return {"name": check.name, "verdict": str(finding.verdict), "seen": finding.seen, "remedy": finding.remedy}


def _print(console: Console, check: Check, finding: Finding) -> None:
    """Print a check on a line, as soon as it is known: columns on a terminal, one unbroken line anywhere else."""
    from rich.table import Table
    from rich.text import Text

    from reprobox.doctor import CHECKS

    verdict = str(finding.verdict)
    mark = f"{_marks()[verdict]} {verdict}"
    width = max(len(known.name) for known in CHECKS)
    seen = _on_a_line(finding.seen)
    if not console.is_terminal:
        more = f"; {_on_a_line(finding.remedy)}" if finding.remedy else ""
        line = f"{mark:<9}  {check.name:<{width}}  {seen}{more}"
        console.print(Text(line), soft_wrap=True)
        return
    row = Table.grid(padding=(0, 2))
    row.add_column(width=9, no_wrap=True)
    row.add_column(width=width, no_wrap=True)
    row.add_column(overflow="fold")
    words = Text(seen)
    if finding.remedy:
        words.append(f"\n→ {_on_a_line(finding.remedy)}" if _speaks_unicode() else f"\n-> {_on_a_line(finding.remedy)}")
    row.add_row(Text(mark, style=_STYLES[verdict]), Text(check.name), words)
    console.print(row)


def _marks() -> dict[str, str]:
    return _MARKS if _speaks_unicode() else _PLAIN_MARKS


def _speaks_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def _on_a_line(text: str) -> str:
    return printable(" ".join(text.split()))
