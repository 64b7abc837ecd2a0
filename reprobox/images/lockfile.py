"""``reprobox.lock``: every package and image of a project by content, and never where anything is fetched from.

Each package has a table of its own, in a fixed order, so that two branches that each add one merge as text does.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    canonicalize_version,
    parse_sdist_filename,
    parse_wheel_filename,
)

from reprobox.errors import LockDamaged, LockError
from reprobox.files import read_at_most, write_atomically
from reprobox.images.lockmodel import (
    PLATFORMS,
    VARIANTS,
    Inputs,
    Layer,
    Lock,
    LockedDeb,
    LockedImage,
    LockedSdist,
    LockedWheel,
    Missing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "LOCK_NAME",
    "SCHEMA",
    "dump_lock",
    "parse_lock_file",
    "read_lock",
    "require_lock",
    "write_lock",
]

LOCK_NAME: Final = "reprobox.lock"
SCHEMA: Final = "reprobox.lock/1"

_SEAL: Final = 12  # hex digits: against slips, not against an attacker, who would seal again
_LARGEST: Final = 32 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9 ./:_+<>=!~;',@*\[\]()%-]*")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!~%-]*")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~:!-]*")
_HEADER: Final = (
    "# Every package of this project's image, by content. Written by `reprobox lock`; commit it, and do not edit it."
)


def read_lock(path: Path) -> Lock | None:
    """Return the lock at ``path``, or None where there is none.

    :raises LockError: it cannot be read, or is of a newer reprobox.
    :raises LockDamaged: it is not what ``reprobox lock`` writes.
    """
    try:
        text = read_at_most(path, _LARGEST).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LockError(
            f"{path} cannot be read ({error})", remedy="restore it, or write it again: reprobox lock"
        ) from error
    return parse_lock_file(text, source=str(path))


def require_lock(root: Path) -> Lock:
    """Return the lock of the project at ``root``. :raises LockError: as :func:`read_lock`, and where there is none."""
    lock = read_lock(root / LOCK_NAME)
    if lock is None:
        raise LockError(f"{root} has no {LOCK_NAME}", remedy="write one: reprobox lock")
    return lock


def parse_lock_file(text: str, *, source: str = LOCK_NAME) -> Lock:
    """Parse the text of a lock; fields it does not know are passed over.

    :param source: how an error names the file.
    :raises LockError: as :func:`read_lock`.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        conflict = (
            "it holds the marks of an unfinished merge"
            if re.search(r"^(<<<<<<<|>>>>>>>)", text, re.MULTILINE)
            else error
        )
        raise _broken(source, f"it is not valid TOML ({conflict})") from error
    _check_schema(document.get("schema"), source)
    try:
        lock = Lock(
            inputs=_inputs(document.get("inputs")),
            wheels=_entries(document, "wheel", LockedWheel, _checked_wheel),
            sdists=_entries(document, "sdist", LockedSdist, _checked_sdist),
            debs=_entries(document, "deb", LockedDeb, _checked_deb),
            missing=_entries(document, "missing", Missing, lambda one: one),
            images=_images(document.get("images", {})),
        )
    except _BadEntryError as error:
        raise _broken(source, str(error)) from error
    if twice := _twice(lock):
        raise _broken(source, f"{twice}, as after a merge that kept both sides")
    return lock


def write_lock(path: Path, lock: Lock) -> None:
    """Write ``lock`` to ``path``, whole or not at all. :raises LockError: where it cannot be written."""
    try:
        write_atomically(path, dump_lock(lock).encode())
    except OSError as error:
        raise LockError(f"{path} cannot be written ({error.strerror})", remedy="make the folder writable") from error


def dump_lock(lock: Lock) -> str:
    """Return the text of ``lock``: the same lock gives the same text, whatever order its packages came in."""
    parts = [f"{_HEADER}\nschema = {_toml(SCHEMA)}\n"]
    inputs = lock.inputs
    lines = [f"{name} = {_toml(list(getattr(inputs, name)))}" for name in ("variants", "python", "apt", "sdists")]
    parts.append("\n".join(["[inputs]", *lines]) + "\n")
    parts.append(_table("inputs.base", dict(sorted(inputs.base.items()))))
    for variant, image in sorted(lock.images.items()):
        parts.append(_table(f"images.{variant}", _as_table(image)))
    for name, entries in (
        ("missing", lock.missing),
        ("deb", lock.debs),
        ("wheel", lock.wheels),
        ("sdist", lock.sdists),
    ):
        parts += [_table(f"[{name}]", _sealed(_as_table(entry))) for entry in sorted(entries, key=_order)]
    return "\n".join(parts)


class _BadEntryError(Exception):
    """What is wrong with one entry."""


E = TypeVar("E", LockedWheel, LockedSdist, LockedDeb, Missing)


def _broken(source: str, why: str) -> LockDamaged:
    return LockDamaged(f"{source} is damaged: {why}", remedy="restore it, or write it again: reprobox lock")


def _check_schema(schema: object, source: str) -> None:
    if schema == SCHEMA:
        return
    name, _, version = str(schema).rpartition("/")
    if name == SCHEMA.rpartition("/")[0] and version.isdecimal() and len(version) < 10:
        raise LockError(f"{source} was written by a newer reprobox ({schema})", remedy="upgrade reprobox")
    raise _broken(source, f"its schema is not {SCHEMA}")


def _inputs(table: object) -> Inputs:
    if not isinstance(table, dict):
        raise _BadEntryError("it has no table [inputs]")
    base = table.get("base")
    if not isinstance(base, dict) or not all(isinstance(v, str) and _DIGEST.fullmatch(v) for v in base.values()):
        raise _BadEntryError("inputs.base is no table of digests")
    return Inputs(
        variants=_words(table, "variants", "inputs", VARIANTS),
        python=_words(table, "python", "inputs"),
        apt=_words(table, "apt", "inputs"),
        sdists=_words(table, "sdists", "inputs"),
        base=base,
    )


def _images(table: object) -> dict[str, LockedImage]:
    if not isinstance(table, dict):
        raise _BadEntryError("images is no table")
    images = {}
    for variant, image in table.items():
        names = [one.name for one in fields(LockedImage)]
        if variant not in VARIANTS or not isinstance(image, dict):
            raise _BadEntryError(f"images.{variant} is none of {', '.join(VARIANTS)}")
        known = {name: value for name, value in image.items() if name in names}
        if not all(isinstance(value, str) for value in known.values()):
            raise _BadEntryError(f"a value of images.{variant} is no text")
        if not _DIGEST.fullmatch(known.get("config_digest", "")):
            raise _BadEntryError(f"images.{variant} has no config_digest")
        if known.get("repo_digest") and not _DIGEST.fullmatch(known["repo_digest"]):
            raise _BadEntryError(f"the repo_digest of images.{variant} is no digest")
        images[variant] = LockedImage(**known)
    return images


def _entries(document: Mapping[str, Any], key: str, kind: type[E], checked: Callable[[E], E]) -> tuple[E, ...]:
    tables = document.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _BadEntryError(f"[[{key}]] is no list of tables")
    return tuple(sorted((checked(_entry(table, key, kind)) for table in tables), key=_order))


def _entry(table: Mapping[str, Any], key: str, kind: type[E]) -> E:
    label = f"the {key} {table.get('name', 'without a name')}"
    values: dict[str, Any] = {}
    for one in fields(kind):
        value = table.get(one.name)
        match one.name:
            case "variants":
                values[one.name] = _words(table, one.name, label, VARIANTS)
            case "platforms":
                values[one.name] = _words(table, one.name, label, PLATFORMS)
            case "requires":
                values[one.name] = _words(table, one.name, label) if one.name in table else ()
            case "size":
                if not (value is None or (type(value) is int and 0 <= value < 2**63)):
                    raise _BadEntryError(f"{label} has no size in bytes")
                values[one.name] = value
            case _:
                values[one.name] = _text(one.name, value, label)
    entry = kind(**values)
    if table.get("seal") != _sealed(_as_table(entry))["seal"]:
        raise _BadEntryError(f"{label} was edited")
    return entry


_GRAMMARS: Final[Mapping[str, re.Pattern[str]]] = {
    "sha256": _SHA256,
    "file": _FILE,
    "variant": re.compile("|".join(VARIANTS)),
    "platform": re.compile("|".join(PLATFORMS)),
    "layer": re.compile("|".join(get_args(Layer))),
}


def _text(name: str, value: object, label: str) -> str:
    grammar = _GRAMMARS.get(name, _WORD)
    if not isinstance(value, str) or not grammar.fullmatch(value):
        raise _BadEntryError(
            f"{label} has no {name}" if value is None else f"the {name} of {label} cannot be {value!r}"
        )
    return value


def _words(table: Mapping[str, Any], name: str, label: str, known: tuple[str, ...] = ()) -> tuple[Any, ...]:
    value = table.get(name)
    fits = isinstance(value, list) and all(isinstance(word, str) and (not known or word in known) for word in value)
    if not fits or (known and not value and label != "inputs"):
        raise _BadEntryError(f"{label} has no list of {name}" + (f" ({', '.join(known)})" if known else ""))
    assert isinstance(value, list)
    return tuple(sorted(set(value), key=known.index if known else None))


def _checked_wheel(wheel: LockedWheel) -> LockedWheel:
    try:
        name, version, _, _ = parse_wheel_filename(wheel.file)
    except InvalidWheelFilename as error:
        raise _BadEntryError(f"the file of the wheel {wheel} is no wheel: {wheel.file}") from error
    return _fits(wheel, name, str(version))


def _checked_sdist(sdist: LockedSdist) -> LockedSdist:
    try:
        name, version = parse_sdist_filename(sdist.file)
    except InvalidSdistFilename as error:
        raise _BadEntryError(f"the file of the sdist {sdist} is none: {sdist.file}") from error
    return _fits(sdist, name, str(version))


D = TypeVar("D", LockedWheel, LockedSdist)


def _fits(entry: D, name: str, version: str) -> D:
    if canonicalize_name(entry.name) != name or canonicalize_version(entry.version) != canonicalize_version(version):
        raise _BadEntryError(f"the entry {entry} and its file {entry.file} are of two packages")
    return replace(entry, name=str(name))


def _checked_deb(deb: LockedDeb) -> LockedDeb:
    # apt writes the colon of an epoch as %3a in a file's name.
    if deb.file.replace("%3a", ":") != f"{deb.name}_{deb.version}_{deb.architecture}.deb":
        raise _BadEntryError(f"the entry {deb} and its file {deb.file} are of two packages")
    return deb


def _twice(lock: Lock) -> str | None:
    """Return what the lock names more than once: of a package, each image on each platform has one version."""
    places: Counter[tuple[str, str, str]] = Counter()
    packages: tuple[LockedWheel | LockedSdist, ...] = (*lock.wheels, *lock.sdists)
    for wheel in packages:
        places.update((wheel.name, v, p) for v in wheel.variants for p in wheel.platforms)
    for deb in lock.debs:
        places.update((deb.name, "deb", p) for p in deb.platforms)
    return next((f"{name} is in it twice for {p}" for (name, _, p), count in places.items() if count > 1), None)


def _order(entry: LockedWheel | LockedSdist | LockedDeb | Missing) -> tuple[str, ...]:
    if isinstance(entry, Missing):
        return (entry.name, entry.variant, entry.platform)
    return (entry.name, entry.version, entry.file)


def _as_table(entry: object) -> dict[str, Any]:
    """Return what is written of an entry: nothing that is not known."""
    table = {one.name: getattr(entry, one.name) for one in fields(entry)}  # type: ignore[arg-type]
    return {name: value for name, value in table.items() if value not in (None, "", ())}


def _sealed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with the digest over it, by which an edit of it is seen without asking an index."""
    return {**table, "seal": hashlib.sha256(_table("", table).encode()).hexdigest()[:_SEAL]}


def _table(heading: str, values: Mapping[str, Any]) -> str:
    return "\n".join([f"[{heading}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]) + "\n"


def _toml(value: object) -> str:
    """Write a text, a whole number or a list of texts; of TOML, a lock needs no more.

    The strings of JSON are strings of TOML but for DEL, and for surrogates, which no text of a lock holds.
    """
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"    {_toml(one)},\n" for one in value) + "]"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return f'"{value}"'  # nearly every text, and five times as fast; each run reads a lock
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
