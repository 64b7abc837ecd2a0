"""Images as config and layers: read out of the engine, put together with a canonical config, loaded again.

An image's id is the SHA-256 of its config, and the config names the layers, so :attr:`Image.image_id` is known before
anything is sent. See :mod:`reprobox.images.layers` for how a project image is made with this.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, cast

from reprobox.errors import EngineError
from reprobox.images.context import EPOCH
from reprobox.images.layers import BLOCK, CHUNK, Entry, Layer, header, padding
from reprobox.reference import parse as parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reprobox.engines.store import ImageStore

CREATED: Final = datetime.fromtimestamp(EPOCH, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
BASE_LAYER: Final = "reprobox: a layer of the base"
_GZIP: Final = b"\x1f\x8b"
# What the image specification and Docker define for a container; the rest of what builders write there (the parent's
# image id, a host name, flags of the shell form) is of one build.
_CONTAINER: Final = frozenset(
    {
        "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User",
        "Volumes", "WorkingDir",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image: the exact bytes of its config, and its layers from the lowest up."""

    config: bytes
    layers: tuple[Layer, ...]

    @property
    def image_id(self) -> str:
        """The OCI config digest, ``sha256:…``."""
        return _digest(self.config)

    @property
    def parsed(self) -> dict[str, Any]:
        """The config as it was written."""
        return cast("dict[str, Any]", json.loads(self.config))


def assemble(
    base: Image, layers: Sequence[Layer], *, changes: Mapping[str, Any] | None = None, said: Sequence[str] = ()
) -> Image:
    """Return the image of ``base``'s layers and ``layers`` on top, with a canonical config.

    The config holds what a container needs and nothing of how or when it was built: a fixed date, one line of history
    per layer, sorted keys. The environment keeps its order.

    :param changes: keys of the container's config (``Env``, ``Labels``, …) that replace the base's; ``Labels`` are
        merged into the base's instead, and None as a value takes a key or a label out.
    :param said: the line of history of each of ``layers``; "reprobox: a layer" where there is none.
    """
    parsed = base.parsed
    container = dict(parsed.get("config") or {})
    for key, value in (changes or {}).items():
        container[key] = {**(container.get(key) or {}), **value} if key == "Labels" and value else value
    labels = {key: value for key, value in (container.get("Labels") or {}).items() if value is not None}
    container["Labels"] = labels
    lines = [*_history(parsed, len(base.layers)), *(said or ["reprobox: a layer"] * len(layers))]
    stack = (*base.layers, *layers)
    config: dict[str, Any] = {
        "architecture": parsed["architecture"],
        "config": {key: value for key, value in container.items() if key in _CONTAINER and value},
        "created": CREATED,
        "history": [{"created": CREATED, "created_by": line} for line in lines],
        "os": parsed["os"],
        "rootfs": {"diff_ids": [layer.diff_id for layer in stack], "type": "layers"},
    }
    if parsed.get("variant"):
        config["variant"] = parsed["variant"]
    return Image(config=json.dumps(config, sort_keys=True, separators=(",", ":")).encode(), layers=stack)


def _history(parsed: Mapping[str, Any], layers: int) -> list[str]:
    """Return the base's line for each of its layers, where it has exactly one for each."""
    lines = [str(line.get("created_by", "")) for line in parsed.get("history") or () if not line.get("empty_layer")]
    return [line or BASE_LAYER for line in lines] if len(lines) == layers else [BASE_LAYER] * layers


def described(store: ImageStore, name: str) -> Image:
    """Return the image ``name`` (or an id) as the engine describes it, its layers not at hand.

    Enough to :func:`assemble` on it; its ``config`` is not the image's own bytes, so its ``image_id`` is not either.

    :raises ImageNotFound: the engine does not have it.
    """
    found = store.inspect(name)
    config = {
        "architecture": found.architecture,
        "os": found.os,
        "variant": found.variant,
        "config": found.container,
        # The engine does not say which lines are of empty layers, so they count only where there are as many.
        "history": [{"created_by": line} for line in store.history(found.engine_id)],
    }
    return Image(config=json.dumps(config).encode(), layers=tuple(Layer(diff_id=each) for each in found.layers))


@contextmanager
def saved(store: ImageStore, name: str, scratch: Path) -> Iterator[Image]:
    """Give the image ``name`` (or an id) with every layer at hand, from the engine's archive of it.

    The archive lies under ``scratch`` until the ``with`` block ends: as many bytes as the image has.

    :raises ImageNotFound: the engine does not have it.
    :raises EngineError: the archive cannot be read.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="save-") as made:
        path = Path(made) / "image.tar"
        with path.open("wb") as out:
            out.writelines(store.export(name))
        yield read_archive(path)


def read_archive(path: Path) -> Image:
    """Return the one image of a ``docker save`` archive; compressed layers are unpacked beside it.

    :raises EngineError: it is broken, or does not hold exactly one image.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            (entry,) = json.loads(_text(archive, "manifest.json"))
            config = _text(archive, entry["Config"])
            diff_ids = json.loads(config)["rootfs"]["diff_ids"]
            layers = []
            for diff_id, name in zip(diff_ids, entry["Layers"], strict=True):
                member = archive.getmember(name)
                while member.issym():  # 20.10 stores a layer that comes twice once
                    member = archive.getmember(_beside(member))
                layers.append(_plain(Layer(diff_id=diff_id, size=member.size, path=path, offset=member.offset_data)))
    except (tarfile.TarError, KeyError, TypeError, ValueError, OSError, zlib.error) as error:
        raise EngineError("the engine's archive of the image cannot be read", detail=repr(error)) from error
    return Image(config=config, layers=tuple(layers))


def _text(archive: tarfile.TarFile, name: str) -> bytes:
    content = archive.extractfile(name)
    if content is None:
        raise KeyError(name)
    return content.read()


def _beside(member: tarfile.TarInfo) -> str:
    parts: list[str] = member.name.split("/")[:-1]
    for part in member.linkname.split("/"):
        if part == "..":
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _plain(layer: Layer) -> Layer:
    """Return the layer uncompressed: engines with the containerd image store hand out what a registry gave them."""
    import gzip

    assert layer.path is not None
    with layer.open() as stream:
        if stream.read(2) != _GZIP:
            return layer
        stream.seek(0)
        path = layer.path.with_name(f"{layer.diff_id.removeprefix('sha256:')}.tar")
        with gzip.open(stream) as content, path.open("wb") as out:
            shutil.copyfileobj(content, out, CHUNK)
    return Layer(diff_id=layer.diff_id, size=path.stat().st_size, path=path)


def load(store: ImageStore, image: Image, *, tag: str, scratch: Path) -> str:
    """Load ``image`` into the engine under the name ``tag`` and return what the engine calls it.

    Layers the engine has already are not sent. An engine that wants them all the same gets everything; layers that are
    not at hand are read out of it, under ``scratch``, for that.

    :raises EngineError: the engine refused the image, or a layer is neither at hand nor in the engine.
    """
    rest = image.layers if store.keeps_manifests else image.layers[layers_present(store, image) :]
    if len(rest) < len(image.layers) and all(layer.path is not None for layer in rest):
        with suppress(EngineError):
            return _send(store, image, rest, tag)
    if all(layer.path is not None for layer in image.layers):
        return _send(store, image, image.layers, tag)
    with _fetched(store, image, scratch) as whole:
        return _send(store, whole, whole.layers, tag)


def layers_present(store: ImageStore, image: Image) -> int:
    """Return how many of the image's layers, from the lowest up, the engine has as part of some image."""
    wanted = [layer.diff_id for layer in image.layers]
    best = 0
    for _, stack in _stacks(store):
        same = 0
        while same < min(len(stack), len(wanted)) and stack[same] == wanted[same]:
            same += 1
        best = max(best, same)
    return best


def _stacks(store: ImageStore) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the id of every image of the engine, and its layers from the lowest up."""
    for each in store.ids():
        if (found := store.find(each)) is not None:  # or it was removed since
            yield each, found.layers


@contextmanager
def _fetched(store: ImageStore, image: Image, scratch: Path) -> Iterator[Image]:
    """Give ``image`` with every layer at hand, reading out of the engine an image that stands on the same layers."""
    wanted = [layer.diff_id for layer in image.layers if layer.path is None]
    for engine_id, has in _stacks(store):
        if set(wanted) <= set(has):
            with saved(store, engine_id, scratch) as found:
                at_hand = {layer.diff_id: layer for layer in found.layers}
                layers = tuple(layer if layer.path else at_hand[layer.diff_id] for layer in image.layers)
                yield Image(config=image.config, layers=layers)
            return
    raise EngineError(f"no image of the engine holds the layer {wanted[0]}", remedy="build or pull the base again")


def _send(store: ImageStore, image: Image, layers: Sequence[Layer], tag: str) -> str:
    store.load(archive_of(image, layers, tag), lambda _line: None)
    loaded = store.inspect(tag)
    if loaded.engine_id == _digest(_manifest(image)):
        store.note_image_id(loaded, image.image_id)
    if store.image_id(loaded) != image.image_id:
        raise EngineError(f"the engine has another image than {image.image_id} as {tag}", remedy="build it again")
    return loaded.engine_id


def archive_of(image: Image, layers: Sequence[Layer], tag: str) -> Iterator[bytes]:
    """Yield an archive that ``docker load`` takes, which is an OCI layout as well where all the layers are in it.

    The same image, layers and tag give the same bytes.

    :raises BuildError: one of ``layers`` is not at hand (see :func:`saved`).
    """
    yield from members(image, layers, tag)
    yield bytes(2 * BLOCK)


def members(image: Image, layers: Sequence[Layer], tag: str) -> Iterator[bytes]:
    """Yield the archive's members, in a fixed order: the descriptions, then each of ``layers`` once."""
    config = _blob(image.image_id)
    names = [_blob(layer.diff_id) for layer in image.layers]
    full = str(parse_reference(tag))  # the containerd image store takes no shorter name
    files = {"manifest.json": _json([{"Config": config, "Layers": names, "RepoTags": [full]}]), config: image.config}
    if all(layer.path is not None for layer in image.layers) and len(layers) == len(image.layers):
        oci = _manifest(image)
        listed = _descriptor("manifest.v1+json", _digest(oci), len(oci))
        listed["annotations"] = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full}
        files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
        files["index.json"] = _json({"manifests": [listed], "schemaVersion": 2})
        files[_blob(_digest(oci))] = oci
    for name, content in sorted(files.items()):
        yield _member(name, len(content)) + content + padding(len(content))
    for layer in {each.diff_id: each for each in layers}.values():
        yield _member(_blob(layer.diff_id), layer.size)
        yield from layer.chunks()
        yield padding(layer.size)


def _manifest(image: Image) -> bytes:
    """Return the image's manifest in an archive: its digest is what the containerd image store calls the image."""
    return _json(
        {
            "config": _descriptor("config.v1+json", image.image_id, len(image.config)),
            "layers": [_descriptor("layer.v1.tar", layer.diff_id, layer.size) for layer in image.layers],
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "schemaVersion": 2,
        }
    )


def _member(name: str, size: int) -> bytes:
    return header(Entry(name=name.encode(), kind="file", mode=0o644, size=size))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"digest": digest, "mediaType": f"application/vnd.oci.image.{kind}", "size": size}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
