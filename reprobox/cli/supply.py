"""What ``sbom``, ``provenance`` and ``sign`` have in common: the image they are about, and where their answer goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reprobox.cli.build import Variant
from reprobox.errors import OutputError
from reprobox.images.provenance import LOCAL_BUILDER

if TYPE_CHECKING:
    from reprobox.cli.sharing import Sharing
    from reprobox.engines.store import ImageStore
    from reprobox.images.contents import ImageContents
    from reprobox.images.pins import Pins

__all__ = [
    "BuilderOption",
    "ImageOption",
    "OutputOption",
    "Variant",
    "VariantOption",
    "default_image",
    "describe",
    "look_into",
    "statement_of",
    "write_sbom",
    "write_statement",
    "write_text",
]

ImageOption = Annotated[
    str | None, typer.Option("--image", metavar="REF", help="The image; the one a run here takes by default.")
]
VariantOption = Annotated[Variant, typer.Option("--variant", help="Which of them: cpu or cuda.")]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE; stdout by default.")
]
BuilderOption = Annotated[str, typer.Option("--builder", metavar="URI", help="Who ran the build.")]


def look_into(sharing: Sharing, image: str | None, variant: Variant) -> tuple[ImageContents, Pins]:
    """Return what is in an image that the engine has, and the package files it was made of."""
    from reprobox.images.contents import read_image
    from reprobox.images.pins import find_pins

    contents = read_image(sharing.store, image or default_image(sharing.store, variant, sharing.folder))
    return contents, find_pins(contents, sharing.folder)


def default_image(store: ImageStore, variant: Variant, project: Path) -> str:
    """Return the image that a run in the project takes: its lock's where it has one, else reprobox's own.

    :raises LockError: the lock is damaged.
    """
    from reprobox.images import local_tag
    from reprobox.images.lockfile import LOCK_NAME, read_lock
    from reprobox.images.project_name import project_tag

    lock = read_lock(project / LOCK_NAME)
    if lock is None:
        return local_tag(variant.value)
    tag, locked = project_tag(lock, variant.value), lock.images.get(variant.value)
    if store.find(tag) is None:
        return locked.config_digest if locked and locked.config_digest else tag  # one that was pulled has no tag
    return tag


def describe(sharing: Sharing, image: str, variant: Variant, *, sbom: Path | None, provenance: Path | None) -> None:
    """Write the bill of materials and the provenance of an image, those that were asked for."""
    found = look_into(sharing, image, variant)
    if sbom is not None:
        write_sbom(found, sbom)
    if provenance is not None:
        write_statement(found, provenance)


def statement_of(found: tuple[ImageContents, Pins], builder: str = LOCAL_BUILDER) -> dict[str, Any]:
    """Return the provenance of an image that was looked into."""
    from reprobox.images.provenance import make_statement

    contents, pins = found
    return make_statement(contents, pins, builder=builder)


def write_sbom(found: tuple[ImageContents, Pins], output: Path | None) -> None:
    """Write the bill of materials of an image that was looked into."""
    from reprobox.images.sbom import make_sbom

    contents, pins = found
    write_text(make_sbom(contents, pins), output)


def write_statement(found: tuple[ImageContents, Pins], output: Path | None, builder: str = LOCAL_BUILDER) -> None:
    """Write the provenance of an image that was looked into."""
    from reprobox.images.provenance import statement_text

    write_text(statement_text(statement_of(found, builder)), output)


def write_text(text: str, output: Path | None) -> None:
    """Write a document to a file, whole or not at all, or to stdout. :raises OutputError: where it cannot be written."""
    if output is None:
        sys.stdout.write(text)
        return
    from reprobox.files import write_atomically

    try:
        write_atomically(output, text.encode())
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror})", remedy="name another file") from error
