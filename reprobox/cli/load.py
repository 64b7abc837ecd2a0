"""``reprobox load``: an image from a file of ``reprobox save``, verified first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.console import BuildConsole
from reprobox.cli.options import EngineOption, JsonOption, QuietOption
from reprobox.cli.sharing import Sharing, VerboseOption, print_result

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that reprobox save wrote.")],
    engine: EngineOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Verify a saved image, load it into the engine under the names it had, and print its id."""
    from reprobox.images.airgap import load_image

    sharing = Sharing.begin(engine, quiet=quiet)
    with BuildConsole(verbose=verbose, quiet=sharing.quiet) as console:
        result = load_image(file, store=sharing.store, report=console)
    print_result(result, result.image_id, as_json=as_json)
