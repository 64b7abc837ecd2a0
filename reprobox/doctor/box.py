"""A box with GPUs, really started: whatever else was seen, this is what a run needs."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from reprobox.doctor.check import Finding, fail, ok
from reprobox.engines import RUN_LABEL, BoxSpec
from reprobox.recipe import Profile, Recipe, SelfTest

if TYPE_CHECKING:
    from reprobox.doctor.patient import Patient
    from reprobox.engines import Stream

__all__ = ["gpu_box", "judge_box", "remove_box"]

# CUDA's driver API by itself: torch would take seconds to say the same.
_PROBE = """\
import ctypes
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    print("no library")
else:
    count = ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    print(f"code {code} devices {count.value}")
"""

_CODES = {
    100: ("CUDA sees no device in the box", "see whether /dev/nvidia* can be opened by the box's user"),
    802: ("CUDA is not ready in the box (802): the NVSwitch fabric is not set up", "start nvidia-fabricmanager"),
    803: (
        "the driver's library in the box does not fit the kernel's driver (803)",
        "restart the engine, make its CDI file anew (nvidia-ctk cdi generate), or reboot after a driver upgrade",
    ),
    804: (
        "the image brings a libcuda of its own, which this GPU does not take (804)",
        "upgrade the driver, or take the cuda-compat package out of the image",
    ),
    999: (
        "CUDA does not start in the box (999)",
        "see dmesg; `nvidia-modprobe -u -c=0` makes a missing /dev/nvidia-uvm",
    ),
}
"""What cuInit answers (CUDA Driver API, ``CUresult``), in words and with what helps."""


def gpu_box(patient: Patient) -> Finding:
    """Start a box with the GPUs that a run may have, and ask CUDA in it for them."""
    assert patient.engine is not None
    assert patient.image is not None
    spec = _spec(patient)
    patient.box = spec.run_id
    output = bytearray()

    def write(stream: Stream, data: bytes) -> None:
        if stream == "stdout":
            output.extend(data)

    with patient.engine.create(spec) as box:
        box.attach()
        box.start()
        box.stream(write, lambda _line: None)
        ended = box.wait()
    patient.box = None
    return judge_box(output.decode(errors="replace").strip(), ended.code, len(spec.gpus))


def judge_box(said: str, code: int, wanted: int) -> Finding:
    """Judge what the probe said in a box that ended with ``code`` and was to have ``wanted`` GPUs."""
    if said == "no library":
        return fail(
            "a box with GPUs starts, and has no libcuda.so.1",
            "let the toolkit hand out the driver's compute part: NVIDIA_DRIVER_CAPABILITIES must hold compute",
        )
    words = said.split()
    if len(words) != 4 or words[::2] != ["code", "devices"] or code != 0:
        return fail(f"a box with GPUs ended with exit code {code}", "see what `reprobox run --gpus all -- python` says")
    answer, count = int(words[1]), int(words[3])
    if answer:
        seen, remedy = _CODES.get(answer, (f"CUDA does not start in the box (cuInit: {answer})", "see dmesg"))
        return fail(seen, remedy)
    if count != wanted:
        return fail(f"a box that was given {wanted} GPUs has {count}", "restart the engine, or reboot the machine")
    return ok(f"a box has started, and CUDA in it has {count} GPU" + ("s" if count != 1 else ""))


def remove_box(patient: Patient) -> None:
    """Remove the box of a check that was given up."""
    if patient.box is None or patient.engine is None:
        return
    found = patient.engine.find(patient.box)
    if found is not None:
        found.remove()


def _spec(patient: Patient) -> BoxSpec:
    assert patient.image is not None
    run_id = f"doctor-{os.getpid()}-{time.time_ns()}"
    gpus = tuple(gpu.uuid for gpu in patient.gpus)
    return BoxSpec(
        run_id=run_id,
        name=f"reprobox-{run_id}",
        image=patient.image.engine_id,
        command=("python", "-c", _PROBE),
        directory="/",
        environment={
            **Recipe(profile=Profile.OFF).to_variables(),
            "REPROBOX_QUIET": "on",
            "REPROBOX_SELFTEST": str(SelfTest.OFF),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        },
        user=f"{os.getuid()}:{os.getgid()}",
        tmpfs={"/tmp": "rw,nosuid,nodev,mode=1777"},  # noqa: S108  # in the box
        network="none",
        gpus=gpus,
        labels={RUN_LABEL: run_id},
        log=False,
    )
