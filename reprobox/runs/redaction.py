"""What looks like a secret, by its name or its value, and records without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["REDACTED", "looks_secret", "redacted", "redacted_message", "redacted_words"]

REDACTED = "(redacted)"

_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY"
    r"|(?:^|_)(?:PASS|PWD|PAT|KEY|AUTH|COOKIE|PRIVATE|DSN)(?:_|$)",
    re.IGNORECASE,
)

_TOKENS = (
    r"gh[pousr]_[A-Za-z0-9]{16,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{16,}",
    r"glpat-[\w-]{16,}",  # GitLab
    r"hf_[A-Za-z0-9]{16,}",  # Hugging Face
    r"sk-(?:ant|proj|svcacct|admin|or|lf)-[\w-]{16,}",  # OpenAI, Anthropic and others
    r"sk-(?=[A-Za-z_-]*[0-9])[\w-]{16,}",
    r"xox[abeoprs]-(?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{10,}",  # Slack
    r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*",  # a JSON Web Token; base64 of JSON without its dots is none
    r"eyJrIjoi[A-Za-z0-9+/]{24,}",  # Grafana's older keys
    r"npm_[A-Za-z0-9]{16,}",
    r"pypi-AgE[\w-]{16,}",
)
"""The forms of known tokens, long enough to be none of the words that begin like one: ``task-7``, ``hf_finetune.py``."""

_SECRET_VALUE = re.compile(
    rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{{2}}))(?:{'|'.join(_TOKENS)})|-----BEGIN |://[^/\s:@]+:[^/\s@]+@",
    re.ASCII,
)

_SHORTEST = 6
"""A shorter secret would hide half of every command line, and is none."""


def looks_secret(name: str, value: str | None) -> bool:
    """Say whether the variable ``name`` holds a secret, as far as its name and the look of its value tell."""
    return bool(value and (_SECRET_NAME.search(name) or _SECRET_VALUE.search(value)))


def redacted(environment: Mapping[str, str | None], secrets: Iterable[bytes] = ()) -> dict[str, str | None]:
    """Return ``environment`` with every value hidden that looks like a secret or holds one of ``secrets``."""
    values = _texts(secrets)
    return {
        name: REDACTED if looks_secret(name, value) or _holds(value, values) else value
        for name, value in environment.items()
    }


def redacted_words(words: Iterable[str], secrets: Iterable[bytes]) -> list[str]:
    """Return a command line with every word hidden that looks like a secret or holds one of ``secrets``."""
    values = _texts(secrets)
    return [REDACTED if _SECRET_VALUE.search(word) or _holds(word, values) else word for word in words]


def redacted_message(fields: Mapping[str, Any], secrets: Iterable[bytes]) -> dict[str, Any]:
    """Return a manifest's ``fields`` with each of ``secrets`` hidden in the message, where there is one."""
    message = fields.get("message")
    if not message:
        return dict(fields)
    for value in sorted(_texts(secrets), key=len, reverse=True):
        message = message.replace(value, REDACTED)
    return {**fields, "message": message}


def _texts(secrets: Iterable[bytes]) -> list[str]:
    return [text for secret in secrets if len(text := secret.decode(errors="surrogateescape").strip()) >= _SHORTEST]


def _holds(text: str | None, values: Iterable[str]) -> bool:
    return text is not None and any(value in text for value in values)
