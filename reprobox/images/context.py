"""The build context as one tar whose bytes depend on its content alone."""

from __future__ import annotations

import io
import tarfile
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

EPOCH: Final = 1735689600
"""2025-01-01 00:00 UTC: the date of everything reprobox makes, so that no file carries the day it was made."""

_PROGRAMS: Final = frozenset(
    {"docker/entrypoint", "docker/install-hook.sh", "docker/make-venv.sh", "docker/prepare-base.sh"}
)


def write_context(files: Mapping[str, Path | bytes], out: IO[bytes], *, backwards: bool = False) -> None:
    """Write ``files`` (name in the context → content, or the path of it) to ``out`` as an uncompressed tar.

    Names are sorted, folders implied, owner root, modes 0644 (0755 for programs), and every date is :data:`EPOCH`.
    ``backwards`` writes the files from the last name to the first, for a check that the order does not matter.
    """
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in sorted({parent for name in files for parent in _parents(name)}):
            archive.addfile(_entry(folder, mode=0o755, kind=tarfile.DIRTYPE))
        for name, source in sorted(files.items(), reverse=backwards):
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                entry = _entry(name, mode=0o755 if name in _PROGRAMS else 0o644)
                entry.size = content.seek(0, io.SEEK_END)
                content.seek(0)
                archive.addfile(entry, content)


@contextmanager
def context_file(files: Mapping[str, Path | bytes], folder: Path, *, backwards: bool = False) -> Iterator[IO[bytes]]:
    """Give the context tar of ``files`` as an open file at its start.

    It lies on disk in ``folder``, since wheels are gigabytes, and has no name, so that not even a kill leaves it there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as out:
        write_context(files, out, backwards=backwards)
        out.seek(0)
        yield out


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _entry(name: str, *, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime, entry.type = mode, EPOCH, kind
    return entry
