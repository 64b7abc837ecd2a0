"""``reprobox push``: an image to a registry, and its digest into the lock."""

from __future__ import annotations

from typing import Annotated

import typer

from reprobox.cli.console import BuildConsole
from reprobox.cli.options import EngineOption, JsonOption, QuietOption
from reprobox.cli.sharing import (
    Sharing,
    StallOption,
    Variant,
    VariantOption,
    VerboseOption,
    patience,
    print_result,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def push(
    target: Annotated[str, typer.Argument(metavar="REF", help="HOST/NAME:TAG, under which it is pushed.")],
    image: Annotated[
        str | None, typer.Option("--image", help="The image to push; by default the one that a run here takes.")
    ] = None,
    variant: VariantOption = Variant.CPU,
    engine: EngineOption = None,
    stall_timeout: StallOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Push an image to a registry, print the digest it got there, and write it to the project's lock."""
    from reprobox.images.registry import note_in_lock, push_image
    from reprobox.reference import parse

    reference, limits = parse(target), patience(stall_timeout)
    sharing = Sharing.begin(engine, image, quiet=quiet)
    name = sharing.image(variant)
    with BuildConsole(verbose=verbose, quiet=sharing.quiet) as console:
        console.say(f"pushing {name} as {reference}")
        result = push_image(name, reference, store=sharing.store, report=console, patience=limits)
        result = note_in_lock(sharing.folder, sharing.variant_of(result.engine_id), result, console)
    print_result(result, result.repo_digest, as_json=as_json)
