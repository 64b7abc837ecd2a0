"""``reprobox sbom``: the packages in an image, as CycloneDX JSON."""

from __future__ import annotations

import typer

from reprobox.cli.options import EngineOption
from reprobox.cli.sharing import Sharing
from reprobox.cli.supply import ImageOption, OutputOption, Variant, VariantOption, look_into, write_sbom

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def sbom(
    image: ImageOption = None,
    variant: VariantOption = Variant.CPU,
    output: OutputOption = None,
    engine: EngineOption = None,
) -> None:
    """Write the bill of materials of an image: CycloneDX 1.6, the same bytes for the same image.

    Debian packages and Python distributions are read out of the image, which is not run.
    """
    write_sbom(look_into(Sharing.begin(engine), image, variant), output)
