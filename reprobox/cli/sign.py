"""``reprobox sign``: a signature of an image's provenance with a key of one's own, or a look at whether one holds."""

from __future__ import annotations

import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from reprobox.cli.console import say
from reprobox.cli.options import EngineOption
from reprobox.cli.sharing import Sharing
from reprobox.cli.supply import (
    BuilderOption,
    ImageOption,
    Variant,
    VariantOption,
    default_image,
    look_into,
    statement_of,
)
from reprobox.errors import SignatureError, UsageError
from reprobox.images.provenance import LOCAL_BUILDER

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def sign(
    image: ImageOption = None,
    variant: VariantOption = Variant.CPU,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Sign with this private key: PEM, P-256 or Ed25519.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="KEY.pub", help="Exit 0 where a signature by this key holds, else 1."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where signatures are; the project's by default.")
    ] = None,
    builder: BuilderOption = LOCAL_BUILDER,
    engine: EngineOption = None,
) -> int:
    """Sign the provenance of an image, and print the file that holds the signature; or check one.

    It is a DSSE envelope around an in-toto statement, in .reprobox-signatures of the project, to be committed.
    """
    if (key is None) == (check is None):
        raise UsageError("sign takes a private key, or a public one to check with", remedy="give --key or --check")
    if key is not None:
        print(_signed(Sharing.begin(engine), key, image, variant, folder, builder))
        return 0
    assert check is not None
    return _checked(engine, check, image, variant, folder)


def _signed(
    sharing: Sharing, key: Path, image: str | None, variant: Variant, folder: Path | None, builder: str
) -> Path:
    from reprobox.images.signatures import FOLDER, is_encrypted
    from reprobox.images.signatures import sign as sign_statement

    password = None
    if is_encrypted(key):
        if not sys.stdin.isatty():
            raise SignatureError(f"the private key {key} is encrypted", remedy="sign at a terminal, to be asked for it")
        password = getpass(f"password of {key}: ").encode()
    found = look_into(sharing, image, variant)
    folder = folder or sharing.folder / FOLDER
    return sign_statement(statement_of(found, builder), key, found[0].image_id, folder, password=password)


def _checked(engine: str | None, key: Path, image: str | None, variant: Variant, folder: Path | None) -> int:
    from reprobox.images.signatures import check_image, public_key, signature_files, signature_folders

    public_key(key)
    sharing = Sharing.begin(engine)
    name = image or default_image(sharing.store, variant, sharing.folder)
    image_id = sharing.store.image_id(sharing.store.inspect(name))
    folders = [folder] if folder else signature_folders(sharing.folder)
    try:
        signed = check_image(image_id, name, key, signature_files(image_id, folders))
    except SignatureError as error:
        say(str(error))
        return 1
    say(f"{name} is signed: {signed.path}")
    return 0
