"""Docker Engine through its API (docker-py): what it is, its images, and its boxes made and found again."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import docker.errors
import docker.types

import docker
from reprobox.engines import classic
from reprobox.engines.base import (
    GPUS_LABEL,
    NEVER_STARTED_SECONDS,
    PROJECT_LABEL,
    RUN_LABEL,
    Box,
    BoxSpec,
    Engine,
    EngineInfo,
    FoundBox,
    GpuBox,
    ImageInfo,
)
from reprobox.engines.connection import UNIX_SOCKET, NoSuchThing, connect, engine_errors
from reprobox.engines.creation import create_arguments, why_unseen
from reprobox.engines.devices import device_request, gpu_way
from reprobox.engines.digests import has_containerd_store
from reprobox.engines.docker_box import DockerBox
from reprobox.engines.docker_store import DockerImageStore
from reprobox.errors import EngineError, EngineUnavailable, ImageNotFound
from reprobox.reference import parse as parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reprobox.engines.store import ImageStore

LATE_CREATION_SECONDS = 3

_LOG = {"type": "local", "config": {"max-size": "20m", "max-file": "2", "compress": "false"}}
"""The engine's own copy of the output, by which an interrupted connection is caught up with.

Capped (1 GiB of output became 2.2 GB of json-file log), and by the driver that is faster than json-file and keeps bytes
that are no UTF-8. It costs the stream half its speed or more: the daemon is busier with its log than we are reading.
"""

_ALIVE: dict[str, Literal["running", "paused", "restarting"]] = {
    "running": "running",
    "paused": "paused",
    "restarting": "restarting",
    "stopping": "running",  # Podman's, from the first signal on until the command has ended
}


def identity(info: Mapping[str, Any]) -> str:
    """Return what tells an engine that answered so to ``/info`` from others, at whatever address it is.

    Its boxes are in its storage folder: before Docker 23 two daemons of one machine have one ``ID``, from one key file.
    Podman makes up another ``ID`` for each answer, so its machine's name stands for it.
    """
    name = info.get("Name" if is_podman(info) else "ID")
    return f"{name}:{info.get('DockerRootDir', '')}" if name else ""


def is_podman(info: Mapping[str, Any]) -> bool:
    """Tell whether what answered so to ``/info`` is a Podman, which alone names the builder in it."""
    return "BuildahVersion" in info


def image_store(info: Mapping[str, Any]) -> str:
    """Return how an engine that answered so to ``/info`` keeps images: ``podman``, ``containerd`` or ``graphdriver``.

    Source: ``DriverStatus`` in docs.docker.com/engine/storage/containerd.
    """
    if is_podman(info):
        return "podman"
    return "containerd" if has_containerd_store(info) else "graphdriver"


@dataclass(frozen=True)
class _Told:
    """Tells a person what the engine says of a pull, and no numbers."""

    say: Callable[[str], None]

    def log(self, line: str) -> None:
        self.say(line)

    def progress(self, label: str, done: int, total: int | None) -> None:
        pass


class DockerEngine(Engine):
    """A Docker Engine at ``DOCKER_HOST``, the current docker context's socket, or the default socket."""

    name = "docker"
    isolates = True

    @cached_property
    def client(self) -> docker.DockerClient:
        """The connected client. :raises EngineUnavailable: naming the address and the cause."""
        return connect()

    @cached_property
    def store(self) -> ImageStore:  # type: ignore[override]  # an attribute that connects when it is asked for
        return DockerImageStore(self.client, lambda: self._described)

    @cached_property
    def _described(self) -> dict[str, Any]:
        """What the engine answers to ``GET /info``, asked once."""
        with engine_errors("describe itself"):
            described: dict[str, Any] = self.client.info()
        return described

    @property
    def _is_local(self) -> bool:
        """Whether the engine's programs and folders are this machine's, as behind a unix socket they almost always are."""
        return self.client.api.base_url == UNIX_SOCKET

    @cached_property
    def _info(self) -> EngineInfo:
        info = self._described
        return EngineInfo(
            name=self.name,
            version=str(info.get("ServerVersion", "")),
            details={
                "id": identity(info),
                "api": self.client.api.api_version,  # docker-py has asked for it when it connected
                "store": image_store(info),
                "storage_driver": str(info.get("Driver", "")),
                "cgroup_driver": str(info.get("CgroupDriver", "")),
                "cgroup_version": str(info.get("CgroupVersion", "")),
                "kernel": str(info.get("KernelVersion", "")),
                "gpus": self.gpus_through(info),
                **({} if self._is_local else {"host": str(info.get("Name", ""))}),
            },
        )

    def info(self) -> EngineInfo:
        return self._info

    def describe(self) -> Mapping[str, Any]:
        return self._described

    def refuses_builds(self) -> str | None:
        return classic.refusal(self.client)

    def gpus_through(self, info: Mapping[str, Any]) -> str:
        """Return how this engine, which answered ``info``, is asked for GPUs."""
        return str(gpu_way(info, local=self._is_local))

    def image(self, reference: str) -> ImageInfo:
        found = self.store.find(reference)
        if found is None:
            raise ImageNotFound(
                f"the image {reference} is not on this machine",
                remedy=f"fetch it with `docker pull {reference}`, or build reprobox's own with `reprobox build`",
            )
        return ImageInfo(
            engine_id=found.engine_id,
            image_id=self.store.image_id(found),
            repo_digests=found.repo_digests,
            labels=found.labels,
        )

    def pull(self, reference: str, progress: Callable[[str], None], platform: str | None = None) -> ImageInfo:
        wanted = parse_reference(reference)
        digest = self.store.pull(wanted, _Told(progress), platform=platform)
        # By digest: the tag may still name an older image, or by now somebody else's.
        return self.image(f"{wanted.name}@{digest}")

    def create(self, spec: BoxSpec) -> Box:
        try:
            with self._removing_if_unanswered(spec), engine_errors("create the box"):
                box_id = self.make(spec)
        except EngineError as error:
            raise why_unseen(error) or error from error
        return DockerBox(
            self.client,
            box_id,
            terminal=spec.terminal,
            stdin=spec.stdin and not spec.detached,
            wants_gpus=bool(spec.gpus),
            removal=f"{self.name} rm -f {spec.name}",
        )

    def make(self, spec: BoxSpec) -> str:
        """Have the engine create the box, and return its id."""
        return str(self.client.api.create_container(**self.arguments(spec))["Id"])

    def arguments(self, spec: BoxSpec) -> dict[str, Any]:
        """Return what the box is created with: docker-py's keyword arguments."""
        return create_arguments(self.client.api, spec, **self.host_options(spec))

    def host_options(self, spec: BoxSpec) -> dict[str, Any]:
        """Return what this engine wants of a box's host configuration beyond what every engine is told."""
        log = docker.types.LogConfig(**(_LOG if spec.log else {"type": "none"}))
        if not spec.gpus:
            return {"log_config": log}
        info, local = self._described, self._is_local
        request = device_request(gpu_way(info, local=local), spec.gpus, info, local=local)
        return {"log_config": log, "device_requests": [request]}

    def find(self, run_id: str) -> FoundBox | None:
        try:
            with engine_errors("look for the run's box"):
                found = self.client.api.containers(all=True, filters={"label": f"{RUN_LABEL}={run_id}"})
                if not found:
                    return None
                config = self.client.api.inspect_container(found[0]["Id"])["Config"]
        except NoSuchThing:
            return None  # it was removed between the two questions
        return DockerBox(
            self.client,
            str(found[0]["Id"]),
            terminal=bool(config["Tty"]),
            stdin=bool(config["OpenStdin"]),
            ends_input=bool(config["StdinOnce"]),
            found=True,
            project=(config.get("Labels") or {}).get(PROJECT_LABEL),
            removal=f"{self.name} rm -f {found[0]['Names'][0].lstrip('/')}",
        )

    def gpu_boxes(self) -> tuple[GpuBox, ...]:
        with engine_errors("look for boxes that have GPUs"):
            found = self.client.api.containers(all=True, filters={"label": GPUS_LABEL})
        latest = time.time() - NEVER_STARTED_SECONDS
        return tuple(
            GpuBox(
                run_id=box["Labels"].get(RUN_LABEL, ""),
                gpus=tuple(box["Labels"][GPUS_LABEL].split(",")),
                state=_ALIVE.get(box["State"], "created"),
                container=box["Id"],
            )
            for box in found
            if box["State"] in _ALIVE or (box["State"] == "created" and box["Created"] > latest)
        )

    @contextlib.contextmanager
    def _removing_if_unanswered(self, spec: BoxSpec) -> Iterator[None]:
        """Remove a box whose creation timed out here and happens there all the same; the label says that it is ours.

        An engine that was hung answers the next question before it has done what it was asked while it hung (the
        container was there 15 ms after a first "no such container", measured), so it is asked for a while.

        :raises EngineUnavailable: where it still does not answer, and the box may come to be later.
        """
        try:
            yield
        except EngineUnavailable as error:
            deadline = time.monotonic() + LATE_CREATION_SECONDS
            while time.monotonic() < deadline:
                with engine_errors("look for the box"):
                    found = self.client.api.containers(all=True, filters={"label": f"{RUN_LABEL}={spec.run_id}"})
                    if found:
                        self.client.api.remove_container(found[0]["Id"], force=True, v=True)
                        break
                time.sleep(0.1)
            raise EngineError(error.message, remedy=error.remedy, detail=error.detail) from error
