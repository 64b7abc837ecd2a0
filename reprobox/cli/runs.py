"""``reprobox runs``: what was run in this project, and how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.errors import RecordError
from reprobox.project import Project
from reprobox.runs.store import RunStore

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(rich_markup_mode=None, add_completion=False, help="List and show recorded runs.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, as_json: Json = False) -> None:
    """List and show recorded runs."""
    if context.invoked_subcommand is None:
        list_runs(as_json=as_json)


@app.command("list")
def list_runs(as_json: Json = False) -> None:
    """List the runs of this project, oldest first."""
    manifests = [_manifest_or_note(run.id, run) for run in _store().list()]
    if as_json:
        print(json.dumps({"schema": "reprobox.runs/1", "runs": manifests}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "seed", "outcome", "exit", "engine", "command"):
        table.add_column(heading, no_wrap=heading != "command")
    for m in manifests:
        recipe, engine = m.get("recipe") or {}, m.get("engine") or {}
        cells = (m["id"], recipe.get("seed"), m.get("outcome"), m.get("exit_code"), engine.get("name"))
        table.add_row(*(Text(_shown(cell)) for cell in cells), Text(" ".join(m.get("command") or ())))
    Console().print(table)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(help="The beginning of an id, last, or last~2.")] = "last",
    as_json: Json = False,
) -> None:
    """Show one run's manifest."""
    manifest = _store().find(reference).manifest()
    if as_json:
        print(json.dumps(manifest, indent=2))
        return
    from rich.console import Console

    Console().print(_rendered(manifest))


def _store() -> RunStore:
    return RunStore(Project.find(Path()).root)


def _manifest_or_note(run_id: str, run: Any) -> dict[str, Any]:
    try:
        return dict(run.manifest())
    except RecordError as error:
        # One unreadable record must not hide the others.
        return {"id": run_id, "outcome": "unreadable", "message": str(error)}


def _rendered(manifest: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in manifest.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                table.add_row(f"{key}.{inner}", Text(_shown(inner_value)))
        else:
            table.add_row(key, Text(" ".join(value) if key == "command" else _shown(value)))
    return table


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
