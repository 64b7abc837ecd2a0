"""Which GPUs ``--gpus auto`` takes: the least busy that nobody else has, near to one another, cool, at an edge."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from reprobox.sizes import human_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reprobox.gpus.inventory import Gpu

__all__ = ["candidates", "least_busy", "occupation"]

_GIB = 1 << 30
_IDLE_BYTES = _GIB
_IDLE_SHARE = 20
_MOST_COMPARED = 16
"""Of so many GPUs every choice is compared: 12,870 for 8 of 16, the largest machine with NVLink between all."""

_NEARNESS = ("PIX", "PXB", "PHB", "NODE", "SYS")


def candidates(universe: Sequence[Gpu], count: int) -> tuple[Gpu, ...]:
    """Return the GPUs that ``auto`` may choose of: whole ones; a MIG instance where there is no whole one to be had.

    CUDA shows a process one MIG instance at most, so that several are never chosen together.
    """
    whole = tuple(gpu for gpu in universe if not gpu.mig and gpu.fault is None)
    if whole or count > 1:
        return whole
    return tuple(
        gpu if gpu.parent is not None else instance
        for gpu in universe
        if gpu.mig and gpu.fault is None
        for instance in ([gpu] if gpu.parent is not None else [i.as_gpu(gpu) for i in gpu.mig_instances])
    )


def occupation(gpu: Gpu, taken: Mapping[str, str], memory_bytes: int | None = None) -> str | None:
    """Say who or what keeps ``gpu`` from being chosen, or ``None`` where it is free.

    It is free where no run claims it and no process computes on it. With ``memory_bytes`` it may be shared with what is
    no run of reprobox, as long as so much of its memory is left.

    :param taken: by UUID, who claims a GPU.
    """
    if gpu.uuid in taken:
        return taken[gpu.uuid]
    if gpu.compute_mode == "Prohibited":
        return "its compute mode is Prohibited"
    if memory_bytes is not None:
        left = gpu.memory_free_bytes
        return None if left is None or left >= memory_bytes else f"{human_size(left)} of memory left"
    if computing := [process for process in gpu.processes if process.kind == "compute"]:
        first = computing[0]
        more = f" and {len(computing) - 1} more" if len(computing) > 1 else ""
        return f"{first.command or 'a process'} (pid {first.pid}, {first.user or 'unknown user'}){more}"
    # NVML in a container sees no process of another; memory it does see. A desktop, or the driver, holds a little.
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    if used is not None and total is not None and used > max(_IDLE_BYTES, total // _IDLE_SHARE):
        return f"{human_size(used)} of memory used"
    return None


def least_busy(free: Sequence[Gpu], count: int, slots: int) -> tuple[Gpu, ...]:
    """Return the best ``count`` of the ``free`` GPUs, in PCI order.

    Idle before busy, less memory used, linked more closely, cooler, nearer to an edge of the ``slots`` GPUs there are:
    the inner ones of a row breathe their neighbours' warm air.
    """
    ranked = sorted(free, key=lambda gpu: _load([gpu], slots))[: max(_MOST_COMPARED, count)]
    best = min(combinations(ranked, count), key=lambda chosen: _load(chosen, slots))
    return tuple(sorted(best, key=lambda gpu: gpu.index))


def _load(chosen: Sequence[Gpu], slots: int) -> tuple[object, ...]:
    """Return what a choice is compared by, less being better."""
    return (
        sum(bool(gpu.processes) for gpu in chosen),
        # In GiB: a driver's own few MiB must not outweigh an NVLink.
        sum((gpu.memory_used_bytes or 0) // _GIB for gpu in chosen),
        _distance(chosen),
        sum(gpu.utilization_percent or 0 for gpu in chosen) // 10,
        sum(gpu.temperature_celsius or 0 for gpu in chosen),
        sum(min(gpu.index, slots - 1 - gpu.index) for gpu in chosen),
        [gpu.index for gpu in chosen],
    )


def _distance(chosen: Sequence[Gpu]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return how far apart the GPUs are: the worst link first, for a collective waits for it, then all of them."""
    links = sorted((_link(one.links.get(other.uuid)) for one, other in combinations(chosen, 2)), reverse=True)
    return (links[0] if links else (0, 0), links)


def _link(word: str | None) -> tuple[int, int]:
    if word is not None and word.startswith("NV") and word[2:].isdigit():
        return (0, -int(word[2:]))
    return (1 + _NEARNESS.index(word) if word in _NEARNESS else 1 + len(_NEARNESS), 0)
