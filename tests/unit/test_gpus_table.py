"""The table of ``reprobox gpus``: what it says fits any terminal, and says what a scheduler allots."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.overviews import RUN, drawn, gpu, holder, instance, mig_uuid, overview, process, uuid, words

from reprobox.cli import gpus_table
from reprobox.cli.gpus_table import rendered, state_words
from reprobox.gpus import Gpu, Inventory, with_runs
from reprobox.gpus.claims import Holder
from reprobox.runs.gpu_overview import Overview

# What a scheduler allots


def test_a_gpu_outside_the_allocation_is_marked_and_the_indices_of_gpus_are_explained():
    found = overview(gpu(0), gpu(1), gpu(2), environment={"CUDA_VISIBLE_DEVICES": "2,0"})
    assert [state.allotted for state in found.gpus] == [True, False, True]
    assert words(found) == ["free", "free (not allotted)", "free"]
    assert "counts there: 0 is GPU 2, 1 is GPU 0." in drawn(found, 150)


def test_without_an_allocation_nothing_is_said_of_one():
    found = overview(gpu(0), gpu(1))
    assert all(state.allotted for state in found.gpus)
    assert "allot" not in drawn(found)
    assert "CUDA_VISIBLE_DEVICES" not in drawn(found)


def test_an_allocation_of_nothing_is_said():
    found = overview(gpu(0), environment={"CUDA_VISIBLE_DEVICES": ""})
    assert words(found) == ["free (not allotted)"]
    assert "leaves you no GPU" in drawn(found)


def test_an_allotted_instance_is_allotted_and_its_gpu_and_sister_are_not():
    divided = gpu(mig=True, mig_instances=(instance(0, 0), instance(0, 1)))
    found = overview(divided, environment={"CUDA_VISIBLE_DEVICES": mig_uuid(0, 1)})
    assert [found.gpus[0].allotted, *(one.allotted for one in found.gpus[0].instances)] == [False, False, True]
    assert "0 is an instance of GPU 0" in drawn(found)


# The table


def full(count=3):
    """A machine whose table has everything in it, every text as long as it can be."""
    long = process(2**22, user="a-rather-long-user-name", command="python " + "--very-long-option " * 20, run=RUN)
    return overview(
        *(gpu(i, processes=(long,), power_watts=1000.0, power_limit_watts=1000.0) for i in range(count)),
        gpu(count, mig=True, mig_instances=tuple(instance(count, p, processes=(long,)) for p in range(3))),
        gpu(count + 1, name="NVIDIA RTX 6000 Ada Generation Super Duper", fault="it is lost " * 20),
        Gpu(index=count + 2, uuid=uuid(count + 2), name="NVIDIA Unknown"),
        holders=[holder(*(uuid(i) for i in range(count)), mig_uuid(count, 1))],
        environment={"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))},
    )


@pytest.mark.parametrize("width", [80, 81, 99, 100, 101, 120, 200])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    lines = drawn(full(), width, topology=True).splitlines()
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_what_a_person_copies_is_never_cut_off(width):
    text = drawn(full(), width)
    for whole in (RUN, mig_uuid(3, 0), str(2**22), "00000000:01:00.0"):
        assert whole in text
    assert text.count(RUN) == 4 + 3 + 3, "the state and the processes of three GPUs and of an instance, and two more"


def test_the_state_stands_beside_the_readings_where_there_is_room_and_below_them_where_not():
    found = overview(gpu())
    beside, below = drawn(found, 100).splitlines(), drawn(found, 80).splitlines()
    first = next(at for at, line in enumerate(beside) if "H100" in line)
    assert beside[first].rstrip().endswith("free")
    assert [line.strip() for line in below[first : first + 3]][-1] == "free"
    assert "free" not in below[first]


def test_the_readings_are_in_the_order_of_nvidia_smi():
    found = overview(
        gpu(
            fan_percent=41,
            temperature_celsius=62,
            performance_state="P2",
            power_watts=250.4,
            power_limit_watts=300.0,
            display_active=False,
            ecc_errors=3,
            utilization_percent=97,
        )
    )
    lines = drawn(found, 100).splitlines()
    assert "Driver 550.54.15   CUDA 12.4" in lines[0]
    assert lines[4].split() == ["0", "H100", "80GB", "HBM3", "On", "00000000:01:00.0", "Off", "3", "Default", "free"]
    assert lines[5].split() == ["41%", "62C", "P2", "250W/300W", "512MiB/81920MiB", "97%", "Disabled"]


def test_what_a_driver_does_not_support_is_shown_as_nvidia_smi_does_and_is_null_in_json():
    found = overview(Gpu(index=0, uuid=uuid(0), name="Old"))
    first, second = drawn(found, 100).splitlines()[4:6]
    assert first.split() == ["0", "Old", "N/A", "N/A", "N/A", "N/A", "N/A", "free"]
    assert second.split() == ["N/A"] * 7
    told = found.to_json()["gpus"][0]
    assert told["fan_percent"] is None
    assert told["memory_total_bytes"] is None


def test_a_process_has_its_line_with_its_run_and_one_without_a_run_has_none():
    inventory = Inventory(gpus=(gpu(0, processes=(process(7), process(8, kind="graphics"))),))
    found = Overview.of(with_runs(inventory, {7: RUN}.get), (), {})
    lines = [line.split() for line in drawn(found, 120).splitlines()[-2:]]
    assert lines[0] == ["0", "7", "C", "alice", "/usr/bin/python3", "train.py", "1024MiB", RUN]
    assert lines[1][:3] + lines[1][-1:] == ["0", "8", "G", "-"]


def test_a_process_that_an_instance_and_its_gpu_both_tell_of_is_listed_once():
    both = gpu(mig=True, processes=(process(), process(8)), mig_instances=(instance(0, 0, processes=(process(),)),))
    listed = [(place.strip(), one.pid) for place, one in gpus_table._processes(overview(both))]
    assert listed == [("0", 8), ("0:0", 7)]


def test_no_process_is_said():
    assert "No process runs on them." in drawn(overview(gpu()))


def test_anybodys_words_are_neither_markup_nor_orders_to_the_terminal():
    evil = "[red]x[/red] \x1b[2J\a"
    found = overview(
        gpu(name=evil, processes=(process(command=evil, user=evil, run=evil),)),
        gpu(1),
        holders=[Holder(run=evil, gpus=(uuid(1),), source="box")],
    )
    text = drawn(found, 200, topology=True)
    assert "\x1b" not in text
    assert "\a" not in text
    assert text.count("[red]x[/red]") >= 3
    assert state_words(found.gpus[1])[1].count("\x1b") == 1, "or this test would see nothing"


def test_a_terminal_that_knows_no_unicode_gets_none():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80).print(rendered(full(), width=80, topology=True, unicode=False))
    file.flush()
    assert b"----" in file.buffer.getvalue()
    assert "…" in drawn(full(), 80), "or nothing was cut off"


def test_the_topology_is_a_matrix_and_one_gpu_has_none():
    links = {uuid(0): "NV18", uuid(1): "NV18", uuid(2): "SYS"}
    gpus = [gpu(i, links={u: "SYS" if i == 2 else w for u, w in links.items() if u != uuid(i)}) for i in range(3)]
    gpus[0] = replace(gpus[0], links={uuid(1): "NV18"})
    text = drawn(overview(*gpus), topology=True)
    rows = [line.split() for line in text.splitlines()[-6:-2]]
    assert rows == [
        ["0", "1", "2"],
        ["0", "X", "NV18", "N/A"],
        ["1", "NV18", "X", "SYS"],
        ["2", "SYS", "SYS", "X"],
    ]
    assert "no topology" in drawn(overview(gpus[0]), topology=True)
    assert "NV18" not in drawn(overview(*gpus))


def test_gpus_that_vanished_are_a_sentence_and_a_remedy():
    found = overview(missing="the NVIDIA driver is not loaded", remedy="load it")
    assert drawn(found).splitlines()[1:] == ["no GPUs: the NVIDIA driver is not loaded", "load it"]
