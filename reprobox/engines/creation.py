"""A box as the arguments of the engine's create call: what is asked for, and how far it is closed down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import docker.types

from reprobox.errors import EngineError

if TYPE_CHECKING:
    from docker.api import APIClient

    from reprobox.engines.base import BoxSpec, Port

__all__ = ["ENTRYPOINT", "create_arguments", "why_unseen"]

_UNSEEN: Final = re.compile(
    r"bind source path does not exist: (/.*)|statfs (/[^:]*): no such file or directory|(/[^\s:]*): is a directory"
)
"""Docker's words; Podman's; and what Podman says of a file that it lacks and has made a folder for."""

ENTRYPOINT = ("/usr/bin/tini", "-s", "-g", "--", "/opt/reprobox/entrypoint")
"""The image's own entrypoint, repeated because the CLI adds an option of the entrypoint's behind it."""


def create_arguments(api: APIClient, spec: BoxSpec, **more: Any) -> dict[str, Any]:
    """Return the keyword arguments of ``create_container`` for ``spec``; ``more`` goes into its host configuration."""
    options = spec.options
    host: dict[str, Any] = {
        "mounts": [
            docker.types.Mount(target=m.target, source=m.source, type=m.kind, read_only=m.read_only)
            for m in spec.mounts
        ],
        "tmpfs": dict(spec.tmpfs),
        "cap_add": list(options.cap_add),
        "cap_drop": list(options.cap_drop),
        "security_opt": ["no-new-privileges"],
        "read_only": spec.read_only,
        "shm_size": spec.shm_bytes,
        "network_mode": spec.network,
        "ipc_mode": options.ipc,
        "pids_limit": options.pids_limit,
        "mem_limit": options.memory_bytes,
        "nano_cpus": None if options.cpus is None else round(options.cpus * 1e9),
        "cpuset_cpus": options.cpuset,
        "ulimits": [docker.types.Ulimit(name=u.name, soft=u.soft, hard=u.hard) for u in options.ulimits],
        "devices": [
            {"PathOnHost": d.source, "PathInContainer": d.target, "CgroupPermissions": d.permissions}
            for d in options.devices
        ],
        "group_add": list(options.groups),
        "extra_hosts": dict(options.hosts),
        "port_bindings": _port_bindings(options.ports),
        **more,
    }
    entrypoint = [*ENTRYPOINT, f"--chdir={spec.directory}"]
    if spec.secrets:
        entrypoint.append(f"--secrets={','.join(spec.secrets)}")
    return {
        "image": spec.image,
        "entrypoint": [*entrypoint, "--"],
        "command": list(spec.command),
        "environment": [k if v is None else f"{k}={v}" for k, v in spec.environment.items()],
        "user": spec.user,
        "name": spec.name,
        "labels": {**options.labels, **spec.labels},
        "hostname": options.hostname,
        "stdin_open": spec.stdin,
        "tty": spec.terminal,
        "detach": spec.detached,
        "ports": [(p.box_port, p.protocol) for p in options.ports],
        "stop_timeout": options.stop_timeout,
        "platform": options.platform,
        "use_config_proxy": False,  # the proxies of ~/.docker/config.json, with their passwords, were not asked for
        "host_config": api.create_host_config(**{name: value for name, value in host.items() if value is not None}),
    }


def _port_bindings(ports: tuple[Port, ...]) -> dict[str, list[tuple[str, int | None]]] | None:
    bindings: dict[str, list[tuple[str, int | None]]] = {}
    for port in ports:
        bindings.setdefault(f"{port.box_port}/{port.protocol}", []).append((port.host_address, port.host_port))
    return bindings or None


def why_unseen(error: EngineError) -> EngineError | None:
    """Return the error of an engine that lacks a folder which is here, ``None`` where ``error`` says something else."""
    found = _UNSEEN.search(error.message)
    path = next(filter(None, found.groups()), "") if found else ""
    if not path or not Path(path).exists():
        return None
    return EngineError(
        f"the engine has no {path}, which is here: it runs on another machine, or reprobox in a container that was given "
        "the engine's socket",
        remedy="start that container with the project at the path it has on the engine's machine (-v $PWD:$PWD -w $PWD), "
        "or start your command in the image itself",
        detail=error.message,
    )
