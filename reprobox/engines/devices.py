"""How an engine gives a box its GPUs, and what it says when it cannot.

Docker knows two ways. Through **NVIDIA's hook**: a device request that names UUIDs, which the engine's ``nvidia`` device
driver hands to ``nvidia-container-runtime-hook``; the driver is there where the engine found that program on its PATH when
it started (moby, ``daemon/nvidia_linux.go``), which it tells nobody. And as **CDI devices**: a request for the driver
``cdi`` with names such as ``nvidia.com/gpu=GPU-8f3a…``, from Engine 25 on where CDI is enabled, by default from 28.2 on
(moby, ``daemon/cdi.go``; the CDI specification, https://github.com/cncf-tags/container-device-interface). Podman knows CDI
alone.

A CDI specification has names by UUID where ``nvidia-ctk cdi generate`` was asked for them, and unasked from
nvidia-container-toolkit 1.15 on; before, it had indices alone (``cmd/nvidia-ctk/cdi/generate``, ``pkg/nvcdi/namer.go``).
An index is never guessed from a UUID: the specification may be older than the order of the GPUs.
"""

from __future__ import annotations

import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import docker.types

from reprobox.errors import EngineError, GpuError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "KIND",
    "GpuWay",
    "cdi_names",
    "cdi_request",
    "device_request",
    "find_hook",
    "gpu_way",
    "qualified",
    "why_no_gpus",
]

KIND = "nvidia.com/gpu"
"""What NVIDIA's CDI devices are called before the ``=``."""

_HOOK = "nvidia-container-runtime-hook"
_PATH_OF_SERVICES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GENERATE = "nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"

# What nvidia-ctk writes, YAML or JSON, names devices and nothing else with a key "name".
_KIND = re.compile(rf"""(?<!\w)kind["']?\s*:\s*["']?{re.escape(KIND)}\b""")
_NAME = re.compile(r"""(?<!\w)name["']?\s*:\s*["']?([A-Za-z0-9][\w.:-]*)""")

_UNRESOLVABLE = re.compile(r"unresolvable CDI devices? (?P<names>[^\s,\"')]+(?:, [^\s,\"')]+)*)")
# Each runc says it in its own way; 1.0 and older add layers of quotes.
_HOOK_SAID = re.compile(
    r"""error running (?:prestart )?hook\b.*?stderr:\s*(?P<said>.+?)(?:\\+n|[\\"\s])*(?:: unknown)?$"""
)
_TOOL = re.compile(r".*\bnvidia-container-cli(?:\.real)?:\s*")


class GpuWay(StrEnum):
    """How boxes of an engine are given GPUs; a run's manifest says which it was (``engine.gpus``)."""

    NVIDIA = "nvidia"
    CDI = "cdi"


def gpu_way(info: Mapping[str, Any], *, local: bool) -> GpuWay:
    """Return how the Docker Engine that answered ``info`` (``GET /info``) is asked for GPUs.

    Through NVIDIA's hook wherever that may be there: it finds the driver's libraries anew at each start, while a CDI
    specification has them by the version the driver had when it was written. As CDI devices where the engine has some
    of NVIDIA's and nothing speaks for the hook: neither a runtime called ``nvidia`` nor, on this machine, the program.

    :param local: whether the engine's folders and programs are this machine's.
    """
    hook = "nvidia" in (info.get("Runtimes") or {}) or (local and find_hook() is not None)
    return GpuWay.CDI if not hook and cdi_names(info, local=local) else GpuWay.NVIDIA


def device_request(way: GpuWay, uuids: Iterable[str], info: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
    """Return what asks a Docker Engine for the GPUs and MIG instances ``uuids``.

    :raises GpuError: where the engine has CDI devices and not these.
    """
    match way:
        case GpuWay.NVIDIA:
            # By its name: a machine with AMD's driver would take a request for any "gpu" for its own.
            return docker.types.DeviceRequest(driver="nvidia", device_ids=list(uuids), capabilities=[["gpu"]])
        case GpuWay.CDI:
            uuids = tuple(uuids)
            if missing := set(uuids) - cdi_names(info, local=local):
                raise _not_in_the_specification(qualified(uuid for uuid in uuids if uuid in missing))
            return cdi_request(uuids)
        case _:
            assert_never(way)


def cdi_request(uuids: Iterable[str]) -> dict[str, Any]:
    """Return the request for CDI devices that Docker and, from 5.4 on, Podman understand."""
    return docker.types.DeviceRequest(driver="cdi", device_ids=qualified(uuids))


def qualified(uuids: Iterable[str]) -> list[str]:
    """Return the full names of NVIDIA's CDI devices."""
    return [f"{KIND}={uuid}" for uuid in uuids]


def find_hook(path: str | None = None) -> str | None:
    """Return where NVIDIA's hook is on this machine, or ``None``: on ``path`` ($PATH by default), or where services look."""
    return shutil.which(_HOOK, path=path) or shutil.which(_HOOK, path=_PATH_OF_SERVICES)


def cdi_names(info: Mapping[str, Any], *, local: bool) -> frozenset[str]:
    """Return the names of NVIDIA's CDI devices that the engine has: UUIDs, indices, ``all``.

    Engine 28.2 and later tell them (``DiscoveredDevices``); of an older one that has CDI (``CDISpecDirs``), the
    specifications are read where they lie on this machine.
    """
    told = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or ()]
    if told or not local:
        return frozenset(name.removeprefix(f"{KIND}=") for name in told if name.startswith(f"{KIND}="))
    names: set[str] = set()
    for folder in info.get("CDISpecDirs") or ():
        for path in sorted([*Path(folder).glob("*.yaml"), *Path(folder).glob("*.json")]):
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue  # the engine may read what this user may not; what is missing then is said
            if _KIND.search(text):
                names.update(_NAME.findall(text))
    return frozenset(names)


def why_no_gpus(error: EngineError) -> GpuError | None:
    """Return in our words why a box could not be started with its GPUs; ``None`` where that is not the reason."""
    text = " ".join(f"{error.message} {error.detail or ''}".split())
    if "could not select device driver" in text or "no CDI device driver registered" in text:
        return GpuError(
            "the engine has neither NVIDIA's runtime hook nor NVIDIA's CDI devices, so the box cannot be given GPUs",
            remedy=f"install nvidia-container-toolkit and restart the engine, or, with Docker 25 or newer, enable CDI "
            f"and run `{_GENERATE}` as root, or run with --gpus none",
            detail=error.detail,
        )
    if match := _UNRESOLVABLE.search(error.message):
        # Podman 4.3 lists the devices that it has as well (CDI's Go package before 0.6).
        names = [name.rstrip(":") for name in match["names"].split(", ")]
        return _not_in_the_specification(names, detail=error.detail)
    if match := _HOOK_SAID.search(error.message):
        return GpuError(
            f"NVIDIA's container toolkit could not give the box its GPUs: {_TOOL.sub('', match['said'])}",
            remedy="see whether nvidia-smi lists them on the engine's machine, and `reprobox doctor`",
            detail=error.detail,
        )
    return None


def _not_in_the_specification(names: list[str], detail: str | None = None) -> GpuError:
    what = f"no CDI device {names[0]}" if len(names) == 1 else f"not all of the CDI devices {', '.join(names)}"
    return GpuError(
        f"the engine has {what}, so the box cannot be given its GPUs",
        remedy=f"describe the GPUs by UUID: run `{_GENERATE}` as root",
        detail=detail,
    )
