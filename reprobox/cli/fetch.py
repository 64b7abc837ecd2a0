"""``reprobox fetch``: every file the lock names, verified, in the cache; after that a build needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.build import Variant
from reprobox.cli.console import BuildConsole
from reprobox.cli.options import JsonOption, QuietOption

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def fetch(
    variant: Annotated[
        list[Variant] | None,
        typer.Option("--variant", help="Only this image's files; every locked image's by default."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache alone, and name what it lacks.")] = False,
    wheelhouse: Annotated[
        list[Path] | None,
        typer.Option("--wheelhouse", help="A folder of files to take from first.", exists=True, file_okay=False),
    ] = None,
    all_platforms: Annotated[
        bool, typer.Option("--all-platforms", help="Those of other machines' platforms too.")
    ] = False,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the tools' own output.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch every file the lock names into the cache, each checked by its hash."""
    from reprobox.images.artefacts import ArtefactCache, artefact_folder
    from reprobox.images.fetching import artefacts_of, locked_variants, this_platform
    from reprobox.images.fetching import fetch as fetch_files
    from reprobox.images.lockfile import require_lock
    from reprobox.images.lockmodel import PLATFORMS
    from reprobox.images.requirements import read_requirements
    from reprobox.project import Project
    from reprobox.settings import load_project_file
    from reprobox.trust import index_requests, require_trust

    root = Project.find(Path()).root
    lock = require_lock(root)
    variants = locked_variants(lock, [one.value for one in variant or ()])
    platforms = PLATFORMS if all_platforms else (this_platform(),)
    options = () if offline else read_requirements(load_project_file(root).python, root).options
    require_trust(index_requests(options), root)
    with BuildConsole(verbose=verbose, quiet=quiet) as console:
        fetched = fetch_files(
            artefacts_of(lock, variants, platforms),
            cache=ArtefactCache(root=artefact_folder(), say=console.say),
            report=console,
            offline=offline,
            wheelhouses=tuple(wheelhouse or ()),
            options=options,
        )
        new = len(fetched.files) - fetched.cached
        console.say(f"{len(fetched.files)} files of the lock are in the cache, {new} of them new")
    print(json.dumps(fetched.to_json(), indent=2) if as_json else artefact_folder())
