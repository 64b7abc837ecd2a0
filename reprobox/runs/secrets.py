"""Secrets on their way into a box: files in memory that only the caller can read, gone when the run is over.

In a variable they would be in the engine's ``inspect``, on its disk, and in any image committed from the box.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.errors import BoxError, UsageError
from reprobox.files import read_at_most, read_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reprobox.runs.store import RunRecord

__all__ = ["SECRETS", "parse_secrets", "remove_secrets", "secrets_folder", "write_secrets"]

SECRETS = "/run/secrets"
"""Where the box has them, as in Docker's own secrets."""

NOTE = "secrets.path"
"""The file of a record that says where its secrets are, while they are there."""

_LARGEST = 1 << 20
_LONGEST_PATH = 4096


def parse_secrets(entries: Iterable[str], host: Mapping[str, str], directory: Path) -> dict[str, bytes]:
    """Read ``--secret NAME=FILE``, or ``NAME`` for the value of the host's variable of that name.

    :raises UsageError: for a malformed name, a file that cannot be read, or a variable that is not set.
    """
    from reprobox.runs.options import checked_variable

    result = {}
    for entry in entries:
        name, separator, file = entry.partition("=")
        checked_variable(name, "--secret")
        if separator:
            try:
                value = read_at_most(directory / Path(file).expanduser(), _LARGEST)
            except (OSError, ValueError, RuntimeError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
                raise UsageError(
                    f"--secret {name}: {file!r} cannot be read ({reason})", remedy="name a file that you may read"
                ) from error
        elif name in host:
            value = os.fsencode(host[name])
        else:
            raise UsageError(f"--secret {name}: your environment has no {name}", remedy=f"set it, or give {name}=FILE")
        if not value or len(value) > _LARGEST or b"\0" in value:
            what = "is empty" if not value else "holds a NUL byte" if b"\0" in value else "is larger than 1 MiB"
            raise UsageError(f"--secret {name}: its value {what}", remedy="give a text of at most 1 MiB")
        result[name] = value
    return result


def secrets_folder(run_id: str) -> Path:
    """Return where a run's secrets lie on the host: in the user's runtime folder, which is in memory, if there is one.

    Not in /dev/shm: every box with ``--ipc host`` has that.
    """
    homes = (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}", "/run", tempfile.gettempdir())
    home = next(home for home in homes if Path(home).is_absolute() and os.access(home, os.W_OK | os.X_OK))
    return Path(home) / f"reprobox-{os.getuid()}-{run_id}"


def write_secrets(record: RunRecord, folder: Path, secrets: Mapping[str, bytes], owner: tuple[int, int]) -> None:
    """Write each secret to a file in ``folder`` that ``owner`` (user and group id) alone may read.

    ``record`` notes where, so that any process that completes it can remove them.

    :raises BoxError: when they cannot be written, or the owner is another user and this one is not root.
    """
    try:
        (record.folder / NOTE).write_text(str(folder), encoding="utf-8")
        folder.mkdir(mode=0o700)
        for name, value in secrets.items():
            path = folder / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
            with os.fdopen(descriptor, "wb") as file:
                file.write(value)
        if owner != (os.getuid(), os.getgid()):
            for path in (*folder.iterdir(), folder):
                os.chown(path, *owner)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BoxError(
            f"the secrets cannot be handed to the box ({error.strerror})",
            remedy=f"run as yourself, without -u, and see that {folder.parent} has room",
        ) from error


def remove_secrets(record: RunRecord) -> None:
    """Remove what :func:`write_secrets` wrote for a run, wherever its process found room for it."""
    note = record.folder / NOTE
    try:
        folder = Path(read_untrusted(note, _LONGEST_PATH).decode())
    except (OSError, UnicodeDecodeError):
        return
    if folder.name == f"reprobox-{os.getuid()}-{record.id}":
        shutil.rmtree(folder, ignore_errors=True)
    note.unlink(missing_ok=True)
