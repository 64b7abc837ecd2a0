"""An image as one file that carries its own proof, for machines that no registry reaches.

The file is a tar of four members, so that plain tools can read it as well::

    README           fixed words, by which the file is known; how to load it without reprobox
    image.tar.zst    what the engine's ``save`` gives, compressed
    image.json       the image's id and its names
    SHA256           of every byte before it

The last member is the seal. What it looks like follows from the digest alone, so that a file in which any bit differs, or
the end is missing, has another seal than the one it should have.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

from reprobox.engines.digests import identity_in_archive
from reprobox.errors import ArchiveError, EngineError, UsageError
from reprobox.reference import parse as parse_reference

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reprobox.engines.store import ImageStore, StoredImage
    from reprobox.images import Reporter

__all__ = ["Contents", "Loaded", "Saved", "load_image", "save_image", "verify_archive"]

SCHEMA: Final = "reprobox.image-archive/1"
CHUNK: Final = 1 << 20
LARGEST_JSON: Final = 1 << 20
_README: Final = """\
A container image, saved by reprobox. `reprobox load FILE` verifies and loads it.
Without reprobox: tar --extract --to-stdout --file FILE image.tar.zst | zstd -d | docker load
"""
_IMAGE: Final = "image.tar.zst"
_COMPRESSION: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: 3,
    # As many threads as there are cores: from one on, their number does not change the bytes.
    zstd.CompressionParameter.nb_workers: max(1, min(8, os.cpu_count() or 1)),
}
_SEAL_BYTES: Final = 4 * tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a whole archive holds: the image's OCI config digest, its names, and the SHA-256 of the file in hex."""

    image_id: str
    names: tuple[str, ...]
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """An image that was written to ``file`` (``size`` bytes) and read back."""

    file: str
    size: int
    sha256: str
    image_id: str
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document of schema ``reprobox.save/1``."""
        return {"schema": "reprobox.save/1", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An image that the engine has taken from ``file``: its id, what the engine calls it, and the names it got."""

    file: str
    sha256: str
    image_id: str
    engine_id: str
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document of schema ``reprobox.load/1``."""
        return {"schema": "reprobox.load/1", **asdict(self)}


def save_image(image: str, path: Path, *, store: ImageStore, report: Reporter) -> Saved:
    """Write ``image`` (a name or an id) to ``path``, whole or not at all, and read it back before it gets that name.

    The same image of the same engine gives the same bytes. Memory does not grow with the image.

    :raises ImageNotFound: the engine does not have it.
    :raises ArchiveError: the file cannot be written, or is not what it should be when it is read back.
    :raises EngineError: the engine's archive breaks off.
    """
    found = store.inspect(image)
    image_id = store.image_id(found)
    names = _names(image, found)
    report.say(f"saving {image} to {path}")
    try:
        with _replacing(path) as file:
            # By name, so that the engine's archive carries it, where it is one.
            chunks = store.export(names[0] if names else found.engine_id)
            _write(file, chunks, image_id=image_id, names=names, report=report)
            whole = verify_archive(file, str(path), report)
    except OSError as error:
        raise ArchiveError(
            f"{path} cannot be written ({error.strerror or error})", remedy="choose another place, or make room"
        ) from error
    return Saved(file=str(path), size=whole.size, sha256=whole.sha256, image_id=image_id, names=names)


def _names(image: str, found: StoredImage) -> tuple[str, ...]:
    """Return the name of ``found`` that ``image`` is, if it is one: Podman writes every name with a registry."""
    with suppress(UsageError):  # an id is no name
        asked = parse_reference(image)
        short = image if asked.tag else f"{image}:latest"
        whole = {name: str(parse_reference(name)) for name in found.names if not name.startswith("<none>")}
        if str(parse_reference(short)) in whole.values():
            return (short,)
        if f"localhost/{short}" in whole:  # where Podman puts what has no registry
            return (f"localhost/{short}",)
    return ()


def load_image(path: Path, *, store: ImageStore, report: Reporter) -> Loaded:
    """Verify the archive at ``path``, have the engine load it, and hold what came out against it.

    :raises ArchiveError: it cannot be read, is not whole, or is none of ours; the engine has not seen it then.
    :raises EngineError: the engine refuses it.
    """
    try:
        with path.open("rb") as file:
            found = verify_archive(file, str(path), report)
            report.say(f"{path} is whole; loading {found.image_id}")
            before = {name: store.find(name) for name in found.names}
            _hand_over(file, store, report)
    except OSError as error:
        raise ArchiveError(
            f"{path} cannot be read ({error.strerror or error})", remedy="check its name and its rights"
        ) from error
    name = found.names[0] if found.names else found.image_id
    loaded = store.inspect(name)
    if store.image_id(loaded) != found.image_id:
        raise EngineError(f"the engine loaded another image than {found.image_id}", remedy="load it again")
    for name, old in before.items():
        if old is not None and old.engine_id != loaded.engine_id:
            report.say(f"{name} was {old.engine_id} and is {loaded.engine_id} now")
    return Loaded(
        file=str(path), sha256=found.sha256, image_id=found.image_id, engine_id=loaded.engine_id, names=found.names
    )


def verify_archive(file: IO[bytes], name: str, report: Reporter) -> Contents:
    """Read a whole archive and return what it holds.

    :param name: how an error names the file.
    :raises ArchiveError: it is none of ours, any bit of it differs, or the image in it is not the one it names.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = _member("README", _README.encode())
    if file.read(len(head)) != head:
        raise ArchiveError(
            f"{name} was not written by `reprobox save`", remedy="load what docker save wrote with `docker load`"
        )
    digest = _sealed_digest(file, name, size, report)
    try:
        with tarfile.open(fileobj=_at(file, 0), mode="r:") as tar:
            _, image, description, _ = tar.getmembers()
            told = json.loads(cast("IO[bytes]", tar.extractfile(description)).read(LARGEST_JSON))
            image_id, names = str(told["image_id"]), tuple(str(each) for each in told["names"])
            if told["schema"] != SCHEMA:
                raise ArchiveError(f"{name} is of a newer reprobox ({told['schema']})", remedy="upgrade reprobox")
            inside, given = identity_in_archive(_unpacked(file, image, report, "checking the image"))
    except (ValueError, KeyError, TypeError, EOFError, tarfile.TarError, zstd.ZstdError, EngineError) as error:
        raise ArchiveError(
            f"{name} is sealed and holds no image that can be read ({error})", remedy="save the image again"
        ) from error
    if inside != image_id:
        raise ArchiveError(f"{name} names {image_id} and holds {inside}", remedy="save the image again")
    if undeclared := sorted(given - _spellings(names)):
        raise ArchiveError(
            f"{name} would give the image a name that it does not declare: {undeclared[0]}",
            remedy="do not use it; ask the person who sent it",
        )
    return Contents(image_id=image_id, names=names, sha256=digest, size=size)


def _spellings(names: Sequence[str]) -> frozenset[str]:
    """Return each name as engines write it: with the registry or without, and, in an index, its tag alone."""
    known = set(names)
    for name in names:
        with suppress(UsageError):
            parsed = parse_reference(name)
            known |= {str(parsed), f"localhost/{name}", parsed.tag or "latest"}
    return frozenset(known)


def _write(file: IO[bytes], chunks: Iterator[bytes], *, image_id: str, names: Sequence[str], report: Reporter) -> None:
    """Write the four members; the engine does not say how long its archive is, so that header is written last."""
    file.write(_member("README", _README.encode()))
    place = file.tell()
    file.write(bytes(tarfile.BLOCKSIZE))
    through = 0
    with zstd.ZstdFile(file, "w", options=_COMPRESSION) as stream:
        for chunk in chunks:
            stream.write(chunk)
            through += len(chunk)
            report.progress("saving the image", through, None)
    size = file.tell() - place - tarfile.BLOCKSIZE
    file.write(bytes(-size % tarfile.BLOCKSIZE))
    described = {"schema": SCHEMA, "image_id": image_id, "names": list(names)}
    file.write(_member("image.json", (json.dumps(described, indent=2) + "\n").encode()))
    end = file.tell()
    file.seek(place)
    file.write(_header(_IMAGE, size))
    hashed = _hash(file, end, report, "sealing")
    file.seek(end)
    file.write(_seal(hashed.hexdigest()))
    file.flush()


def _sealed_digest(file: IO[bytes], name: str, size: int, report: Reporter) -> str:
    """Return the SHA-256 of the file. :raises ArchiveError: its seal is not the one of what stands before it."""
    hashed = _hash(file, max(size - _SEAL_BYTES, 0), report, "checking every byte")
    seal = file.read(_SEAL_BYTES + 1)
    if seal != _seal(hashed.hexdigest()):
        raise ArchiveError(
            f"{name} is damaged or cut short: its {size} bytes are not those that were saved",
            remedy="copy it again, or save the image again",
        )
    hashed.update(seal)
    return str(hashed.hexdigest())


def _hash(file: IO[bytes], length: int, report: Reporter, label: str) -> Any:
    hashed, left = hashlib.sha256(), length
    file.seek(0)
    while left and (chunk := file.read(min(left, CHUNK))):
        hashed.update(chunk)
        left -= len(chunk)
        report.progress(label, length - left, length)
    return hashed


def _hand_over(file: IO[bytes], store: ImageStore, report: Reporter) -> None:
    with tarfile.open(fileobj=_at(file, 0), mode="r:") as tar:
        image = tar.getmembers()[1]
    store.load(_unpacked(file, image, report, "loading the image"), report.log)


def _unpacked(file: IO[bytes], image: tarfile.TarInfo, report: Reporter, label: str) -> Iterator[bytes]:
    """Give the engine's archive piece by piece."""
    file.seek(image.offset_data)
    with zstd.ZstdFile(cast("Any", _Part(file, image.size)), "r") as stream:
        while chunk := stream.read(CHUNK):
            report.progress(label, file.tell() - image.offset_data, image.size)
            yield chunk


class _Part:
    """The next ``size`` bytes of a file, as a file to read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _at(file: IO[bytes], place: int) -> IO[bytes]:
    file.seek(place)
    return file


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)  # sizes above 8 GiB as well


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _seal(digest: str) -> bytes:
    """Return the last member and the end of the tar, which follow from the digest of all that stands before."""
    return _member("SHA256", f"{digest}\n".encode()) + bytes(2 * tarfile.BLOCKSIZE)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file beside ``path`` that takes its place when the block ends well, and goes when it does not."""
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(made)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(descriptor, 0o666 & ~_umask())
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return 0o022
