"""``reprobox runs``: what was run in this project, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.cli.console import cell, print_rows, raw_say, say, silent, table_console
from reprobox.cli.options import JsonOption
from reprobox.errors import EngineError, EngineUnavailable, RecordError, UsageError
from reprobox.project import Project
from reprobox.runs import later
from reprobox.runs.interrupts import Interrupts
from reprobox.runs.store import RunRecord, RunStore
from reprobox.runs.streams import Output

if TYPE_CHECKING:
    from rich.table import Table

    from reprobox.engines import Stream

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, help="List recorded runs; show, follow, stop or remove one."
)

Reference = Annotated[str, typer.Argument(metavar="RUN", help="The beginning of an id, last, or last~2.")]


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, as_json: JsonOption = False) -> None:
    """List recorded runs; show, follow, stop or remove one."""
    if context.invoked_subcommand is None:
        list_runs(as_json=as_json)


@app.command("list")
def list_runs(as_json: JsonOption = False) -> None:
    """List the runs of this project, oldest first."""
    away: set[str] = set()
    manifests = [_manifest_or_note(run, away) for run in _store().list()]
    if as_json:
        print(json.dumps({"schema": "reprobox.runs/1", "runs": manifests}, indent=2))
        return
    rows: list[tuple[str, ...]] = [("run", "seed", "outcome", "exit", "engine", "command")]
    for m in manifests:
        recipe, engine = m.get("recipe") or {}, m.get("engine") or {}
        cells = (m["id"], recipe.get("seed"), m.get("outcome"), m.get("exit_code"), engine.get("name"))
        rows.append((*(_shown(value) for value in cells), " ".join(m.get("command") or ())))
    print_rows(rows)


@app.command()
def show(
    reference: Reference = "last",
    as_json: JsonOption = False,
) -> None:
    """Show one run's manifest."""
    manifest = _completed(_store().find(reference))
    if as_json:
        print(json.dumps(manifest, indent=2))
        return
    table_console().print(_rendered(manifest))


@app.command()
def logs(
    reference: Reference = "last",
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
) -> None:
    """Print a run's output: its stdout on stdout, its stderr on stderr."""
    record = _store().find(reference)
    output = Output()
    if follow:
        with contextlib.suppress(_NobodyReads):
            later.wait(record, say, lambda stream, data: _written(output, stream, data))
        return
    _completed(record)
    for stream, data in later.output(record):
        if not output.write(stream, data) and stream == "stdout":
            return


@app.command()
def wait(reference: Reference = "last", as_json: JsonOption = False) -> int:
    """Wait for a run's end; exit with its exit code."""
    manifest = later.wait(_store().find(reference), say)
    if as_json:
        print(json.dumps(manifest, indent=2))
    if manifest["exit_code"] is None:
        say(manifest.get("message") or later.NOBODY_SAW_THE_END)
    return _exit_code(manifest)


@app.command()
def stop(
    reference: Reference = "last",
    seconds: Annotated[
        int | None, typer.Option("-t", "--time", min=0, help="Seconds between TERM and KILL; 10 by default.")
    ] = None,
) -> None:
    """Stop a run: TERM, and KILL if that does not end it."""
    record = _store().find(reference)
    if not later.unfinished(record, record.manifest()):
        say(f"run {record.id} has ended already")
        return
    manifest = later.stop(record, seconds, say)
    say(f"run {record.id} ended with exit code {_shown(manifest['exit_code'])}")


@app.command()
def attach(reference: Reference = "last") -> int:
    """Connect to a running box: its output from now on, your signals, and your input where it was given -i.

    Ctrl-P Ctrl-Q leaves a box that has a terminal, and it goes on.
    """
    record = _store().find(reference)
    tell = raw_say if os.isatty(0) else say
    with Interrupts(tell) as interrupts:
        code = later.attach(record, interrupts, tell)
    if code is None:
        say(f"left to itself; `reprobox runs attach {record.id}` comes back to it")
    return code or 0


@app.command()
def rm(
    references: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, as in the other commands.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Stop a run that has not ended.")] = False,
) -> None:
    """Remove the records of runs, output included."""
    store = _store()
    records = list(dict.fromkeys(store.find(reference) for reference in references))
    for record in records:
        with contextlib.suppress(RecordError):
            _completed(record)
        if _is_unfinished(record):
            if not force:
                raise UsageError(
                    f"run {record.id} has not ended", remedy="stop it with `reprobox runs stop`, or add --force"
                )
            later.stop(record, None, say)
    for record in records:
        store.remove(record)


class _NobodyReads(Exception):
    """The reader of the output has gone."""


def _written(output: Output, stream: Stream, data: bytes) -> None:
    if not output.write(stream, data) and stream == "stdout":
        raise _NobodyReads


def _completed(record: RunRecord, away: set[str] | None = None) -> dict[str, Any]:
    """Return a run's manifest, completed if the run is over and the process that minded it was killed.

    :param away: names of engines that do not answer: none is waited for twice. One that is found so is added.
    """
    manifest = record.manifest()
    engine = str((manifest.get("engine") or {}).get("name"))
    if away is not None and engine in away:
        return manifest
    try:
        return later.complete_if_over(record, manifest, silent)
    except (EngineError, RecordError) as error:
        if away is not None and isinstance(error, EngineUnavailable):
            away.add(engine)
        return manifest  # what is on record can be shown without the engine, and with another than the run's


def _is_unfinished(record: RunRecord) -> bool:
    try:
        return later.unfinished(record, record.manifest())
    except RecordError:
        return record.holder() is not None  # a record that cannot be read can be removed, but not a run that goes on


def _exit_code(manifest: dict[str, Any]) -> int:
    code = manifest.get("exit_code")
    return code if isinstance(code, int) else EngineError.exit_code


def _store() -> RunStore:
    return RunStore(Project.find(Path()).root)


def _manifest_or_note(run: RunRecord, away: set[str]) -> dict[str, Any]:
    try:
        return _completed(run, away)
    except RecordError as error:
        # One unreadable record must not hide the others.
        return {"id": run.id, "outcome": "unreadable", "message": str(error)}


def _rendered(manifest: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in manifest.items():
        if isinstance(value, dict) and value:
            for inner, inner_value in value.items():
                table.add_row(cell(f"{key}.{inner}"), cell(_shown(inner_value)))
        else:
            table.add_row(cell(key), cell(" ".join(value) if key == "command" else _shown(value)))
    return table


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
