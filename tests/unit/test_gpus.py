"""--gpus: what is asked for, and what it means on a machine."""

from __future__ import annotations

import pytest

from reprobox.errors import GpuError, UsageError
from reprobox.gpus import Gpu, GpuRequest, Inventory

FOUR = Inventory(gpus=tuple(Gpu(index=i, uuid=f"GPU-{i}{i}aa-{i}", name="H200") for i in range(4)), driver="570.86.15")
NONE = Inventory(missing="there is no NVIDIA driver library", remedy="install the NVIDIA driver")


@pytest.mark.parametrize(
    ("text", "visible", "expected"),
    [
        ("all", None, [0, 1, 2, 3]),
        ("none", None, []),
        ("2", None, [2]),
        ("3,1", None, [3, 1]),
        ("GPU-11aa-1", None, [1]),
        ("GPU-2", None, [2]),
        ("gpu-2", None, None),
        ("device=0,1", None, [0, 1]),
        ("all", "2,3", [2, 3]),
        ("0", "2,3", [2]),
        ("1,0", "GPU-33aa-3,GPU-0", [0, 3]),
        ("all", "1,9,2", [1]),
    ],
)
def test_a_request_resolves_in_the_order_asked_for(text, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    if expected is None:
        with pytest.raises(UsageError):
            GpuRequest.parse(text)
        return
    assert [gpu.index for gpu in GpuRequest.parse(text).resolve(FOUR, environment)] == expected


@pytest.mark.parametrize("text", ["", "4x", "0,", ",0", "0,0", "-1", "0 1", "GPU-", "some"])
def test_a_malformed_request_is_refused(text):
    with pytest.raises(UsageError):
        GpuRequest.parse(text)


@pytest.mark.parametrize(("text", "environment"), [("4", {}), ("GPU-f", {}), ("2", {"CUDA_VISIBLE_DEVICES": "0,1"})])
def test_a_gpu_that_is_not_there_is_refused_with_the_list_of_what_is(text, environment):
    with pytest.raises(GpuError, match="choose from 0: H200"):
        GpuRequest.parse(text).resolve(FOUR, environment)


def test_all_of_an_empty_allocation_is_an_error_and_never_a_cpu_run():
    with pytest.raises(GpuError, match="leaves this process no GPU"):
        GpuRequest.parse("all").resolve(FOUR, {"CUDA_VISIBLE_DEVICES": ""})


def test_one_gpu_by_two_names_is_refused():
    with pytest.raises(UsageError, match="twice"):
        GpuRequest.parse("1,GPU-11").resolve(FOUR, {})


@pytest.mark.parametrize("text", ["all", "0"])
def test_gpus_asked_for_on_a_machine_without_are_an_error_and_never_a_cpu_run(text):
    with pytest.raises(GpuError, match="no NVIDIA driver library"):
        GpuRequest.parse(text).resolve(NONE, {})
    assert GpuRequest.parse("none").resolve(NONE, {}) == ()
