"""A box as Podman's own API takes it: what its Docker-compatible one makes of the same arguments, and CDI devices.

The compatible API of Podman before 5.4 writes each device as ``path:path:permissions``, which is no CDI name, and drops
device requests without a word (containers/podman#19338; 5.4 takes requests for the driver ``cdi``). Podman's own API has
taken CDI names as devices since 4.1. The translation follows ``pkg/api/handlers/compat/containers_create.go`` and
``pkg/specgenutil/specgen.go`` of Podman 4.3.1, so that a box with GPUs differs from one without in its devices alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["LIBPOD_CREATE", "specification"]

LIBPOD_CREATE = "/v4.0.0/libpod/containers/create"

_CPU_PERIOD_MICROSECONDS = 100_000
_SCRATCH_OF_A_READ_ONLY_BOX = ("/tmp", "/var/tmp", "/run")  # noqa: S108  # of the box
_SCRATCH_OPTIONS = ("rw", "rprivate", "nosuid", "nodev", "tmpcopyup")
_NETWORK_MODES = ("none", "host", "private", "slirp4netns", "bridge")


def specification(arguments: Mapping[str, Any], devices: Iterable[str], *, rootless: bool) -> dict[str, Any]:
    """Return the body of ``POST /libpod/containers/create`` for docker-py's ``arguments`` and CDI ``devices``.

    :param devices: full names, such as ``nvidia.com/gpu=GPU-8f3a…``.
    :param rootless: Podman's compatible API drops limits (ulimits) then, which no user may raise.
    """
    host = arguments["host_config"]
    spec = {
        "name": arguments["name"],
        "image": arguments["image"],
        "entrypoint": arguments["entrypoint"],
        "command": arguments["command"],
        "env": dict(entry.split("=", 1) for entry in arguments["environment"]),
        "user": arguments["user"],
        "labels": arguments["labels"],
        "annotations": {"io.kubernetes.cri-o.TTY": "true" if arguments["tty"] else "false"},
        "hostname": arguments["hostname"],
        "stdin": arguments["stdin_open"],
        "terminal": arguments["tty"],
        "stop_timeout": arguments["stop_timeout"],
        "create_working_dir": True,
        "image_volume_mode": "anonymous",
        "systemd": "true",
        "oom_score_adj": 0,
        "cap_add": host.get("CapAdd"),
        "cap_drop": host.get("CapDrop"),
        "no_new_privileges": "no-new-privileges" in host.get("SecurityOpt", ()),
        "read_only_filesystem": host.get("ReadonlyRootfs", False),
        "shm_size": host.get("ShmSize"),
        "groups": host.get("GroupAdd"),
        "hostadd": host.get("ExtraHosts"),
        "portmappings": _ports(host.get("PortBindings") or {}),
        "ipcns": _namespace(host.get("IpcMode")),
        "userns": _namespace(host.get("UsernsMode")),
        "log_configuration": _log(host["LogConfig"]),
        "resource_limits": _resources(host),
        "r_limits": None if rootless else _limits(host.get("Ulimits") or ()) or None,
        "umask": "",
        "mounts": _mounts(host),
        "volumes": [
            {"Name": mount["Source"], "Dest": mount["Target"], "Options": _options(mount)}
            for mount in host.get("Mounts", ())
            if mount["Type"] == "volume"
        ],
        "devices": [
            *({"path": _glued(device)} for device in host.get("Devices") or ()),
            *({"path": name} for name in devices),
        ],
        **_network(host.get("NetworkMode") or "bridge"),
    }
    return {name: value for name, value in spec.items() if value is not None}


def _mounts(host: Mapping[str, Any]) -> list[dict[str, Any]]:
    mounts = [
        {"type": "bind", "source": mount["Source"], "destination": mount["Target"], "options": _options(mount)}
        for mount in host.get("Mounts", ())
        if mount["Type"] == "bind"
    ]
    scratch = {path: options.split(",") for path, options in (host.get("Tmpfs") or {}).items()}
    if host.get("ReadonlyRootfs"):
        taken = [mount["Target"] for mount in host.get("Mounts", ())]
        scratch = {path: list(_SCRATCH_OPTIONS) for path in _SCRATCH_OF_A_READ_ONLY_BOX if path not in taken} | scratch
    mounts += [
        {"type": "tmpfs", "source": "tmpfs", "destination": path, "options": options}
        for path, options in scratch.items()
    ]
    return mounts


def _options(mount: Mapping[str, Any]) -> list[str]:
    return ["ro"] if mount.get("ReadOnly") else []


def _glued(device: Mapping[str, str]) -> str:
    return f"{device['PathOnHost']}:{device['PathInContainer']}:{device['CgroupPermissions']}"


def _namespace(mode: str | None) -> dict[str, str] | None:
    if not mode:
        return None
    kind, _, value = mode.partition(":")
    if kind == "ns":
        return {"nsmode": "path", "value": value}
    return {"nsmode": kind, **({"value": value} if value else {})}


def _network(mode: str) -> dict[str, Any]:
    if mode == "default":
        mode = "bridge"
    kind, _, value = mode.partition(":")
    if kind == "slirp4netns" and value:
        return {"netns": {"nsmode": kind}, "network_options": {kind: value.split(",")}}
    if kind in (*_NETWORK_MODES, "container", "ns"):
        return {"netns": _namespace(mode)}
    return {"netns": {"nsmode": "bridge"}, "Networks": {mode: {}}}


def _ports(bindings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "container_port": int(port.partition("/")[0]),
            "protocol": port.partition("/")[2] or "tcp",
            "host_port": int(binding.get("HostPort") or 0),
            "host_ip": binding.get("HostIp") or "",
        }
        for port, published in bindings.items()
        for binding in published
    ]


def _log(log: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(log.get("Config") or {})
    size = options.pop("max-size", None)
    return {
        "driver": log["Type"],
        "options": options,
        # Podman's suffixes are decimal there, as FromHumanSize of docker/go-units reads them.
        **({"size": int(size.removesuffix("m")) * 1_000_000} if size else {}),
    }


def _limits(ulimits: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    no_limit = (1 << 64) - 1
    return [
        {
            "type": limit["Name"],
            **{name.lower(): limit[name] if limit[name] >= 0 else no_limit for name in ("Soft", "Hard")},
        }
        for limit in ulimits
    ]


def _resources(host: Mapping[str, Any]) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if memory := host.get("Memory"):
        resources["memory"] = {"limit": memory}
    if (pids := host.get("PidsLimit")) is not None:
        resources["pids"] = {"limit": pids}
    cpu: dict[str, Any] = {}
    if cpus := host.get("NanoCpus"):
        cpu = {"period": _CPU_PERIOD_MICROSECONDS, "quota": cpus // 10_000}
    if cores := host.get("CpusetCpus"):
        cpu["cpus"] = cores
    return {**resources, **({"cpu": cpu} if cpu else {})}
