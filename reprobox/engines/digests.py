"""The OCI config digest of an image, whatever the engine calls that image."""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final, cast

from reprobox.errors import EngineError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import docker

_CONFIG_AT_MOST: Final = 16 * 2**20  # bytes; a config is some KiB, and no layer needs to be kept to be skipped


@contextmanager
def patient(client: docker.DockerClient) -> Iterator[None]:
    """Lift the client's 60 s limit between two answers: loading an image, or a long step, is silent for longer."""
    before = client.api.timeout
    client.api.timeout = None  # type: ignore[assignment]  # its own default is an int, requests takes None
    try:
        yield
    finally:
        client.api.timeout = before


def config_digest(client: docker.DockerClient, image: str, info: Mapping[str, Any] | None = None) -> str:
    """Return the OCI config digest (``sha256:…``) of ``image``, a name or an engine id.

    The engine's id is that digest, except with the containerd image store (the default of new installations of Engine
    29), where it is the manifest's; there the image is streamed out once and its config hashed on the way.

    :param info: what the engine answers to ``GET /info``; it is asked by default.
    """
    import docker.errors

    try:
        engine_id = str(client.images.get(image).attrs["Id"])
        if not has_containerd_store(client.info() if info is None else info):
            return engine_id
        with patient(client):
            return config_digest_from_archive(client.api.get_image(engine_id))
    except docker.errors.ImageNotFound as error:
        raise ImageNotFound(
            f"the engine has no image {image}", remedy="build it (reprobox build)", detail=str(error)
        ) from error
    except docker.errors.APIError as error:
        raise EngineError(f"the engine could not say what {image} is", detail=str(error)) from error


def config_digest_from_archive(chunks: Iterable[bytes]) -> str:
    """Return ``sha256:…`` of the config of the one image in a ``docker save`` archive, read as a stream.

    :raises EngineError: the archive is broken or does not hold exactly one image.
    """
    small: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.size <= _CONFIG_AT_MOST and _may_be_json(member.name):
                    content = archive.extractfile(member)
                    text = content.read() if content else b""
                    if text.startswith((b"{", b"[")):
                        small[member.name] = text
        (entry,) = json.loads(small["manifest.json"])
        return "sha256:" + hashlib.sha256(small[entry["Config"]]).hexdigest()
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise EngineError("the engine's archive of the image cannot be read", detail=repr(error)) from error


def _may_be_json(name: str) -> bool:
    return name.endswith(".json") or name.startswith("blobs/")


def has_containerd_store(info: Mapping[str, Any]) -> bool:
    """Tell whether an engine that answered so to ``/info`` has the containerd image store."""
    return any("io.containerd.snapshotter.v1" in pair for pair in info.get("DriverStatus") or ())


class _Stream:
    """The ``read(n)`` that tarfile's stream mode wants, over the chunks an HTTP answer comes in."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]
