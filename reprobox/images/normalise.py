"""A built image made the same to the last bit, whoever built it and when: its layers rewritten, its config written anew.

The layers of the base are left alone, so that images on one base share them. Of each layer above it everything is taken
out that tells of the build and not of the image: dates, the order of the builder's walk, folders it only passed through,
logs and caches that are made again when needed (:data:`VOLATILE`). A layer that is empty then is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Final

from reprobox.errors import BuildError
from reprobox.images.archive import Image, assemble, load, saved
from reprobox.images.layers import OPAQUE, WHITEOUT, Entry, canonical, entries_of_tar, parents_of, write_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reprobox.engines.store import ImageStore
    from reprobox.images import Reporter

VOLATILE: Final = (
    (rb"var/log/.+", "what was done when"),
    (rb"var/cache/ldconfig/aux-cache", "inode numbers and dates of the machine that built"),
    (rb"var/cache/apt/(srcpkgcache|pkgcache)\.bin", "made again by apt"),
    (rb"var/cache/apt/archives/.+", "packages that are installed by now"),
    (rb"var/lib/apt/lists/.+", "what the package sources served that day"),
    (rb"var/cache/debconf/.+-old", "backups"),
    (rb"var/lib/dpkg/[^/]+-old", "backups"),
    (rb"(proc|sys|dev)/.+", "mounted over by the engine"),
    (rb"\.dockerenv|run/\.containerenv", "the engine's mark on a container"),
)
"""Files that no layer keeps (a pattern for the whole path, and why). Folders stay where they are new."""

_VOLATILE: Final = re.compile(b"|".join(b"(?:%s)" % pattern for pattern, _ in VOLATILE))
_EMPTIED: Final = frozenset({b"etc/machine-id", b"var/lib/dbus/machine-id"})
# What builders leave where they mount the network's configuration into a step.
_STUBS: Final = frozenset({b"etc/hosts", b"etc/hostname", b"etc/resolv.conf"})
# BuildKit adds the first three where the base lacks them, Podman the last.
_MOUNT_POINTS: Final = frozenset({b"proc", b"sys", b"dev", b"run"})
_BUILDERS_LABEL: Final = "io.buildah.version"  # Podman's, of its own accord
_WHITEOUT_MODE: Final = 0o600  # as Docker writes it; Podman writes 0
_CHUNK: Final = 1 << 20
_HASH_BASED: Final = 1  # PEP 552: the lowest bit of a pyc's flags


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """A normalised image in the engine: its config digest, and what the engine calls it."""

    image_id: str
    engine_id: str


def normalise(store: ImageStore, raw: str, *, base: str, tag: str, scratch: Path, report: Reporter) -> Normalised:
    """Make the canonical image of ``raw``, which stands on the image ``base``, load it and name it ``tag``.

    ``raw`` stays. Needs disk under ``scratch`` for twice the image until it returns, and memory for the list of its
    paths.

    :raises BuildError: ``raw`` does not stand on ``base``, or holds bytecode with a date in it.
    :raises EngineError: the engine could not save or load an image.
    """
    found = store.inspect(base)
    report.say("normalising the image, so that its id depends on its content alone")
    try:
        with saved(store, raw, scratch) as image, TemporaryDirectory(dir=scratch, prefix="layers-") as made:
            result = rewritten(image, found.layers, Path(made), report, environment=found.environment)
            return Normalised(image_id=result.image_id, engine_id=load(store, result, tag=tag, scratch=scratch))
    except OSError as error:
        if error.errno is None:
            raise  # the connection to the engine, not the disk
        raise BuildError(
            f"the image cannot be normalised in {scratch}: {error}",
            remedy="free twice the image's size there, or set XDG_CACHE_HOME to a folder with room",
        ) from error


def rewritten(
    image: Image, below: Sequence[str], folder: Path, report: Reporter, *, environment: Sequence[str] = ()
) -> Image:
    """Return ``image`` with every layer above ``below`` (the base's diff ids) in its canonical form under ``folder``.

    :param environment: the base's variables, each ``NAME=value``, which keep their order.

    :raises BuildError: the image does not stand on those layers, or holds bytecode with a date in it.
    """
    if [layer.diff_id for layer in image.layers[: len(below)]] != list(below):
        raise BuildError("the built image does not stand on the layers of its base", remedy="build it again")
    tree, layers = Tree(), []
    with ExitStack() as stack:  # the tree's files are read again where a layer brings one of them
        for done, layer in enumerate(image.layers):
            entries = entries_of_tar(stack.enter_context(layer.open()))
            if done >= len(below):
                entries = settled(entries, tree)
                layers += [write_layer(entries, folder)] if entries else []
            tree.apply(entries)
            report.progress("normalising", done + 1, len(image.layers))
    base = Image(config=image.config, layers=image.layers[: len(below)])
    variables = in_order(image.parsed.get("config", {}).get("Env") or (), environment)
    return assemble(base, layers, changes={"Labels": {_BUILDERS_LABEL: None}, "Env": variables})


def in_order(variables: Sequence[str], first: Sequence[str]) -> list[str]:
    """Return ``NAME=value`` lines with those of ``first`` before the others, in its order, whatever they are set to.

    Docker leaves a variable of the base where it was when a step sets it again, Podman puts it last.
    """
    places = {line.partition("=")[0]: place for place, line in enumerate(first)}
    return sorted(variables, key=lambda line: places.get(line.partition("=")[0], len(places)))


def settled(entries: Iterable[Entry], tree: Tree) -> list[Entry]:
    """Return what is to be kept of a layer that lies on ``tree``, every parent with the owner and mode it has.

    :raises BuildError: a compiled module remembers the date of its source.
    """
    kept = {}
    entries = list(entries)
    hidden = {name for entry in entries if (name := _hides(entry)) is not None}
    names = Counter(entry.inode for entry in entries if entry.kind == "file")
    for entry in entries:
        found = _kept(entry)
        if found is None:
            continue
        # What is written again as it was is in the layers of some engines and not of others.
        alone = found.inode is None or names[found.inode] <= 1
        if not (alone and hidden.isdisjoint([found.name, *parents_of(found.name)]) and tree.holds(found)):
            _refuse_dated(found)
            kept[found.name] = found
    # A builder lists the folders it passed through, and not all of them do so alike: those that are as they were below
    # come in only where something in them does.
    needed = {parent for entry in kept.values() if not _passed(entry, tree) for parent in parents_of(entry.name)}
    result = {name: entry for name, entry in kept.items() if name in needed or not _passed(entry, tree)}
    for name in needed - result.keys():
        result[name] = tree.known.get(name) or Entry(name=name, kind="folder", mode=0o755)
    return canonical(result.values())


def _kept(entry: Entry) -> Entry | None:
    if entry.name in _EMPTIED and entry.kind == "file":
        return replace(entry, size=0, content=None, inode=None)
    if entry.name in _STUBS and entry.kind == "file" and not entry.size:
        return None
    is_marker = entry.parts[-1].startswith(WHITEOUT)
    if is_marker:
        return None if _is_aufs(entry) else replace(entry, mode=_WHITEOUT_MODE, uid=0, gid=0)
    if entry.kind == "folder":
        return None if entry.name in _MOUNT_POINTS else entry
    return None if _VOLATILE.fullmatch(entry.name) else entry


def _is_aufs(entry: Entry) -> bool:
    """Tell whether it is one of AUFS's own files, which mean nothing in a layer."""
    last = entry.parts[-1]
    return last.startswith(WHITEOUT * 2) and last != OPAQUE


def _passed(entry: Entry, tree: Tree) -> bool:
    below = tree.known.get(entry.name)
    return entry.kind == "folder" and below is not None and _same_folder(below, entry)


def _same_folder(one: Entry, other: Entry) -> bool:
    return (one.mode, one.uid, one.gid, one.capability) == (other.mode, other.uid, other.gid, other.capability)


def _refuse_dated(entry: Entry) -> None:
    if entry.kind != "file" or not entry.name.endswith(b".pyc") or entry.content is None:
        return
    with entry.content() as stream:
        flags = stream.read(8)[4:5]
    if not flags or not flags[0] & _HASH_BASED:
        raise BuildError(
            f"{entry.path} remembers the date of its source, and every date of an image is changed",
            remedy="compile with `python -m compileall --invalidation-mode unchecked-hash`, or remove the file",
        )


class Tree:
    """The files and folders of an image as its layers pile up; ``known`` are the folders, with their owners and modes."""

    def __init__(self) -> None:
        self.known: dict[bytes, Entry] = {}
        self._files: dict[bytes, Entry] = {}

    def holds(self, entry: Entry) -> bool:
        """Tell whether a file lies there already as ``entry`` is, apart from its date."""
        below = self._files.get(entry.name)
        if below is None or below != entry:
            return False
        return entry.content is None or (below.content is not None and _same_bytes(below.content, entry.content))

    def apply(self, entries: Iterable[Entry]) -> None:
        """Put a layer on top: what it hides, then what it brings."""
        entries = list(entries)
        for entry in entries:
            name = _hides(entry)
            if name is not None:
                self._forget(name, itself=entry.parts[-1] != OPAQUE)
            elif entry.kind != "folder" and entry.name in self.known:
                self._forget(entry.name, itself=True)
        for entry in entries:
            if entry.kind == "folder":
                self.known[entry.name] = replace(entry, content=None)
                self._files.pop(entry.name, None)
            elif not entry.parts[-1].startswith(WHITEOUT):
                self._files[entry.name] = entry
            for parent in parents_of(entry.name):  # a tar may name a file and none of its folders
                self.known.setdefault(parent, Entry(name=parent, kind="folder", mode=0o755))

    def _forget(self, name: bytes, *, itself: bool) -> None:
        for there in (self.known, self._files):
            for each in [each for each in there if each.startswith(name + b"/") or (itself and each == name)]:
                del there[each]


def _hides(entry: Entry) -> bytes | None:
    """Return the path below which a marker hides what is there, or at which; None where the entry is no marker."""
    *above, last = entry.parts
    if last == OPAQUE:
        return b"/".join(above)
    return b"/".join([*above, last.removeprefix(WHITEOUT)]) if last.startswith(WHITEOUT) else None


def _same_bytes(one: Callable[[], IO[bytes]], other: Callable[[], IO[bytes]]) -> bool:
    with one() as left, other() as right:
        while (chunk := left.read(_CHUNK)) == right.read(_CHUNK):
            if not chunk:
                return True
    return False
