"""``reprobox build``: the image, from hash-locked wheels and a base that is recorded by digest."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reprobox.cli.console import BuildConsole
from reprobox.cli.options import EngineOption, JsonOption, QuietOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from reprobox.engines.store import ImageStore
    from reprobox.images import BuildResult
    from reprobox.images.lockmodel import Lock

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
    variant: Annotated[
        Variant | None, typer.Option("--variant", help="cpu (default), or cuda for NVIDIA GPUs.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="A registry's image, or bootstrap.")] = None,
    wheelhouse: Annotated[
        list[Path] | None,
        typer.Option("--wheelhouse", help="A folder of wheels to take from first.", exists=True, file_okay=False),
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="A further name for the image.")] = None,
    builder: Annotated[
        Builder | None,
        typer.Option("--builder", help="classic (the engine's API) or buildkit; by default what it takes."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take packages from this machine's cache alone.")] = False,
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
    engine: EngineOption = None,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the builder's own output.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Build the image: wheels fetched here and checked by hash, installed with the network off.

    In a project with a reprobox.lock, the project's own image, of exactly what the lock names.
    """
    from reprobox.cli.sharing import Sharing
    from reprobox.images import BuildRequest

    found = None if base is not None else _lock()
    chosen = variant.value if variant else _default_variant(found)
    if found is not None:
        from reprobox.trust import require_trust, sdist_requests

        require_trust(
            sdist_requests(one.name for one in found[1].sdists if chosen in one.variants), found[0].parent.resolve()
        )
    request = BuildRequest(
        variant=chosen,
        base=base,
        wheelhouses=tuple(wheelhouse or ()),
        tag=tag,
        builder=builder.value if builder else None,
        offline=offline,
        no_cache=no_cache,
        compiler=not no_compiler,
    )
    sharing = Sharing.begin(engine, quiet=quiet)
    with BuildConsole(verbose=verbose, quiet=sharing.quiet) as console:
        make = _maker(found, verify=verify)
        result = make(request, store=sharing.store, report=console)
        _say_verdict(result, console)
        if found is not None:
            _note(found[0], result, sharing.store, console)
    if sbom is not None or provenance is not None:
        from reprobox.cli.supply import describe

        describe(sharing, result.tag, Variant(chosen), sbom=sbom, provenance=provenance)
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(result.image_id)
    if result.verification and not result.verification["same"]:
        raise typer.Exit(1)


def _lock() -> tuple[Path, Lock] | None:
    from reprobox.images.lockfile import LOCK_NAME, read_lock
    from reprobox.project import settings_folder

    path = settings_folder() / LOCK_NAME
    lock = read_lock(path)
    return None if lock is None else (path, lock)


def _default_variant(found: tuple[Path, Lock] | None) -> Literal["cpu", "cuda"]:
    variants = found[1].inputs.variants if found is not None else ()
    return "cpu" if "cpu" in variants or not variants else "cuda"


def _maker(found: tuple[Path, Lock] | None, *, verify: bool) -> Callable[..., BuildResult]:
    from reprobox.images.pipeline import run_build
    from reprobox.images.project import build_project
    from reprobox.images.rebuild import build_verified

    make = run_build if found is None else partial(build_project, found[1])
    return partial(build_verified, make) if verify else make


def _note(path: Path, result: BuildResult, store: ImageStore, console: BuildConsole) -> None:
    from reprobox.images.project import note_in_lock

    torch = store.inspect(result.engine_id).labels.get("reprobox.torch", "")
    line = note_in_lock(path, result.variant, result, torch=torch)
    if line is not None:
        console.say(line)


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
