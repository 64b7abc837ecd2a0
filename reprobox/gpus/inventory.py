"""The GPUs of this machine, as NVML tells them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gpu", "Inventory", "take_inventory"]

_NO_DRIVER = {
    9: "the NVIDIA driver is not loaded",
    12: "there is no NVIDIA driver library",
}
_INSTALL = "install the NVIDIA driver, or run with --gpus none"
_BROKEN = {
    4: ("this user may not talk to the NVIDIA driver", "join the group that owns /dev/nvidia*"),
    15: ("a GPU has fallen off the bus", "see dmesg for Xid errors and reboot the machine"),
    16: ("a GPU must be reset", "run nvidia-smi --gpu-reset, or reboot the machine"),
    18: ("the NVIDIA driver and its library are of different versions", "reboot the machine, or reload the driver"),
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: its index in PCI order, UUID and product name; ECC and MIG mode, ``None`` where it has no such mode."""

    index: int
    uuid: str
    name: str
    ecc: bool | None = None
    mig: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What NVML answered: the GPUs, the driver's version, and, where there are none, why."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    missing: str | None = None
    remedy: str | None = None


def take_inventory() -> Inventory:
    """Ask NVML for the GPUs of this machine. Never raises: a machine without GPUs is an ordinary machine."""
    if not _has_library():
        return Inventory(missing=_NO_DRIVER[12], remedy=_INSTALL)
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _missing(error)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(
            Gpu(
                index=i,
                uuid=_text(pynvml.nvmlDeviceGetUUID(h)),
                name=_text(pynvml.nvmlDeviceGetName(h)),
                ecc=_mode(pynvml.nvmlDeviceGetEccMode, h),
                mig=_mode(pynvml.nvmlDeviceGetMigMode, h),
            )
            for i, h in enumerate(handles)
        )
        return Inventory(gpus=gpus, driver=_text(pynvml.nvmlSystemGetDriverVersion()))
    except pynvml.NVMLError as error:
        return _missing(error)
    finally:
        pynvml.nvmlShutdown()


def _has_library() -> bool:
    """Say whether the driver's library can be loaded: most machines have none, and the bindings cost 9 ms to import."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _mode(ask: Callable[[Any], Any], handle: Any) -> bool | None:
    """Return the current one of a mode's two states (current and pending)."""
    import pynvml

    try:
        return bool(ask(handle)[0])
    except pynvml.NVMLError:
        return None


def _missing(error: Exception) -> Inventory:
    # Mapped by value: old bindings give newer codes the base class.
    value = int(getattr(error, "value", 999))
    if value in _NO_DRIVER:
        return Inventory(missing=_NO_DRIVER[value], remedy=_INSTALL)
    why, remedy = _BROKEN.get(value, (f"NVML says: {error}", "run nvidia-smi to see what is wrong"))
    return Inventory(missing=why, remedy=remedy)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
