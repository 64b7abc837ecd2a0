"""What a person asks for with ``--gpus``, and what it means on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reprobox.errors import GpuError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.gpus.inventory import Gpu, Inventory

__all__ = ["GpuRequest", "allocation"]

_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Fa-f][0-9A-Fa-f-]*")


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """A parsed ``--gpus``: all of them, none, or these, each an index or the beginning of a UUID, in this order."""

    text: str
    kind: Literal["all", "none", "devices"]
    devices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> GpuRequest:
        """Read ``all``, ``none``, ``0,1``, ``GPU-8f3a…`` or ``device=0,1``.

        :raises UsageError: for anything else, and for a GPU named twice.
        """
        if text == "all":
            return cls(text=text, kind="all")
        if text == "none":
            return cls(text=text, kind="none")
        devices = tuple(text.removeprefix("device=").split(","))
        if not all(re.fullmatch(r"[0-9]{1,3}", d) or _UUID.fullmatch(d) for d in devices):
            raise UsageError(
                f"--gpus cannot be {text!r}",
                remedy="give all, none, indices such as 0,1, or UUIDs such as GPU-8f3a1b2c",
            )
        if len(set(devices)) < len(devices):
            raise UsageError(f"--gpus {text} names a GPU twice", remedy="name each GPU once")
        return cls(text=text, kind="devices", devices=devices)

    def resolve(self, inventory: Inventory, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
        """Return the GPUs meant, in the order asked for.

        A caller's CUDA_VISIBLE_DEVICES (a scheduler's allocation) is the universe: indices count inside it.

        :raises GpuError: when a GPU that was asked for is not there; never fewer than asked.
        """
        if self.kind == "none":
            return ()
        if not inventory.gpus:
            raise GpuError(
                f"--gpus {self.text} cannot be met: {inventory.missing or 'this machine has no NVIDIA GPU'}",
                remedy=inventory.remedy or "run with --gpus none",
            )
        universe = allocation(inventory, environment)
        if self.kind == "all":
            if not universe:
                raise GpuError(
                    "--gpus all cannot be met: CUDA_VISIBLE_DEVICES leaves this process no GPU",
                    remedy="ask the scheduler for GPUs, or run with --gpus none",
                )
            return universe
        chosen = tuple(_find(device, universe, self.text) for device in self.devices)
        if len({gpu.uuid for gpu in chosen}) < len(chosen):
            raise UsageError(f"--gpus {self.text} names a GPU twice", remedy="name each GPU once")
        return chosen


def allocation(inventory: Inventory, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs a scheduler left this process in CUDA_VISIBLE_DEVICES, or all where it is unset."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return inventory.gpus
    found = []
    for device in filter(None, (word.strip() for word in visible.split(","))):
        matches = _matches(device, inventory.gpus)
        if len(matches) != 1:
            break  # CUDA itself stops at the first entry it does not know
        found.append(matches[0])
    return tuple(found)


def _matches(device: str, gpus: tuple[Gpu, ...]) -> list[Gpu]:
    if re.fullmatch(r"[0-9]{1,9}", device):
        return [gpus[int(device)]] if int(device) < len(gpus) else []
    return [gpu for gpu in gpus if gpu.uuid.lower().startswith(device.lower())]


def _find(device: str, universe: tuple[Gpu, ...], text: str) -> Gpu:
    matches = _matches(device, universe)
    if len(matches) == 1:
        return matches[0]
    there = ", ".join(f"{i}: {gpu.name} {gpu.uuid}" for i, gpu in enumerate(universe)) or "none"
    what = "is not there" if not matches else "could be several"
    raise GpuError(f"--gpus {text}: GPU {device} {what}", remedy=f"choose from {there}")
