"""Which image a run takes, and whether this reprobox can speak with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reprobox.errors import EngineError, ImageNotFound, UsageError
from reprobox.recipe import BOX_PROTOCOL
from reprobox.reference import is_image_id
from reprobox.reference import parse as parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from reprobox.engines import Engine, ImageInfo

__all__ = ["choose_image"]


def choose_image(
    engine: Engine,
    reference: str | None,
    variant: Literal["cpu", "cuda"],
    *,
    pull: Literal["missing", "always", "never"] = "never",
    platform: str | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> tuple[str | None, ImageInfo | None]:
    """Return the image a run takes and what the engine knows of it.

    Without a ``reference``: the local image built from exactly this reprobox's inputs for ``variant``. The local engine
    has no images: ``(None, None)``.

    :param pull: when an image that was asked for by name is fetched from its registry; reprobox's own is built.

    :raises ImageNotFound: with the command that builds or fetches what is missing.
    :raises EngineError: when the image is not reprobox's, or speaks another protocol.
    """
    if not engine.isolates:
        return reference, None
    if reference is not None:
        try:
            if not is_image_id(reference):
                parse_reference(reference)
        except UsageError as error:
            # Not exit 2: docker and podman answer 125 to a reference that is none, and so do scripts around them.
            raise ImageNotFound(error.message, remedy=error.remedy) from error
        found = _named(engine, reference, pull, platform, say)
        _check_protocol(reference, found)
        return reference, found
    from reprobox.images import input_digest, local_tag

    tag = local_tag(variant)
    podman = engine.name == "podman"
    build = "reprobox build" + (" --variant cuda" if variant == "cuda" else "")
    try:
        found = engine.image(tag)
    except ImageNotFound as error:
        raise ImageNotFound(
            f"{'Podman does not have ' if podman else ''}this version's {variant} image ({tag})"
            f"{'' if podman else ' is not on this machine'}",
            remedy=f"build it with `{build}` on Docker, and copy it: docker save {tag} | podman load"
            if podman
            else f"build it with `{build}`",
        ) from error
    if found.labels.get("reprobox.input") != input_digest(variant):
        raise ImageNotFound(
            f"{tag} was not built from this reprobox", remedy=f"build it again with `{build} --no-cache`"
        )
    _check_protocol(tag, found)
    return tag, found


def _named(engine: Engine, reference: str, pull: str, platform: str | None, say: Callable[[str], None]) -> ImageInfo:
    by_id = is_image_id(reference)
    if pull == "always" and not by_id:
        return engine.pull(reference, say, platform)
    try:
        return engine.image(reference)
    except ImageNotFound:
        if pull == "never" or by_id:
            raise
    say(f"{reference} is not on this machine; pulling it")
    return engine.pull(reference, say, platform)


def _check_protocol(reference: str, image: ImageInfo) -> None:
    spoken = image.labels.get("reprobox.box-protocol")
    if spoken is None:
        raise EngineError(
            f"{reference} is not a reprobox image (it has no label reprobox.box-protocol)",
            remedy="use one made by `reprobox build`, or build yours FROM one",
        )
    if not spoken.isdigit() or int(spoken) > BOX_PROTOCOL:
        raise EngineError(
            f"{reference} speaks box protocol {spoken} and this reprobox only {BOX_PROTOCOL}",
            remedy="upgrade reprobox on this machine",
        )
    if int(spoken) < BOX_PROTOCOL - 1:
        raise EngineError(
            f"{reference} speaks box protocol {spoken}, too old for this reprobox ({BOX_PROTOCOL})",
            remedy="build the image again with `reprobox build`",
        )
