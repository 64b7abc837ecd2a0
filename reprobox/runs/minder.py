"""Which process minds a run: told apart from every other that has its number, here or elsewhere, now or earlier."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Minder"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Minder:
    """A process as it is written down in a run's lock, which other machines (NFS) and containers see as well.

    ``boot`` is its machine's boot id, ``namespace`` the inode of its pid namespace, ``started`` its start time in ticks
    since the boot (field 22 of /proc/PID/stat, proc(5)). One that is not known has no ``boot``.
    """

    pid: int = 0
    boot: str = ""
    namespace: int = 0
    started: int = 0

    @classmethod
    def this(cls) -> Self:
        """Return this process."""
        return cls._numbered(os.getpid())

    @classmethod
    def _numbered(cls, pid: int) -> Self:
        """Return the process that has the number ``pid`` here; one that is not known where the kernel does not say."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
            namespace = Path("/proc/self/ns/pid").stat().st_ino
            # The second field is the program's name, in which there may be anything.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return cls(pid, boot, namespace, int(fields[19]))
        return cls(pid)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a lock says; one that is not known where it says nothing yet, or a number alone (an old reprobox's)."""
        words = text.split()
        with contextlib.suppress(ValueError):
            if len(words) == 4:
                return cls(int(words[0]), words[1], int(words[2]), int(words[3]))
            if len(words) == 1:
                return cls(int(words[0]))
        return cls()

    def to_text(self) -> str:
        """Return the line for the lock."""
        return f"{self.pid} {self.boot} {self.namespace} {self.started}\n" if self.boot else f"{self.pid}\n"

    @property
    def is_here(self) -> bool:
        """Whether its number means this very process here and now, so that it can be sent a signal."""
        return bool(self.boot) and self == self._numbered(self.pid)
