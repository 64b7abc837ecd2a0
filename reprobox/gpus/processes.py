"""Who computes on a GPU: the pids that NVML tells, and what /proc says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reprobox.gpus.inventory import GpuProcess, Inventory
from reprobox.host import user_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reprobox.gpus.device import Device

__all__ = ["processes_of", "with_runs"]

_PROC = Path("/proc")
_KINDS: tuple[tuple[Literal["compute", "graphics"], str], ...] = (
    ("compute", "nvmlDeviceGetComputeRunningProcesses"),
    ("graphics", "nvmlDeviceGetGraphicsRunningProcesses"),
)


def processes_of(device: Device) -> tuple[GpuProcess, ...]:
    """Return the processes that have memory of a GPU or of a MIG instance; none where the driver does not tell.

    A process that computes and draws is there twice. In a container NVML tells of no process outside it. The oldest
    drivers are not asked: their list has a form of its own, which nvidia-ml-py does not read.
    """
    return tuple(_processes(device))


def with_runs(inventory: Inventory, owner_of: Callable[[int], str | None]) -> Inventory:
    """Return the inventory with each process's run.

    :param owner_of: gives the id of the reprobox run that a pid belongs to, or ``None``.
    """

    def owned(processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
        return tuple(replace(process, run=owner_of(process.pid)) for process in processes)

    return replace(
        inventory,
        gpus=tuple(
            replace(
                gpu,
                processes=owned(gpu.processes),
                mig_instances=tuple(replace(one, processes=owned(one.processes)) for one in gpu.mig_instances),
            )
            for gpu in inventory.gpus
        ),
    )


def _processes(device: Device) -> Iterator[GpuProcess]:
    for kind, question in _KINDS:
        for process in device.ask_any((f"{question}_v3", f"{question}_v2")) or ():
            yield GpuProcess(
                pid=process.pid,
                kind=kind,
                user=_user(process.pid),
                command=_command(process.pid),
                memory_bytes=process.usedGpuMemory,
            )


def _user(pid: int) -> str | None:
    """Return the name of the user whose rights the process has, or the number of one without a name."""
    try:
        status = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("Uid:"):
            return user_name(int(line.split()[2]))
    return None


def _command(pid: int) -> str | None:
    folder = _PROC / str(pid)
    try:
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ") or (folder / "comm").read_bytes()
    except OSError:
        return None
    text = " ".join(words.decode(errors="replace").split())
    # It is anybody's text, and goes to somebody's terminal.
    return "".join(letter if letter.isprintable() else "�" for letter in text) or None
