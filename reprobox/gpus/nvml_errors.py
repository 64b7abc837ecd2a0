"""What each of NVML's error codes means to the person whose machine answers it, and what to do then."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DENIED", "MEANINGS", "UNUSABLE", "Meaning", "explain", "fault"]


class Meaning(NamedTuple):
    """A clause that can follow "cannot be used: ", and what to do."""

    sentence: str
    remedy: str


DENIED = frozenset({4, 17})
"""What a GPU answers that a scheduler's cgroup keeps from this process."""

UNUSABLE = frozenset({8, 11, 15, 16})
"""What a GPU answers that cannot compute, whatever it was asked."""

_INSTALL = "install the NVIDIA driver, or run with --gpus none"
_UPDATE = "install a newer NVIDIA driver"
_AGAIN = "try again; where it stays so, see what nvidia-smi says and reboot the machine"
_REPORT = "see what nvidia-smi says; where it shows the GPUs, report this as a bug of reprobox"

MEANINGS: dict[int, Meaning] = {
    1: Meaning("NVML was asked before it was initialised", _REPORT),
    2: Meaning("NVML was asked something that it holds to be invalid", _REPORT),
    3: Meaning("the NVIDIA driver does not support this question for this GPU", _UPDATE),
    4: Meaning("this user may not talk to the NVIDIA driver", "join the group that owns /dev/nvidia*"),
    5: Meaning("NVML says that it was initialised already, as drivers of before 2013 do", _UPDATE),
    6: Meaning("NVML does not find what it was asked for", _REPORT),
    7: Meaning("NVML has more to say than it was given room for", _REPORT),
    8: Meaning(
        "the GPU has too little power: its external power cables are not properly attached",
        "switch the machine off and attach them",
    ),
    9: Meaning("the NVIDIA driver is not loaded", _INSTALL),
    10: Meaning("the NVIDIA driver did not answer in time", _AGAIN),
    11: Meaning(
        "the kernel has trouble with the GPU's interrupts",
        "see dmesg for NVRM lines, and look for a firmware update and for other devices on its interrupt",
    ),
    12: Meaning("there is no NVIDIA driver library", _INSTALL),
    13: Meaning("the NVIDIA driver is so old that it lacks a function reprobox needs", _UPDATE),
    14: Meaning(
        "the GPU's infoROM is corrupted",
        "run nvidia-smi -q to see which one's, and have the GPU serviced if a reboot does not help",
    ),
    15: Meaning("the GPU has fallen off the bus", "see dmesg for Xid errors and reboot the machine"),
    16: Meaning("the GPU must be reset", "run nvidia-smi --gpu-reset, or reboot the machine"),
    17: Meaning(
        "the operating system keeps this process from the GPU",
        "look at the device rules of its cgroup and at the rights of /dev/nvidia*",
    ),
    18: Meaning(
        "the NVIDIA driver and its library are of different versions", "reboot the machine, or reload the driver"
    ),
    19: Meaning("the GPU is in use, and what was asked for needs it idle", "end the processes on it, and try again"),
    20: Meaning("there is too little memory to ask the NVIDIA driver", "free some of the machine's memory"),
    21: Meaning("the NVIDIA driver has no data to answer with", _AGAIN),
    22: Meaning("a virtual GPU cannot do this while ECC is on", "ask who runs the hypervisor to turn ECC off"),
    23: Meaning(
        "the NVIDIA driver ran out of a resource other than memory",
        "end processes that use the GPUs, and try again",
    ),
    24: Meaning("the GPU does not support the frequency it was given", _REPORT),
    25: Meaning("the NVIDIA driver and NVIDIA's Python bindings do not understand each other", _UPDATE),
    26: Meaning(
        "the NVIDIA driver has dropped a function reprobox needs", "upgrade nvidia-ml-py, and reprobox if it is old"
    ),
    27: Meaning("the NVIDIA driver is not ready yet", "wait for it to have started, and try again"),
    28: Meaning("the NVIDIA driver finds no GPU", "see dmesg for NVRM lines, or run with --gpus none"),
    29: Meaning("the GPU is not in a state in which this can be done", _AGAIN),
    30: Meaning("the GPU cannot be reset in this way", "reboot the machine"),
    # Devices that a running container loses: https://github.com/NVIDIA/nvidia-container-toolkit/issues/48
    999: Meaning(
        "the NVIDIA driver reports an unknown error",
        "see dmesg for Xid errors; in a container start it anew, as a reload of its host's systemd takes its GPUs away",
    ),
}
"""By the value of ``nvmlReturn_t`` (NVML API Reference Guide, "Device Enums")."""


def explain(value: int) -> Meaning:
    """Return what an error code means; mapped by value, as bindings know only the codes of their own time."""
    return MEANINGS.get(
        value,
        Meaning(
            f"the NVIDIA driver reports error {value}, which reprobox does not know", "see what nvidia-smi says of it"
        ),
    )


def fault(value: int) -> str:
    """Return why a GPU that answers ``value`` cannot be used, and in brackets what to do."""
    meaning = explain(value)
    return f"{meaning.sentence} ({meaning.remedy})"
