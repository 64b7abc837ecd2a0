"""What GPUs a machine has: plain data, read by :mod:`reprobox.gpus.nvml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Gpu", "GpuProcess", "Inventory", "MigInstance"]


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that holds memory of a GPU. ``user`` and ``command`` are ``None`` where /proc does not tell them.

    ``run`` is the id of the reprobox run that the process belongs to.
    """

    pid: int
    kind: Literal["compute", "graphics"]
    user: str | None = None
    command: str | None = None
    memory_bytes: int | None = None
    run: str | None = None


@dataclass(frozen=True, kw_only=True)
class MigInstance:
    """A slice of a GPU in MIG mode: its UUID (``MIG-…``), its profile (``1g.10gb``), its memory and its processes."""

    uuid: str
    profile: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    processes: tuple[GpuProcess, ...] = ()

    def as_gpu(self, parent: Gpu) -> Gpu:
        """Return this instance as what a run is given: in CUDA's eyes it is a GPU of its own."""
        return Gpu(
            index=parent.index,
            uuid=self.uuid,
            name=f"{parent.name} MIG {self.profile}",
            ecc=parent.ecc,
            mig=True,
            parent=parent.uuid,
            memory_total_bytes=self.memory_total_bytes,
            memory_used_bytes=self.memory_used_bytes,
            temperature_celsius=parent.temperature_celsius,
            processes=self.processes,
            fault=parent.fault,
        )


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. Everything but index, UUID and name is ``None`` where its driver does not support the question.

    ``index`` counts in PCI order. ``ecc`` and ``mig`` say whether the mode is on; ``ecc_errors`` counts uncorrected ones
    since the driver was loaded. ``links`` gives, by another GPU's UUID, how near it is: ``NV4`` (four NVLinks), then
    ``PIX``, ``PXB``, ``PHB``, ``NODE``, ``SYS``, the words of ``nvidia-smi topo -m``. ``fault`` is a sentence where the
    GPU cannot be used, ``parent`` the UUID of the GPU that a MIG instance is a slice of.
    """

    index: int
    uuid: str
    name: str
    ecc: bool | None = None
    mig: bool | None = None
    mig_instances: tuple[MigInstance, ...] = ()
    bus_id: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    fan_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    performance_state: str | None = None
    persistence_mode: bool | None = None
    ecc_errors: int | None = None
    compute_mode: str | None = None
    display_active: bool | None = None
    processes: tuple[GpuProcess, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    parent: str | None = None

    @property
    def memory_free_bytes(self) -> int | None:
        """What is left of its memory."""
        if self.memory_total_bytes is None or self.memory_used_bytes is None:
            return None
        return self.memory_total_bytes - self.memory_used_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the GPU as ``reprobox gpus --json`` shows it."""
        from dataclasses import asdict

        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What NVML answered: the GPUs, the versions of the driver and of the CUDA it speaks; where there are none, why."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    missing: str | None = None
    remedy: str | None = None
