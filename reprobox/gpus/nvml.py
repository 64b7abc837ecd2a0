"""The GPUs of this machine, as NVML tells them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reprobox.gpus.device import Device
from reprobox.gpus.inventory import Gpu, Inventory, MigInstance
from reprobox.gpus.nvml_errors import DENIED, UNUSABLE, explain, fault
from reprobox.gpus.processes import processes_of
from reprobox.gpus.topology import links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["take_inventory"]

_NO_LIBRARY = 12
_NO_GPU = 28
_UNKNOWN = 999
_MIB, _GIB = 1 << 20, 1 << 30
_COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
"""``nvmlComputeMode_t`` in the words of ``nvidia-smi --query-gpu=compute_mode``."""


def take_inventory(*, details: bool = False) -> Inventory:
    """Ask NVML for the GPUs of this machine, in PCI order.

    Never raises: a machine without GPUs is an ordinary machine. A GPU that this process may not use (a scheduler's
    cgroup) is not there, and indices count without it, as CUDA's do; one that is lost or broken is, with its ``fault``.

    :param details: whether to ask for what only people and ``auto`` want to know as well: everything that changes from
        one moment to the next, and how the GPUs are linked.
    """
    if not _has_library():
        return _nothing(_NO_LIBRARY)
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _nothing(error.value)
    try:
        return _inventory(pynvml, details=details)
    except pynvml.NVMLError as error:
        return _nothing(error.value)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _has_library() -> bool:
    """Say whether the driver's library can be loaded: most machines have none, and the bindings cost 9 ms to import."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _inventory(nvml: Any, *, details: bool) -> Inventory:
    count = nvml.nvmlDeviceGetCount()
    devices = _in_pci_order([device for i in range(count) if (device := _open(nvml, i)) is not None])
    gpus = [_gpu(index, device, details=details) for index, device in enumerate(devices)]
    near = links([device for device in devices if device.fault is None]) if details else {}
    driver, cuda = _driver(nvml), _cuda(nvml)
    if count == 0:
        return _nothing(_NO_GPU, driver, cuda)
    if not devices:
        missing = f"this process may use none of the machine's GPUs ({count})"
        remedy = "ask the scheduler for GPUs, or run with --gpus none"
        return Inventory(missing=missing, remedy=remedy, driver=driver, cuda=cuda)
    # Links are asked for last, and a GPU can be lost any moment.
    told = zip(gpus, devices, strict=True)
    complete = (replace(gpu, links=near.get(gpu.uuid, {}), fault=device.fault) for gpu, device in told)
    return Inventory(gpus=tuple(complete), driver=driver, cuda=cuda)


def _nothing(value: int, driver: str | None = None, cuda: str | None = None) -> Inventory:
    meaning = explain(value)
    return Inventory(missing=meaning.sentence, remedy=meaning.remedy, driver=driver, cuda=cuda)


def _open(nvml: Any, number: int) -> Device | None:
    """Return NVML's GPU of this number, or ``None`` where this process may not use it."""
    try:
        device = Device(nvml, nvml.nvmlDeviceGetHandleByIndex(number))
    except nvml.NVMLError as error:
        return None if error.value in DENIED else Device(nvml, None, fault(error.value))
    uuid, code = device.attempt("nvmlDeviceGetUUID")
    if code in DENIED:
        return None
    device.uuid = uuid or ""
    pci = device.ask("nvmlDeviceGetPciInfo")
    device.bus_id = pci.busId if pci is not None else None
    if code in UNUSABLE:
        device.fault = fault(code)
    elif uuid is None and device.fault is None:
        device.fault = f"its UUID cannot be read: {fault(_UNKNOWN if code is None else code)}"
    return device


def _in_pci_order(devices: Sequence[Device]) -> list[Device]:
    """Return them as CUDA_DEVICE_ORDER=PCI_BUS_ID has them; one whose bus id is not known keeps its place.

    NVML's order is this one today, and its manual promises none (``nvmlDeviceGetHandleByIndex``).
    """
    known = iter(sorted((d for d in devices if d.bus_id is not None), key=lambda d: str(d.bus_id).lower()))
    return [device if device.bus_id is None else next(known) for device in devices]


def _gpu(index: int, device: Device, *, details: bool) -> Gpu:
    name = device.ask("nvmlDeviceGetName") or "unknown GPU"
    mig = _current(device.ask("nvmlDeviceGetMigMode"))
    gpu = Gpu(
        index=index,
        uuid=device.uuid,
        name=name,
        bus_id=device.bus_id,
        ecc=_current(device.ask("nvmlDeviceGetEccMode")),
        mig=mig,
        mig_instances=tuple(_instances(device, details=details)) if mig else (),
    )
    return replace(gpu, **_details(device, gpu)) if details else gpu


def _details(device: Device, gpu: Gpu) -> dict[str, Any]:
    nvml = device.nvml
    utilization = device.ask("nvmlDeviceGetUtilizationRates")
    state = device.ask("nvmlDeviceGetPerformanceState")
    temperature = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
    volatile = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return {
        **_memory(device),
        "utilization_percent": None if utilization is None else utilization.gpu,
        "temperature_celsius": device.ask_any(temperature, nvml.NVML_TEMPERATURE_GPU),
        "fan_percent": device.ask("nvmlDeviceGetFanSpeed"),
        "power_watts": _watts(device.ask("nvmlDeviceGetPowerUsage")),
        "power_limit_watts": _watts(device.ask("nvmlDeviceGetPowerManagementLimit")),
        "performance_state": None if state in {None, nvml.NVML_PSTATE_UNKNOWN} else f"P{state}",
        "persistence_mode": _is_on(device.ask("nvmlDeviceGetPersistenceMode")),
        "ecc_errors": device.ask("nvmlDeviceGetTotalEccErrors", *volatile),
        "compute_mode": _COMPUTE_MODES.get(device.ask("nvmlDeviceGetComputeMode")),
        "display_active": _is_on(device.ask("nvmlDeviceGetDisplayActive")),
        # Who may not see all of a divided GPU's processes may see its own instance's.
        "processes": processes_of(device) or tuple(p for one in gpu.mig_instances for p in one.processes),
    }


def _memory(device: Device) -> dict[str, int | None]:
    """Return total and used memory. What the driver keeps for itself counts as used, for no program can have it."""
    memory = device.ask("nvmlDeviceGetMemoryInfo")
    return {
        "memory_total_bytes": None if memory is None else memory.total,
        "memory_used_bytes": None if memory is None else memory.used,
    }


def _instances(parent: Device, *, details: bool) -> Iterator[MigInstance]:
    for place in range(parent.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        instance = Device(parent.nvml, parent.ask("nvmlDeviceGetMigDeviceHandleByIndex", place))
        uuid = instance.ask("nvmlDeviceGetUUID")
        if uuid is None:  # nothing lies in this place
            continue
        facts: dict[str, Any] = {"processes": processes_of(instance), **_memory(instance)} if details else {}
        yield MigInstance(uuid=uuid, profile=_profile(instance, parent), **facts)


def _profile(instance: Device, parent: Device) -> str:
    """Return the profile as nvidia-smi names it: out of the instance's name, or, with drivers before 470, reckoned."""
    profile = str(instance.ask("nvmlDeviceGetName") or "").rpartition(" MIG ")[2]
    if re.match(r"(\d+c\.)?\d+g\.", profile):
        return profile
    shape, whole = instance.ask("nvmlDeviceGetAttributes_v2"), _memory(parent)["memory_total_bytes"]
    if shape is None or not whole:
        return "unknown"
    compute = f"{shape.computeInstanceSliceCount}c."
    # In eighths of the GPU, as https://github.com/NVIDIA/go-nvlib has it (pkg/nvlib/device/mig_profile.go).
    eighths = math.ceil(shape.memorySizeMB * _MIB / whole * 8)
    gigabytes = round(eighths / 8 * math.ceil(whole / _GIB))
    divided = shape.computeInstanceSliceCount != shape.gpuInstanceSliceCount
    return f"{compute if divided else ''}{shape.gpuInstanceSliceCount}g.{gigabytes}gb"


def _current(modes: Sequence[int] | None) -> bool | None:
    """Return the first of a mode's two states: the second is what it will be after the next reset."""
    return None if modes is None else bool(modes[0])


def _is_on(state: int | None) -> bool | None:
    return None if state is None else bool(state)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _driver(nvml: Any) -> str | None:
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def _cuda(nvml: Any) -> str | None:
    """Return the newest CUDA that the driver runs; NVML writes 12.4 as 12040."""
    for question in (nvml.nvmlSystemGetCudaDriverVersion_v2, nvml.nvmlSystemGetCudaDriverVersion):
        try:
            version = int(question())
        except nvml.NVMLError:
            continue
        return f"{version // 1000}.{version % 1000 // 10}"
    return None
