"""What an engine says when a registry lets it down, told apart by its words: it passes on no status and no header.

The words are those of Engine 20.10 (every row was met in ``tests/engine/test_registry.py``), of newer engines with the
containerd store (``unexpected status … 503 Service Unavailable``), and of Podman (``invalid status code from registry
503``).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

__all__ = ["Trouble", "retry_after", "trouble_of"]


class Trouble(StrEnum):
    """Why an image could not be had or pushed."""

    CORRUPT = "corrupt"
    BUSY = "busy"
    TEMPORARY = "temporary"
    DENIED = "denied"
    UNKNOWN = "unknown"
    OTHER = "other"


_WORDS: Final[dict[Trouble, tuple[str, ...]]] = {
    Trouble.CORRUPT: (
        r"verification failed for digest",
        r"failed size verification",
        r"unexpected commit digest",
        r"digest did not match",
        r"digest invalid",
    ),
    Trouble.BUSY: (r"toomanyrequests", r"too many requests", r"\b(?:HTTP|status|code|registry) 429\b"),
    Trouble.TEMPORARY: (
        r"\b(?:HTTP|status|status:|code|registry) 50[0-4]\b",
        r"\b50[0-4] (?:internal server error|bad gateway|service unavailable|gateway time-?out)",
        r"\bEOF\b",
        r"connection reset",
        r"broken pipe",
        r"i/o timeout",
        r"TLS handshake timeout",
        r"Client\.Timeout exceeded",
        r"server closed",
    ),
    Trouble.DENIED: (
        r"unauthorized",
        r"authentication required",
        r"no basic auth credentials",
        r"\bdenied\b",
        r"\bforbidden\b",
        r"\b(?:HTTP|status|code|registry) 40[13]\b",
        r"insufficient_scope",
    ),
    Trouble.UNKNOWN: (r"manifest unknown", r"name unknown", r"unknown blob", r"not found", r"does not exist"),
}
"""The first that is found counts: a refusal for too many requests, say, often says ``denied`` as well."""

_RETRY_AFTER: Final = re.compile(r"retry[- ]after:? *([0-9.]+) *(ns|us|µs|ms|s|m|h)?", re.IGNORECASE)
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def trouble_of(text: str) -> Trouble:
    """Return what kind of trouble the engine's sentence ``text`` speaks of."""
    found = (trouble for trouble, words in _WORDS.items() if re.search("|".join(words), text, re.IGNORECASE))
    return next(found, Trouble.OTHER)


def retry_after(text: str) -> float | None:
    """Return the seconds that the registry asks to wait, where its message says so as GitHub's does; else ``None``.

    >>> retry_after("toomanyrequests: retry-after: 1.5s, allowed: 44000/minute")
    1.5
    """
    found = _RETRY_AFTER.search(text)
    try:
        return float(found[1]) * _SECONDS[(found[2] or "s").lower()] if found else None
    except ValueError:
        return None
