"""What a project asks for beyond its own folder, and whether the person at this machine has allowed it.

A project's files come with a clone, and a box can write them. So what reaches out of the project by them alone holds only
once a person has allowed that very list: here, with ``reprobox trust``, or by its hash in ``REPROBOX_TRUST``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reprobox.engines import EngineName, Mount
from reprobox.errors import ReproboxError, UsageError
from reprobox.files import read_at_most, write_json
from reprobox.project_file import project_file_path
from reprobox.runs.mounts import parse_volume
from reprobox.settings import TRUST_VARIABLE, Origin, Settings, parse_trust
from reprobox.trust_folder import trust_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "HARMLESS",
    "KEYS",
    "Request",
    "Trusted",
    "digest_of",
    "index_requests",
    "mount_request",
    "remember_typed",
    "requests_of",
    "require_trust",
    "sdist_requests",
    "setting_requests",
]

SCHEMA: Final = "reprobox.trust/1"
_LARGEST: Final = 1 << 20
_INDEX: Final = re.compile(r"(--?[a-z-]+)[\s=]*(.*)")
_LONG: Final = {"-i": "--index-url", "-f": "--find-links"}
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, kw_only=True, order=True)
class Request:
    """One thing that is asked for: the key of the project file, or ``index``, and its value in one spelling."""

    key: str
    value: str

    def __str__(self) -> str:
        text = _PASSWORD.sub("(redacted)", f"{self.key} = {self.value}")
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


_SETTINGS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "engine": lambda value: value is EngineName.LOCAL,
    "image": lambda value: value is not None,
    "network": lambda value: value not in ("bridge", "none"),
    "shm_size": lambda value: value is not None,
}
"""Settings of which a value can reach out of the project, and whether this value does."""

KEYS: Final = frozenset({*(name.replace("_", "-") for name in _SETTINGS), "mounts", "python", "allow-sdist"})
"""Keys of the project file that a request can come from."""

HARMLESS: Final[Mapping[str, str]] = {
    "seed": "a number of the recipe",
    "profile": "a part of the recipe",
    "rank-seeds": "a part of the recipe",
    "threads": "a part of the recipe",
    "fill": "a part of the recipe",
    "portable": "a part of the recipe",
    "force-seed": "a part of the recipe",
    "require-signed": "it can only refuse an image",
    "gpus": "without it, the box has them all",
    "selftest": "it is looked at in a box of its own",
    "quiet": "what matters is told all the same",
    "variant": "one of reprobox's own images",
    "apt": "names of packages, from this machine's own sources",
    "environment": "texts of the file, for the box alone",
    "outputs": "paths inside the project, and no links are followed",
}
"""Every other key, and why nothing of it is asked for."""


def setting_requests(settings: Settings, names: Iterable[str]) -> list[Request]:
    """Return what these settings ask for beyond the project, where their values come from the project file."""
    found = []
    for name in names:
        resolved = settings.resolve(name)
        if resolved.origin is Origin.PROJECT and _SETTINGS[name](resolved.value):
            found.append(Request(key=name.replace("_", "-"), value=str(resolved.value)))
    return found


def mount_request(text: str, mount: Mount | None, root: Path) -> Request | None:
    """Return what an entry of ``mounts`` asks for, or ``None`` where its source is in the project at ``root``.

    :param mount: what it was read as; ``None`` where nothing is there yet.
    """
    if mount is not None and mount.kind == "volume":
        return Request(key="mounts", value=text)
    written = root / _expanded(text.partition(":")[0])
    straight = Path(os.path.normpath(written))
    real = straight if mount is None else Path(mount.source)
    if real.is_relative_to(root):
        return None
    # A way through the project is the project's to change, so the list says where it leads.
    leads = written.is_relative_to(root) and real != straight
    return Request(key="mounts", value=f"{text} (leads to {real})" if leads else text)


def index_requests(options: Iterable[str]) -> list[Request]:
    """Return what lines about indexes of a requirements file ask for."""
    found = []
    for line in options:
        match = _INDEX.fullmatch(" ".join(line.split()))
        if match is not None and line.strip() != "--no-index":
            found.append(Request(key="index", value=f"{_LONG.get(match[1], match[1])} {match[2]}".strip()))
    return found


def sdist_requests(names: Iterable[str]) -> list[Request]:
    """Return what taking the source of these Python packages asks for."""
    from packaging.utils import canonicalize_name  # most runs have none, and do not wait for this import

    return [Request(key="allow-sdist", value=canonicalize_name(name)) for name in names]


def requests_of(root: Path) -> tuple[Request, ...]:
    """Return all that the project file and the lock at ``root`` ask for beyond the project, sorted.

    It does not depend on the command line or the environment, but for links of the project that are not there elsewhere.

    :raises UsageError: for a bad key or value of the project file.
    """
    settings = Settings.of_the_file(root)
    project = settings.project
    mounts = [mount_request(text, _mount(text, root), root) for text in project.mounts]
    found = {
        *setting_requests(settings, _SETTINGS),
        *(request for request in mounts if request is not None),
        *sdist_requests([*project.allow_sdist, *_locked_sdists(root)]),
        *index_requests(_index_options(project.python, root)),
    }
    return tuple(sorted(found))


def digest_of(requests: Iterable[Request]) -> str:
    """Return the SHA-256 in hex of a list of requests, in whatever order."""
    listed = sorted({(one.key, one.value) for one in requests})
    return hashlib.sha256(json.dumps([SCHEMA, *listed]).encode()).hexdigest()


def require_trust(followed: Iterable[Request], root: Path, environment: Mapping[str, str] | None = None) -> None:
    """Refuse what a command is about to follow of the project at ``root``, unless the person has allowed it.

    :raises UsageError: naming what is asked for.
    """
    environment = os.environ if environment is None else environment
    asked = set(followed)
    if not asked:
        return
    trusted = Trusted.read(root)
    asked -= set(trusted.typed)
    if not asked:
        return
    listed = requests_of(root)
    given, digest = parse_trust(environment), digest_of(listed)
    if asked <= set(listed) and (given == digest or digest in trusted.lists):
        return
    raise UsageError(
        f"{project_file_path(root) if project_file_path(root).is_file() else root} asks for what reaches out of the project, "
        f"and you have not allowed it{'' if given is None else f' ({TRUST_VARIABLE} is of another list)'}: "
        f"{', '.join(map(str, sorted(asked)))}",
        remedy="see the whole list and allow it with `reprobox trust`",
    )


@dataclass(kw_only=True)
class Trusted:
    """What the person has allowed the project at ``root``: whole lists by their hash, and single requests that were typed."""

    root: Path
    lists: dict[str, list[Request]] = field(default_factory=dict)
    typed: list[Request] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Trusted:
        """Return what is kept of this project; nothing where it cannot be read."""
        trusted = cls(root=root)
        folder = trust_folder()
        if folder is None:
            return trusted
        document = _document(folder / _file_name(root))
        if document.get("project") != str(root):
            return trusted
        lists = document.get("lists")
        for digest, requests in lists.items() if isinstance(lists, dict) else ():
            read = _read_requests(requests)
            if digest_of(read) == digest:
                trusted.lists[digest] = read
        trusted.typed = _read_requests(document.get("typed"))
        return trusted

    @classmethod
    def every(cls) -> list[Trusted]:
        """Return what is kept of every project, by its folder."""
        folder = trust_folder()
        documents = [_document(path) for path in sorted(folder.glob("*.json"))] if folder is not None else []
        return sorted(
            (cls.read(Path(one["project"])) for one in documents if isinstance(one.get("project"), str)),
            key=lambda one: one.root,
        )

    def keep(self) -> None:
        """Write it down. :raises UsageError: where it cannot be written."""
        folder = _folder_to_write()
        document = {
            "schema": SCHEMA,
            "project": str(self.root),
            "lists": {digest: _written(requests) for digest, requests in self.lists.items()},
            "typed": _written(self.typed),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(folder / _file_name(self.root), document)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def forget(self) -> bool:
        """Remove it; return whether there was something. :raises UsageError: where it cannot be removed."""
        folder = _folder_to_write()
        try:
            (folder / _file_name(self.root)).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _cannot_write(folder, error) from error
        return True


def remember_typed(requests: Iterable[Request], root: Path) -> None:
    """Keep what was typed and is then in a file of the project (``lock --allow-sdist``): it was a person who allowed it."""
    trusted = Trusted.read(root)
    trusted.typed = sorted({*trusted.typed, *requests})
    trusted.keep()


def _folder_to_write() -> Path:
    folder = trust_folder()
    if folder is None:
        raise UsageError(
            "what you allow cannot be kept, since you have no folder for it",
            remedy=f"set HOME, or XDG_STATE_HOME to a folder of yours, or set {TRUST_VARIABLE}",
        )
    return folder


def _cannot_write(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"what you allow cannot be kept in {folder} ({error.strerror})",
        remedy="make it writable, or set XDG_STATE_HOME to a folder of yours",
    )


def _file_name(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:32] + ".json"


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_at_most(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else {}


def _written(requests: Iterable[Request]) -> list[list[str]]:
    return [[one.key, one.value] for one in requests]


def _read_requests(written: object) -> list[Request]:
    pairs = written if isinstance(written, list) else []
    return [
        Request(key=str(pair[0]), value=str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2
    ]


def _expanded(source: str) -> str:
    try:
        return str(Path(source).expanduser())
    except RuntimeError:
        return source


def _mount(text: str, root: Path) -> Mount | None:
    try:
        return parse_volume(text, root, "mounts")
    except ReproboxError:
        return None


def _locked_sdists(root: Path) -> set[str]:
    from reprobox.errors import LockError
    from reprobox.images.lockfile import LOCK_NAME, read_lock

    try:
        lock = read_lock(root / LOCK_NAME)
    except LockError:
        return set()  # no command follows such a lock
    return set() if lock is None else {*lock.inputs.sdists, *(one.name for one in lock.sdists)}


def _index_options(python: str | tuple[str, ...], root: Path) -> tuple[str, ...]:
    from reprobox.images.requirements import index_options

    try:
        return index_options(python, root)
    except ReproboxError:
        return ()  # no command follows such a file
