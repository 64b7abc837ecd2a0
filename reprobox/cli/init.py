"""``reprobox init``: a project file with every key explained, to be uncommented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.console import say
from reprobox.cli.options import JsonOption, QuietOption
from reprobox.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def init(
    force: Annotated[bool, typer.Option("--force", help="Replace the reprobox.toml that is there.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write reprobox.toml into this folder, with every key explained."""
    from reprobox.files import write_atomically
    from reprobox.project import Project
    from reprobox.project_schema import suggestion, template
    from reprobox.settings import load_project_file

    folder = Path.cwd()
    Project.find(folder)  # refuses a folder that can be no project's
    path = folder / "reprobox.toml"
    if path.exists() and not force:
        raise UsageError("there is a reprobox.toml already", remedy="edit it, or replace it with --force")
    try:
        write_atomically(path, template(suggestion(folder)).encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})", remedy="make the folder writable") from error
    load_project_file(folder)
    if not quiet:
        say("wrote reprobox.toml; uncomment what the project needs, then run reprobox lock")
    print(json.dumps({"schema": "reprobox.init/1", "path": str(path)}, indent=2) if as_json else path)
