"""What looks like a secret, by its name or its value, and records without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["REDACTED", "looks_secret", "redacted", "redacted_words"]

REDACTED = "(redacted)"

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY"
    r"|(?:^|_)(?:PASS|PWD|PAT|KEY|AUTH|COOKIE|PRIVATE|DSN)(?:_|$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(?:gh[pousr]_|github_pat_|hf_|sk-|xox[abpr]-|AKIA|ASIA|eyJ|-----BEGIN |glpat-|npm_|pypi-)|://[^/\s:@]+:[^/\s@]+@",
)
_SHORTEST = 6
"""A shorter secret would hide half of every command line, and is none."""


def looks_secret(name: str, value: str | None) -> bool:
    """Say whether the variable ``name`` holds a secret, as far as its name and the look of its value tell."""
    return bool(value and (_SECRET_NAME.search(name) or _SECRET_VALUE.search(value)))


def redacted(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return ``environment`` with every value hidden that looks like a secret."""
    return {name: REDACTED if looks_secret(name, value) else value for name, value in environment.items()}


def redacted_words(words: Iterable[str], secrets: Iterable[bytes]) -> list[str]:
    """Return a command line with every word hidden that looks like a secret or holds one of ``secrets``."""
    values = [text for secret in secrets if len(text := secret.decode(errors="surrogateescape").strip()) >= _SHORTEST]
    return [REDACTED if _SECRET_VALUE.search(word) or any(v in word for v in values) else word for word in words]
