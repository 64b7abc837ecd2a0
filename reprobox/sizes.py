"""Amounts of bytes, as people write and read them."""

from __future__ import annotations

import re

from reprobox.errors import UsageError

__all__ = ["human_size", "parse_size"]

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)(b|[kmgt](?:i?b)?)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, name: str = "size") -> int:
    """Return a size in bytes: ``64m``, ``1.5g`` (powers of 1024, as Docker counts), or a plain number of bytes.

    :raises UsageError: for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match and 0 < (size := int(float(match[1]) * _UNITS[(match[2] or "")[:1].lower()])) < 1 << 63:
        return size
    raise UsageError(f"{name} cannot be {text!r}", remedy="give a size such as 512m or 8g")


def human_size(count: int) -> str:
    """Return a number of bytes as a person reads it: ``11.7 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
