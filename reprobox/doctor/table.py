"""Every check, in the order in which a person would look: what comes first explains what fails later."""

from __future__ import annotations

from reprobox.doctor import box, builder, engine, gpu, image, machine, network
from reprobox.doctor.check import Check
from reprobox.doctor.patient import a_container_engine, gpus_at_all, gpus_to_use, the_local_engine

__all__ = ["CHECKS"]

CHECKS: tuple[Check, ...] = (
    Check(
        name="engine",
        look=engine.engine,
        seconds=12,
        hung=("the engine does not answer", "restart it (systemctl restart docker), or see where DOCKER_HOST leads"),
    ),
    Check(name="engine version", look=engine.version, needs=("engine",), only=a_container_engine),
    Check(name="rootless", look=engine.rootless, needs=("engine",), only=a_container_engine),
    Check(name="user mapping", look=engine.mapping, needs=("engine",), only=a_container_engine),
    Check(name="cgroups", look=engine.cgroups, needs=("engine",), only=a_container_engine),
    Check(
        name="driver",
        look=gpu.driver,
        hung=("the NVIDIA driver does not answer", "see dmesg for lines of NVRM, and reboot the machine"),
    ),
    Check(name="gpus", look=gpu.gpus, needs=("driver",), only=gpus_at_all),
    Check(name="image", look=image.image, needs=("engine",), only=a_container_engine, seconds=8),
    Check(name="lock", look=image.lock, needs=("engine", "image"), only=a_container_engine),
    Check(name="storage", look=engine.storage, needs=("engine",), only=a_container_engine),
    Check(name="builder", look=builder.builder, needs=("engine",), only=a_container_engine),
    Check(
        name="cuda",
        look=gpu.cuda,
        needs=("driver", "engine", "image"),
        only=lambda patient: a_container_engine(patient) or gpu.a_cuda_image(patient),
    ),
    Check(
        name="container toolkit",
        look=gpu.toolkit,
        needs=("driver", "engine"),
        only=lambda patient: a_container_engine(patient) or gpus_to_use(patient),
    ),
    Check(
        name="box with gpus",
        look=box.gpu_box,
        needs=("driver", "engine", "image", "cuda", "container toolkit"),
        only=lambda patient: a_container_engine(patient) or gpu.a_cuda_image(patient),
        seconds=15,
        hung=("a box with GPUs does not come to its end", "see the engine's log, and dmesg for lines of NVRM"),
        undo=box.remove_box,
    ),
    Check(
        name="daemon-reload",
        look=gpu.reload,
        needs=("driver", "engine"),
        only=lambda patient: a_container_engine(patient) or gpus_to_use(patient),
    ),
    Check(name="gpu claims", look=machine.claims, needs=("driver",), only=gpus_to_use),
    Check(name="shared memory", look=machine.shm, needs=("engine",)),
    Check(
        name="python",
        look=machine.python,
        needs=("engine",),
        only=the_local_engine,
        seconds=20,
        hung=("torch has not loaded", "see what `python -c 'import torch'` waits for; from a cold disk, try again"),
        undo=machine.end_python,
    ),
    Check(name="project", look=machine.project),
    Check(name="cache", look=machine.cache),
    Check(name="git", look=machine.git),
    Check(name="clock", look=machine.clock),
    Check(name="proxies", look=network.proxies),
    Check(name="certificates", look=network.certificates),
    Check(
        name="registry",
        look=network.registry,
        needs=("engine", "certificates"),
        only=a_container_engine,
        seconds=2 * network.REGISTRY_SECONDS,
    ),
)
"""Their names are those of ``reprobox.doctor/1``."""
