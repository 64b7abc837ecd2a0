"""What ``reprobox gpus`` shows: every GPU, who has it, and whether it can be chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reprobox.errors import ClaimError
from reprobox.gpus import allocation, take_inventory, with_runs
from reprobox.gpus.auto import candidates, occupation
from reprobox.gpus.claims import by_gpu
from reprobox.runs.gpu_users import runs_of_processes
from reprobox.runs.gpus import current_holders, described, with_boxes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reprobox.gpus import Gpu, Inventory
    from reprobox.gpus.claims import Holder
    from reprobox.runs.gpu_users import BoxesSeen

__all__ = ["GpuState", "Overview", "look"]

GPUS_SCHEMA = "reprobox.gpus/1"


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU or a MIG instance at a moment.

    ``claims``: the runs that have it. ``occupied_by``: why ``--gpus auto`` passes it over, in words, or ``None``.
    ``free``: ``auto`` could choose it. ``allotted``: the caller's CUDA_VISIBLE_DEVICES does not leave it out.
    """

    gpu: Gpu
    claims: tuple[Holder, ...]
    occupied_by: str | None
    free: bool
    allotted: bool
    instances: tuple[GpuState, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in ``reprobox.gpus/1``: everything of the GPU, and what is known of its users."""
        told = self.gpu.to_json()
        instances = [
            {**told_of_it, **state._users()}  # noqa: SLF001 - of this class
            for told_of_it, state in zip(told["mig_instances"], self.instances, strict=True)
        ]
        return {**told, "mig_instances": instances, **self._users()}

    def _users(self) -> dict[str, Any]:
        claims = [
            {**asdict(holder), "since": None if holder.since is None else holder.since.isoformat()}
            for holder in self.claims
        ]
        for claim in claims:
            del claim["gpus"]
        return {"free": self.free, "occupied_by": self.occupied_by, "allotted": self.allotted, "claims": claims}


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All GPUs at a moment.

    ``allotted``: the GPUs and instances that CUDA_VISIBLE_DEVICES leaves the caller, in its order, which is what the
    indices of ``--gpus`` count; ``None`` where it is unset. ``notes``: what could not be seen, a sentence each.
    """

    inventory: Inventory
    gpus: tuple[GpuState, ...]
    allotted: tuple[Gpu, ...] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        holders: Iterable[Holder],
        environment: Mapping[str, str],
        notes: tuple[str, ...] = (),
    ) -> Overview:
        """Return what there is to say of the GPUs, given who has some and the caller's ``environment``."""
        claims = by_gpu(holders, inventory)
        taken = {uuid: described(those) for uuid, those in claims.items()}
        limited = "CUDA_VISIBLE_DEVICES" in environment
        universe = allocation(inventory, environment)

        def state(gpu: Gpu, *, can_be_chosen: bool, allotted: bool, instances: tuple[GpuState, ...] = ()) -> GpuState:
            occupied_by = occupation(gpu, taken)
            return GpuState(
                gpu=gpu,
                claims=claims.get(gpu.uuid, ()),
                occupied_by=occupied_by,
                free=can_be_chosen and occupied_by is None,
                allotted=allotted,
                instances=instances,
            )

        def whole(gpu: Gpu) -> GpuState:
            eligible = candidates((gpu,), 1)
            # A lost GPU tells no UUID, and is in the list of all for itself alone.
            allotted = any(other.index == gpu.index and other.parent == gpu.parent for other in universe)
            instances = tuple(
                state(
                    instance,
                    can_be_chosen=instance in eligible,
                    allotted=allotted or any(other.uuid == instance.uuid for other in universe),
                )
                for instance in (one.as_gpu(gpu) for one in gpu.mig_instances)
            )
            return state(gpu, can_be_chosen=gpu in eligible, allotted=allotted, instances=instances)

        return cls(
            inventory=inventory,
            gpus=tuple(whole(gpu) for gpu in inventory.gpus),
            allotted=universe if limited else None,
            notes=notes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the ``reprobox.gpus/1`` document."""
        return {
            "schema": GPUS_SCHEMA,
            "driver": self.inventory.driver,
            "cuda": self.inventory.cuda,
            "gpus": [state.to_json() for state in self.gpus],
            "missing": self.inventory.missing,
            "remedy": self.inventory.remedy,
        }


def look(seen: BoxesSeen, environment: Mapping[str, str], *, engine_was_named: bool) -> Overview:
    """Look at the GPUs of this machine and at who has them. Never raises: what cannot be seen is a note.

    :param seen: asks the engine for boxes.
    :param engine_was_named: whether a person expects this engine to be asked; where nobody does, its absence is no news.
    """
    inventory = take_inventory(details=True)
    if not inventory.gpus:
        return Overview.of(inventory, (), environment)
    notes: list[str] = []
    try:
        holders = current_holders(None)
    except ClaimError as error:
        holders = ()
        notes.append(f"claims are not shown: {error}")
    boxes = seen.now()
    if seen.hung:
        notes.append("the container engine does not answer: runs that are known by their box alone may be missing")
    elif seen.error is not None and engine_was_named:
        notes.append(f"boxes are not shown: {seen.error}")
    inventory = with_runs(inventory, runs_of_processes(boxes))
    return Overview.of(inventory, with_boxes(holders, boxes), environment, tuple(notes))
