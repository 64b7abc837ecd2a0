"""Podman through its Docker-compatible API, with root and without: where it differs, and what makes up for it.

Every difference was met on Podman 4.3; ``docs/guides/podman.md`` lists those that remain.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import subprocess
import tempfile
import time
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.types
import requests.exceptions
from docker.errors import create_api_error_from_http_exception

import docker
from reprobox.engines.connection import open_client
from reprobox.engines.devices import GpuWay, cdi_request, qualified
from reprobox.engines.docker import DockerEngine
from reprobox.engines.libpod import LIBPOD_CREATE, specification
from reprobox.errors import EngineError, EngineUnavailable, ImageNotFound
from reprobox.host_programs import find_program, host_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reprobox.engines.base import BoxSpec, ImageInfo

__all__ = ["PodmanEngine"]

SERVICE_IDLE_SECONDS = 60
SERVICE_START_SECONDS = 20
STOP_SECONDS = 10

_CDI_REQUESTS_SINCE = (5, 4)
"""The first version whose Docker-compatible API heeds requests for CDI devices (its release notes)."""

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
        return bool(self._described.get("Rootless"))

    def gpus_through(self, info: Mapping[str, Any]) -> str:
        del info
        return str(GpuWay.CDI)

    def make(self, spec: BoxSpec) -> str:
        if not spec.gpus or self._takes_cdi_requests:
            return super().make(spec)
        api = self.client.api
        body = specification(self.arguments(spec), qualified(spec.gpus), rootless=self.rootless)
        answer = api.post(f"{api.base_url}{LIBPOD_CREATE}", json=body, timeout=api.timeout)
        try:
            answer.raise_for_status()
        except requests.exceptions.HTTPError as error:
            create_api_error_from_http_exception(error)
        return str(answer.json()["Id"])

    @property
    def _takes_cdi_requests(self) -> bool:
        numbers = [int(number) for number in re.findall(r"\d+", self.info().version)[:2]]
        return tuple(numbers) >= _CDI_REQUESTS_SINCE

    def arguments(self, spec: BoxSpec) -> dict[str, Any]:
        self._refuse_limits_it_ignores(spec)
        arguments = super().arguments(spec)
        # A bare NAME would take the value of the service's environment, and not remove the image's.
        removed = [name for name, value in spec.environment.items() if value is None]
        removed += [name for name in _NOT_THE_IMAGES if not spec.environment.get(name) and not spec.terminal]
        unset = [word for name in removed for word in ("-u", name)]
        arguments["environment"] = [f"{name}={value}" for name, value in spec.environment.items() if value is not None]
        arguments["entrypoint"] = ["/usr/bin/env", *unset, *arguments["entrypoint"]]
        if spec.options.stop_timeout is None:
            arguments["stop_timeout"] = STOP_SECONDS  # or it would be killed at once
        host = arguments["host_config"]
        host["Tmpfs"] = {path: _tmpfs(options) for path, options in spec.tmpfs.items()}
        if self.rootless:
            host["UsernsMode"] = "keep-id"  # docker-py knows Docker's words alone and refuses it
        return arguments

    def _refuse_limits_it_ignores(self, spec: BoxSpec) -> None:
        options = spec.options
        limits = {"--memory": options.memory_bytes, "--cpus": options.cpus, "--cpuset-cpus": options.cpuset}
        asked = [flag for flag, value in limits.items() if value is not None]
        if asked and self.rootless and self.info().details["cgroup_version"] == "1":
            raise EngineError(
                f"Podman without root ignores {asked[0]} on this machine, which has cgroups of version 1",
                remedy="drop it, or use Podman with root or a machine with cgroups of version 2",
            )

    def image(self, reference: str) -> ImageInfo:
        try:
            return super().image(reference)
        except ImageNotFound as error:
            raise ImageNotFound(
                error.message,
                remedy=f"fetch it with `podman pull {reference}`, or build reprobox's own: reprobox build --engine podman",
                detail=error.detail,
            ) from error

    def host_options(self, spec: BoxSpec) -> dict[str, Any]:
        log = {"type": "json-file", "config": {"max-size": "40m"}} if spec.log else {"type": "none"}
        options: dict[str, Any] = {"log_config": docker.types.LogConfig(**log)}
        if spec.gpus and self._takes_cdi_requests:
            options["device_requests"] = [cdi_request(spec.gpus)]
        return options


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
    program = find_program("podman")
    if program is None:
        raise EngineUnavailable("there is no Podman on this machine", remedy="install it, or use --engine docker")
    try:
        return _own_service(program, runtime if runtime.is_dir() else _folder_of_ours())
    except OSError as error:
        raise EngineUnavailable(
            f"Podman's API does not start ({error.strerror}: {error.filename})", remedy=_REMEDY, detail=str(error)
        ) from error


def _folder_of_ours() -> Path:
    """Return where a socket of this user's can lie that nobody else can put there, without a runtime folder."""
    if os.getuid() == 0:
        return Path("/run")
    folder = Path(tempfile.gettempdir()) / f"reprobox-podman-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if (found.st_uid, stat.S_IFMT(found.st_mode), found.st_mode & 0o077) != (os.getuid(), stat.S_IFDIR, 0):
        raise EngineUnavailable(f"{folder} is not this user's alone", remedy="remove it, or set XDG_RUNTIME_DIR")
    return folder


def _own_service(program: str, folder: Path) -> str:
    """Start Podman's API for this user, which ends by itself when nobody has asked it anything for a minute."""
    socket = folder / f"reprobox-podman-{os.getuid()}.sock"
    address = f"unix://{socket}"
    with _alone(socket.with_suffix(".lock")):
        if not _answers(address):
            _start_service(program, address)
    return address


def _start_service(program: str, address: str) -> None:
    service = subprocess.Popen(
        [program, "system", "service", f"--time={SERVICE_IDLE_SECONDS}", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=host_environment(),
    )
    deadline = time.monotonic() + SERVICE_START_SECONDS
    while not _answers(address):
        if service.poll() is not None or time.monotonic() > deadline:
            raise EngineUnavailable(
                "Podman's API does not start", remedy=f"see what `podman system service {address}` says"
            )
        time.sleep(0.05)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time in: a second service would take the socket of the first, which removes it at its end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _answers(address: str) -> bool:
    # Any version, so that it is not asked for its own; every Podman that has this API speaks this one.
    with (
        contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException),
        contextlib.closing(docker.DockerClient(base_url=address, version="1.40", timeout=5)) as client,
    ):
        return bool(client.ping())
    return False
