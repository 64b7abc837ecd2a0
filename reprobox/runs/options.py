"""The text of ``run``'s options turned into plain data: environment variables, names, what is text at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reprobox.errors import UsageError
from reprobox.files import read_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["checked_text", "checked_variable", "parse_env_file", "parse_environment", "parse_name"]

_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
_LARGEST = 1 << 20


def checked_text(text: str, flag: str) -> str:
    """Refuse what an engine's JSON, a hosts file or a log line would read as something else."""
    if not text:
        raise UsageError(f"{flag} has no value", remedy="give one, or leave the flag out")
    if _NO_TEXT.search(text):
        raise UsageError(
            f"{flag} cannot be {text!a}: it holds a control character or bytes that are no UTF-8", remedy="remove them"
        )
    return text


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
        lines = [line.rstrip("\r") for line in read_at_most(path, _LARGEST).decode("utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
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
