"""Docker Engine through its API (docker-py): create, attach before start, start, stream, wait, remove."""

from __future__ import annotations

import contextlib
import os
import signal as signals
import socket
import struct
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import docker.errors
import docker.types
import requests.exceptions
import urllib3.exceptions
from docker.context.config import get_current_context_name

import docker
from reprobox.engines.base import Box, BoxSpec, Engine, EngineInfo, Exit, ImageInfo, Stream
from reprobox.engines.digests import config_digest
from reprobox.errors import EngineError, EngineUnavailable, GpuError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from types import TracebackType

ENTRYPOINT = ("/usr/bin/tini", "-g", "--", "/opt/reprobox/entrypoint")
"""The image's own entrypoint, repeated because the CLI adds an option of the entrypoint's behind it."""

WAIT_RETRIES = 5

_FRAME_HEADER = struct.Struct(">BxxxI")
_STREAM_NAMES: dict[int, Stream] = {1: "stdout", 2: "stderr"}
_CHUNK = 1 << 16
_LOG_CONFIG = {"max-size": "20m", "max-file": "2"}
"""The engine keeps its own copy of the output; without a cap 1 GiB of output became 2.2 GB of log (measured)."""


class _NoSuchThing(EngineError):
    """The engine has no such image or container; the caller knows which it asked for."""


class DockerEngine(Engine):
    """A Docker Engine at ``DOCKER_HOST``, the current docker context's socket, or the default socket."""

    name = "docker"
    isolates = True

    @cached_property
    def client(self) -> docker.DockerClient:
        """The connected client. :raises EngineUnavailable: naming the address and the cause."""
        return connect()

    def info(self) -> EngineInfo:
        with _engine_errors("describe itself"):
            version = self.client.version()
            info = self.client.info()
        return EngineInfo(
            name=self.name,
            version=str(version["Version"]),
            details={
                "api": str(version["ApiVersion"]),
                "storage_driver": str(info.get("Driver", "")),
                "cgroup_driver": str(info.get("CgroupDriver", "")),
                "cgroup_version": str(info.get("CgroupVersion", "")),
                "kernel": str(info.get("KernelVersion", "")),
            },
        )

    def image(self, reference: str) -> ImageInfo:
        try:
            with _engine_errors(f"look up the image {reference}"):
                found = self.client.images.get(reference)
        except _NoSuchThing as error:
            raise ImageNotFound(
                f"the image {reference} is not on this machine",
                remedy=f"fetch it with `docker pull {reference}`, or build reprobox's own with `reprobox build`",
            ) from error
        attributes = found.attrs
        return ImageInfo(
            engine_id=str(found.id),
            image_id=config_digest(self.client, str(found.id)),
            repo_digests=tuple(attributes.get("RepoDigests") or ()),
            labels=dict((attributes.get("Config") or {}).get("Labels") or {}),
        )

    def create(self, spec: BoxSpec) -> Box:
        api = self.client.api
        host: dict[str, Any] = {
            "mounts": [
                docker.types.Mount(target=m.target, source=m.source, type=m.kind, read_only=m.read_only)
                for m in spec.mounts
            ],
            "tmpfs": dict(spec.tmpfs),
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": spec.read_only,
            "shm_size": spec.shm_bytes,
            "network_mode": spec.network,
            "pids_limit": spec.pids_limit,
            "log_config": docker.types.LogConfig(type="json-file", config=_LOG_CONFIG),
        }
        if spec.gpus:
            host["device_requests"] = [docker.types.DeviceRequest(device_ids=list(spec.gpus), capabilities=[["gpu"]])]
        with self._removing_if_unanswered(spec), _engine_errors("create the box"):
            created = api.create_container(
                image=spec.image,
                entrypoint=[*ENTRYPOINT, f"--chdir={spec.directory}", "--"],
                command=list(spec.command),
                environment=[k if v is None else f"{k}={v}" for k, v in spec.environment.items()],
                user=spec.user,
                name=spec.name,
                labels=dict(spec.labels),
                host_config=api.create_host_config(**host),
            )
        return DockerBox(self.client, str(created["Id"]), wants_gpus=bool(spec.gpus))

    @contextlib.contextmanager
    def _removing_if_unanswered(self, spec: BoxSpec) -> Iterator[None]:
        """Remove a box whose creation timed out here and happened there all the same; the label says that it is ours."""
        try:
            yield
        except EngineUnavailable:
            with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException):
                found = self.client.containers.get(spec.name)
                if found.labels.items() >= dict(spec.labels).items():
                    found.remove(force=True)
            raise


class DockerBox(Box):
    """A container of ours, removed when the ``with`` block ends."""

    def __init__(self, client: docker.DockerClient, container_id: str, *, wants_gpus: bool = False) -> None:
        self.client = client
        self.id = container_id
        self.wants_gpus = wants_gpus
        self._attached: Any = None

    def attach(self) -> None:
        with _engine_errors("attach to the box"):
            self._attached = self.client.api.attach_socket(
                self.id,
                params={"stdout": 1, "stderr": 1, "stream": 1, "stdin": 0, "logs": 0},
            )
        _raw_socket(self._attached).settimeout(None)

    def start(self) -> None:
        try:
            with _engine_errors("start the box"):
                self.client.api.start(self.id)
        except EngineError as error:
            if self.wants_gpus and "device driver" in f"{error} {error.detail}":
                raise GpuError(
                    "the engine has no NVIDIA runtime, so the box cannot be given GPUs",
                    remedy="install nvidia-container-toolkit and restart the engine, or run with --gpus none",
                    detail=error.detail,
                ) from error
            raise

    def stream(self, write: Callable[[Stream, bytes], None]) -> None:
        frames = _frames(_buffered(self._attached))
        while True:
            with _engine_errors("stream the output"):
                frame = next(frames, None)
            if frame is None:
                return
            write(*frame)

    def signal(self, number: int) -> None:
        # "Not running" (409) and "no such container" (404) mean that it has ended: nothing is left to signal.
        with contextlib.suppress(EngineError), _engine_errors("signal the box"):
            self.client.api.kill(self.id, signals.Signals(number).name)

    def wait(self) -> Exit:
        code = self._exit_code()
        with _engine_errors("read the box's end"):
            state = self.client.api.inspect_container(self.id)["State"]
        return Exit(code=code, out_of_memory=bool(state.get("OOMKilled")), error=str(state.get("Error") or ""))

    def _exit_code(self) -> int:
        for attempt in range(WAIT_RETRIES):
            try:
                with _engine_errors("wait for the box"):
                    return int(self.client.api.wait(self.id, timeout=None)["StatusCode"])
            except EngineUnavailable:
                if attempt + 1 == WAIT_RETRIES:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._attached is not None:
            self._attached.close()
        try:
            with _engine_errors("remove the box"):
                self.client.api.remove_container(self.id, force=True, v=True)
        except _NoSuchThing:
            return  # somebody else removed it
        except EngineError as failure:
            if "already in progress" in str(failure):
                return  # somebody else is removing it
            # The first failure is the one worth telling; the label lets the box be found and removed later.
            if error is None:
                raise


def connect() -> docker.DockerClient:
    """Return a client of the engine that answers.

    :raises EngineUnavailable: with the address that was tried, why it failed and what to do.
    """
    context = None if os.environ.get("DOCKER_HOST") else _chosen_context()
    address = os.environ.get("DOCKER_HOST") or (context.Host if context else "unix:///var/run/docker.sock")
    try:
        if context is not None:
            client = docker.DockerClient(base_url=context.Host, tls=context.TLSConfig, version="auto", timeout=60)
        else:
            client = docker.from_env(version="auto", timeout=60)
    except docker.errors.DockerException as error:
        raise EngineUnavailable(
            _why_unavailable(address, error), remedy=_UNAVAILABLE_REMEDY, detail=str(error)
        ) from error
    return client


def _chosen_context() -> Any:
    """Return the context that DOCKER_CONTEXT or ``docker context use`` chose; ``None`` for the default.

    :raises EngineUnavailable: when there is no such context: another engine must not quietly take its place.
    """
    try:
        name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name() or "default"
        context = None if name == "default" else docker.context.ContextAPI.get_context(name)
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise EngineUnavailable(
            f"docker's configuration cannot be read ({error})",
            remedy="correct ~/.docker/config.json, or set DOCKER_HOST",
        ) from error
    if name != "default" and context is None:
        raise EngineUnavailable(
            f"there is no docker context {name!r}", remedy="see docker context ls, or set DOCKER_HOST"
        )
    return context


_UNAVAILABLE_REMEDY = (
    "start it (systemctl start docker, or dockerd), point DOCKER_HOST at one that runs, or use --engine local"
)


def _why_unavailable(address: str, error: Exception) -> str:
    text = str(error)
    if "PermissionError" in text or "Permission denied" in text:
        return f"the engine at {address} does not let this user in (permission denied)"
    if "FileNotFoundError" in text or "No such file" in text:
        return f"no container engine answers at {address} (there is no such socket)"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return f"no container engine answers at {address} (connection refused: the daemon is not running)"
    if "timed out" in text or "Timeout" in text:
        return f"the engine at {address} accepts connections and does not answer (timed out)"
    return f"no container engine answers at {address}"


@contextlib.contextmanager
def _engine_errors(doing: str) -> Iterator[None]:
    """Turn docker-py's and requests' exceptions into ours, with the engine's sentence kept."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise _NoSuchThing(_explained(error, doing), detail=str(error)) from error
    except docker.errors.APIError as error:
        raise EngineError(_explained(error, doing), detail=str(error)) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise EngineUnavailable(
            f"the engine stopped answering while it was to {doing}",
            remedy="see whether its daemon still runs, then try again",
            detail=str(error),
        ) from error
    except (docker.errors.DockerException, ValueError) as error:
        raise EngineError(f"the engine could not {doing} ({error})", detail=str(error)) from error


def _explained(error: docker.errors.APIError, doing: str) -> str:
    explanation = " ".join(str(error.explanation or error).split())
    return f"the engine could not {doing}: {explanation}"


def _raw_socket(attached: Any) -> socket.socket:
    """Return the socket under docker-py's wrapper (a ``SocketIO`` over a unix socket, the socket itself over TLS)."""
    return getattr(attached, "_sock", attached)  # type: ignore[no-any-return]


def _buffered(attached: Any) -> BufferedReader:
    """Return a reader that starts where the HTTP header ended.

    Reading the wrapper's socket itself would drop what http.client had read ahead (docker-py#425, #1770, #3332).
    """
    response = getattr(attached, "_response", None)
    reader = getattr(getattr(getattr(response, "raw", None), "_fp", None), "fp", None)
    if reader is not None:
        return reader  # type: ignore[no-any-return]
    return attached.makefile("rb")  # type: ignore[no-any-return]


def _frames(reader: BufferedReader) -> Iterator[tuple[Stream, bytes]]:
    """Yield the pieces of the engine's multiplexed stream; a long frame comes in several, so memory stays flat."""
    while True:
        header = reader.read(_FRAME_HEADER.size)
        if len(header) < _FRAME_HEADER.size:
            return
        number, left = _FRAME_HEADER.unpack(header)
        while left:
            data = reader.read(min(left, _CHUNK))
            if not data:
                return
            left -= len(data)
            yield _STREAM_NAMES.get(number, "stdout"), data
