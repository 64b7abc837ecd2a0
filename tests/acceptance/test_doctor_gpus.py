"""``reprobox doctor`` on machines whose GPUs are broken, by a stand-in for the driver's library and for NVIDIA's hook.

The engine is a real one that takes device requests in earnest. Each fault stands beside the same machine without it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import pytest
from support.cli import BIN
from support.daemon import TAG, Daemon, until
from support.doctor import Doctor, Rewritten, cuda_image, mounted
from support.gpus_engine import StandInCdi, StandInHook
from support.nvml import lost, sliced

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="a daemon and mounts need root"),
]

CUDA = "cuda:1"
OF_GPUS = ("driver", "gpus", "cuda", "container toolkit", "box with gpus", "daemon-reload", "gpu claims")
NO_PERMISSION, NO_DRIVER, MISMATCH = 4, 9, 18
NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Jul 16 19:00:00 UTC 2025"


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    return StandInHook(tmp_path_factory.mktemp("hook"))


@pytest.fixture(scope="module")
def daemon(small_image, hook):
    """An engine with NVIDIA's hook, and an image that computes on GPUs."""
    with Daemon() as daemon:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in hook.variables.items():
                patch.setenv(name, value)
            daemon.start()
        daemon.load(small_image)
        cuda_image(daemon, CUDA)
        yield daemon


@pytest.fixture
def driver(standin_nvml):
    standin_nvml.driver, standin_nvml.cuda = "580.65.06", 13000
    return standin_nvml


@pytest.fixture
def doctor(tmp_path, daemon, driver, hook):
    """A doctor of a machine with eight GPUs and nothing amiss."""
    doctor = Doctor(tmp_path)
    doctor.environment |= {**daemon.environment, **driver.environment(), "REPROBOX_IMAGE": CUDA}
    doctor.environment["PATH"] = f"{hook.folder}:{doctor.environment['PATH']}"
    yield doctor
    assert until(lambda: not daemon.containers(), seconds=5), "a doctor left a box"


def loaded(version="580.65.06"):
    """A machine whose kernel runs NVIDIA's driver."""
    return mounted(
        "mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia\n"
        f"echo '{NVRM.format(version)}' > /proc/driver/nvidia/version"
    )


def verdicts(checks, *names):
    return [checks[name]["verdict"] for name in names]


def test_a_machine_with_eight_gpus_and_all_that_they_need_is_healthy(doctor, hook):
    hook.calls()
    checks = doctor.examine(prefix=loaded())
    assert verdicts(checks, *OF_GPUS) == ["ok"] * 7
    assert "580.65.06" in checks["driver"]["seen"]
    assert "8 of NVIDIA H100 80GB HBM3" in checks["gpus"]["seen"]
    assert "CUDA 13.0" in checks["cuda"]["seen"]
    assert "CUDA in it has 8 GPUs" in checks["box with gpus"]["seen"]
    assert len(hook.calls()) == 1, "a box was really started with device requests"


def test_a_driver_and_a_library_of_different_versions_fail_whoever_notices(doctor, driver):
    driver.fail["nvmlInit_v2"] = MISMATCH
    driver.write()
    by_nvml = doctor.examine(prefix=loaded("570.10.10"))
    driver.fail.clear()
    driver.write()
    by_versions = doctor.examine(prefix=loaded("570.10.10"))
    for checks in (by_nvml, by_versions):
        assert checks["driver"]["verdict"] == "fail"
        assert "570.10.10" in checks["driver"]["seen"]
        assert "reboot the machine" in checks["driver"]["remedy"]
        assert verdicts(checks, *OF_GPUS[1:]) == ["skipped"] * 6
        assert checks["box with gpus"]["seen"] == "needs driver, which failed"


def test_a_driver_that_this_user_may_not_ask_fails(doctor, driver):
    driver.fail["nvmlInit_v2"] = NO_PERMISSION
    driver.write()
    found = doctor.examine(prefix=loaded())["driver"]
    assert found["verdict"] == "fail"
    assert "permi" in found["seen"] or "may not" in found["seen"]


def test_a_gpu_on_the_bus_without_a_driver_fails_and_no_gpu_without_a_driver_does_not(doctor, driver):
    driver.fail["nvmlInit_v2"] = NO_DRIVER
    driver.write()
    device = "/sys/bus/pci/devices/0000:1b:00.0"

    def on_the_bus(vendor, kind):
        return mounted(
            f"mount -t tmpfs none /sys/bus/pci/devices; mkdir {device}\n"
            f"echo {vendor} > {device}/vendor; echo {kind} > {device}/class"
        )

    nvidias = doctor.examine(prefix=on_the_bus("0x10de", "0x030200"))["driver"]
    anothers = doctor.examine(prefix=on_the_bus("0x1002", "0x030000"))
    sound = doctor.examine(prefix=on_the_bus("0x10de", "0x040300"))["driver"]
    assert nvidias["verdict"] == "fail"
    assert "1 NVIDIA GPU on the PCI bus" in nvidias["seen"]
    assert sound["verdict"] == "skipped"
    assert verdicts(anothers, *OF_GPUS) == ["skipped"] * 7


def test_a_driver_that_hangs_does_not_hold_up_the_rest(doctor, driver):
    (driver.folder / "fifo").unlink(missing_ok=True)
    os.mkfifo(driver.folder / "fifo")  # which nobody ever writes to
    began = time.monotonic()
    checks = doctor.examine(STANDIN_NVML=str(driver.folder / "fifo"))
    assert time.monotonic() - began < 30
    assert checks["driver"]["verdict"] == "fail"
    assert "does not answer" in checks["driver"]["seen"]
    assert verdicts(checks, "image", "project") == ["ok", "ok"]


def test_a_lost_gpu_fails_and_the_others_are_looked_at(doctor, driver):
    lost(driver.gpus[3])
    driver.write()
    checks = doctor.examine()
    assert checks["gpus"]["verdict"] == "fail"
    assert "GPU 3" in checks["gpus"]["seen"]
    assert "Xid" in checks["gpus"]["remedy"]
    assert "CUDA in it has 7 GPUs" in checks["box with gpus"]["seen"]


def test_a_driver_too_old_for_the_images_cuda_fails_and_is_new_enough_for_an_older_one(doctor, driver, daemon):
    driver.driver, driver.cuda = "570.124.06", 12080
    driver.write()
    newer = doctor.examine()
    older = doctor.examine("--image", cuda_image(daemon, "cuda12:1", torch="2.7.0+cu126"))
    assert newer["cuda"]["verdict"] == "fail"
    assert "570.124.06 is too old for the image's CUDA 13.0, which needs 580 or newer" in newer["cuda"]["seen"]
    assert newer["box with gpus"]["seen"] == "needs cuda, which failed"
    assert verdicts(older, "cuda", "box with gpus") == ["ok", "ok"]
    assert "525.60.13" in older["cuda"]["seen"]


def test_an_engine_without_the_toolkit_fails_before_a_box_is_tried(doctor, daemon, small_image):
    with Daemon() as bare:
        bare.start().load(small_image)
        cuda_image(bare, CUDA)
        without = doctor.examine(**bare.environment, PATH=os.environ["PATH"])
        # Where the hook came after the engine had started: only the box can tell.
        too_late = doctor.examine(**bare.environment)
        assert bare.containers() == []
    assert without["container toolkit"]["verdict"] == "fail"
    assert "nvidia-container-toolkit" in without["container toolkit"]["remedy"]
    assert without["box with gpus"]["seen"] == "needs container toolkit, which failed"
    assert verdicts(too_late, "container toolkit", "box with gpus") == ["ok", "fail"]
    assert "restart the engine" in too_late["box with gpus"]["remedy"]


def test_a_hook_that_fails_is_quoted(doctor, hook):
    hook.fail("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1")
    try:
        found = doctor.examine()["box with gpus"]
    finally:
        hook.mend()
    assert found["verdict"] == "fail"
    assert "load library failed" in found["seen"]
    assert doctor.examine()["box with gpus"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("tag", "options", "said"),
    [
        ("bare:1", {"library": False}, "has no libcuda.so.1"),
        ("stale:1", {"answer": 803}, "does not fit the kernel's driver"),
        ("strange:1", {"answer": 46}, "cuInit: 46"),
    ],
)
def test_a_box_that_starts_and_has_no_cuda_fails(doctor, daemon, tag, options, said):
    found = doctor.examine("--image", cuda_image(daemon, tag, **options))["box with gpus"]
    assert found["verdict"] == "fail"
    assert said in found["seen"]


def test_an_image_for_the_cpu_alone_is_warned_of_where_there_are_gpus(doctor):
    checks = doctor.examine("--image", TAG)
    assert verdicts(checks, "image", "cuda", "box with gpus") == ["warn", "skipped", "skipped"]
    assert "computes on the CPU alone" in checks["image"]["seen"]


def test_gpus_that_runs_are_not_to_have_are_left_alone(doctor, hook):
    hook.calls()
    none = doctor.examine(REPROBOX_GPUS="none")
    two = doctor.examine(CUDA_VISIBLE_DEVICES="1,2")
    nothing = doctor.examine(CUDA_VISIBLE_DEVICES="")
    assert verdicts(none, *OF_GPUS) == ["ok", *["skipped"] * 6]
    assert "CUDA in it has 2 GPUs" in two["box with gpus"]["seen"]
    assert verdicts(nothing, "gpus", "box with gpus") == ["warn", "skipped"]
    assert len(hook.calls()) == 1


def test_gpus_that_are_all_divided_are_tried_by_an_instance_and_warned_of_without_one(doctor, driver, hook):
    driver.gpus = [sliced(driver.gpus[0], "1g.10gb", "3g.40gb")]
    driver.write()
    hook.calls()
    divided = doctor.examine()
    assert verdicts(divided, "gpus", "box with gpus") == ["ok", "ok"]
    assert "MIG 1g.10gb" in divided["gpus"]["seen"]
    assert "CUDA in it has 1 GPU" in divided["box with gpus"]["seen"]
    assert len(hook.calls()) == 1
    driver.gpus[0].mig.clear()
    driver.write()
    assert verdicts(doctor.examine(), "gpus", "box with gpus") == ["warn", "skipped"]


def test_the_loss_of_gpus_by_a_reload_of_systemd_is_warned_of(doctor, daemon):
    nodes = "mount -t tmpfs none /mnt; mknod -m 666 /mnt/null c 1 3; mknod /mnt/nvidia0 c 195 0; mkdir /mnt/char\n"
    there = "mount --move /mnt /dev"
    unlinked, linked = mounted(nodes + there), mounted(f"{nodes}ln -s ../nvidia0 /mnt/char/195:0\n{there}")
    with Rewritten(daemon.socket, info={"CgroupDriver": "systemd", "CgroupVersion": "2"}) as by_systemd:
        lost_later = doctor.examine(prefix=unlinked, **by_systemd)["daemon-reload"]
        with_links = doctor.examine(prefix=linked, **by_systemd)["daemon-reload"]
    by_cgroupfs = doctor.examine(prefix=unlinked)["daemon-reload"]
    assert [found["verdict"] for found in (lost_later, with_links, by_cgroupfs)] == ["warn", "ok", "ok"]
    assert "/dev/nvidia0 has no link" in lost_later["seen"]
    assert "create-dev-char-symlinks" in lost_later["remedy"]


def test_a_folder_of_claims_that_cannot_be_trusted_fails(doctor):
    clean = "mount -t tmpfs -o mode=1777 none /run/lock; "
    spoiled = mounted(f"{clean}mkdir -m 0777 /run/lock/reprobox")
    linked = mounted(f"{clean}ln -s /tmp /run/lock/reprobox")
    whole = mounted(f"{clean}mkdir -m 1777 /run/lock/reprobox")
    found = [doctor.examine(prefix=prefix)["gpu claims"] for prefix in (spoiled, linked, whole)]
    assert [one["verdict"] for one in found] == ["fail", "fail", "ok"]
    assert "install -d -m 1777" in found[0]["remedy"]


def test_podman_without_cdi_files_fails(doctor, driver, podman_with_root):
    doctor.environment |= podman_with_root.environment
    hidden = mounted("for f in /etc/cdi /run/cdi; do [ ! -d $f ] || mount -t tmpfs none $f; done")
    flags = ("--engine", "podman", "--image", TAG)
    without = doctor.examine(*flags, prefix=hidden)["container toolkit"]
    with StandInCdi() as cdi:
        for gpu, uuid in zip(driver.gpus, cdi.gpus, strict=False):
            gpu.uuid = uuid
        driver.gpus = driver.gpus[: len(cdi.gpus)]
        driver.write()
        with_files = doctor.examine(*flags)["container toolkit"]
    assert (without["verdict"], with_files["verdict"]) == ("fail", "ok")
    assert "nvidia-ctk cdi generate" in without["remedy"]


def test_a_doctor_that_is_ended_takes_its_box_with_it(doctor, daemon, hook):
    image = cuda_image(daemon, "endless:1", answer="({ for (;;) ; 0; })")
    process = subprocess.Popen(
        [str(BIN / "reprobox"), "doctor", "--image", image],
        cwd=doctor.project,
        env=doctor.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert until(lambda: daemon.containers() != [])
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143
    assert until(lambda: daemon.containers() == [], seconds=10)


def test_a_box_that_does_not_end_is_given_up_and_removed(doctor, daemon):
    image = cuda_image(daemon, "endless:1", answer="({ for (;;) ; 0; })")
    began = time.monotonic()
    found = doctor.examine("--image", image)["box with gpus"]
    assert time.monotonic() - began < 30
    assert found["verdict"] == "fail"
    assert "does not come to its end" in found["seen"]
    assert until(lambda: daemon.containers() == [], seconds=5)
