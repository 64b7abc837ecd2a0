"""What ``reprobox gpus`` knows of each GPU: whether it can be had, who has it, and what is missing of the picture."""

from __future__ import annotations

import os
import random
from dataclasses import fields
from datetime import UTC, datetime

import pytest
from support.overviews import GIB, RUN, EngineOfBoxes, gpu, holder, instance, mig_uuid, overview, process, uuid, words

from reprobox.cli.gpus_table import state_words
from reprobox.errors import ClaimError, EngineUnavailable, GpuError
from reprobox.gpus import Gpu, GpuRequest, Inventory
from reprobox.gpus.claims import Holder
from reprobox.runs import gpu_overview
from reprobox.runs.gpu_overview import Overview
from reprobox.runs.gpu_users import BoxesSeen

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


# What is looked at


@pytest.mark.parametrize(("named", "said"), [(True, True), (False, False)])
def test_an_absent_engine_is_news_only_for_whoever_named_it(monkeypatch, named, said):
    engine = EngineOfBoxes()
    engine.error = EngineUnavailable("no engine")
    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(gpus=(gpu(),)))
    monkeypatch.setattr(gpu_overview, "current_holders", lambda engine: ())
    found = gpu_overview.look(BoxesSeen(lambda: engine), os.environ, engine_was_named=named)
    assert bool(found.notes) == said


def test_claims_that_cannot_be_read_are_a_note_and_not_the_end(monkeypatch):
    def refuse(engine):
        raise ClaimError("it is a link", remedy="remove it")

    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(gpus=(gpu(),)))
    monkeypatch.setattr(gpu_overview, "current_holders", refuse)
    found = gpu_overview.look(BoxesSeen(EngineOfBoxes), {}, engine_was_named=False)
    assert found.notes == ("claims are not shown: it is a link; remove it",)
    assert words(found) == ["free"]


def test_without_a_gpu_no_engine_is_asked(monkeypatch):
    engine = EngineOfBoxes()
    monkeypatch.setattr(gpu_overview, "take_inventory", lambda *, details: Inventory(missing="none", remedy="buy one"))
    found = gpu_overview.look(BoxesSeen(lambda: engine), {}, engine_was_named=True)
    assert (found.gpus, found.notes, engine.asked) == ((), (), 0)
