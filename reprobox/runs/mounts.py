"""Where the box has other folders than its own: ``-v``, ``--mount`` and ``--tmpfs``, and what none of them may cover."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reprobox.engines.base import Mount
from reprobox.errors import BoxError, UsageError, near_miss
from reprobox.project import WORKSPACE
from reprobox.runs.options import checked_text

__all__ = ["BOX_HOME", "Tmpfs", "checked_inside_the_project", "parse_mount", "parse_tmpfs", "parse_volume"]

PROTECTED = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/reprobox",
    "/opt/venv",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lock",
    "/var/run",
)
"""Folders of the box that no mount may cover, hold or reach into: the system's and reprobox's own."""

BOX_HOME = "/home/box"
"""Where the box keeps the caller's home: a mount may lie in it or take its place, and not cover what is above it."""

_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")


class Tmpfs(NamedTuple):
    """A folder of the box in memory, and its mount options as the kernel takes them."""

    target: str
    options: str


def parse_volume(text: str, directory: Path, flag: str = "-v") -> Mount:
    """Read Docker's ``-v SOURCE:TARGET[:ro|rw]``; a relative source (``./data``) counts from ``directory``.

    :param flag: how an error names where it was given.
    :raises UsageError: for a malformed value or a protected target.
    :raises BoxError: when the source does not exist: it is never created.
    """
    given = f"{flag} {checked_text(text, flag)}"
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"{flag} cannot be {text!r}", remedy="give SOURCE:TARGET or SOURCE:TARGET:ro")
    source, target, mode = (*parts, "rw")[:3]
    if mode not in ("ro", "rw"):
        raise UsageError(f"{given}: the mode cannot be {mode!r}", remedy="give ro or rw")
    clean, read_only = checked_target(target, given), mode == "ro"
    if source.startswith(("/", ".", "~")):
        return Mount(source=checked_source(source, directory, given), target=clean, read_only=read_only)
    if _looked_up(source, directory, given)[1]:
        raise UsageError(
            f"{given}: {source} would be a volume's name, and here is a file or folder called so",
            remedy=f"write ./{source} for the one that is here",
        )
    name = _volume_name(source, given, "write ./ before a path")
    return Mount(source=name, target=clean, read_only=read_only, kind="volume")


def parse_mount(text: str, directory: Path) -> Mount | Tmpfs:
    """Read Docker's ``--mount type=…,source=…,target=…``; a relative source counts from ``directory``.

    :raises UsageError: for a key reprobox does not take, a malformed value, or a protected source or target.
    :raises BoxError: when the source does not exist: it is never created.
    """
    given = f"--mount {checked_text(text, '--mount')}"
    fields = _mount_fields(text, given)
    kind, source = fields.get("type", "volume"), fields.get("source", "")
    if kind not in ("bind", "volume", "tmpfs"):
        raise UsageError(f"{given}: the type cannot be {kind!r}", remedy="give bind, volume or tmpfs")
    if "target" not in fields:
        raise UsageError(f"{given}: there is no target", remedy="add target=PATH")
    if bool(source) == (kind == "tmpfs"):
        remedy = "drop source=" if source else "add source=, or take type=tmpfs for a folder that is not kept"
        raise UsageError(f"{given}: type={kind} has {'no' if source else 'to have a'} source", remedy=remedy)
    for key in ("size", "mode"):
        if key in fields and kind != "tmpfs":
            raise UsageError(f"{given}: tmpfs-{key} is for type=tmpfs alone", remedy="drop it")
    target, read_only = checked_target(fields["target"], given), fields.get("readonly") == "true"
    if kind == "tmpfs":
        words = [f"{key}={fields[key]}" for key in ("size", "mode") if key in fields]
        return Tmpfs(target, _tmpfs_options(["ro", *words] if read_only else words, given))
    if kind == "bind":
        return Mount(source=checked_source(source, directory, given), target=target, read_only=read_only)
    name = _volume_name(source, given, "add type=bind for a file or folder")
    return Mount(source=name, target=target, read_only=read_only, kind="volume")


def parse_tmpfs(text: str) -> Tmpfs:
    """Read ``--tmpfs PATH[:OPTIONS]``; the options begin with Docker's rw,noexec,nosuid,nodev where not set otherwise.

    :raises UsageError: for a protected target and an option Docker does not have.
    """
    checked_text(text, "--tmpfs")
    path, colon, options = text.partition(":")
    words = options.split(",") if colon else []
    return Tmpfs(checked_target(path, f"--tmpfs {text}"), _tmpfs_options(words, f"--tmpfs {text}"))


def checked_target(target: str, given: str) -> str:
    """Return the normalised mount target. :raises UsageError: where it is relative or reaches into the system."""
    clean = posixpath.normpath(target)
    if not target.startswith("/"):
        raise UsageError(
            f"{given}: the target {target!r} is not absolute", remedy=f"give a path such as {WORKSPACE}/data"
        )
    clean = "/" + clean.lstrip("/")
    covered = any(
        clean == p or clean.startswith(p + "/") or (p + "/").startswith(clean.rstrip("/") + "/") for p in PROTECTED
    )
    if covered or BOX_HOME.startswith(clean.rstrip("/") + "/"):
        raise UsageError(
            f"{given}: {clean} belongs to the box's system and cannot be mounted over",
            remedy=f"choose a target such as {WORKSPACE}/data or /data",
        )
    return clean


def checked_source(source: str, directory: Path, given: str) -> str:
    """Return the resolved source of a bind mount, relative to ``directory``.

    :raises UsageError: where it leads to the engine or the kernel.
    :raises BoxError: when it does not exist or cannot be read.
    """
    path, there = _looked_up(source, directory, given)
    if not there:
        raise BoxError(
            f"{given}: {path} does not exist", remedy="create it first; reprobox never creates a mount source"
        )
    if reaches_the_engine(path):
        raise UsageError(
            f"{given}: {path} leads to the engine or the kernel, and so to the whole machine",
            remedy="mount a folder that holds data alone",
        )
    return checked_text(str(path), f"{given}: the source")


def _looked_up(source: str, directory: Path, given: str) -> tuple[Path, bool]:
    """Return the resolved path, and whether there is something."""
    try:
        path = (directory / Path(source).expanduser()).resolve()
        return path, path.exists()
    except (OSError, RuntimeError) as error:
        raise BoxError(
            f"{given}: {source} cannot be read ({error})", remedy="name a file or folder you may read"
        ) from error


def _volume_name(source: str, given: str, remedy: str) -> str:
    if not _VOLUME_NAME.fullmatch(source):
        raise UsageError(f"{given}: {source!r} is no volume's name", remedy=remedy)
    return source


def checked_inside_the_project(target: str, root: Path, given: str) -> None:
    """Look at the way to a target below /workspace in the project at ``root``; ``given`` is what was typed.

    :raises UsageError: where a symbolic link would lead the mount elsewhere in the box, and for the runs' records.
    """
    if not target.startswith(f"{WORKSPACE}/"):
        return
    path = root
    for part in target.removeprefix(f"{WORKSPACE}/").split("/"):
        path /= part
        if os.path.islink(path) or part == ".reprobox":  # noqa: PTH114  # Path's raises where a folder is closed
            raise UsageError(
                f"{given}: {path} " + ("holds the runs' records" if part == ".reprobox" else "is a symbolic link"),
                remedy="choose a target whose folders are real, such as /data",
            )


def reaches_the_engine(path: Path) -> bool:
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    sockets = [
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        f"{runtime}/docker.sock",
        f"{runtime}/podman/podman.sock",
        os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock",
    ]
    resolved = [Path(socket).resolve() for socket in sockets]
    stores = [Path(folder) for folder in ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers")]
    # /proc/PID/root of a process of this user leads to every socket there is.
    kernel = [Path(folder) for folder in ("/proc", "/sys", "/dev")]
    return (
        any(path == socket or path in socket.parents for socket in resolved)
        or any(path.is_relative_to(store) or store.is_relative_to(path) for store in stores)
        or any(path.is_relative_to(folder) and not path.is_relative_to("/dev/shm") for folder in kernel)  # noqa: S108
    )


_MOUNT_KEYS = {
    "type": "type",
    "source": "source",
    "src": "source",
    "target": "target",
    "dst": "target",
    "destination": "target",
    "readonly": "readonly",
    "ro": "readonly",
    "tmpfs-size": "size",
    "tmpfs-mode": "mode",
}
_SWITCH = {"": "true", "true": "true", "1": "true", "false": "false", "0": "false"}


def _mount_fields(text: str, given: str) -> dict[str, str]:
    """Return the fields by their chief names; a field with a comma in it stands in quotes, as in CSV."""
    import csv

    try:
        (row,) = csv.reader([text], strict=True)
    except csv.Error as error:
        raise UsageError(
            f"{given}: a quote is not closed or stands inside a field", remedy="quote whole fields"
        ) from error
    result: dict[str, str] = {}
    for field in row:
        key, equals, value = field.partition("=")
        name = _MOUNT_KEYS.get(key.lower())
        if name is None:
            raise UsageError(
                f"{given}: run has no {key!r} in --mount{near_miss(key, _MOUNT_KEYS)}",
                remedy=f"give {', '.join(_MOUNT_KEYS)}",
            )
        if name in result:
            raise UsageError(f"{given}: {name} is given twice", remedy="give it once")
        if name == "readonly" and (value or not equals):
            value = _SWITCH.get(value.lower(), "")
        if not value or value != value.strip() or '"' in value:
            raise UsageError(f"{given}: {key} cannot be {field.partition('=')[2]!r}", remedy=f"give {key}=VALUE")
        result[name] = value
    return result


_TMPFS_DEFAULTS = ("rw", "noexec", "nosuid", "nodev")
_TMPFS_SWITCHES = {"rw": 0, "ro": 0, "exec": 1, "noexec": 1, "suid": 2, "nosuid": 2, "dev": 3, "nodev": 3}
_TMPFS_VALUES = {
    "size": r"[1-9][0-9]{0,18}[kmgtKMGT]?|(?:[1-9][0-9]?|100)%",
    "mode": r"[0-7]{3,5}",
    "uid": r"[0-9]{1,10}",
    "gid": r"[0-9]{1,10}",
    "nr_inodes": r"[1-9][0-9]{0,18}[kmgKMG]?",
}


def _tmpfs_options(words: Iterable[str], given: str) -> str:
    chosen: dict[object, str] = dict(enumerate(_TMPFS_DEFAULTS))
    for word in words:
        key, _, value = word.partition("=")
        if word in _TMPFS_SWITCHES:
            chosen[_TMPFS_SWITCHES[word]] = word
        elif key in _TMPFS_VALUES and re.fullmatch(_TMPFS_VALUES[key], value):
            chosen[key] = word
        else:
            known = ", ".join([*_TMPFS_SWITCHES, *(f"{name}=" for name in _TMPFS_VALUES)])
            raise UsageError(f"{given}: {word!r} is no option of a tmpfs", remedy=f"choose of {known}")
    return ",".join(chosen.values())
