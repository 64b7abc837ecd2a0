"""What an image holds: its Debian packages and Python distributions, read out of its file system without running it."""

from __future__ import annotations

import email
import hashlib
import io
import re
import tarfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final

from reprobox.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reprobox.engines.store import ImageStore

__all__ = ["Deb", "Distribution", "ImageContents", "contents_of", "read_image", "when"]

_STATUS: Final = "var/lib/dpkg/status"
_OS_RELEASE: Final = "usr/lib/os-release"
_COPYRIGHT: Final = re.compile(r"usr/share/doc/([^/]+)/copyright")
_DIST_INFO: Final = re.compile(r"(?P<folder>.+\.dist-info)/(?P<file>METADATA|RECORD)")
_END: Final = bytes(1024)  # two empty blocks end an archive
_LARGEST: Final = 64 << 20  # bytes; torch's RECORD is 1 MiB
_SHORT: Final = 80  # characters; a longer License field of a METADATA is the licence's text and not its name


@dataclass(frozen=True, kw_only=True)
class Deb:
    """An installed Debian package.

    ``depends`` holds, of each dependency, the names that satisfy it; ``licences`` the short names of its copyright file,
    where the image has that and it is machine-readable.
    """

    name: str
    version: str
    architecture: str
    source: str = ""
    depends: tuple[tuple[str, ...], ...] = ()
    provides: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed Python distribution, apart from those of Debian packages and those vendored in another.

    ``requires`` are its Requires-Dist lines, ``licences`` an SPDX expression or names, ``record`` the SHA-256 of its
    RECORD, which lists a hash of each file it installed (empty where it has none).
    """

    name: str
    version: str
    folder: str
    requires: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    record: str = ""

    @property
    def python(self) -> str:
        """The version of Python it is installed for, as its folder says (``3.11``); empty where that does not say."""
        found = re.search(r"(?:^|/)python(\d+\.\d+)/", self.folder)
        return found[1] if found else ""


@dataclass(frozen=True, kw_only=True)
class ImageContents:
    """An image and the packages in it.

    ``image_id`` is the OCI config digest, ``created`` the image's own date (RFC 3339), ``repo_digests`` are
    ``NAME@sha256:…`` of registries that have it, ``distro`` is such as ``debian-12``.
    """

    image_id: str
    name: str
    created: str
    architecture: str = "amd64"
    repo_digests: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    distro: str = "debian"
    debs: tuple[Deb, ...] = ()
    distributions: tuple[Distribution, ...] = ()


def read_image(store: ImageStore, image: str) -> ImageContents:
    """Read what ``image`` (a name or an engine id) holds, from a container that is made and never started.

    The whole file system is streamed once: about 10 s a GiB on two busy cores.

    :raises ImageNotFound: the engine does not have it.
    :raises EngineError: the engine failed, or its archive is broken.
    """
    found = store.inspect(image)
    with store.files(found.engine_id) as archive:
        held = contents_of(archive)
    return ImageContents(
        image_id=store.image_id(found),
        name=image,
        created=found.created,
        architecture=found.architecture or "amd64",
        repo_digests=tuple(sorted(found.repo_digests)),
        labels=found.labels,
        **held,
    )


def contents_of(archive: Iterable[bytes]) -> dict[str, Any]:
    """Return the ``debs``, ``distributions`` and ``distro`` found in a tar of a file system, read as a stream.

    :raises EngineError: the archive is broken.
    """
    files: dict[str, bytes] = {}
    chunks = _Chunks(archive)
    stream = io.BufferedReader(chunks, 1 << 20)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as opened:
            for member in opened:
                name = member.name.removeprefix("./")
                if member.isfile() and member.size <= _LARGEST and _is_wanted(name):
                    files[name] = _content(opened, member)
        while stream.read(1 << 20):
            pass
        if chunks.tail != _END:
            # tarfile takes an archive that is cut between two files for one that ends there.
            raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError) as error:
        raise EngineError(
            "the engine's archive of the image cannot be read", remedy="try again", detail=repr(error)
        ) from error
    return {
        "debs": _debs(files),
        "distributions": _distributions(files),
        "distro": _distro(files.get(_OS_RELEASE, b"").decode(errors="replace")),
    }


def when(created: str) -> datetime:
    """Return an image's date as a time in UTC, to the microsecond; engines write nanoseconds."""
    seconds, _, fraction = created.removesuffix("Z").partition(".")
    parsed = datetime.fromisoformat(seconds)
    return parsed.replace(microsecond=int(f"{fraction:0<6.6}" if fraction else 0), tzinfo=parsed.tzinfo or UTC)


class _Chunks(io.RawIOBase):
    """The chunks of an HTTP answer as a file to read from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self.tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
            self.tail = (self.tail + chunk[-len(_END) :])[-len(_END) :]
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _content(opened: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = opened.extractfile(member)
    return file.read() if file else b""


def _is_wanted(name: str) -> bool:
    if name in (_STATUS, _OS_RELEASE) or _COPYRIGHT.fullmatch(name):
        return True
    # Those under /usr/lib/python3 are parts of Debian packages, and a vendored copy is a part of what vendors it.
    return bool(_DIST_INFO.fullmatch(name)) and not name.startswith("usr/lib/python3") and "/_vendor/" not in name


def _distro(os_release: str) -> str:
    pairs = dict(re.findall(r'^(ID|VERSION_ID)="?([\w.-]+)"?$', os_release, re.MULTILINE))
    return "-".join(filter(None, (pairs.get("ID", "debian"), pairs.get("VERSION_ID"))))


def _debs(files: Mapping[str, bytes]) -> tuple[Deb, ...]:
    licences = {
        match[1]: _short_names(content.decode(errors="replace"))
        for name, content in files.items()
        if (match := _COPYRIGHT.fullmatch(name))
    }
    found = []
    for paragraph in files.get(_STATUS, b"").decode(errors="replace").split("\n\n"):
        fields = _paragraph(paragraph)
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        relations = ", ".join(filter(None, (fields.get("Pre-Depends"), fields.get("Depends"))))
        found.append(
            Deb(
                name=fields["Package"],
                version=fields["Version"],
                architecture=fields.get("Architecture", ""),
                source=fields.get("Source", fields["Package"]).partition(" ")[0],
                depends=tuple(_alternatives(relation) for relation in relations.split(",") if relation.strip()),
                provides=tuple(_name(one) for one in fields.get("Provides", "").split(",") if one.strip()),
                licences=licences.get(fields["Package"], ()),
            )
        )
    return tuple(sorted(found, key=lambda deb: (deb.name, deb.architecture)))


def _paragraph(text: str) -> dict[str, str]:
    """Return the one-line fields of a paragraph of Debian's control files."""
    return {name: value.strip() for name, value in re.findall(r"^([\w-]+):(.*)$", text, re.MULTILINE)}


def _alternatives(relation: str) -> tuple[str, ...]:
    return tuple(_name(one) for one in relation.split("|"))


def _name(relation: str) -> str:
    return re.split(r"[\s(\[<:]", relation.strip(), maxsplit=1)[0]


def _short_names(copyright_file: str) -> tuple[str, ...]:
    """Return the licences a copyright file names, where it is in the machine-readable format.

    Source: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
    """
    if "copyright-format/1.0" not in copyright_file.partition("\n\n")[0]:
        return ()
    names = re.findall(r"^License:[ \t]*(\S[^\n]*?)[ \t]*$", copyright_file, re.MULTILINE)
    return tuple(sorted({name for name in names if len(name) <= _SHORT}))


def _distributions(files: Mapping[str, bytes]) -> tuple[Distribution, ...]:
    found = []
    for name, content in files.items():
        match = _DIST_INFO.fullmatch(name)
        if not match or match["file"] != "METADATA":
            continue
        metadata = email.message_from_string(content.decode(errors="replace"))
        record = files.get(f"{match['folder']}/RECORD")
        found.append(
            Distribution(
                name=str(metadata["Name"]),
                version=str(metadata["Version"]),
                folder=match["folder"],
                requires=tuple(map(str, metadata.get_all("Requires-Dist") or ())),
                licences=_licences(metadata),
                record=hashlib.sha256(record).hexdigest() if record is not None else "",
            )
        )
    return tuple(sorted(found, key=lambda one: (one.name.lower(), one.folder)))


def _licences(metadata: email.message.Message) -> tuple[str, ...]:
    """Return an SPDX expression where the metadata have one, else the name they give, else those of their classifiers.

    Source: https://packaging.python.org/en/latest/specifications/core-metadata/#license-expression
    """
    if expression := metadata["License-Expression"]:
        return (str(expression).strip(),)
    named = str(metadata["License"] or "").strip()
    if named and named != "UNKNOWN" and "\n" not in named and len(named) <= _SHORT:
        return (named,)
    classifiers = [str(one) for one in metadata.get_all("Classifier") or () if str(one).startswith("License ::")]
    names = {one.rpartition("::")[2].strip() for one in classifiers}
    return tuple(sorted(names - {"OSI Approved"}))
