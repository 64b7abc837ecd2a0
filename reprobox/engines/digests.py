"""The OCI config digest of an image, whatever the engine calls that image."""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, cast

from reprobox.errors import EngineError
from reprobox.files import write_atomically
from reprobox.reference import is_image_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

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


def config_digest_of(engine_id: str, chunks: Iterable[bytes]) -> str:
    """Return ``sha256:…`` of the config of the image ``engine_id`` in an engine's archive of it, read as a stream.

    Where that id is the manifest's digest (the containerd image store), the manifest names the config, and the stream is
    read no further.

    :raises EngineError: the archive is broken or does not hold exactly one image.
    """
    return _read_digest(chunks, engine_id)


def config_digest_from_archive(chunks: Iterable[bytes]) -> str:
    """Return ``sha256:…`` of the config of the one image in a ``docker save`` archive, read as a stream.

    :raises EngineError: the archive is broken or does not hold exactly one image.
    """
    return _read_digest(chunks, None)


def _read_digest(chunks: Iterable[bytes], manifest: str | None) -> str:
    small: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|") as archive:
            for member in archive:
                if member.isfile() and member.size <= _CONFIG_AT_MOST and _may_be_json(member.name):
                    content = archive.extractfile(member)
                    text = content.read() if content else b""
                    if text.startswith((b"{", b"[")):
                        small[member.name] = text
                        if _digest(text) == manifest and "config" in (told := json.loads(text)):
                            return _checked(told["config"]["digest"])
        (entry,) = json.loads(small["manifest.json"])
        return _digest(small[entry["Config"]])
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise EngineError("the engine's archive of the image cannot be read", detail=repr(error)) from error


def known_digest(engine_id: str) -> str | None:
    """Return the config digest that was noted for an image of the containerd image store, or None."""
    try:
        digest = _note(engine_id).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return digest if is_image_id(digest) else None


def note_digest(engine_id: str, digest: str) -> None:
    """Note the config digest of an image of the containerd image store; a folder that takes no file is no error.

    A manifest's digest decides its config's, so a note never grows stale.
    """
    path = _note(engine_id)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{digest}\n".encode())


def _note(engine_id: str) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("reprobox") / "image-ids" / engine_id.removeprefix("sha256:")


def _checked(digest: object) -> str:
    if not isinstance(digest, str) or not is_image_id(digest):
        raise ValueError(digest)
    return digest


def _digest(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


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
