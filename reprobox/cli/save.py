"""``reprobox save``: an image as one file that proves itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.console import BuildConsole
from reprobox.cli.options import EngineOption, JsonOption, QuietOption
from reprobox.cli.sharing import Sharing, Variant, VariantOption, VerboseOption, print_result

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def save(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; one that is there is replaced.")],
    image: Annotated[
        str | None, typer.Option("--image", help="The image to save; by default the one that a run here takes.")
    ] = None,
    variant: VariantOption = Variant.CPU,
    engine: EngineOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Save an image to one file for a machine without a registry; print the file's SHA-256 as sha256sum does."""
    from reprobox.images.airgap import save_image

    sharing = Sharing.begin(engine, image, quiet=quiet)
    name = sharing.image(variant)
    with BuildConsole(verbose=verbose, quiet=sharing.quiet) as console:
        result = save_image(name, file, store=sharing.store, report=console)
    print_result(result, f"{result.sha256}  {result.file}", as_json=as_json)
