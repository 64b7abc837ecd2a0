"""Image references by the grammar of the distribution project.

Source: https://pkg.go.dev/github.com/distribution/reference, with its rules for short names (``debian`` is
``docker.io/library/debian``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from reprobox.errors import UsageError

_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_IMAGE_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_NAME: Final = 255


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image reference with its registry written out; ``tag`` and ``digest`` are None where the text had none."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository: ``docker.io/library/debian``."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def is_image_id(text: str) -> bool:
    """Tell whether ``text`` is a full image id, ``sha256:`` and 64 hex digits, and so no name at all."""
    return _IMAGE_ID.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """Parse ``[REGISTRY/]REPOSITORY[:TAG][@DIGEST]``.

    >>> str(parse("debian:bookworm-slim"))
    'docker.io/library/debian:bookworm-slim'

    :raises UsageError: ``text`` is not an image reference; the message quotes it and says which part is wrong.
    """
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _refused(text, f"the digest {digest!r} is not sha256: and 64 lower-case hex digits")
    first, slash, remainder = rest.partition("/")
    is_registry = slash and (any(mark in first for mark in ".:") or first == "localhost" or first != first.lower())
    registry, path = (first, remainder) if is_registry else ("docker.io", rest)
    if not _REGISTRY.fullmatch(registry):
        raise _refused(text, f"the registry {registry!r} is not a host name with an optional port")
    repository, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refused(text, f"the tag {tag!r} is not up to 128 letters, digits, '_', '.' or '-'")
    if repository != repository.lower():
        raise _refused(text, f"the repository {repository!r} must be lower case")
    if not _REPOSITORY.fullmatch(repository):
        raise _refused(text, f"the repository {repository!r} must be lower-case names joined by '/'")
    if registry in {"docker.io", "index.docker.io"}:
        registry = "docker.io"
        if "/" not in repository:
            if re.fullmatch(r"[0-9a-f]{64}", repository):
                raise _refused(text, "64 hex digits are an image id, which is written sha256:…")
            repository = f"library/{repository}"
    if len(repository) > _LONGEST_NAME:
        raise _refused(text, f"the name is longer than {_LONGEST_NAME} characters")
    return Reference(registry=registry, repository=repository, tag=tag or None, digest=digest or None)


def _refused(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r} is not an image reference: {why}", remedy="write it as debian:bookworm-slim")
