"""Options that mean the same for every command that has them, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["EngineOption", "JsonOption", "QuietOption"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr.")]
EngineOption = Annotated[str | None, typer.Option("--engine", help="docker (podman where there is none) or podman.")]
