"""How near the GPUs of a machine are to one another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reprobox.gpus.device import Device

__all__ = ["links"]

_LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""``nvmlGpuTopologyLevel_t`` in the words of ``nvidia-smi topo -m``; two GPUs of one board have a switch there."""


@dataclass
class _NvLinks:
    """How many NVLinks of a GPU are up: to each other GPU, by PCI bus id, and to switches."""

    peers: Counter[str] = field(default_factory=Counter)
    switches: int = 0


def links(devices: Sequence[Device]) -> dict[str, dict[str, str]]:
    """Return for each GPU, by UUID, how near each other one is.

    ``NV4`` are four NVLinks, straight to the other or into the switches that join all GPUs, as ``nvidia-smi topo -m``
    counts them; then ``PIX``, ``PXB``, ``PHB``, ``NODE``, ``SYS``. A pair that the driver tells nothing of is left out.
    """
    found: dict[str, dict[str, str]] = {device.uuid: {} for device in devices}
    nvlinks = {device.uuid: _nvlinks(device) for device in devices}
    for one, other in combinations(devices, 2):
        joined = _joined(nvlinks[one.uuid], nvlinks[other.uuid], other.bus_id)
        word = f"NV{joined}" if joined else _level(one, other)
        if word is not None:
            found[one.uuid][other.uuid] = found[other.uuid][one.uuid] = word
    return found


def _level(one: Device, other: Device) -> str | None:
    level: int | None = one.ask_beside("nvmlDeviceGetTopologyCommonAncestor", other)
    return None if level is None else _LEVELS.get(level)


def _joined(one: _NvLinks, other: _NvLinks, other_bus_id: str | None) -> int:
    straight = one.peers[other_bus_id] if other_bus_id is not None else 0
    return straight or min(one.switches, other.switches)


def _nvlinks(device: Device) -> _NvLinks:
    found = _NvLinks()
    for link in range(device.nvml.NVML_NVLINK_MAX_LINKS):
        if not device.ask("nvmlDeviceGetNvLinkState", link):
            continue
        remote = device.ask("nvmlDeviceGetNvLinkRemotePciInfo", link)
        if _ends_in_switch(device, link, remote):
            found.switches += 1
        elif remote is not None:
            found.peers[remote.busId] += 1
    return found


def _ends_in_switch(device: Device, link: int, remote: Any) -> bool:
    nvml = device.nvml
    kind = device.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
    if kind is not None or remote is None:
        return bool(kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)
    # Drivers before 470 do not tell the kind. What is at a link's end and is no GPU is a switch, as
    # https://github.com/openucx/ucc/pull/423 has it; a GPU that may not be used is a GPU still.
    try:
        nvml.nvmlDeviceGetHandleByPciBusId(remote.busId.encode())
    except nvml.NVMLError as error:
        return bool(error.value == nvml.NVML_ERROR_NOT_FOUND)
    return False
