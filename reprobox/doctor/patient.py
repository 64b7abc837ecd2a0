"""What is examined, and what the checks have found out about it for one another."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from reprobox.gpus.request import left_to_default

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

    from reprobox.engines import Engine, EngineInfo, ImageInfo
    from reprobox.gpus import Gpu, Inventory
    from reprobox.settings import Settings

__all__ = ["EngineFacts", "Patient", "a_container_engine", "gpus_at_all", "gpus_to_use", "the_local_engine"]


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself: ``said`` is its answer to ``/info``, empty for the local engine.

    ``here`` says that it runs on this machine, so that its folders are this machine's. ``note`` is what choosing it had
    to say.
    """

    info: EngineInfo
    said: Mapping[str, Any] = field(default_factory=dict)
    here: bool = True
    note: str | None = None

    @classmethod
    def of(cls, engine: Engine, note: str | None = None) -> EngineFacts:
        """Ask ``engine``. :raises EngineUnavailable: when it does not answer."""
        info = engine.info()
        # A socket of this machine may lead into a virtual machine (Docker Desktop) or, by ssh, anywhere.
        elsewhere = "host" in info.details or info.details.get("kernel", platform.release()) != platform.release()
        return cls(info=info, said=engine.describe(), here=not elsewhere, note=note)

    @property
    def rootless(self) -> bool:
        """Whether the engine runs as a user without rights."""
        return bool(self.said.get("Rootless")) or "rootless" in self.security

    @property
    def security(self) -> frozenset[str]:
        """The names among its security options: ``rootless``, ``userns``, ``seccomp``."""
        options = self.said.get("SecurityOptions") or ()
        return frozenset(word.removeprefix("name=") for option in options for word in str(option).split(",")[:1])


@dataclass(kw_only=True)
class Patient:
    """A machine with its engine, for a person in a folder with settings. The checks fill in what is ``None`` at first.

    ``inventory`` stays ``None`` where the driver is broken, and ``box`` is the run id of a box that a check has begun to make,
    ``python`` the process that tries torch.
    """

    settings: Settings
    directory: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    engine: Engine | None = None
    facts: EngineFacts | None = None
    inventory: Inventory | None = None
    reference: str | None = None
    image: ImageInfo | None = None
    box: str | None = None
    python: subprocess.Popen[bytes] | None = None

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that a run has which names none; where all are divided, an instance such as it would name."""
        if self.inventory is None or self.wants_none:
            return ()
        whole, _ = left_to_default(self.inventory, self.environment)
        if whole or "CUDA_VISIBLE_DEVICES" in self.environment:
            return whole
        return tuple(instance.as_gpu(gpu) for gpu in self.inventory.gpus for instance in gpu.mig_instances)[:1]

    @property
    def wants_none(self) -> bool:
        """Whether runs are set to have no GPU (REPROBOX_GPUS or the project file)."""
        asked = self.settings.value("gpus")
        return asked is not None and asked.text == "none"

    @property
    def variant(self) -> Literal["cpu", "cuda"]:
        """Which of reprobox's images a run takes here."""
        return "cuda" if self.gpus else "cpu"


def a_container_engine(patient: Patient) -> str | None:
    """Return why a check of containers does not apply, or ``None``."""
    if patient.engine is not None and not patient.engine.isolates:
        return "--engine local has no containers"
    return None


def the_local_engine(patient: Patient) -> str | None:
    """Return why a check of this machine's own Python does not apply, or ``None``."""
    if patient.engine is not None and patient.engine.isolates:
        return "only --engine local runs this machine's own Python"
    return None


def gpus_at_all(patient: Patient) -> str | None:
    """Return why a check of the machine's GPUs does not apply, or ``None``."""
    if patient.inventory is None:
        return None  # the driver has failed, and that is the reason to give
    if not patient.inventory.gpus:
        return f"no NVIDIA GPU: {patient.inventory.missing or 'NVML shows none'}"
    return "runs are set to have none (gpus = none)" if patient.wants_none else None


def gpus_to_use(patient: Patient) -> str | None:
    """Return why a check of a run's GPUs does not apply, or ``None``."""
    if (why := gpus_at_all(patient)) is not None:
        return why
    return None if patient.gpus or patient.inventory is None else "no NVIDIA GPU that a run may have"
