"""``reprobox gpus``: who has a GPU, and a table that says it on any terminal."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from reprobox.cli import gpus_table
from reprobox.cli.gpus_table import rendered, state_words
from reprobox.engines import GpuBox
from reprobox.engines.fake import FakeEngine
from reprobox.errors import EngineUnavailable, GpuError
from reprobox.gpus import Gpu, GpuProcess, GpuRequest, Inventory, MigInstance, with_runs
from reprobox.gpus.claims import Holder
from reprobox.runs import gpu_overview, gpu_users
from reprobox.runs.gpu_overview import Overview
from reprobox.runs.gpu_users import BoxesSeen, runs_of_processes
from reprobox.runs.store import new_run_id

GIB = 1 << 30
RUN = "20261121T055558.158-fe4a"
CONTAINER = "5f" * 32


def uuid(index):
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


def mig_uuid(index, place):
    return f"MIG-{index:08x}-0000-5000-8000-00000000000{place}"


def gpu(index=0, **fields):
    given = {
        "uuid": uuid(index),
        "name": "NVIDIA H100 80GB HBM3",
        "mig": False,
        "bus_id": f"00000000:{index + 1:02X}:00.0",
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": GIB // 2,
        "persistence_mode": True,
        "compute_mode": "Default",
    }
    return Gpu(index=index, **{**given, **fields})


def process(pid=7, **fields):
    given = {"kind": "compute", "user": "alice", "command": "/usr/bin/python3 train.py", "memory_bytes": GIB}
    return GpuProcess(pid=pid, **{**given, **fields})


def instance(index, place, **fields):
    return MigInstance(uuid=mig_uuid(index, place), profile="1g.10gb", memory_total_bytes=10 * GIB, **fields)


def holder(*uuids, **fields):
    return Holder(**{"run": RUN, "gpus": uuids, "user": "alice", **fields})


def overview(*gpus, holders=(), environment=None, **fields):
    return Overview.of(Inventory(gpus=gpus, driver="550.54.15", cuda="12.4", **fields), holders, environment or {})


def drawn(found, width=100, **options):
    file = io.StringIO()
    Console(file=file, width=width).print(rendered(found, width=width, **options))
    return file.getvalue()


def words(found):
    return [state_words(state)[1] for state in found.gpus]


# Whether a GPU can be had


def some_machine(seed):
    """Any number of GPUs in any state, and who has some of them."""
    draw = random.Random(seed)
    gpus = []
    for index in range(draw.randint(1, 5)):
        divided = draw.random() < 0.3
        busy = (process(),) if draw.random() < 0.3 else ()
        slices = tuple(instance(index, p, processes=draw.choice([(), busy])) for p in range(draw.randint(0, 3)))
        gpus.append(
            gpu(
                index,
                mig=divided or draw.choice([False, None]),
                mig_instances=slices if divided else (),
                processes=draw.choice([(), busy, (process(kind="graphics"),)]),
                memory_used_bytes=draw.choice([None, 0, GIB // 2, 40 * GIB]),
                compute_mode=draw.choice(["Default", "Default", None, "Prohibited", "Exclusive_Process"]),
                fault="the GPU has fallen off the bus" if draw.random() < 0.1 else None,
            )
        )
    every = [one for g in gpus for one in (g.uuid, *(i.uuid for i in g.mig_instances))]
    holders = [holder(*draw.sample(every, 1), run=f"run-{n}") for n in range(draw.randint(0, 3))]
    return Inventory(gpus=tuple(gpus)), holders


def disagreements(seeds=300):
    """Machines for which ``auto`` would choose something that the table does not show as free, or the other way round."""
    found = []
    for seed in range(seeds):
        inventory, holders = some_machine(seed)
        shown = Overview.of(inventory, holders, {})
        taken = {uuid: "a run" for state in shown.gpus for uuid in claimed(state)}
        for state in shown.gpus:
            for each in (state, *state.instances):
                universe = {"CUDA_VISIBLE_DEVICES": each.gpu.uuid}
                if each.instances:  # then auto means one of its instances
                    continue
                try:
                    GpuRequest.parse("auto").resolve(inventory, universe, taken)
                    chosen = True
                except GpuError:
                    chosen = False
                if chosen != each.free:
                    found.append((seed, each.gpu.uuid))
    return found


def claimed(state):
    return [each.gpu.uuid for each in (state, *state.instances) if each.claims]


def test_what_the_table_shows_as_free_is_exactly_what_auto_would_choose():
    assert disagreements() == []


def test_a_table_that_made_up_its_own_mind_would_be_found_out(monkeypatch):
    monkeypatch.setattr(gpu_overview, "occupation", lambda gpu, taken: taken.get(gpu.uuid))
    assert disagreements()


def test_a_divided_gpu_is_never_free_and_auto_takes_one_of_its_free_instances():
    divided = gpu(mig=True, mig_instances=(instance(0, 0, processes=(process(),)), instance(0, 1)))
    (state,) = overview(divided).gpus
    (chosen,) = GpuRequest.parse("auto").resolve(Inventory(gpus=(divided,)), {}, {})
    assert (state.free, [one.free for one in state.instances]) == (False, [False, True])
    assert chosen.uuid == state.instances[1].gpu.uuid


def test_each_state_is_said_in_words():
    found = overview(
        gpu(0),
        gpu(1),
        gpu(2, processes=(process(), process(8), process(9))),
        gpu(3, processes=(process(kind="graphics"),)),
        gpu(4, memory_used_bytes=20 * GIB),
        gpu(5, compute_mode="Prohibited"),
        gpu(6, fault="the GPU has fallen off the bus"),
        gpu(7, mig=True, mig_instances=(instance(7, 0), instance(7, 1))),
        gpu(8, mig=True, mig_instances=(instance(8, 0),)),
        gpu(9, mig=True),
        gpu(10),
        holders=[holder(uuid(1)), holder(uuid(10), exclusive=True)],
    )
    assert words(found) == [
        "free",
        f"claimed: run {RUN} of alice",
        "busy: python3 (alice) and 2 more",
        "free",
        "busy: 20.0 GiB of memory used",
        "unusable: its compute mode is Prohibited",
        "unusable: the GPU has fallen off the bus",
        "divided: 2 MIG instances",
        "divided: 1 MIG instance",
        "divided: no MIG instances",
        f"claimed: run {RUN} of alice, exclusively",
    ]


def test_a_claim_of_an_instance_is_a_claim_of_that_instance_and_not_of_its_sister():
    found = overview(gpu(mig=True, mig_instances=(instance(0, 0), instance(0, 1))), holders=[holder(mig_uuid(0, 1))])
    assert [state_words(one)[0] for one in found.gpus[0].instances] == ["free", "claimed"]
    assert found.gpus[0].claims == (holder(mig_uuid(0, 1)),)


def test_a_box_that_nobody_minds_is_said_to_run_still():
    found = overview(gpu(), holders=[Holder(run=RUN, gpus=(uuid(0),), source="box")])
    assert words(found) == [f"claimed: run {RUN}, whose box still runs"]


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


# The document


def test_the_document_has_every_field_of_a_gpu_and_who_has_it():
    since = datetime(2026, 11, 21, 5, 55, 58, tzinfo=UTC)
    claim = holder(uuid(0), pid=42, since=since, exclusive=True, command="python train.py")
    told = overview(gpu(0), gpu(1), holders=[claim]).to_json()
    assert told.keys() == {"schema", "driver", "cuda", "gpus", "missing", "remedy"}
    first, second = told["gpus"]
    assert first.keys() == {f.name for f in fields(Gpu)} | {"free", "occupied_by", "allotted", "claims"}
    assert first["claims"] == [
        {
            "run": RUN,
            "user": "alice",
            "pid": 42,
            "since": "2026-11-21T05:55:58+00:00",
            "exclusive": True,
            "command": "python train.py",
            "source": "claim",
        }
    ]
    assert (first["free"], first["occupied_by"]) == (False, f"run {RUN} of alice")
    assert (second["free"], second["occupied_by"], second["claims"]) == (True, None, [])


def test_an_instance_in_the_document_has_users_of_its_own():
    divided = gpu(mig=True, mig_instances=(instance(0, 0), instance(0, 1)))
    told = overview(divided, holders=[holder(mig_uuid(0, 1))]).to_json()["gpus"][0]
    assert [one["free"] for one in told["mig_instances"]] == [True, False]
    assert [one["claims"] != [] for one in told["mig_instances"]] == [False, True]
    assert told["mig_instances"][0]["profile"] == "1g.10gb"
    assert told["free"] is False


# Which run a process belongs to


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc of the test's own."""
    monkeypatch.setattr(gpu_users, "_PROC", tmp_path)

    def add(pid, cgroup=None, environ=None):
        (tmp_path / str(pid)).mkdir()
        for name, content in (("cgroup", cgroup), ("environ", environ)):
            if content is not None:
                (tmp_path / str(pid) / name).write_text(content)

    return add


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/system.slice/docker-{CONTAINER}.scope\n",
        f"12:devices:/docker/{CONTAINER}\n11:memory:/docker/{CONTAINER}\n",
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{CONTAINER}.scope/container\n",
        f"0::/../{CONTAINER}\n",
    ],
)
def test_a_process_in_a_box_is_known_by_its_cgroup(proc, cgroup):
    proc(7, cgroup)
    proc(8, cgroup.replace(CONTAINER, "ab" * 32))
    run_of = runs_of_processes([GpuBox(run_id=RUN, gpus=(uuid(0),), state="running", container=CONTAINER)])
    assert run_of(7) == RUN
    assert run_of(8) is None
    assert run_of(9) is None


def test_a_process_of_a_run_on_this_machine_is_known_by_its_environment(proc):
    run = new_run_id()
    proc(7, environ=f"A=1\0REPROBOX_RUN_DIR=/home/a b/.reprobox/runs/{run}/box/out\0B=2\0")
    proc(8, environ=f"XREPROBOX_RUN_DIR=/home/.reprobox/runs/{run}/box/out\0")
    proc(9, environ="REPROBOX_RUN_DIR=/home/.reprobox/runs/\x1b[2J/box/out\0")
    proc(10, environ="REPROBOX_RUN_DIR=/run/reprobox/out\0")
    assert [runs_of_processes([])(pid) for pid in (7, 8, 9, 10, 11)] == [run, None, None, None, None]


# An engine that may be away


class _Engine(FakeEngine):
    """An engine that answers when it is let."""

    def __init__(self, *boxes):
        super().__init__()
        self.boxes_told, self.asked = boxes, 0
        self.error, self.open = None, threading.Event()
        self.open.set()

    def gpu_boxes(self):
        self.asked += 1
        self.open.wait(30)
        if self.error is not None:
            raise self.error
        return self.boxes_told


BOX = GpuBox(run_id=RUN, gpus=(uuid(0),), state="running")


def test_boxes_are_asked_for_at_each_look():
    engine = _Engine()
    seen = BoxesSeen(lambda: engine)
    assert seen.now() == ()
    engine.boxes_told = (BOX,)
    assert seen.now() == (BOX,)
    assert (seen.hung, seen.error, engine.asked) == (False, None, 2)


def test_an_engine_that_hangs_is_waited_for_once_and_its_last_answer_stands(monkeypatch):
    monkeypatch.setattr(gpu_users, "PATIENCE_SECONDS", 0.2)
    engine = _Engine(BOX)
    seen = BoxesSeen(lambda: engine)
    seen.now()
    engine.open.clear()
    began = time.monotonic()
    assert [seen.now() for _ in range(50)] == [(BOX,)] * 50
    assert time.monotonic() - began < 2, "every look waited"
    assert seen.hung
    assert engine.asked == 2, "a thread more for each look"
    engine.boxes_told = ()
    engine.open.set()
    deadline = time.monotonic() + 10
    while seen.hung and time.monotonic() < deadline:
        seen.now()
        time.sleep(0.01)
    assert (seen.hung, seen.now()) == (False, ())


@pytest.mark.parametrize("error", [EngineUnavailable("no engine"), RuntimeError("no engine")], ids=repr)
def test_an_engine_that_is_away_or_broken_has_no_boxes_and_is_looked_for_again_later(monkeypatch, error):
    engine = _Engine(BOX)
    engine.error = error
    seen = BoxesSeen(lambda: engine)
    assert [seen.now() for _ in range(3)] == [()] * 3
    assert (seen.hung, engine.asked) == (False, 1)
    assert "no engine" in str(seen.error)
    engine.error = None
    monkeypatch.setattr(seen, "_ask_at", 0)
    assert seen.now() == (BOX,)
    assert seen.error is None


@pytest.mark.parametrize(("named", "said"), [(True, True), (False, False)])
def test_an_absent_engine_is_news_only_for_whoever_named_it(monkeypatch, named, said):
    engine = _Engine()
    engine.error = EngineUnavailable("no engine")
    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(gpus=(gpu(),)))
    monkeypatch.setattr(gpu_overview, "current_holders", lambda engine: ())
    found = gpu_overview.look(BoxesSeen(lambda: engine), os.environ, engine_was_named=named)
    assert bool(found.notes) == said


def test_claims_that_cannot_be_read_are_a_note_and_not_the_end(monkeypatch):
    from reprobox.errors import ClaimError

    def refuse(engine):
        raise ClaimError("it is a link", remedy="remove it")

    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(gpus=(gpu(),)))
    monkeypatch.setattr(gpu_overview, "current_holders", refuse)
    found = gpu_overview.look(BoxesSeen(_Engine), {}, engine_was_named=False)
    assert found.notes == ("claims are not shown: it is a link; remove it",)
    assert words(found) == ["free"]


def test_without_a_gpu_no_engine_is_asked(monkeypatch):
    engine = _Engine()
    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(missing="none", remedy="buy one"))
    found = gpu_overview.look(BoxesSeen(lambda: engine), {}, engine_was_named=True)
    assert (found.gpus, found.notes, engine.asked) == ((), (), 0)
