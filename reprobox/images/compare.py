"""What tells two images apart: the first path of the first layer in which they differ, and in what."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from reprobox.images.layers import CHUNK, Entry, canonical, entries_of_tar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reprobox.images.archive import Image
    from reprobox.images.layers import Layer

_CONFIG: Final = 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where two images first differ.

    ``layer`` counts from 1, the base's included, and is 0 for the config; ``path`` is the path in the image, or the key
    of the config; ``what`` says the difference, the first image's side first.
    """

    layer: int
    path: str
    what: str

    def __str__(self) -> str:
        place = f"layer {self.layer}" if self.layer else "the config"
        return f"{place}: {self.path}: {self.what}"


def first_difference(one: Image, other: Image) -> Difference | None:
    """Return where two images first differ, layers before the config; None for two that are the same.

    :raises BuildError: a layer that differs is not at hand, or is no tar.
    """
    for number, (left, right) in enumerate(zip_longest(one.layers, other.layers), start=1):
        if left is None or right is None:
            return _extra_layer(number, left, right)
        if left.diff_id != right.diff_id:
            return _in_layer(number, left, right)
    return next(_in_config(one.parsed, other.parsed, ""), None)


def _extra_layer(number: int, left: Layer | None, right: Layer | None) -> Difference:
    layer = left or right
    assert layer is not None
    with layer.open() as stream:
        entries = canonical(entries_of_tar(stream))
    return Difference(layer=number, path=entries[-1].path if entries else "/", what=_only(left is not None))


def _in_layer(number: int, left: Layer, right: Layer) -> Difference:
    with left.open() as one, right.open() as other:
        ours = {entry.name: entry for entry in canonical(entries_of_tar(one))}
        theirs = {entry.name: entry for entry in canonical(entries_of_tar(other))}
        every = {**ours, **theirs}
        for name in sorted(every, key=lambda each: every[each].parts):
            mine, its = ours.get(name), theirs.get(name)
            what = _only(mine is not None) if mine is None or its is None else _of_entries(mine, its)
            if what:
                return Difference(layer=number, path=every[name].path, what=what)
    return Difference(layer=number, path="/", what="the same entries, written in another way")


def _only(in_first: bool) -> str:
    return f"only in the {'first' if in_first else 'second'} image"


def _of_entries(one: Entry, other: Entry) -> str:
    """Return in words what differs between two entries of one name; empty when nothing does."""
    sides = (
        ("kind", one.kind, other.kind),
        ("mode", f"{one.mode:04o}", f"{other.mode:04o}"),
        ("owner", f"{one.uid}:{one.gid}", f"{other.uid}:{other.gid}"),
        ("target", one.link.decode("utf-8", "backslashreplace"), other.link.decode("utf-8", "backslashreplace")),
        ("device", str(one.device), str(other.device)),
        ("capability", (one.capability or b"").hex() or "none", (other.capability or b"").hex() or "none"),
    )
    for name, left, right in sides:
        if left != right:
            return f"{name} {left} and {right}"
    at = _offset(one, other)
    if at is None:
        return ""
    sizes = f" ({one.size} and {other.size} bytes)" if one.size != other.size else ""
    return f"content from byte {at} on{sizes}"


def _offset(one: Entry, other: Entry) -> int | None:
    """Return the first byte in which two contents differ, counted from 0."""
    if one.content is None or other.content is None:
        return None
    done = 0
    with one.content() as left, other.content() as right:
        while True:
            ours, theirs = left.read(CHUNK), right.read(CHUNK)
            if ours != theirs:
                pairs = zip_longest(ours, theirs)
                return done + next(at for at, (mine, its) in enumerate(pairs) if mine != its)
            if not ours:
                return None
            done += len(ours)


def _in_config(one: Mapping[str, Any], other: Mapping[str, Any], above: str) -> Iterator[Difference]:
    for key in sorted({**one, **other}):
        left, right, path = one.get(key), other.get(key), f"{above}{key}"
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _in_config(left, right, f"{path}.")
        elif left != right:
            yield Difference(layer=_CONFIG, path=path, what=f"{left!r} and {right!r}")
