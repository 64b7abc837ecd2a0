"""The OCI config digest of an image, whatever the engine calls that image."""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, cast

from reprobox.errors import EngineError
from reprobox.files import write_atomically
from reprobox.folders import cache_folder
from reprobox.reference import is_image_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import docker

_NAME_ANNOTATIONS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")

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
    small: dict[str, bytes] = {}
    try:
        for name, text in _small_members(chunks):
            small[name] = text
            if _digest(text) == engine_id and "config" in (told := json.loads(text)):
                return _checked(told["config"]["digest"])
        (entry,) = json.loads(small["manifest.json"])
        return _digest(small[entry["Config"]])
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from error


def config_digest_from_archive(chunks: Iterable[bytes]) -> str:
    """Return ``sha256:…`` of the config of the one image in a ``docker save`` archive, read as a stream.

    :raises EngineError: the archive is broken or does not hold exactly one image.
    """
    return identity_in_archive(chunks)[0]


def identity_in_archive(chunks: Iterable[bytes]) -> tuple[str, frozenset[str]]:
    """Return the config digest of the one image in an archive, and every name that an engine would give it.

    :raises EngineError: the archive is broken or does not hold exactly one image.
    """
    try:
        small = dict(_small_members(chunks))
        (entry,) = json.loads(small["manifest.json"])
        names = {str(name) for name in entry.get("RepoTags") or ()}
        for each in json.loads(small.get("index.json", b"{}")).get("manifests", ()):
            noted = each.get("annotations") or {}
            names |= {str(noted[key]) for key in _NAME_ANNOTATIONS if key in noted}
        names |= {
            f"{name}:{tag}" for name, tags in json.loads(small.get("repositories", b"{}")).items() for tag in tags
        }
        return _digest(small[entry["Config"]]), frozenset(names)
    except (tarfile.TarError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(error) from error


def _small_members(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Give the name and the content of every file of an archive that may be JSON."""
    with tarfile.open(fileobj=cast("IO[bytes]", _Stream(chunks)), mode="r|") as archive:
        for member in archive:
            if member.isfile() and member.size <= _CONFIG_AT_MOST and _may_be_json(member.name):
                content = archive.extractfile(member)
                text = content.read() if content else b""
                if text.startswith((b"{", b"[")):
                    yield member.name, text


def _unreadable(error: Exception) -> EngineError:
    return EngineError("the engine's archive of the image cannot be read", detail=repr(error))


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
    return cache_folder() / "image-ids" / engine_id.removeprefix("sha256:")


def _checked(digest: object) -> str:
    if not isinstance(digest, str) or not is_image_id(digest):
        raise ValueError(digest)
    return digest


def _digest(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _may_be_json(name: str) -> bool:
    return name.endswith(".json") or name.startswith("blobs/") or name == "repositories"


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
