"""The GPUs: driver, library, the engine's way of handing them to a box, and what takes them away again."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.doctor.check import Finding, Verdict, fail, ok, skipped, warn
from reprobox.doctor.image import cuda_of, is_cuda, own_lock
from reprobox.doctor.patient import gpus_to_use
from reprobox.gpus import take_inventory
from reprobox.gpus.request import left_to_default

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reprobox.doctor.patient import Patient
    from reprobox.gpus import Inventory

__all__ = [
    "a_cuda_image",
    "cuda",
    "driver",
    "gpus",
    "judge_cuda",
    "judge_driver",
    "judge_reload",
    "judge_toolkit",
    "reload",
    "toolkit",
]

LEAST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580"}
"""The oldest Linux driver for each major version of CUDA: newer minor versions run on it as well.

Source: NVIDIA, "CUDA Compatibility: Minor Version Compatibility", table 1 (docs.nvidia.com/deploy/cuda-compatibility),
with the full numbers of the CUDA Toolkit's release notes for 11 and 12.
"""

_PCI = Path("/sys/bus/pci/devices")
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_NVIDIA, _DISPLAY = "0x10de", "0x03"

_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")

_INSTALL_TOOLKIT = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, and restart the engine"


def a_cuda_image(patient: Patient) -> str | None:
    """Return why a check of CUDA in the image does not apply, or ``None``."""
    if (why := gpus_to_use(patient)) is not None:
        return why
    if patient.image is not None and not is_cuda(patient.image.labels):
        return f"{patient.reference} computes on the CPU alone"
    return None


def driver(patient: Patient) -> Finding:
    """Look whether NVML answers, and whether the kernel runs the driver that it belongs to."""
    inventory = take_inventory()
    finding = judge_driver(inventory, _loaded_version(), _count_on_bus())
    if finding.verdict is not Verdict.FAIL:
        patient.inventory = inventory
    return finding


def judge_driver(inventory: Inventory, loaded: str | None, on_bus: int) -> Finding:
    """Judge what NVML says against the driver that the kernel has ``loaded`` and the NVIDIA GPUs ``on_bus``.

    A machine with neither has no GPU, and that is no failure.
    """
    if inventory.driver is None and not inventory.gpus:
        missing = inventory.missing or "NVML does not answer"
        if loaded is None and not on_bus:
            return skipped(f"no NVIDIA GPU: {missing}")
        what = f"the kernel runs the NVIDIA driver {loaded}" if loaded else f"{_gpus(on_bus)} on the PCI bus"
        return fail(f"{missing}; {what}", inventory.remedy)
    if loaded is not None and inventory.driver is not None and loaded != inventory.driver:
        return fail(
            f"the kernel runs the NVIDIA driver {loaded} and its library is of {inventory.driver}",
            "reboot the machine, or unload and load the driver's kernel modules",
        )
    if not inventory.gpus:
        if on_bus:
            return fail(
                f"the driver {inventory.driver} shows none of {_gpus(on_bus)} on the PCI bus",
                "ask the scheduler for GPUs (its cgroup hides them), or see dmesg for lines of NVRM",
            )
        return skipped(f"no NVIDIA GPU: {inventory.missing or 'NVML shows none'}")
    speaks = f", which speaks CUDA {inventory.cuda}" if inventory.cuda else ""
    return ok(f"driver {inventory.driver}{speaks}, {_gpus(len(inventory.gpus))}")


def _gpus(count: int) -> str:
    return f"{count} NVIDIA GPU" + ("s" if count != 1 else "")


def _loaded_version() -> str | None:
    """Return the version of the driver in the kernel: ``NVRM version: NVIDIA UNIX … Module  550.54.14  …``."""
    try:
        text = _KERNEL_MODULE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"NVRM version:.*?\s(\d{3,4}(?:\.\d+){1,3})\s", text)
    return found[1] if found else None


def _count_on_bus() -> int:
    """Count the display and 3D controllers that NVIDIA made."""
    try:
        devices = list(_PCI.iterdir())
    except OSError:
        return 0
    return sum(
        _word(device / "vendor") == _NVIDIA and _word(device / "class").startswith(_DISPLAY) for device in devices
    )


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def gpus(patient: Patient) -> Finding:
    """Look whether each GPU can be used."""
    assert patient.inventory is not None
    everything = patient.inventory.gpus
    lost = [f"GPU {gpu.index} ({gpu.name}): {gpu.fault}" for gpu in everything if gpu.fault is not None]
    if lost:
        return fail("; ".join(lost), "see dmesg for lines of Xid, and reset the GPU or reboot the machine")
    _, left_out = left_to_default(patient.inventory, patient.environment)
    if not patient.gpus and left_out:
        return warn("; ".join(left_out), "divide one (nvidia-smi mig -cgi), or end the mode (nvidia-smi -mig 0)")
    if not patient.gpus:
        return warn(
            f"CUDA_VISIBLE_DEVICES={patient.environment.get('CUDA_VISIBLE_DEVICES', '')!r} leaves none of "
            f"{_gpus(len(everything))} to a run",
            "unset it, or ask the scheduler for GPUs",
        )
    names = [gpu.name for gpu in patient.gpus]
    seen = ", ".join(f"{names.count(name)} of {name}" for name in dict.fromkeys(names))
    return ok(seen if len(names) == len(everything) else f"{seen}, of {len(everything)} in the machine")


def cuda(patient: Patient) -> Finding:
    """Look whether the driver is new enough for the image's CUDA."""
    assert patient.inventory is not None
    assert patient.image is not None
    return judge_cuda(patient.inventory.driver or "", cuda_of(patient.image.labels, own_lock))


def judge_cuda(driver: str, needed: str | None) -> Finding:
    """Judge a driver's version (``550.54.14``) against the CUDA (``13.0``) that an image needs."""
    if needed is None:
        return skipped("the image does not say for which CUDA it was built")
    major = int(needed.partition(".")[0])
    has = _numbers(driver)
    known = [number for number in LEAST_DRIVER if number <= major]
    if not has or not known:
        return skipped(f"it is not known which driver CUDA {needed} needs, or which this one is")
    least = LEAST_DRIVER[max(known)]
    if has < _numbers(least):
        return fail(
            f"driver {driver} is too old for the image's CUDA {needed}, which needs {least} or newer",
            f"install the NVIDIA driver {least} or newer, or run with --gpus none",
        )
    if max(known) < major:
        return warn(
            f"driver {driver}, and the image's CUDA {needed} is newer than any that this reprobox knows",
            "compare with NVIDIA's table of CUDA compatibility",
        )
    return ok(f"driver {driver} runs the image's CUDA {needed} (which needs {least} or newer)")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def toolkit(patient: Patient) -> Finding:
    """Look whether the engine has a way to hand GPUs to a box: NVIDIA's hook or runtime, or CDI."""
    from reprobox.engines.devices import GpuWay, cdi_names, find_hook

    facts = patient.facts
    assert facts is not None
    said = facts.said
    if facts.info.name == "podman":
        said = {**said, "CDISpecDirs": said.get("CDISpecDirs") or _CDI_FOLDERS}
    return judge_toolkit(
        by_cdi=facts.info.details.get("gpus") == GpuWay.CDI,
        has_runtime="nvidia" in (said.get("Runtimes") or {}),
        hook=find_hook(patient.environment.get("PATH", os.defpath)) if facts.here else None,
        devices=cdi_names(said, local=facts.here),
        wanted=[gpu.uuid for gpu in patient.gpus],
        here=facts.here,
    )


def judge_toolkit(
    *, by_cdi: bool, has_runtime: bool, hook: str | None, devices: frozenset[str], wanted: Sequence[str], here: bool
) -> Finding:
    """Judge the ways an engine has to hand out GPUs.

    :param by_cdi: whether a run asks it for CDI devices, and not for NVIDIA's hook.
    :param hook: NVIDIA's hook on this machine, if it was found.
    :param devices: the names of NVIDIA's CDI devices that the engine has, of which a run takes the UUIDs ``wanted``.
    :param here: whether the engine runs on this machine, so that it was possible to look.
    """
    if by_cdi:
        return _judge_cdi(devices, wanted, here=here)
    if has_runtime:
        return ok("the engine has the runtime nvidia")
    if hook is not None:
        return ok(f"NVIDIA's hook, {hook}")
    if not here:
        return skipped("the engine is on another machine and has no runtime called nvidia; only a box can tell")
    return fail("the engine has neither NVIDIA's hook nor its runtime nor its CDI devices", _INSTALL_TOOLKIT)


def _judge_cdi(devices: frozenset[str], wanted: Sequence[str], *, here: bool) -> Finding:
    missing = [uuid for uuid in wanted if uuid not in devices]
    if not missing:
        return ok(f"CDI, with {len(devices)} names of NVIDIA's devices")
    if not here:
        return skipped("the engine is on another machine and does not tell its CDI devices")
    return fail(
        f"no CDI file names {missing[0]}" if devices else "no CDI file names an NVIDIA GPU",
        "install nvidia-container-toolkit 1.15 or newer and run "
        "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root",
    )


def reload(patient: Patient) -> Finding:
    """Look whether boxes would lose their GPUs when systemd reads its units again."""
    facts = patient.facts
    assert facts is not None
    if not facts.here:
        return skipped("the engine is on another machine")
    return judge_reload(facts.info.details.get("cgroup_driver", ""), _nodes_without_link(Path("/dev")))


def judge_reload(cgroup_driver: str, unlinked: Sequence[str]) -> Finding:
    """Judge whether a ``systemctl daemon-reload`` takes the GPUs from running boxes.

    systemd applies a box's device rules anew, and knows a device by its link in /dev/char alone; NVIDIA's driver makes
    none. Source: https://github.com/NVIDIA/nvidia-container-toolkit/issues/48.

    :param unlinked: NVIDIA's device nodes without a link in /dev/char.
    """
    if cgroup_driver != "systemd":
        return ok(
            f"the cgroup driver is {cgroup_driver or 'not systemd'}, so `systemctl daemon-reload` takes no GPU away"
        )
    if not unlinked:
        return ok("systemd knows NVIDIA's devices by their links in /dev/char")
    return warn(
        f"`systemctl daemon-reload`, which package upgrades call, takes the GPUs from running boxes: the cgroup driver is "
        f"systemd, and {unlinked[0]} has no link in /dev/char",
        "run `nvidia-ctk system create-dev-char-symlinks --create-all` as root, at every boot by a udev rule (see "
        "nvidia-container-toolkit#48), or give the engine native.cgroupdriver=cgroupfs",
    )


def _nodes_without_link(folder: Path) -> list[str]:
    found = []
    for node in sorted([*folder.glob("nvidia*"), *folder.glob("nvidia-caps/*")]):
        try:
            status = node.stat()
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode):
            numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if not (folder / "char" / numbers).exists():
                found.append(str(node))
    return found
