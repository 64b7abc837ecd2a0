"""Whether an engine builds images through its API: by Docker's classic builder, or by Podman's own."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Final

from reprobox.engines.connection import engine_errors

if TYPE_CHECKING:
    import docker

_IMPOSSIBLE: Final = b"FROM scratch\nCOPY absent /\n"
"""A Dockerfile of which no builder makes an image, so that asking leaves nothing in the engine."""


def refusal(client: docker.DockerClient) -> str | None:
    """Return why the engine takes no build through ``POST /build``, in its own words; ``None`` where it takes one.

    No engine tells in ``/info`` or ``/version`` whether it has the classic builder, deprecated since 23.0
    (docs.docker.com/engine/deprecated), so one is begun: an engine that builds answers 200 before the first step, and
    one that does not, or a proxy or plugin in front of it, answers an error.

    :raises EngineUnavailable: the engine does not answer.
    """
    api = client.api
    with engine_errors("say whether it builds images"):
        answer = api.post(
            f"{api.base_url}/v{api.api_version}/build",
            params={"version": "1", "rm": "1", "forcerm": "1"},
            headers={"Content-Type": "application/x-tar"},
            data=_context(),
            timeout=api.timeout,
        )
    if answer.ok:
        return None
    try:
        said = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):  # a proxy's own page
        said = ""
    return " ".join(said.split()) or f"{answer.status_code} {answer.reason}"


def _context() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(_IMPOSSIBLE)
        tar.addfile(member, io.BytesIO(_IMPOSSIBLE))
    return made.getvalue()
