"""What the inventory tells of MIG instances, of processes, and of how near GPUs are to one another."""

from __future__ import annotations

import os
import pwd

import pytest
from support.nvml import (
    BUSES,
    FUNCTIONS,
    GIB,
    OLD_DRIVER,
    StandInProcess,
    busy,
    sliced,
    switched,
)

import reprobox.gpus.processes
from reprobox.gpus import GpuProcess, MigInstance, with_runs

NOT_SUPPORTED, NO_PERMISSION, LOST = 3, 4, 15


# MIG


def test_the_instances_of_a_divided_gpu_are_told(standin_nvml):
    gpu = sliced(standin_nvml.gpus[2], "1g.10gb", "3g.40gb")
    gpu.mig[0].place = 3  # instances lie where they were made, with gaps between
    gpu.mig[1].memory_used = 5 * GIB
    gpu.mig[1].processes = [StandInProcess(pid=1, memory=4 * GIB)]
    told = standin_nvml.inventory(details=True).gpus[2]
    process = GpuProcess(pid=1, kind="compute", user="root", command=told.processes[0].command, memory_bytes=4 * GIB)
    assert told.mig is True
    assert told.mig_instances == (
        MigInstance(
            uuid=gpu.mig[1].uuid,
            profile="3g.40gb",
            memory_total_bytes=40 * GIB,
            memory_used_bytes=5 * GIB,
            processes=(process,),
        ),
        MigInstance(uuid=gpu.mig[0].uuid, profile="1g.10gb", memory_total_bytes=10 * GIB, memory_used_bytes=0),
    )
    assert told.processes == (process,)
    assert standin_nvml.inventory().gpus[2].mig_instances == tuple(
        MigInstance(uuid=one.uuid, profile=one.profile) for one in told.mig_instances
    )


def test_instances_that_are_there_while_the_mode_is_off_are_not_told(standin_nvml):
    sliced(standin_nvml.gpus[2], "1g.10gb").mig_mode = (0, 1)
    assert standin_nvml.inventory().gpus[2].mig_instances == ()


@pytest.mark.parametrize(
    ("total", "memory", "slices", "profile"),
    [
        (80, 10, (1, 1), "1g.10gb"),
        (80, 20, (1, 1), "1g.20gb"),
        (80, 40, (3, 3), "3g.40gb"),
        (80, 80, (7, 7), "7g.80gb"),
        (40, 4.75, (1, 1), "1g.5gb"),
        (40, 9.75, (2, 1), "1c.2g.10gb"),
    ],
)
def test_a_profile_the_name_does_not_tell_is_reckoned(standin_nvml, total, memory, slices, profile):
    gpu = sliced(standin_nvml.gpus[2], "1g.10gb", named=False)
    gpu.memory_total = total * GIB
    gpu.mig[0].memory_total = int(memory * GIB)
    gpu.mig[0].slices = slices
    assert standin_nvml.inventory().gpus[2].mig_instances[0].profile == profile
    gpu.mig[0].fail = {"nvmlDeviceGetAttributes_v2": NOT_SUPPORTED}
    assert standin_nvml.inventory().gpus[2].mig_instances[0].profile == "unknown"


def test_who_may_not_see_the_whole_gpu_s_processes_sees_the_instances_own(standin_nvml):
    gpu = sliced(standin_nvml.gpus[2], "1g.10gb", processes=[StandInProcess(pid=1)])
    gpu.fail = dict.fromkeys((f for f in FUNCTIONS if "RunningProcesses" in f), NO_PERMISSION)
    assert [process.pid for process in standin_nvml.inventory(details=True).gpus[2].processes] == [1]
    gpu.mig[0].processes = []
    assert standin_nvml.inventory(details=True).gpus[2].processes == ()


# Processes


def test_a_process_has_its_user_its_command_and_its_memory(standin_nvml):
    standin_nvml.gpus[0].processes = [
        StandInProcess(pid=os.getpid(), memory=5 * GIB),
        StandInProcess(pid=os.getpid(), memory=None, kind="graphics"),
    ]
    computing, drawing = standin_nvml.inventory(details=True).gpus[0].processes
    assert (computing.pid, computing.kind, computing.memory_bytes) == (os.getpid(), "compute", 5 * GIB)
    assert (drawing.pid, drawing.kind, drawing.memory_bytes) == (os.getpid(), "graphics", None)
    assert computing.user == pwd.getpwuid(os.geteuid()).pw_name
    assert "python" in computing.command
    assert computing.run is None


def test_a_process_that_ended_meanwhile_is_told_without_user_and_command(standin_nvml):
    ended = os.fork()
    if ended == 0:
        os._exit(0)
    os.waitpid(ended, 0)
    standin_nvml.gpus[0].processes = [StandInProcess(pid=ended)]
    assert standin_nvml.inventory(details=True).gpus[0].processes == (
        GpuProcess(pid=ended, kind="compute", memory_bytes=GIB),
    )


def proc(monkeypatch, folder, **files):
    (folder / "77").mkdir()
    for name, content in files.items():
        (folder / "77" / name).write_bytes(content)
    monkeypatch.setattr(reprobox.gpus.processes, "_PROC", folder)


@pytest.mark.parametrize(
    ("cmdline", "command"),
    [
        (b"python\0train.py\0--seed\x0042\0", "python train.py --seed 42"),
        (b"python\0-c\0import torch\nprint(1)\0", "python -c import torch print(1)"),
        (b"\x1b[31mred\0\xff\0", "�[31mred �"),
        (b"", "kworker"),
    ],
)
def test_a_command_is_one_line_that_does_nothing_to_a_terminal(standin_nvml, monkeypatch, tmp_path, cmdline, command):
    proc(monkeypatch, tmp_path, cmdline=cmdline, comm=b"kworker\n", status=b"Name:\tx\nUid:\t0\t4242424\t0\t0\n")
    standin_nvml.gpus[0].processes = [StandInProcess(pid=77)]
    process = standin_nvml.inventory(details=True).gpus[0].processes[0]
    assert (process.command, process.user) == (command, "4242424")


def test_many_processes_are_all_told(standin_nvml):
    busy(standin_nvml.gpus[0], *range(400_001, 400_101), memory=GIB // 2)
    assert len(standin_nvml.inventory(details=True).gpus[0].processes) == 100


def test_each_process_gets_the_run_it_belongs_to(standin_nvml):
    busy(standin_nvml.gpus[0], 400_001, 400_002)
    sliced(standin_nvml.gpus[1], "1g.10gb", processes=[StandInProcess(pid=400_003)])
    inventory = standin_nvml.inventory(details=True)
    owned = with_runs(inventory, {400_001: "first", 400_003: "second"}.get)
    assert [process.run for process in owned.gpus[0].processes] == ["first", None]
    assert [process.run for process in owned.gpus[1].processes] == ["second"]
    assert [process.run for process in owned.gpus[1].mig_instances[0].processes] == ["second"]
    assert with_runs(owned, lambda pid: None) == inventory


# How near the GPUs are to one another


def near(inventory):
    """Return a matrix as ``nvidia-smi topo -m`` shows it."""
    return [[gpu.links.get(other.uuid, "X") for other in inventory.gpus] for gpu in inventory.gpus]


def test_two_halves_linked_by_nvlink_are_told_as_nvidia_smi_has_them(standin_nvml):
    assert near(standin_nvml.inventory(details=True)) == [
        ["X" if i == j else "NV4" if i // 4 == j // 4 else "SYS" for j in range(8)] for i in range(8)
    ]


@pytest.mark.parametrize("without", [frozenset(), OLD_DRIVER], ids=["new", "old"])
def test_gpus_on_switches_are_linked_to_each_other_with_all_their_links(standin_nvml, without):
    standin_nvml.gpus = switched(standin_nvml.gpus)
    standin_nvml.without = without
    assert near(standin_nvml.inventory(details=True)) == [
        ["X" if i == j else "NV18" for j in range(8)] for i in range(8)
    ]


def test_a_gpu_of_few_links_to_the_switch_is_linked_with_those(standin_nvml):
    standin_nvml.gpus = switched(standin_nvml.gpus)[:3]
    standin_nvml.gpus[1].nvlinks = standin_nvml.gpus[1].nvlinks[:6]
    standin_nvml.gpus[2].nvlinks = []
    assert near(standin_nvml.inventory(details=True)) == [
        ["X", "NV6", "NODE"],
        ["NV6", "X", "NODE"],
        ["NODE", "NODE", "X"],
    ]


def test_a_link_that_is_down_does_not_count(standin_nvml):
    for gpu in standin_nvml.gpus:
        gpu.nvlinks = [(link, int(link % 4 == 0), bus, kind) for link, _up, bus, kind in gpu.nvlinks]
    assert near(standin_nvml.inventory(details=True))[0][:5] == ["X", "NV1", "NV1", "NV1", "SYS"]


def test_a_link_to_a_gpu_that_is_left_out_is_no_link_to_a_switch(standin_nvml):
    standin_nvml.without = OLD_DRIVER
    standin_nvml.gpus = standin_nvml.gpus[:3]
    for gpu in standin_nvml.gpus[:2]:
        gpu.nvlinks = [(0, 1, BUSES[2], 0)]
    standin_nvml.gpus[2].fail = {"*": NO_PERMISSION}
    assert near(standin_nvml.inventory(details=True)) == [["X", "NODE"], ["NODE", "X"]]


@pytest.mark.parametrize(
    ("level", "word"), [(0, "PIX"), (10, "PIX"), (20, "PXB"), (30, "PHB"), (40, "NODE"), (50, "SYS"), (70, "X")]
)
def test_each_level_of_the_pci_tree_has_nvidia_smi_s_word(standin_nvml, level, word):
    standin_nvml.gpus = standin_nvml.gpus[:2]
    for gpu, other in zip(standin_nvml.gpus, reversed(BUSES[:2]), strict=True):
        gpu.nvlinks, gpu.ancestors = [], {other: level}
    assert near(standin_nvml.inventory(details=True)) == [["X", word], [word, "X"]]


def test_what_the_driver_does_not_tell_of_two_gpus_is_left_out(standin_nvml):
    for gpu in standin_nvml.gpus:
        gpu.nvlinks, gpu.ancestors = [], {}
    assert [gpu.links for gpu in standin_nvml.inventory(details=True).gpus] == [{}] * 8


def test_the_loss_of_one_gpu_is_not_laid_to_another_that_was_asked_about_both(standin_nvml):
    standin_nvml.fail = {"nvmlDeviceGetTopologyCommonAncestor": LOST}
    assert [gpu.fault for gpu in standin_nvml.inventory(details=True).gpus] == [None] * 8
