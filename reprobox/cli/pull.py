"""``reprobox pull``: an image from a registry, by its name or by the project's lock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reprobox.cli.console import BuildConsole
from reprobox.cli.options import EngineOption, JsonOption, QuietOption
from reprobox.cli.sharing import (
    Sharing,
    StallOption,
    Variant,
    VerboseOption,
    patience,
    print_result,
)

if TYPE_CHECKING:
    from reprobox.images.registry import Pulled

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def pull(
    wanted: Annotated[str, typer.Argument(metavar="REF|LOCK", help="NAME:TAG, NAME@DIGEST, or a reprobox.lock.")],
    repository: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Where the lock's image is: HOST/NAME; the project's image."),
    ] = None,
    variant: Annotated[
        Variant | None, typer.Option("--variant", help="Which of the lock's images; the one there is.")
    ] = None,
    engine: EngineOption = None,
    stall_timeout: StallOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pull an image and print its digest; one that a lock names must be that very image."""
    from reprobox.errors import UsageError
    from reprobox.images.registry import pull_image, pull_locked
    from reprobox.reference import parse

    lock, limits = Path(wanted), patience(stall_timeout)
    by_lock = wanted.endswith(".lock")
    reference = None if by_lock else parse(wanted)
    if not by_lock and (repository or variant):
        raise UsageError("--from and --variant say more of a lock", remedy="drop them, or pull reprobox.lock")
    sharing = Sharing.begin(engine, repository, quiet=quiet)
    with BuildConsole(verbose=verbose, quiet=sharing.quiet) as console:
        result: Pulled
        if reference is None:
            sharing.require_trust_of_the_image()
            chosen = variant.value if variant else None
            result = pull_locked(
                lock, sharing.settings.value("image"), chosen, store=sharing.store, report=console, patience=limits
            )
        else:
            result = pull_image(reference, store=sharing.store, report=console, patience=limits)
    print_result(result, result.repo_digest, as_json=as_json)
