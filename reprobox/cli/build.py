"""``reprobox build``: the image, from hash-locked wheels and a base that is recorded by digest."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import BuildConsole

if TYPE_CHECKING:
    from reprobox.images import BuildResult

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
    verify: Annotated[
        bool, typer.Option("--verify", help="Build twice from nothing and compare; exit 1 if they differ.")
    ] = False,
    no_compiler: Annotated[
        bool, typer.Option("--no-compiler", help="Leave the C++ compiler out; torch.compile needs it.")
    ] = False,
    sbom: Annotated[
        Path | None, typer.Option("--sbom", metavar="FILE", help="Write its bill of materials: CycloneDX.")
    ] = None,
    provenance: Annotated[
        Path | None, typer.Option("--provenance", metavar="FILE", help="Write what it was made of: in-toto, SLSA.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the builder's own output.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Build the image: wheels fetched here and checked by hash, installed with the network off."""
    from reprobox.engines.connection import connect
    from reprobox.images import BuildRequest
    from reprobox.images import build as build_image
    from reprobox.images.rebuild import build_verified

    request = BuildRequest(
        variant=variant.value,
        base=base,
        wheelhouses=tuple(wheelhouse or ()),
        tag=tag,
        builder=builder.value,
        no_cache=no_cache,
        compiler=not no_compiler,
    )
    make = build_verified if verify else build_image
    with BuildConsole(verbose=verbose, quiet=quiet) as console:
        result = make(request, client=connect(), report=console)
        _say_verdict(result, console)
    if sbom is not None or provenance is not None:
        from reprobox.cli.supply import describe

        describe(result.tag, variant, sbom=sbom, provenance=provenance)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(result.image_id)
    if result.verification and not result.verification["same"]:
        raise typer.Exit(1)


def _say_verdict(result: BuildResult, console: BuildConsole) -> None:
    seen = result.verification
    if seen is None:
        return
    if seen["same"]:
        console.say("both builds gave the same image")
        return
    console.say(f"the second build gave another image, {seen['other_image_id']}")
    if where := seen["difference"]:
        place = f"layer {where['layer']}" if where["layer"] else "the config"
        console.say(f"they first differ in {place}: {where['path']}: {where['what']}")
