"""``reprobox shell``: a bash in the box, seeded like a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer

from reprobox.cli.flags import FLAGS, RunCommand, takes
from reprobox.cli.run import launch

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(rich_markup_mode=None, add_completion=False)

OWN = tuple(flag for flag in FLAGS if flag.dest not in ("interactive", "tty", "detach"))


@app.command(cls=RunCommand, context_settings={"help_option_names": ["-h", "--help"]})
@takes(OWN)
def shell(context: typer.Context, values: Mapping[str, Any]) -> int:
    """Open a bash in the box: what is typed there is seeded and recorded as a run.

    Takes the options of run. Where standard input is no terminal, its lines are run as a script.
    """
    terminal = os.isatty(0)
    streams = {"interactive": True, "tty": terminal or None, "detach": None}
    return launch(("bash",), {**values, **streams}, debug=bool((context.obj or {}).get("debug")))
