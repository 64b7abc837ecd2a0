"""How much a box may take of the machine where nobody says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["MOST_PROCESSES", "default_processes"]

MOST_PROCESSES: Final = 32768
"""Enough for any training, and a fork bomb in the box leaves an ordinary machine alive."""

_KERNELS_OWN: Final = ("pid_max", "threads-max")


def default_processes() -> int:
    """Return how many processes and threads a box may have: at most half of what this machine's kernel allows in all."""
    allowed = [_number(Path("/proc/sys/kernel") / name) for name in _KERNELS_OWN]
    return min([MOST_PROCESSES, *(number // 2 for number in allowed if number)])


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
