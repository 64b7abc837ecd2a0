"""Layers whose bytes depend on nothing but what is in them: entries in, one canonical tar out.

A project image is made of these parts::

    with TemporaryDirectory(dir=cache) as scratch:
        entries = entries_of_folder(site, at="opt/project")  # or entries_of_tar(file)
        layer = write_layer(entries, Path(scratch))  # Layer(diff_id, size, path)
        base = archive.described(client, base_image_id)  # its config and layers, nothing copied
        image = archive.assemble(base, [layer], changes={"Labels": {...}}, said=["the project's packages"])
        image.image_id  # known before anything is sent
        engine_id = archive.load(client, image, tag="reprobox-project:…", scratch=Path(scratch))

The canonical form: entries sorted by their path's components, each one's parents before it and listed; the first path of
a set of hard links is the file and the others link to it; every date is :data:`~reprobox.images.context.EPOCH`; owners by
number alone; of the extended attributes only file capabilities (what ``docker save`` itself keeps); a ustar header, with
a pax one before it only where ustar has no room. Written here and not by ``tarfile``, whose bytes may change with
Python's version.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Final, Literal, cast

from reprobox.errors import BuildError
from reprobox.images.context import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

BLOCK: Final = 512
CHUNK: Final = 2**20
WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
CAPABILITY: Final = "security.capability"

Kind = Literal["file", "folder", "symlink", "hardlink", "char", "block", "fifo"]
_FLAG: Final[dict[Kind, bytes]] = {
    "file": b"0", "hardlink": b"1", "symlink": b"2", "char": b"3", "block": b"4", "folder": b"5", "fifo": b"6",
}  # fmt: skip
_KIND: Final[dict[bytes, Kind]] = {flag: kind for kind, flag in _FLAG.items()} | {
    tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
}  # fmt: skip
_XATTR: Final = f"SCHILY.xattr.{CAPABILITY}"
_AGAIN: Final = "build the image again from nothing (--no-cache)"
_UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One path of a layer.

    ``name`` has no leading or trailing slash; ``link`` is a symlink's target, or, of a hard link, the path it links to;
    ``size`` is in bytes and ``content`` opens them; ``inode`` is equal for entries that are one file under several names
    (None: this one alone); ``capability`` is the raw ``security.capability``.
    """

    name: bytes
    kind: Kind
    mode: int
    uid: int = 0
    gid: int = 0
    link: bytes = b""
    size: int = 0
    device: tuple[int, int] = (0, 0)
    capability: bytes | None = None
    content: Callable[[], IO[bytes]] | None = field(default=None, compare=False, repr=False)
    inode: object = field(default=None, compare=False, repr=False)

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The path's components: what a layer is sorted by, so that a folder comes right before what is in it."""
        return tuple(self.name.split(b"/"))

    @property
    def path(self) -> str:
        """The path as text for a person, from the root; bytes that are no UTF-8 are shown by their numbers."""
        return "/" + self.name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An uncompressed layer: its ``diff_id`` (``sha256:…`` of the tar) and, where it is at hand, where the tar lies.

    ``path`` None says that only the engine has it. The tar begins at ``offset`` in the file and is ``size`` bytes long.
    """

    diff_id: str
    size: int = 0
    path: Path | None = None
    offset: int = 0

    def open(self) -> IO[bytes]:
        """Open the tar for reading at its start.

        :raises BuildError: it is not at hand.
        """
        if self.path is None:
            raise BuildError(
                f"the layer {self.diff_id} is in the engine and not on disk", remedy="save the image it is in first"
            )
        return cast("IO[bytes]", io.BufferedReader(Region(self.path.open("rb"), self.offset, self.size)))

    def chunks(self) -> Iterator[bytes]:
        """Yield the tar's bytes in pieces of at most 1 MiB."""
        with self.open() as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


class Region(io.RawIOBase):
    """Part of an open file as a file of its own; closes the whole with itself."""

    def __init__(self, whole: IO[bytes], offset: int, size: int) -> None:
        super().__init__()
        self._whole, self._offset, self._size, self._at = whole, offset, size, 0

    def readable(self) -> bool:
        """Can be read."""
        return True

    def seekable(self) -> bool:
        """Can be sought in."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # the stubs' Buffer has no length
        self._whole.seek(self._offset + self._at)
        found = self._whole.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._whole.close()
        super().close()


def entries_of_tar(stream: IO[bytes]) -> list[Entry]:
    """Return the entries of an uncompressed tar, in its order; of a name that comes twice, the last.

    ``stream`` must be seekable and stay open as long as the entries are used: they read their content from it.

    :raises BuildError: it is no tar, or a hard link's target is not in it.
    """
    found: dict[bytes, Entry] = {}
    try:
        archive = tarfile.open(fileobj=stream, mode="r:", **_UTF8)  # type: ignore[call-overload]  # noqa: SIM115
        for member in archive:
            name = clean_name(member.name.encode(**_UTF8))
            if name:
                found.pop(name, None)
                found[name] = _of_member(archive, member, name, found)
    except tarfile.TarError as error:
        raise BuildError("a layer cannot be read as a tar", remedy=_AGAIN, detail=repr(error)) from error
    return list(found.values())


def _of_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: bytes, found: dict[bytes, Entry]) -> Entry:
    if member.type == tarfile.LNKTYPE:
        target = found.get(clean_name(member.linkname.encode(**_UTF8)))
        if target is None:
            raise BuildError(f"a layer links {member.name} to {member.linkname}, which it does not hold", remedy=_AGAIN)
        return replace(target, name=name)
    kind = _KIND.get(member.type)
    if kind is None:
        raise BuildError(f"a layer holds {member.name}, which is neither file, folder, link nor device", remedy=_AGAIN)
    raw = member.pax_headers.get(_XATTR)
    is_file = kind == "file"
    return Entry(
        name=name,
        kind=kind,
        mode=stat.S_IMODE(member.mode),  # BuildKit writes the kind of file into it as well
        uid=member.uid,
        gid=member.gid,
        link=member.linkname.encode(**_UTF8) if kind == "symlink" else b"",
        size=member.size if is_file else 0,
        device=(member.devmajor, member.devminor) if kind in {"char", "block"} else (0, 0),
        capability=raw.encode(**_UTF8) if raw else None,
        content=(lambda: cast("IO[bytes]", archive.extractfile(member))) if is_file else None,
        inode=member.offset,
    )


def entries_of_folder(folder: Path, *, at: str, uid: int = 0, gid: int = 0) -> list[Entry]:
    """Return what is under ``folder`` as entries under the path ``at`` of the image, ``folder`` itself as ``at``.

    Everything belongs to ``uid:gid``. Of a mode only the owner's bits count: a folder is 0755, a file that its owner may
    execute 0755 and any other 0644, so that the umask of whoever made them is of no account. Capabilities are left out.

    :raises BuildError: there is a socket, a device or a named pipe under it.
    """
    top = os.fsencode(at.strip("/"))
    entries = [Entry(name=top, kind="folder", mode=0o755, uid=uid, gid=gid)]
    for path in sorted(folder.rglob("*")):
        name = top + b"/" + os.fsencode(path.relative_to(folder))
        entries += [_of_path(path, name, uid, gid)]
    return entries


def _of_path(path: Path, name: bytes, uid: int, gid: int) -> Entry:
    seen = path.lstat()
    if stat.S_ISLNK(seen.st_mode):
        return Entry(name=name, kind="symlink", mode=0o777, uid=uid, gid=gid, link=os.fsencode(path.readlink()))
    if stat.S_ISDIR(seen.st_mode):
        return Entry(name=name, kind="folder", mode=0o755, uid=uid, gid=gid)
    if not stat.S_ISREG(seen.st_mode):
        raise BuildError(
            f"{path} is neither file, folder nor link, and cannot be put into an image",
            remedy="remove it and build again",
        )
    return Entry(
        name=name,
        kind="file",
        mode=0o755 if seen.st_mode & stat.S_IXUSR else 0o644,
        uid=uid,
        gid=gid,
        size=seen.st_size,
        content=lambda: path.open("rb"),
        inode=(seen.st_dev, seen.st_ino) if seen.st_nlink > 1 else None,
    )


def write_layer(entries: Iterable[Entry], folder: Path) -> Layer:
    """Write ``entries`` (in any order) in the canonical form to ``folder`` and return the layer, named by its digest.

    Parents that are not among the entries are added as folders of root with mode 0755. Memory does not grow with the
    content.

    :raises BuildError: two entries have one name, or a content is not as long as its entry says.
    """
    new = folder / f".layer-{os.getpid()}-{id(entries)}"
    total, size = hashlib.sha256(), 0
    with new.open("wb") as out:
        for chunk in _tar(canonical(entries)):
            total.update(chunk)
            size += out.write(chunk)
    return Layer(diff_id=f"sha256:{total.hexdigest()}", size=size, path=new.rename(folder / f"{total.hexdigest()}.tar"))


def canonical(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries sorted, with every parent, modes without stray bits, and hard links as the form wants them.

    :raises BuildError: two entries have one name.
    """
    by_name: dict[bytes, Entry] = {}
    for entry in entries:
        if entry.name in by_name:
            raise BuildError(f"a layer would hold {entry.path} twice", remedy="give that path once")
        by_name[entry.name] = entry
    for name in list(by_name):
        for parent in parents_of(name):
            by_name.setdefault(parent, Entry(name=parent, kind="folder", mode=0o755))
    first: dict[object, Entry] = {}
    result = []
    for entry in sorted(by_name.values(), key=lambda each: each.parts):
        mode = 0o777 if entry.kind == "symlink" else stat.S_IMODE(entry.mode)
        same = first.setdefault(entry.inode, entry) if entry.kind == "file" and entry.inode is not None else entry
        if same is entry:
            result.append(replace(entry, mode=mode))
        else:
            result.append(replace(entry, mode=mode, kind="hardlink", link=same.name, size=0, content=None))
    return result


def parents_of(name: bytes) -> list[bytes]:
    """Return the folders above ``name``, the outermost first."""
    parts = name.split(b"/")[:-1]
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]


def clean_name(name: bytes) -> bytes:
    """Return a tar's name as the path below the root: no ``./``, no leading or trailing slash; empty for the root."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise BuildError(f"a layer holds the path {name!r}, which leads out of it", remedy=_AGAIN)
    return b"/".join(parts)


def _tar(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        yield header(entry)
        if entry.content is not None:
            yield from _content(entry)
    yield bytes(2 * BLOCK)


def _content(entry: Entry) -> Iterator[bytes]:
    assert entry.content is not None
    left = entry.size
    with entry.content() as stream:
        while chunk := stream.read(CHUNK):
            left -= len(chunk)
            yield chunk
    if left:
        raise BuildError(
            f"{entry.path} changed its length while it was put into a layer",
            remedy="let nobody write there, and build again",
        )
    yield padding(entry.size)


def padding(size: int) -> bytes:
    """Return the zeroes that follow ``size`` bytes of content in a tar."""
    return bytes(-size % BLOCK)


def header(entry: Entry) -> bytes:
    """Return the tar header of ``entry``: a ustar block, after a pax one where ustar cannot say it all."""
    name = entry.name + (b"/" if entry.kind == "folder" else b"")
    names = {b"path": name, b"linkpath": entry.link}
    pax = {key: value for key, value in names.items() if len(value) > 100 or not value.isascii()}
    if entry.capability is not None:
        pax[_XATTR.encode()] = entry.capability
    numbers = {b"uid": (entry.uid, 7), b"gid": (entry.gid, 7), b"size": (entry.size, 11)}
    pax |= {key: b"%d" % value for key, (value, digits) in numbers.items() if value >= 8**digits}
    block = _ustar(entry, name, pax)
    if not pax:
        return block
    records = b"".join(_record(key, value) for key, value in sorted(pax.items()))
    about = Entry(name=b"././@PaxHeader", kind="file", mode=0, size=len(records))
    return _ustar(about, about.name, {}, flag=b"x") + records + padding(len(records)) + block


def _ustar(entry: Entry, name: bytes, pax: dict[bytes, bytes], flag: bytes | None = None) -> bytes:
    def octal(value: int, width: int) -> bytes:
        return b"%0*o\0" % (width - 1, value if value < 8 ** (width - 1) else 0)

    fields = (
        (_ascii(name) if b"path" in pax else name).ljust(100, b"\0"),
        octal(entry.mode, 8),
        octal(entry.uid, 8),
        octal(entry.gid, 8),
        octal(entry.size, 12),
        octal(EPOCH, 12),
        b" " * 8,
        flag or _FLAG[entry.kind],
        (_ascii(entry.link) if b"linkpath" in pax else entry.link).ljust(100, b"\0"),
        b"ustar\0" + b"00",
        bytes(64),
        octal(entry.device[0], 8),
        octal(entry.device[1], 8),
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _ascii(name: bytes) -> bytes:
    """Return what a reader without pax sees of a name."""
    return bytes(byte if byte < 128 else ord("?") for byte in name)[:100]


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``LENGTH KEY=VALUE`` with a newline; the length counts its own digits."""
    rest = length = len(key) + len(value) + 3
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
