"""What a person asks for with ``--gpus``, and what it means on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reprobox.errors import GpuError, GpusTaken, UsageError
from reprobox.gpus.auto import candidates, least_busy, occupation
from reprobox.sizes import human_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.gpus.inventory import Gpu, Inventory

__all__ = ["GpuRequest", "allocation", "left_to_default"]

_INDEX = re.compile(r"[0-9]{1,3}")
# The second form is how drivers before R470 name a MIG instance.
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Fa-f][0-9A-Fa-f-]*|MIG-GPU-[0-9A-Fa-f-]+/[0-9]+/[0-9]+")
_AUTO = re.compile(r"auto(?::(?P<count>[0-9]{1,3}))?(?:,mem=(?P<memory>[^,]*))?")
_LEAST_MEMORY = 1 << 20
_REMEDY = "give all, none, indices such as 0,1, UUIDs such as GPU-8f3a1b2c, auto, auto:2 or auto:2,mem=20G"


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """A parsed ``--gpus``: all, none, these (each an index or the beginning of a UUID, in this order), or the freest.

    ``count`` GPUs are chosen by ``auto``, each with ``memory_bytes`` left where that is given.
    """

    text: str
    kind: Literal["all", "none", "devices", "auto"]
    devices: tuple[str, ...] = ()
    count: int = 1
    memory_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> GpuRequest:
        """Read ``all``, ``none``, ``0,1``, ``GPU-8f3a…``, ``MIG-…``, ``device=0,1``, ``auto``, ``auto:2,mem=20G``.

        :raises UsageError: for anything else, and for a GPU named twice.
        """
        if text in ("all", "none"):
            return cls(text=text, kind="all" if text == "all" else "none")
        if match := _AUTO.fullmatch(text):
            return cls._parse_auto(text, match)
        # Docker's own documentation quotes it twice, --gpus '"device=0,1"', for docker splits the value at commas.
        devices = tuple(text.strip('"').removeprefix("device=").split(","))
        if not all(_INDEX.fullmatch(d) or _UUID.fullmatch(d) for d in devices):
            raise UsageError(f"--gpus cannot be {text!r}", remedy=_REMEDY)
        if len(set(devices)) < len(devices):
            raise UsageError(f"--gpus {text} names a GPU twice", remedy="name each GPU once")
        return cls(text=text, kind="devices", devices=devices)

    @classmethod
    def _parse_auto(cls, text: str, match: re.Match[str]) -> GpuRequest:
        count = int(match["count"] or 1)
        if count == 0:
            raise UsageError(f"--gpus {text} asks for no GPU", remedy="ask for one or more, or give --gpus none")
        memory = None if match["memory"] is None else parse_size(match["memory"], f"mem in --gpus {text}")
        if memory is not None and memory < _LEAST_MEMORY:
            raise UsageError(
                f"--gpus {text} asks for {memory} bytes of memory", remedy="give the unit as well, such as mem=20G"
            )
        return cls(text=text, kind="auto", count=count, memory_bytes=memory)

    def resolve(
        self,
        inventory: Inventory,
        environment: Mapping[str, str],
        taken: Mapping[str, str] | None = None,
    ) -> tuple[Gpu, ...]:
        """Return the GPUs meant, in the order asked for; those of ``auto`` in PCI order.

        A caller's CUDA_VISIBLE_DEVICES (a scheduler's allocation) is the universe: indices count inside it.

        :param taken: by UUID, who claims a GPU: ``auto`` passes these over.
        :raises GpusTaken: when ``auto`` finds too few free ones, and waiting could help.
        :raises GpuError: when a GPU that was asked for is not there or not usable; never fewer than asked.
        """
        if self.kind == "none":
            return ()
        if not inventory.gpus:
            raise GpuError(
                f"--gpus {self.text} cannot be met: {inventory.missing or 'this machine has no NVIDIA GPU'}",
                remedy=inventory.remedy or "run with --gpus none",
            )
        universe = allocation(inventory, environment)
        if not universe:
            raise GpuError(
                f"--gpus {self.text} cannot be met: CUDA_VISIBLE_DEVICES leaves this process no GPU",
                remedy="ask the scheduler for GPUs, or run with --gpus none",
            )
        if self.kind == "auto":
            return self._choose(universe, taken or {}, slots=len(inventory.gpus))
        if self.kind == "all":
            return self._usable(tuple(gpu for gpu in universe if not gpu.mig) or universe, universe)
        chosen = tuple(self._find(device, universe, inventory) for device in self.devices)
        if len({gpu.uuid or gpu.index for gpu in chosen}) < len(chosen):  # a lost one tells no UUID
            raise UsageError(f"--gpus {self.text} names a GPU twice", remedy="name each GPU once")
        return self._usable(chosen, universe)

    def _choose(self, universe: tuple[Gpu, ...], taken: Mapping[str, str], slots: int) -> tuple[Gpu, ...]:
        there = candidates(universe, self.count)
        if len(there) < self.count:
            raise GpuError(
                f"--gpus {self.text} cannot be met: {_number(len(there))} here to choose from",
                remedy=f"ask for fewer; there are {_listed(universe)}",
            )
        if self.memory_bytes is not None:
            large = [g for g in there if g.memory_total_bytes is None or g.memory_total_bytes >= self.memory_bytes]
            if len(large) < self.count:
                raise GpuError(
                    f"--gpus {self.text} cannot be met: {_number(len(large))} here with so much memory at all",
                    remedy=f"ask for less than {human_size(self.memory_bytes)}",
                )
        why = {gpu.uuid: occupation(gpu, taken, self.memory_bytes) for gpu in there}
        free = [gpu for gpu in there if why[gpu.uuid] is None]
        if len(free) < self.count:
            busy = "; ".join(f"{gpu.index}: {why[gpu.uuid]}" for gpu in there if why[gpu.uuid] is not None)
            raise GpusTaken(
                f"--gpus {self.text} cannot be met now: {len(free)} of {len(there)} GPUs free ({busy})",
                remedy="add --wait-gpus to wait for them, or name the ones to share, such as --gpus 0",
            )
        return least_busy(free, self.count, slots)

    def _usable(self, chosen: tuple[Gpu, ...], universe: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        """Return ``chosen``, each of which CUDA must be able to show.

        :raises GpuError: for one that is lost or divided, and for more than one MIG instance: CUDA shows a process one
            at most (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/, "CUDA Device Enumeration").
        """
        for gpu in chosen:
            if gpu.fault is not None:
                raise GpuError(
                    f"--gpus {self.text}: GPU {gpu.index} cannot be used: {gpu.fault}",
                    remedy=f"choose from {_listed(universe)}",
                )
            if gpu.mig and gpu.parent is None:
                slices = ", ".join(f"{i.uuid} ({i.profile})" for i in gpu.mig_instances)
                raise GpuError(
                    f"--gpus {self.text}: GPU {gpu.index} is in MIG mode"
                    + (", divided into instances" if slices else " and has no instance"),
                    remedy=f"name one of {slices}"
                    if slices
                    else f"make one with nvidia-smi mig -cgi, or end the mode with nvidia-smi -i {gpu.index} -mig 0",
                )
        if len(chosen) > 1 and any(gpu.parent is not None for gpu in chosen):
            raise GpuError(
                f"--gpus {self.text}: CUDA shows a process one MIG instance, and nothing beside it",
                remedy="choose one instance, or whole GPUs alone",
            )
        return chosen

    def _find(self, device: str, universe: tuple[Gpu, ...], inventory: Inventory) -> Gpu:
        matches = _matches(device, universe)
        if len(matches) == 1:
            return matches[0]
        if not matches and len(_matches(device, inventory.gpus)) == 1:
            raise GpuError(
                f"--gpus {self.text}: GPU {device} is outside what CUDA_VISIBLE_DEVICES allots to this process",
                remedy=f"choose from {_listed(universe)}, or add --gpus-ignore-allocation",
            )
        what = "is not there" if not matches else "could be several"
        raise GpuError(f"--gpus {self.text}: GPU {device} {what}", remedy=f"choose from {_listed(universe)}")


def allocation(inventory: Inventory, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Return the GPUs a scheduler left this process in CUDA_VISIBLE_DEVICES, or all where it is unset."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return inventory.gpus
    found: list[Gpu] = []
    for device in visible.split(","):
        matches = _matches(device.strip(), inventory.gpus)
        if len(matches) != 1:
            break  # CUDA itself stops at the first entry it does not know, as -1 or NoDevFiles
        found.append(matches[0])
    # CUDA shows no device where one is named twice (torch/cuda/__init__.py, _parse_visible_devices).
    return tuple(found) if len({gpu.uuid for gpu in found}) == len(found) else ()


def left_to_default(inventory: Inventory, environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Return the GPUs of a run that names none, and a sentence for each that is left out of them.

    Every whole, healthy GPU of the allocation; a MIG instance only where the allocation is that one alone.
    """
    universe = allocation(inventory, environment)
    if len(universe) == 1 and universe[0].parent is not None:
        return universe, ()
    chosen = tuple(gpu for gpu in universe if gpu.fault is None and not gpu.mig)
    left_out = [f"GPU {gpu.index} is left out: {gpu.fault}" for gpu in universe if gpu.fault is not None]
    left_out += [
        f"GPU {gpu.index} is left out: it is in MIG mode; name an instance with --gpus MIG-…"
        for gpu in universe
        if gpu.fault is None and gpu.mig
    ]
    return chosen, tuple(left_out)


def _matches(device: str, gpus: tuple[Gpu, ...]) -> list[Gpu]:
    if re.fullmatch(r"[0-9]{1,9}", device):
        return [gpus[int(device)]] if int(device) < len(gpus) else []
    if not _UUID.fullmatch(device):
        return []
    every = [*gpus, *(instance.as_gpu(gpu) for gpu in gpus for instance in gpu.mig_instances)]
    return [gpu for gpu in every if gpu.uuid.lower().startswith(device.lower())]


def _listed(universe: tuple[Gpu, ...]) -> str:
    """Return the GPUs that can be chosen, each with its place in the allocation, which is what an index counts."""
    entries = [
        f"{i}: {gpu.name} {gpu.uuid}" + "".join(f", {m.uuid} ({m.profile})" for m in gpu.mig_instances)
        for i, gpu in enumerate(universe)
        if gpu.fault is None
    ]
    return ", ".join(entries) or "none"


def _number(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")
