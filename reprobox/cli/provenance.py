"""``reprobox provenance``: what an image was made of, as an in-toto statement."""

from __future__ import annotations

import typer

from reprobox.cli.options import EngineOption
from reprobox.cli.sharing import Sharing
from reprobox.cli.supply import (
    BuilderOption,
    ImageOption,
    OutputOption,
    Variant,
    VariantOption,
    look_into,
    write_statement,
)
from reprobox.images.provenance import LOCAL_BUILDER

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def provenance(
    image: ImageOption = None,
    variant: VariantOption = Variant.CPU,
    output: OutputOption = None,
    builder: BuilderOption = LOCAL_BUILDER,
    engine: EngineOption = None,
) -> None:
    """Write what an image was made of: an in-toto statement with SLSA provenance v1.

    Its package files are those of the lock the image was built from: the project's, or reprobox's own.
    """
    write_statement(look_into(Sharing.begin(engine), image, variant), output, builder)
