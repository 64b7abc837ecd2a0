"""What ``reprobox doctor`` makes of a driver, of GPUs, and of the ways they get into a box."""

from __future__ import annotations

import dataclasses

import pytest

from reprobox.doctor.box import judge_box
from reprobox.doctor.gpu import LEAST_DRIVER, judge_cuda, judge_driver, judge_reload, judge_toolkit
from reprobox.doctor.patient import gpus_to_use
from reprobox.gpus.inventory import Gpu, Inventory, MigInstance
from reprobox.settings import Settings

GPU = Gpu(index=0, uuid="GPU-1", name="H100")


@pytest.mark.parametrize(
    ("inventory", "loaded", "on_bus", "verdict", "said"),
    [
        (Inventory(missing="no library"), None, 0, "skipped", "no NVIDIA GPU: no library"),
        (Inventory(missing="no library", remedy="install it"), None, 2, "fail", "2 NVIDIA GPUs on the PCI bus"),
        (Inventory(missing="versions differ", remedy="reboot"), "550.1", 0, "fail", "the NVIDIA driver 550.1"),
        (Inventory(gpus=(GPU,), driver="550.1"), "550.1", 1, "ok", "driver 550.1"),
        (Inventory(gpus=(GPU,), driver="550.1", cuda="12.4"), None, 0, "ok", "CUDA 12.4, 1 NVIDIA GPU"),
        (Inventory(gpus=(GPU,), driver="550.1"), "545.1", 1, "fail", "runs the NVIDIA driver 545.1"),
        (Inventory(driver="550.1"), "550.1", 1, "fail", "shows none of 1 NVIDIA GPU"),
        (Inventory(driver="550.1"), "550.1", 0, "skipped", "no NVIDIA GPU"),
    ],
)
def test_a_driver_is_judged_by_what_nvml_the_kernel_and_the_bus_say(inventory, loaded, on_bus, verdict, said):
    finding = judge_driver(inventory, loaded, on_bus)
    assert finding.verdict == verdict
    assert said in finding.seen


@pytest.mark.parametrize(
    ("driver", "needed", "verdict"),
    [
        ("580.65.06", "13.2", "ok"),
        ("580.0", "13.0", "ok"),
        ("579.99.99", "13.0", "fail"),
        ("525.60.13", "12.9", "ok"),
        ("525.60.12", "12.0", "fail"),
        ("450.80.02", "11.8", "ok"),
        ("450.51.06", "11.0", "fail"),
        ("600.1", "12.4", "ok"),
        ("600.1", "14.0", "warn"),
        ("570.1", "14.0", "fail"),
        ("600.1", None, "skipped"),
        ("", "13.0", "skipped"),
        ("600.1", "10.2", "skipped"),
    ],
)
def test_a_driver_is_judged_by_the_major_version_of_the_images_cuda(driver, needed, verdict):
    assert judge_cuda(driver, needed).verdict == verdict


def test_a_cuda_that_this_reprobox_does_not_know_needs_at_least_what_the_newest_known_one_needs():
    newest = max(LEAST_DRIVER)
    assert judge_cuda(LEAST_DRIVER[newest], f"{newest + 1}.0").verdict == "warn"


@pytest.mark.parametrize(
    ("seen", "verdict", "said"),
    [
        ({"has_runtime": True}, "ok", "the runtime nvidia"),
        ({"hook": "/usr/bin/hook"}, "ok", "/usr/bin/hook"),
        ({}, "fail", "neither"),
        ({"here": False}, "skipped", "another machine"),
        ({"by_cdi": True, "devices": frozenset({"GPU-1", "all"})}, "ok", "CDI"),
        ({"by_cdi": True, "devices": frozenset({"0", "all"})}, "fail", "names GPU-1"),
        ({"by_cdi": True}, "fail", "names an NVIDIA GPU"),
        ({"by_cdi": True, "here": False}, "skipped", "another machine"),
    ],
)
def test_the_ways_to_hand_out_gpus_are_judged_by_the_one_that_a_run_takes(seen, verdict, said):
    plain = {"by_cdi": False, "has_runtime": False, "hook": None, "devices": frozenset(), "here": True}
    finding = judge_toolkit(**{**plain, **seen}, wanted=["GPU-1"])
    assert finding.verdict == verdict
    assert said in finding.seen


def test_a_reload_of_systemd_matters_under_systemds_cgroups_without_links_alone():
    assert judge_reload("systemd", ["/dev/nvidia0"]).verdict == "warn"
    assert judge_reload("systemd", []).verdict == "ok"
    assert judge_reload("cgroupfs", ["/dev/nvidia0"]).verdict == "ok"


@pytest.mark.parametrize(
    ("said", "code", "verdict", "seen"),
    [
        ("code 0 devices 2", 0, "ok", "2 GPUs"),
        ("code 0 devices 1", 0, "fail", "was given 2 GPUs has 1"),
        ("code 100 devices 0", 0, "fail", "sees no device"),
        ("code 7 devices 0", 0, "fail", "cuInit: 7"),
        ("no library", 0, "fail", "libcuda.so.1"),
        ("", 127, "fail", "exit code 127"),
        ("code 0 devices 2", 137, "fail", "exit code 137"),
        ("something else", 0, "fail", "exit code 0"),
    ],
)
def test_a_box_is_judged_by_what_cuda_says_in_it(said, code, verdict, seen):
    finding = judge_box(said, code, 2)
    assert finding.verdict == verdict
    assert seen in finding.seen


def test_gpus_are_those_that_a_run_may_have(patient, tmp_path):
    gone = Gpu(index=1, uuid="GPU-2", name="H100", fault="it has fallen off the bus")
    patient.inventory = Inventory(gpus=(GPU, gone), driver="550.1")
    assert patient.gpus == (GPU,)
    patient.environment = {"CUDA_VISIBLE_DEVICES": ""}
    assert patient.gpus == ()
    assert "that a run may have" in gpus_to_use(patient)
    patient.environment = {}
    assert gpus_to_use(patient) is None
    divided = dataclasses.replace(GPU, mig=True, mig_instances=(MigInstance(uuid="MIG-1", profile="1g.10gb"),))
    patient.inventory = Inventory(gpus=(divided,), driver="550.1")
    assert [gpu.uuid for gpu in patient.gpus] == ["MIG-1"]
    patient.settings = Settings.load({"gpus": "none"}, tmp_path, {})
    assert (patient.gpus, patient.variant) == ((), "cpu")
