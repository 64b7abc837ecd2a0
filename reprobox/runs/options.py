"""The text of ``run``'s options turned into plain data: mounts, environment variables, names."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.engines import Mount
from reprobox.errors import BoxError, UsageError
from reprobox.project import WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["checked_inside_the_project", "parse_env_file", "parse_environment", "parse_name", "parse_volume"]

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
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")


def parse_volume(text: str, directory: Path) -> Mount:
    """Read Docker's ``-v SOURCE:TARGET[:ro|rw]``; a relative source (``./data``) counts from ``directory``.

    :raises UsageError: for a malformed value or a protected target.
    :raises BoxError: when the source does not exist: it is never created.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"-v cannot be {text!r}", remedy="give SOURCE:TARGET or SOURCE:TARGET:ro")
    source, target, mode = (*parts, "rw")[:3]
    if mode not in ("ro", "rw"):
        raise UsageError(f"-v {text}: the mode cannot be {mode!r}", remedy="give ro or rw")
    clean = checked_target(target, f"-v {text}")
    if not source.startswith(("/", ".", "~")):
        if (directory / source).exists():
            raise UsageError(
                f"-v {text}: {source} would be a volume's name, and here is a file or folder called so",
                remedy=f"write ./{source} for the one that is here",
            )
        if not _VOLUME_NAME.fullmatch(source):
            raise UsageError(
                f"-v {text}: {source!r} is neither a path nor a volume's name", remedy="write ./ before a path"
            )
        return Mount(source=source, target=clean, read_only=mode == "ro", kind="volume")
    try:
        path = (directory / Path(source).expanduser()).resolve()
        there = path.exists()
    except (OSError, RuntimeError) as error:
        raise BoxError(
            f"-v {text}: {source} cannot be read ({error})", remedy="name a file or folder you may read"
        ) from error
    if not there:
        raise BoxError(
            f"-v {text}: {path} does not exist", remedy="create it first; reprobox never creates a mount source"
        )
    if reaches_the_engine(path):
        raise UsageError(
            f"-v {text}: {path} holds the engine's socket, and with it the whole machine",
            remedy="mount a folder further down",
        )
    return Mount(source=str(path), target=clean, read_only=mode == "ro")


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


def checked_inside_the_project(mount: Mount, root: Path) -> Mount:
    """Refuse a mount below /workspace that a symlink of the project would lead elsewhere in the box."""
    if not mount.target.startswith(f"{WORKSPACE}/"):
        return mount
    path = root
    for part in mount.target.removeprefix(f"{WORKSPACE}/").split("/"):
        path /= part
        if path.is_symlink() or part == ".reprobox":
            raise UsageError(
                f"-v {mount.source}:{mount.target}: {path} "
                + ("is a symbolic link" if path.is_symlink() else "holds the runs' records"),
                remedy="choose a target whose folders are real, such as /data",
            )
    return mount


def reaches_the_engine(path: Path) -> bool:
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    sockets = [
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/var/lib/docker/x",
        "/var/lib/containerd/x",
        f"{runtime}/docker.sock",
        f"{runtime}/podman/podman.sock",
        os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock",
    ]
    resolved = [Path(socket).resolve() for socket in sockets]
    return any(path == socket or path in socket.parents for socket in resolved)


def parse_environment(entries: Iterable[str], host: Mapping[str, str]) -> dict[str, str | None]:
    """Read Docker's ``-e NAME=VALUE`` and ``-e NAME``; the latter takes the host's value, or removes the image's.

    :raises UsageError: for an empty or malformed name, and for the recipe's own variables.
    """
    result: dict[str, str | None] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        checked_variable(name, "-e")
        if "\0" in value:
            raise UsageError(f"-e {name}: a value cannot contain a NUL byte", remedy="remove it")
        result[name] = value if separator else host.get(name)
    return result


def checked_variable(name: str, flag: str) -> str:
    """Return ``name`` if a box may be given a variable of that name. :raises UsageError: otherwise."""
    if not _KEY.fullmatch(name):
        raise UsageError(f"{flag}: {name!r} is not a variable's name", remedy="give NAME=VALUE or NAME")
    if name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        raise UsageError(f"{flag} {name}: which GPUs the box sees has a flag of its own", remedy="use --gpus")
    if name.startswith(("REPROBOX_", "_REPROBOX_")):
        raise UsageError(
            f"{flag} {name}: the recipe's variables have flags of their own",
            remedy="use --seed, --profile, --threads and the like",
        )
    return name


def parse_env_file(path: Path) -> list[str]:
    """Return the entries of a file in Docker's ``--env-file`` format: one a line, ``#`` begins a comment line.

    :raises UsageError: when it cannot be read as UTF-8 text.
    """
    try:
        # Not splitlines(): a value may hold a form feed or a Unicode line separator.
        lines = [line.rstrip("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"--env-file {path} cannot be read ({reason})", remedy="name a text file of NAME=VALUE lines"
        ) from error
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def parse_name(text: str) -> str:
    """Return a container's name as Docker takes it. :raises UsageError: otherwise."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"--name cannot be {text!r}",
            remedy="use letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return text
