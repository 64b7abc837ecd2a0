"""--gpus on a shared machine: every request against every kind of inventory, and which GPUs auto takes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from reprobox.errors import GpuError, GpusTaken, UsageError
from reprobox.gpus import Gpu, GpuProcess, GpuRequest, Inventory, MigInstance
from reprobox.gpus.request import left_to_default

GIB = 1 << 30
NVLINKED = {0: {1}, 1: {0}, 2: {3}, 3: {2}}


def gpu(index, *, used=0.5, temperature=30, links=None, **more):
    return Gpu(
        index=index,
        uuid=f"GPU-{index}{index}aa0000-0000-0000-0000-00000000000{index}",
        name="H200",
        memory_total_bytes=140 * GIB,
        memory_used_bytes=int(used * GIB),
        temperature_celsius=temperature,
        links=links or {},
        **more,
    )


def uuid(index):
    return gpu(index).uuid


def computing(index, **more):
    process = GpuProcess(pid=4242, kind="compute", user="alice", command="python", memory_bytes=20 * GIB)
    return gpu(index, used=20, processes=(process,), **more)


def divided(index):
    slices = tuple(MigInstance(uuid=f"MIG-{index}{i}bb", profile="1g.18gb") for i in range(2))
    return gpu(index, mig=True, mig_instances=slices)


def inventory(*gpus):
    return Inventory(gpus=gpus, driver="570.86.15")


FOUR = inventory(*(gpu(i) for i in range(4)))
ONE = inventory(gpu(0))
BUSY = inventory(computing(0), gpu(1), computing(2), gpu(3))
ALL_BUSY = inventory(*(computing(i) for i in range(2)))
HIDDEN = inventory(gpu(0, used=30), gpu(1))  # in a container NVML sees the memory, not the process
DESKTOP = inventory(gpu(0, used=0.4, processes=(GpuProcess(pid=7, kind="graphics", command="Xorg"),)), gpu(1))
PAIRS = inventory(
    *(gpu(i, links={uuid(j): "NV18" if j in NVLINKED[i] else "SYS" for j in range(4) if j != i}) for i in range(4))
)
PAIRS_AND_WORK = replace(PAIRS, gpus=(computing(0), *PAIRS.gpus[1:]))
WARM = inventory(gpu(0, temperature=60), gpu(1, temperature=40), gpu(2, temperature=50), gpu(3, temperature=60))
LOST = inventory(gpu(0), gpu(1, fault="it has fallen off the bus"), gpu(2))
MIXED = inventory(gpu(0), divided(1))
SLICES = inventory(divided(0))
UNSLICED = inventory(gpu(0, mig=True))
PROHIBITED = inventory(gpu(0, compute_mode="Prohibited"), gpu(1))
OLD = inventory(*(Gpu(index=i, uuid=uuid(i), name="K80") for i in range(2)))  # a driver that tells nothing more
NOTHING = Inventory(missing="there is no NVIDIA driver library", remedy="install the NVIDIA driver")
TAKEN = {uuid(0): "run a of alice", uuid(1): "run a of alice"}

# request, inventory, CUDA_VISIBLE_DEVICES, who claims what, the UUIDs expected or what the refusal says
TABLE = [
    ("all", FOUR, None, {}, [0, 1, 2, 3]),
    ("none", FOUR, None, {}, []),
    ("none", NOTHING, None, {}, []),
    ("all", NOTHING, None, {}, "no NVIDIA driver library"),
    ("0", NOTHING, None, {}, "install the NVIDIA driver"),
    ("auto", NOTHING, None, {}, "no NVIDIA driver library"),
    ("2", FOUR, None, {}, [2]),
    ("3,1", FOUR, None, {}, [3, 1]),
    ("device=0,1", FOUR, None, {}, [0, 1]),
    ('"device=1,0"', FOUR, None, {}, [1, 0]),
    ("GPU-22aa", FOUR, None, {}, [2]),
    ("gpu-22aa", FOUR, None, {}, UsageError),
    ("GPU-22AA", FOUR, None, {}, [2]),
    ("GPU-3,0", FOUR, None, {}, [3, 0]),
    ("4", FOUR, None, {}, "is not there; choose from 0: H200"),
    ("GPU-f", FOUR, None, {}, "is not there"),
    ("1,GPU-11", FOUR, None, {}, UsageError),
    ("0,0", FOUR, None, {}, UsageError),
    ("007", FOUR, None, {}, "is not there"),
    ("all", FOUR, "2,3", {}, [2, 3]),
    ("0", FOUR, "2,3", {}, [2]),
    ("1,0", FOUR, "2,3", {}, [3, 2]),
    ("2", FOUR, "0,1", {}, "outside what CUDA_VISIBLE_DEVICES allots"),
    ("GPU-33", FOUR, "0,1", {}, "add --gpus-ignore-allocation"),
    ("auto", FOUR, "2", {}, [2]),
    ("auto:2", FOUR, "1,2", {}, [1, 2]),
    ("auto:2", FOUR, "1", {}, "1 GPU here to choose from"),
    ("all", FOUR, "1,9,2", {}, [1]),
    ("all", FOUR, "", {}, "leaves this process no GPU"),
    ("auto", FOUR, "-1", {}, "leaves this process no GPU"),
    ("0", FOUR, "NoDevFiles", {}, "leaves this process no GPU"),
    ("all", FOUR, "1,1", {}, "leaves this process no GPU"),
    ("1,0", FOUR, "GPU-33aa,GPU-00", {}, [0, 3]),
    ("auto", FOUR, None, {}, [0]),
    ("auto", FOUR, None, TAKEN, [3]),
    ("auto:2", FOUR, None, TAKEN, [2, 3]),
    ("auto:3", FOUR, None, TAKEN, GpusTaken),
    ("auto:4", FOUR, None, {}, [0, 1, 2, 3]),
    ("auto:5", FOUR, None, {}, "4 GPUs here to choose from"),
    ("auto:0", FOUR, None, {}, UsageError),
    ("0", FOUR, None, TAKEN, [0]),
    ("all", FOUR, None, TAKEN, [0, 1, 2, 3]),
    ("auto", ONE, None, {}, [0]),
    ("auto", ONE, None, TAKEN, GpusTaken),
    ("auto", BUSY, None, {}, [3]),
    ("auto:2", BUSY, None, {}, [1, 3]),
    ("auto:3", BUSY, None, {}, GpusTaken),
    ("auto:3", BUSY, None, {}, r"python \(pid 4242, alice\)"),
    ("auto:3,mem=100G", BUSY, None, {}, [0, 1, 3]),
    ("auto:4,mem=130G", BUSY, None, {}, r"120\.0 GiB of memory left"),
    ("auto:4,mem=100G", BUSY, None, {}, [0, 1, 2, 3]),
    ("auto,mem=100G", BUSY, None, TAKEN, [3]),
    ("auto,mem=141G", BUSY, None, {}, "no GPU here with so much memory"),
    ("auto,mem=20", BUSY, None, {}, UsageError),
    ("auto,mem=", BUSY, None, {}, UsageError),
    ("auto", ALL_BUSY, None, {}, GpusTaken),
    ("0", ALL_BUSY, None, {}, [0]),
    ("auto", HIDDEN, None, {}, [1]),
    ("auto:2", HIDDEN, None, {}, r"30\.0 GiB of memory used"),
    ("auto", DESKTOP, None, {}, [1]),
    ("auto:2", DESKTOP, None, {}, [0, 1]),
    ("auto:2", PAIRS, None, {}, [0, 1]),
    ("auto:2", PAIRS_AND_WORK, None, {}, [2, 3]),
    ("auto:2", PAIRS, None, {uuid(1): "run b of bob"}, [2, 3]),
    ("auto:2", PAIRS, "0,2,3", {}, [2, 3]),
    ("auto", WARM, None, {}, [1]),
    ("auto:2", WARM, None, {}, [1, 2]),
    ("all", LOST, None, {}, "GPU 1 cannot be used: it has fallen off the bus; choose from 0: .*2: "),
    ("1", LOST, None, {}, "has fallen off the bus"),
    ("0,2", LOST, None, {}, [0, 2]),
    ("auto:2", LOST, None, {}, [0, 2]),
    ("auto:3", LOST, None, {}, "2 GPUs here to choose from"),
    ("all", MIXED, None, {}, [0]),
    ("1", MIXED, None, {}, r"divided into instances; name one of MIG-10bb \(1g.18gb\)"),
    ("MIG-11bb", MIXED, None, {}, ["MIG-11bb"]),
    ("MIG-1", MIXED, None, {}, "could be several"),
    ("0,MIG-11bb", MIXED, None, {}, "one MIG instance, and nothing beside it"),
    ("MIG-10bb,MIG-11bb", MIXED, None, {}, "one MIG instance, and nothing beside it"),
    ("auto", MIXED, None, {}, [0]),
    ("auto:2", MIXED, None, {}, "1 GPU here to choose from"),
    ("all", SLICES, None, {}, "divided into instances"),
    ("auto", SLICES, None, {}, ["MIG-00bb"]),
    ("auto", SLICES, None, {"MIG-00bb": "run c of carol"}, ["MIG-01bb"]),
    ("0", SLICES, "MIG-01bb", {}, ["MIG-01bb"]),
    ("all", SLICES, "MIG-01bb", {}, ["MIG-01bb"]),
    ("auto", SLICES, "MIG-01bb", {}, ["MIG-01bb"]),
    ("0", UNSLICED, None, {}, "in MIG mode and has no instance"),
    ("auto", UNSLICED, None, {}, "no GPU here to choose from"),
    ("auto", PROHIBITED, None, {}, [1]),
    ("auto:2", PROHIBITED, None, {}, "compute mode is Prohibited"),
    ("auto:2", OLD, None, {}, [0, 1]),
    ("auto,mem=8G", OLD, None, {}, [0]),
    ("auto:2,mem=8G", OLD, None, {uuid(0): "run d of dave"}, GpusTaken),
]


@pytest.mark.parametrize(
    ("text", "there", "visible", "taken", "expected"), TABLE, ids=[f"{i}-{row[0]}" for i, row in enumerate(TABLE)]
)
def test_a_request_means_these_gpus_or_is_refused_with_the_reason(text, there, visible, taken, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    def resolve():
        return [gpu.uuid for gpu in GpuRequest.parse(text).resolve(there, environment, taken)]

    if isinstance(expected, str):
        with pytest.raises(GpuError, match=expected):
            resolve()
    elif isinstance(expected, type):
        with pytest.raises(expected) as caught:
            resolve()
        assert type(caught.value) is expected
        assert caught.value.remedy
    else:
        assert resolve() == [uuid(one) if isinstance(one, int) else one for one in expected]


@pytest.mark.parametrize(
    ("there", "visible", "expected", "said"),
    [
        (FOUR, None, [0, 1, 2, 3], []),
        (FOUR, "2", [2], []),
        (FOUR, "", [], []),
        (NOTHING, None, [], []),
        (LOST, None, [0, 2], ["GPU 1 is left out: it has fallen off the bus"]),
        (MIXED, None, [0], ["GPU 1 is left out: it is in MIG mode; name an instance with --gpus MIG-…"]),
        (SLICES, "MIG-01bb", ["MIG-01bb"], []),
    ],
)
def test_a_run_that_names_no_gpus_has_every_usable_one_and_says_which_it_left_out(there, visible, expected, said):
    chosen, sentences = left_to_default(there, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.uuid for gpu in chosen] == [uuid(one) if isinstance(one, int) else one for one in expected]
    assert list(sentences) == said


def test_auto_never_takes_a_claimed_gpu_whatever_else_speaks_for_it():
    """Every subset of claims on four GPUs, and every count."""
    for size in range(5):
        for claimed in itertools.combinations(range(4), size):
            for count in range(1, 5):
                request = GpuRequest.parse(f"auto:{count}")
                taken = {uuid(i): "run e of eve" for i in claimed}
                if count > 4 - size:
                    with pytest.raises(GpusTaken):
                        request.resolve(PAIRS, {}, taken)
                else:
                    chosen = {g.index for g in request.resolve(PAIRS, {}, taken)}
                    assert len(chosen) == count
                    assert not chosen & set(claimed)


def test_a_choice_among_more_than_sixteen_gpus_is_still_one():
    many = inventory(*(Gpu(index=i, uuid=f"GPU-{i:02d}", name="H200") for i in range(24)))
    assert len(GpuRequest.parse("auto:20").resolve(many, {})) == 20
