"""The inventory, taken by the real nvidia-ml-py of a stand-in for the driver's library (``support/nvml.c``)."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import fields

import pynvml
import pytest
from support.nvml import (
    ANCIENT_DRIVER,
    BUSES,
    FUNCTIONS,
    GIB,
    OLD_DRIVER,
    StandInGpu,
    busy,
    eight_gpus,
    lost,
    sliced,
)

import reprobox.gpus.processes
from reprobox.gpus import Gpu, Inventory, take_inventory
from reprobox.gpus.nvml_errors import DENIED, MEANINGS, UNUSABLE, explain, fault

CODES = sorted({value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")})
NO_PERMISSION, FUNCTION_NOT_FOUND, BLOCKED = 4, 13, 17
HANDLE = "nvmlDeviceGetHandleByIndex_v2"


# What there is to know


def test_each_field_is_what_the_driver_says(standin_nvml):
    standin_nvml.gpus = [
        StandInGpu(
            uuid="GPU-8f3a1b2c-0000-4000-8000-000000000000",
            bus="00000000:1B:00.0",
            name="NVIDIA H200",
            memory_total=141 * GIB,
            memory_used=3 * GIB,
            utilization=87,
            temperature=64,
            fan=41,
            power=512_250,
            power_limit=700_000,
            pstate=2,
            persistence=1,
            ecc=(1, 0),
            ecc_errors=3,
            compute_mode=3,
            mig_mode=(0, 1),
            display_active=1,
        )
    ]
    assert standin_nvml.inventory(details=True) == Inventory(
        driver="550.54.15",
        cuda="12.4",
        gpus=(
            Gpu(
                index=0,
                uuid="GPU-8f3a1b2c-0000-4000-8000-000000000000",
                name="NVIDIA H200",
                ecc=True,
                mig=False,
                bus_id="00000000:1B:00.0",
                memory_total_bytes=141 * GIB,
                memory_used_bytes=3 * GIB,
                utilization_percent=87,
                temperature_celsius=64,
                fan_percent=41,
                power_watts=512.25,
                power_limit_watts=700.0,
                performance_state="P2",
                persistence_mode=True,
                ecc_errors=3,
                compute_mode="Exclusive_Process",
                display_active=True,
            ),
        ),
    )


OPTIONAL = {
    "memory_total": {"memory_total_bytes", "memory_used_bytes"},
    "utilization": {"utilization_percent"},
    "temperature": {"temperature_celsius"},
    "fan": {"fan_percent"},
    "power": {"power_watts"},
    "power_limit": {"power_limit_watts"},
    "pstate": {"performance_state"},
    "persistence": {"persistence_mode"},
    "ecc": {"ecc"},
    "ecc_errors": {"ecc_errors"},
    "compute_mode": {"compute_mode"},
    "mig_mode": {"mig"},
    "display_active": {"display_active"},
    "bus": {"bus_id"},
}


@pytest.mark.parametrize("question", OPTIONAL)
def test_a_field_that_is_not_supported_is_none_and_no_other_changes(standin_nvml, question):
    standin_nvml.gpus = standin_nvml.gpus[:1]
    standin_nvml.gpus[0].fan = 41
    before = standin_nvml.inventory(details=True).gpus[0]
    setattr(standin_nvml.gpus[0], question, None)
    after = standin_nvml.inventory(details=True).gpus[0]
    changed = {f.name for f in fields(Gpu) if getattr(before, f.name) != getattr(after, f.name)}
    assert changed == OPTIONAL[question]
    assert {getattr(after, name) for name in changed} == {None}
    assert after.fault is None


def test_eight_gpus_are_told_in_pci_order_whatever_nvml_s(standin_nvml):
    standin_nvml.gpus = [standin_nvml.gpus[i] for i in (5, 0, 7, 1, 2, 6, 3, 4)]
    gpus = standin_nvml.inventory().gpus
    assert [gpu.bus_id for gpu in gpus] == list(BUSES)
    assert [gpu.index for gpu in gpus] == list(range(8))
    assert [gpu.uuid for gpu in gpus] == [gpu.uuid for gpu in eight_gpus()]


def test_without_details_only_what_a_run_needs_is_asked(standin_nvml):
    standin_nvml.trace = True
    few = standin_nvml.inventory()
    assert set(standin_nvml.calls()) == {
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetEccMode",
        HANDLE,
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetName",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetUUID",
        "nvmlShutdown",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlSystemGetDriverVersion",
    }
    assert few.gpus[0].temperature_celsius is None
    more = standin_nvml.inventory(details=True)
    assert {"nvmlDeviceGetFanSpeed", "nvmlDeviceGetNvLinkState"} < set(standin_nvml.calls())
    assert more.gpus[0].temperature_celsius == 30


@pytest.mark.parametrize(("number", "version"), [(12040, "12.4"), (11080, "11.8"), (13000, "13.0"), (None, None)])
def test_the_cuda_version_is_written_as_people_write_it(standin_nvml, number, version):
    standin_nvml.cuda = number
    assert standin_nvml.inventory().cuda == version


@pytest.mark.parametrize(("mode", "word"), [(0, "Default"), (2, "Prohibited"), (3, "Exclusive_Process"), (9, None)])
def test_compute_modes_have_nvidia_smi_s_words(standin_nvml, mode, word):
    standin_nvml.gpus[0].compute_mode = mode
    assert standin_nvml.inventory(details=True).gpus[0].compute_mode == word


def test_a_performance_state_the_driver_calls_unknown_is_none(standin_nvml):
    standin_nvml.gpus[0].pstate = pynvml.NVML_PSTATE_UNKNOWN
    standin_nvml.gpus[1].pstate = 8
    assert [gpu.performance_state for gpu in standin_nvml.inventory(details=True).gpus[:2]] == [None, "P8"]


def test_a_name_that_is_no_text_is_unknown_and_the_gpu_stays(standin_nvml):
    standin_nvml.gpus[0].name = "NVIDIA \udcff"
    gpu = standin_nvml.inventory().gpus[0]
    assert (gpu.name, gpu.fault) == ("unknown GPU", None)


# What can go wrong


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_has_a_sentence_and_a_remedy_of_its_own(code):
    meaning = MEANINGS[code]
    for text in meaning:
        assert text == text.strip()
        assert not text.endswith(".")
        assert len(text.split()) > 2
    assert [explain(other).sentence for other in CODES].count(meaning.sentence) == 1


def test_a_code_nobody_has_heard_of_is_told_by_its_number():
    assert 4242 not in MEANINGS
    assert "4242" in explain(4242).sentence
    assert explain(4242).remedy


def test_the_table_has_no_code_that_nvml_lacks():
    # 30 came with bindings newer than the oldest that reprobox takes.
    assert set(MEANINGS) - set(CODES) <= {30}


@pytest.mark.parametrize("code", [*CODES, 4242])
def test_a_driver_that_does_not_start_is_told_in_a_sentence(standin_nvml, code):
    standin_nvml.fail = {"nvmlInit_v2": code}
    inventory = standin_nvml.within(take_inventory, details=True)
    assert inventory == Inventory(missing=explain(code).sentence, remedy=explain(code).remedy)


@pytest.mark.parametrize("code", [*CODES, 4242])
def test_gpus_that_cannot_be_counted_are_told_in_a_sentence(standin_nvml, code):
    standin_nvml.fail = {"nvmlDeviceGetCount_v2": code}
    inventory = standin_nvml.inventory()
    assert (inventory.gpus, inventory.missing, inventory.remedy) == ((), *explain(code))


@pytest.mark.parametrize("code", [*(code for code in CODES if code not in DENIED), 4242])
def test_a_gpu_without_a_handle_stays_in_its_place_with_a_sentence(standin_nvml, code):
    standin_nvml.gpus[3].fail = {"*": code}
    gpus = standin_nvml.inventory(details=True).gpus
    assert gpus[3] == Gpu(index=3, uuid="", name="unknown GPU", fault=fault(code))
    assert [gpu.bus_id for gpu in gpus] == [*BUSES[:3], None, *BUSES[4:]]
    assert [gpu.fault for gpu in gpus if gpu.index != 3] == [None] * 7


@pytest.mark.parametrize("code", [NO_PERMISSION, BLOCKED])
def test_a_gpu_this_process_may_not_use_is_left_out_and_does_not_count(standin_nvml, code):
    for index in (0, 5):
        standin_nvml.gpus[index].fail = {"*": code}
    gpus = standin_nvml.inventory(details=True).gpus
    assert [gpu.index for gpu in gpus] == list(range(6))
    assert [gpu.bus_id for gpu in gpus] == [bus for i, bus in enumerate(BUSES) if i not in {0, 5}]
    assert not any(uuid.startswith(("GPU-0", "GPU-5")) for gpu in gpus for uuid in gpu.links)


def test_a_gpu_that_may_not_tell_its_uuid_is_left_out_too(standin_nvml):
    standin_nvml.gpus[1].fail = {"nvmlDeviceGetUUID": NO_PERMISSION}
    assert [gpu.uuid[:5] for gpu in standin_nvml.inventory().gpus] == [f"GPU-{i}" for i in (0, 2, 3, 4, 5, 6, 7)]


def test_where_no_gpu_may_be_used_the_inventory_says_so(standin_nvml):
    standin_nvml.fail = {HANDLE: NO_PERMISSION}
    inventory = standin_nvml.inventory()
    assert (inventory.gpus, inventory.driver) == ((), "550.54.15")
    assert "none of the machine's GPUs (8)" in inventory.missing
    assert "scheduler" in inventory.remedy


def test_a_driver_without_gpus_is_told_from_one_that_is_not_there(standin_nvml):
    standin_nvml.gpus = []
    inventory = standin_nvml.inventory()
    assert (inventory.missing, inventory.driver) == ("the NVIDIA driver finds no GPU", "550.54.15")


@pytest.mark.parametrize("code", sorted(UNUSABLE))
@pytest.mark.parametrize("question", ["nvmlDeviceGetEccMode", "nvmlDeviceGetFanSpeed", "nvmlDeviceGetNvLinkState"])
def test_whatever_answer_says_that_a_gpu_is_lost_is_believed(standin_nvml, question, code):
    standin_nvml.gpus[6].fail = {question: code}
    gpus = standin_nvml.inventory(details=True).gpus
    assert gpus[6].fault == fault(code)
    assert gpus[6].uuid == standin_nvml.gpus[6].uuid
    assert [gpu.fault for gpu in gpus if gpu.index != 6] == [None] * 7


def test_a_lost_gpu_is_noticed_without_details(standin_nvml):
    lost(standin_nvml.gpus[6]).fail |= {HANDLE: 0, "nvmlDeviceGetUUID": 0}
    gpu = standin_nvml.inventory().gpus[6]
    assert gpu.fault.startswith("the GPU has fallen off the bus (")
    assert gpu.uuid == standin_nvml.gpus[6].uuid


@pytest.mark.parametrize("code", [code for code in CODES if code not in UNUSABLE])
def test_any_other_code_for_one_field_is_a_field_that_is_not_supported(standin_nvml, code):
    standin_nvml.gpus[6].fail = {"nvmlDeviceGetPowerUsage": code}
    gpu = standin_nvml.inventory(details=True).gpus[6]
    assert (gpu.power_watts, gpu.power_limit_watts, gpu.fault) == (None, 700.0, None)


def test_a_gpu_without_a_uuid_cannot_be_used(standin_nvml):
    standin_nvml.gpus[2].uuid = None
    gpu = standin_nvml.inventory().gpus[2]
    assert gpu.fault.startswith("its UUID cannot be read: ")


def test_no_function_with_no_error_makes_the_inventory_raise(standin_nvml):
    first, second = sliced(eight_gpus()[0], "1g.10gb"), busy(eight_gpus()[1], os.getpid())
    standin_nvml.gpus = [first, second]

    def every_failure():
        taken = 0
        for function in FUNCTIONS | {"*"}:
            for code in (1, 2, 3, 4, 6, 7, 10, 13, 15, 17, 25, 999, 4242):
                standin_nvml.fail = {} if function == "*" else {function: code}
                first.fail = {function: code}
                standin_nvml.write()
                taken += isinstance(take_inventory(details=True), Inventory)
        return taken

    assert standin_nvml.within(every_failure) == 13 * (len(FUNCTIONS) + 1)


def test_nvml_is_shut_down_after_a_failure_as_well(standin_nvml):
    standin_nvml.fail = {"nvmlDeviceGetCount_v2": 999}
    standin_nvml.within(take_inventory)
    assert standin_nvml.references == 0
    standin_nvml.within(pynvml.nvmlInit)
    assert standin_nvml.references == 1


def test_a_machine_without_the_library_never_imports_the_bindings(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.delitem(sys.modules, "pynvml")
    inventory = take_inventory()
    assert "pynvml" not in sys.modules
    assert (inventory.missing, inventory.gpus) == ("there is no NVIDIA driver library", ())
    assert "--gpus none" in inventory.remedy


# Old drivers, old bindings


def test_a_driver_that_lacks_newer_functions_is_asked_by_the_older_ones(standin_nvml):
    busy(standin_nvml.gpus[0], 1)
    sliced(standin_nvml.gpus[1], "1g.10gb")
    new = standin_nvml.inventory(details=True)
    standin_nvml.without = OLD_DRIVER
    assert standin_nvml.inventory(details=True) == new
    assert new.gpus[0].processes


def test_a_driver_from_before_mig_has_no_mig_and_no_processes_to_tell(standin_nvml):
    busy(standin_nvml.gpus[0], 1)
    standin_nvml.without = ANCIENT_DRIVER
    inventory = standin_nvml.inventory(details=True)
    assert inventory.cuda == "12.4"
    assert [gpu.mig for gpu in inventory.gpus] == [None] * 8
    assert (inventory.gpus[0].processes, inventory.gpus[0].fault) == ((), None)
    assert inventory.gpus[0].temperature_celsius == 30


def test_of_a_driver_that_tells_nothing_the_gpus_are_known_still(standin_nvml):
    standin_nvml.without = FUNCTIONS - {
        "nvmlInitWithFlags", "nvmlShutdown", "nvmlDeviceGetCount_v2", HANDLE, "nvmlDeviceGetUUID"
    }  # fmt: skip
    inventory = standin_nvml.inventory(details=True)
    assert inventory.gpus == tuple(
        Gpu(index=i, uuid=gpu.uuid, name="unknown GPU") for i, gpu in enumerate(standin_nvml.gpus)
    )
    assert (inventory.driver, inventory.cuda) == (None, None)


def test_a_driver_too_old_to_be_started_is_told_so(standin_nvml):
    standin_nvml.without = {"nvmlInitWithFlags"}
    inventory = standin_nvml.within(take_inventory)
    assert (inventory.missing, inventory.remedy) == explain(FUNCTION_NOT_FOUND)


def test_bindings_that_lack_a_newer_function_ask_by_the_older_one(standin_nvml, monkeypatch):
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV", raising=False)
    assert standin_nvml.inventory(details=True).gpus[0].temperature_celsius == 30


# The stand-in itself


def test_a_failure_of_a_function_that_does_not_exist_is_refused(standin_nvml):
    standin_nvml.gpus[0].fail = {"nvmlDeviceGetNmae": 3}
    with pytest.raises(AssertionError, match="nvmlDeviceGetNmae"):
        standin_nvml.write()


def test_what_goes_wrong_in_the_child_fails_the_test(standin_nvml):
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        standin_nvml.within(lambda: 1 // 0)


def test_every_question_of_reprobox_is_one_the_stand_in_can_answer():
    folder = os.path.dirname(reprobox.gpus.processes.__file__)
    asked = set()
    for name in ("nvml.py", "device.py", "topology.py", "processes.py"):
        with open(os.path.join(folder, name)) as file:
            asked |= set(re.findall(r"nvml(?:Device|System)\w+", file.read()))
    assert asked
    exported = {re.sub(r"_v\d$", "", function) for function in FUNCTIONS}
    assert {re.sub(r"_v\d$", "", question) for question in asked} <= exported
