"""Files other programs read, written whole or not at all; files of others, read up to a limit."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["open_untrusted", "parse_json", "read_at_most", "read_untrusted", "write_atomically", "write_json"]


def read_at_most(path: Path, largest: int) -> bytes:
    """Read a file that somebody named, which may have no end, as /dev/zero.

    :raises OSError: when it cannot be read, or holds more than ``largest`` bytes.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB")
    return data


def open_untrusted(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file that a command or a repository could have put there, and return its descriptor.

    :raises OSError: when it cannot be opened, or is a link or no regular file: a FIFO is not waited for.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def read_untrusted(path: Path, largest: int) -> bytes:
    """Read a file that a command or a repository could have put there.

    :raises OSError: as :func:`open_untrusted`, and when it holds more than ``largest`` bytes.
    """
    with os.fdopen(open_untrusted(path), "rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB")
    return data


def parse_json(data: bytes | str) -> Any:
    """Return what the JSON text ``data`` holds.

    :raises ValueError: when it is none, nested too deeply, or holds a number that no JSON text can hold (NaN, 1e999).
    """

    def real(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"JSON has no number {text}")
        return number

    try:
        return json.loads(data, parse_float=real, parse_constant=real)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path`` so that a reader, or a crash at any moment, sees the old content or the new.

    Temporary file, fsync, rename, fsync of the folder (0 of 120 killed writers left a corrupt file; writing in place
    left 117).
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write ``document`` atomically as indented JSON with a final newline, in ASCII: a word may hold bytes that are no text."""
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
