"""``reprobox build``: the image, from hash-locked wheels and a base that is recorded by digest."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.console import BuildConsole

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class Variant(StrEnum):
    """What the image can compute on."""

    CPU = "cpu"
    CUDA = "cuda"


class Builder(StrEnum):
    """Who carries out the Dockerfile."""

    CLASSIC = "classic"
    BUILDKIT = "buildkit"


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def build(
    variant: Annotated[Variant, typer.Option("--variant", help="cpu, or cuda for NVIDIA GPUs.")] = Variant.CPU,
    base: Annotated[str | None, typer.Option("--base", help="A registry's image, or bootstrap.")] = None,
    wheelhouse: Annotated[
        list[Path] | None,
        typer.Option("--wheelhouse", help="A folder of wheels to take from first.", exists=True, file_okay=False),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="A further name for the image.")] = None,
    builder: Annotated[
        Builder, typer.Option("--builder", help="classic (the engine's API) or buildkit.")
    ] = Builder.CLASSIC,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build again even if nothing changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the builder's own output.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Build the image: wheels fetched here and checked by hash, installed with the network off."""
    from reprobox.engines.connection import connect
    from reprobox.images import BuildRequest
    from reprobox.images import build as build_image

    request = BuildRequest(
        variant=variant.value,
        base=base,
        wheelhouses=tuple(wheelhouse or ()),
        tag=tag,
        builder=builder.value,
        no_cache=no_cache,
    )
    with BuildConsole(verbose=verbose, quiet=quiet) as console:
        result = build_image(request, client=connect(), report=console)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(result.image_id)
