"""A folder that all users of a machine write to, and files in it that live as long as the process that minds them.

A file is made under a temporary name, locked, filled, and only then given its name: one that can be seen and is not
locked was left behind by a process that is gone. The lock is one of the kernel's open file descriptions (``F_OFD_SETLK``,
``man 2 fcntl``): it ends with the last process that has the descriptor, however that one ends; taking it needs a
descriptor that may write, so that nobody else can keep a dead user's file alive (``flock`` would do with one that reads);
and it can be asked after without being taken. Names are used once, so that removing a dead file can never meet a live one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import stat
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprobox.errors import ClaimError
from reprobox.host import user_name

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping

__all__ = ["FolderMissing", "LiveFile", "OpenFolder", "SharedFolder", "machine_folder"]

_LARGEST = 64 << 10
_ABANDONED_SECONDS = 3600
_FOR_ALL = 0o1777

_LOCK_FOLDER = Path("/run/lock")

_MODE = 0o1644
"""Readable by all, whatever the umask; with the sticky bit, by which systemd-tmpfiles leaves a file alone however old
it is, as a month's training is (XDG Base Directory Specification, ``$XDG_RUNTIME_DIR``)."""

_OUR_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Why a file cannot be opened that others can open."""

_FLOCK = struct.Struct("hhqqi4x")
"""The C ``struct flock`` with 64-bit offsets: type, whence, start, length, pid."""


def machine_folder() -> Path:
    """Return where the users of this machine meet: ``/run/lock/reprobox`` where all may write to /run/lock, else in /tmp.

    An administrator may make ``/run/lock/reprobox`` where users cannot, as on Fedora.
    """
    folder = _LOCK_FOLDER / "reprobox"
    with contextlib.suppress(OSError):
        if folder.is_dir() or folder.parent.stat().st_mode & _FOR_ALL == _FOR_ALL:
            return folder
    return Path("/tmp/reprobox-gpus")  # noqa: S108 - looked at before use, and never through a link


class FolderMissing(Exception):
    """The folder, or a file just made in it, is not there: nobody has made it yet, or somebody has cleaned it away."""


@dataclass(frozen=True, kw_only=True)
class LiveFile:
    """A file that somebody minds: what it says, whose it is, and when it was given its name.

    ``uid`` and ``born_ns`` are the kernel's word, not the file's. ``document`` is empty where it holds no JSON object.
    """

    name: str
    uid: int
    born_ns: int
    document: Mapping[str, Any]


class SharedFolder:
    """Such a folder, looked at each time that it is used: others could have put something else in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def opened(self, *, make: bool) -> Iterator[OpenFolder]:
        """Give the folder by a descriptor, so that what was looked at is what is used.

        :param make: make it where it is missing, for all users.
        :raises FolderMissing: when it is missing and not to be made, or was removed at once.
        :raises ClaimError: when it is not a folder that can be trusted, or it cannot be made.
        """
        if make and not os.path.lexists(self.path):
            self._make()
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FolderMissing from None
        except NotADirectoryError:
            raise self._unusable("it is a link or no folder", remedy="remove it") from None
        except OSError as error:
            raise self._unusable(str(error.strerror)) from error
        try:
            if reason := _distrust(os.fstat(descriptor)):
                raise self._unusable(reason)
            yield OpenFolder(self.path, descriptor)
        finally:
            os.close(descriptor)

    def _unusable(self, reason: str, remedy: str | None = None) -> ClaimError:
        return ClaimError(
            f"GPUs cannot be claimed in {self.path} ({reason})",
            remedy=remedy or f"let an administrator run `install -d -m 1777 -o root {self.path}`",
        )

    def _make(self) -> None:
        """Make the folder at once as it is to be: between a mkdir and a chmod another user would find it closed."""
        temporary = None
        try:
            temporary = tempfile.mkdtemp(prefix=".reprobox-", dir=self.path.parent)
            os.chmod(temporary, _FOR_ALL)  # noqa: PTH101 - the umask does not count here
            os.rename(temporary, self.path)  # noqa: PTH104
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.rmdir(temporary)  # noqa: PTH106
            if not os.path.lexists(self.path):  # else somebody was faster
                raise self._unusable(str(error.strerror)) from error


def _distrust(status: os.stat_result) -> str | None:
    """Say why a folder cannot be trusted with the files of several users."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return "others could remove what is in it: it is not sticky"
    if mode & _FOR_ALL != _FOR_ALL and status.st_uid not in {0, os.geteuid()}:
        return f"it belongs to {user_name(status.st_uid)} and is not open to all users"
    return None


class OpenFolder:
    """The folder while it is open. Every method works on the folder that was looked at, wherever its path leads now."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def lock(self, *, until: float) -> bool:
        """Lock the folder for as long as it is open, and say whether that was possible ``until`` (:func:`time.monotonic`).

        Any user may hold this lock, also for ever; it only saves work, and nothing may depend on it.
        """
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
            except OSError:
                return False  # a file system without locks on folders
            else:
                return True
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - no secret: others wait as well

    def publish(self, name: str, document: Mapping[str, object]) -> int:
        """Make a live file and return the descriptor that keeps it alive.

        :param name: never used before, and never again.
        :raises FolderMissing: when somebody cleans it away meanwhile.
        :raises ClaimError: when it cannot be written.
        """
        try:
            return self._publish(name, json.dumps(document).encode() + b"\n")
        except FileNotFoundError:
            raise FolderMissing from None
        except OSError as error:
            raise ClaimError(
                f"GPUs cannot be claimed in {self.path} ({error.strerror})",
                remedy="see that it is open to all users, and that its file system is not full",
            ) from error

    def _publish(self, name: str, data: bytes) -> int:
        temporary = f".tmp-{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._descriptor)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fchmod(descriptor, _MODE)
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(temporary)
            self.remove(name)
            os.close(descriptor)
            raise
        return descriptor

    def remove(self, name: str) -> None:
        """Remove a file where we may: a sticky folder keeps those of others."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)

    def live(self, pattern: re.Pattern[str]) -> list[LiveFile]:
        """Return the files of such a name that somebody minds; those that nobody does are removed where we may.

        Anything else that others put there is passed over: links, pipes, folders, what cannot be read or is too large.

        :raises ClaimError: where this process cannot look, so that it never takes for dead what it has not seen.
        """
        found = []
        try:
            with os.scandir(self._descriptor) as entries:
                # The kind comes with the name: opening some things (a file system in user space) could hang.
                names = [entry.name for entry in entries if _is_plain(entry)]
            for name in names:
                if pattern.fullmatch(name):
                    found += self._look(name)
                elif name.startswith(".tmp-"):
                    self._remove_if_abandoned(name)
        except OSError as error:
            raise ClaimError(
                f"the claims on GPUs in {self.path} cannot be read ({error.strerror})",
                remedy="see this machine's limits (ulimit -a)",
            ) from error
        return found

    def _look(self, name: str) -> list[LiveFile]:
        # O_NONBLOCK: a pipe that took the file's place, or a lease on it, would hold us up.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno in _OUR_LIMITS:
                raise
            return []
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return []
            if not _is_locked(descriptor):
                self.remove(name)
                return []
            data = os.read(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
        return [LiveFile(name=name, uid=status.st_uid, born_ns=status.st_ctime_ns, document=_parsed(data))]

    def _remove_if_abandoned(self, name: str) -> None:
        """Remove what a process left that was killed between making a file and naming it.

        One that only slept so long finds its file gone, and begins again.
        """
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if time.time() - status.st_mtime > _ABANDONED_SECONDS:
                self.remove(name)


def _is_plain(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _is_locked(descriptor: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > _LARGEST:
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
