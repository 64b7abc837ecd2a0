"""Podman through its Docker-compatible API, with root and without: where it differs, and what makes up for it.

Every difference was met on Podman 4.3; ``docs/guides/podman.md`` lists those that remain.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.types

import docker
from reprobox.engines.connection import open_client
from reprobox.engines.docker import DockerEngine
from reprobox.errors import EngineUnavailable, GpuError

if TYPE_CHECKING:
    from reprobox.engines.base import BoxSpec

__all__ = ["PodmanEngine"]

SERVICE_IDLE_SECONDS = 60
SERVICE_START_SECONDS = 20

_REMEDY = "start its socket (systemctl --user start podman.socket), set CONTAINER_HOST, or use --engine docker"
_NOT_THE_IMAGES = ("container", "TERM")
"""Variables that Podman sets of its own accord; a recorded run has only those it was given."""


class PodmanEngine(DockerEngine):
    """Podman at ``CONTAINER_HOST``, the user's or the machine's socket, or a service of its own where none listens."""

    name = "podman"

    @cached_property
    def client(self) -> docker.DockerClient:
        address = _address()
        return open_client(address, partial(docker.DockerClient, base_url=address), _REMEDY)

    @cached_property
    def rootless(self) -> bool:
        """Whether its boxes run without root: then the box's user must be mapped to the caller."""
        return bool(self.client.info().get("Rootless"))

    def arguments(self, spec: BoxSpec) -> dict[str, Any]:
        if spec.gpus:
            raise GpuError("Podman's boxes cannot be given GPUs yet", remedy="use --engine docker, or --gpus none")
        arguments = super().arguments(spec)
        # A bare NAME would take the value of the service's environment, and not remove the image's.
        removed = [name for name, value in spec.environment.items() if value is None]
        removed += [name for name in _NOT_THE_IMAGES if not spec.environment.get(name) and not spec.terminal]
        unset = [word for name in removed for word in ("-u", name)]
        arguments["environment"] = [f"{name}={value}" for name, value in spec.environment.items() if value is not None]
        arguments["entrypoint"] = ["/usr/bin/env", *unset, *arguments["entrypoint"]]
        host = arguments["host_config"]
        host["Tmpfs"] = {path: _tmpfs(options) for path, options in spec.tmpfs.items()}
        if self.rootless:
            host["UsernsMode"] = "keep-id"  # docker-py knows Docker's words alone and refuses it
        return arguments

    def host_options(self, spec: BoxSpec) -> dict[str, Any]:
        log = {"type": "json-file", "config": {"max-size": "40m"}} if spec.log else {"type": "none"}
        return {"log_config": docker.types.LogConfig(**log)}


def _tmpfs(options: str) -> str:
    """Return mount options as Podman takes them: a folder's owner is the box's user (``U``), or root."""
    words = options.split(",")
    kept = [word for word in words if not word.startswith(("uid=", "gid="))]
    return ",".join([*kept, "U"] if len(kept) < len(words) else kept)


def _address() -> str:
    """Return the address of a Podman that listens, started for this purpose where none does.

    :raises EngineUnavailable: where there is no Podman on this machine, or it does not start.
    """
    if given := os.environ.get("CONTAINER_HOST"):
        return given
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    sockets = [runtime / "podman" / "podman.sock", *([Path("/run/podman/podman.sock")] if os.getuid() == 0 else [])]
    for socket in sockets:
        if socket.is_socket():
            return f"unix://{socket}"
    program = shutil.which("podman")
    if program is None:
        raise EngineUnavailable("there is no Podman on this machine", remedy="install it, or use --engine docker")
    return _own_service(program, runtime if runtime.is_dir() else Path("/run"))


def _own_service(program: str, folder: Path) -> str:
    """Start Podman's API for this user, which ends by itself when nobody has asked it anything for a minute."""
    socket = folder / f"reprobox-podman-{os.getuid()}.sock"
    address = f"unix://{socket}"
    if not _answers(address):
        service = subprocess.Popen(
            [program, "system", "service", f"--time={SERVICE_IDLE_SECONDS}", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + SERVICE_START_SECONDS
        while not _answers(address):
            # One that ended well found that another was quicker.
            if service.poll() or time.monotonic() > deadline:
                raise EngineUnavailable(
                    "Podman's API does not start", remedy=f"see what `podman system service {address}` says"
                )
            time.sleep(0.05)
    return address


def _answers(address: str) -> bool:
    with contextlib.suppress(docker.errors.DockerException):
        docker.DockerClient(base_url=address, version="auto", timeout=5).close()
        return True
    return False
