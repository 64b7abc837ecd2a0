"""Claims on GPUs: who has what, how a claim ends, and that MIG instances count for their GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from support.claiming import RUN, UUIDS, a_folder_for_all, claim_of, held, holding, take, write_live
from support.contenders import EIGHT
from support.others import Other, sleep_for_ever

from reprobox.errors import GpusTaken
from reprobox.gpus import claims as module
from reprobox.gpus.claims import Claims, Holder, by_gpu
from reprobox.gpus.inventory import Gpu, Inventory, MigInstance
from reprobox.host import user_name
from reprobox.runs.store import new_run_id


@pytest.fixture
def folder():
    with a_folder_for_all() as folder:
        yield folder


def test_a_run_id_of_the_store_can_claim(folder):
    with take(folder, run := new_run_id()):
        assert held(folder) == [(run, UUIDS[0])]


def test_a_claim_says_who_has_what(folder):
    with take(folder, count=2, exclusive=True, command="python train.py\x1b[2J"):
        (holder,) = Claims(folder).holders()
    assert (holder.run, holder.gpus, holder.pid, holder.exclusive) == (RUN, tuple(UUIDS[:2]), os.getpid(), True)
    assert holder.user == user_name(os.geteuid())
    assert 0 <= time.time() - holder.since.timestamp() < 60
    assert holder.command == "python train.py?[2J"
    assert holder.source == "claim"


def test_a_released_claim_is_gone_with_its_file(folder):
    claim = take(folder)
    claim.release()
    claim.release()
    assert held(folder) == []
    assert list(folder.iterdir()) == []


def test_the_next_run_gets_the_next_gpu_and_none_when_all_are_taken(folder):
    with contextlib.ExitStack() as having:
        for i in range(8):
            assert having.enter_context(take(folder, f"run-{i}")).gpus == (EIGHT.gpus[i],)
        with pytest.raises(GpusTaken):
            take(folder)
        assert len(held(folder)) == 8
    assert held(folder) == []


def test_a_taken_gpu_can_be_chosen_knowingly(folder):
    """``--gpus 0`` on a claimed GPU: the caller warns and goes on, and both are shown."""
    with take(folder, "first"):
        seen = []

        def choose(holders):
            seen.extend(holders)
            return EIGHT.gpus[:1]

        with Claims(folder).take("second", choose, inventory=EIGHT):
            assert [holder.run for holder in seen] == ["first"]
            assert held(folder) == [("first", UUIDS[0]), ("second", UUIDS[0])]


def test_a_choice_that_refuses_leaves_nothing_behind(folder):
    with take(folder, "first", exclusive=True):

        def choose(holders):
            raise GpusTaken(f"{holders[0].run} will not share", remedy="wait")

        with pytest.raises(GpusTaken, match="first will not share"):
            Claims(folder).take("second", choose, inventory=EIGHT)
        assert held(folder) == [("first", UUIDS[0])]


def test_an_interrupt_after_the_claim_was_published_withdraws_it(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_stands", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(folder)
    assert list(folder.iterdir()) == []


def test_a_claim_ends_with_the_process_that_was_killed(folder):
    with holding(folder) as other:
        assert held(folder) == [(RUN, UUIDS[0])]
        other.send(signal.SIGKILL)
        other.wait()
        assert len(list(folder.iterdir())) == 1
        assert held(folder) == []
    assert list(folder.iterdir()) == [], "who looks removes what is left"


def test_a_stopped_run_keeps_its_claim(folder):
    with holding(folder) as other:
        other.send(signal.SIGSTOP)
        assert held(folder) == [(RUN, UUIDS[0])]


@contextlib.contextmanager
def killed(folder, *, descriptor_kept):
    """A run with a claim started a program and was killed; the program runs on until the end of the block."""

    def work(me):
        claim = take(folder)
        child = os.fork()
        if not child:
            # As after an exec: of all that was open, the one descriptor is left, or none.
            os.set_inheritable(claim.fileno(), descriptor_kept)
            os.execve("/bin/sleep", ["sleep", "60"], {})
        me.tell(child)
        sleep_for_ever()

    with Other(work) as other:
        child = other.hear()
        await_program(child, "sleep")
        try:
            other.send(signal.SIGKILL)
            other.wait()
            yield
        finally:
            os.kill(child, signal.SIGKILL)


def await_program(pid, name):
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/comm").read_text().strip() != name:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_claim_lives_on_with_a_child_that_has_its_descriptor_after_its_maker_was_killed(folder):
    with killed(folder, descriptor_kept=True):
        assert held(folder) == [(RUN, UUIDS[0])]
    until = time.monotonic() + 10
    while held(folder) and time.monotonic() < until:
        time.sleep(0.01)
    assert held(folder) == []


def test_a_claim_is_not_handed_to_programs_that_are_started(folder):
    """The twin: without the descriptor the program does not keep the claim."""
    with killed(folder, descriptor_kept=False):
        assert held(folder) == []


def test_a_process_that_leaves_a_claim_to_its_child_does_not_end_it(folder):
    claim = take(folder)
    waits, go = os.pipe()

    def mind(_me):
        os.close(go)
        os.read(waits, 1)
        claim.release()

    with Other(mind) as child:
        os.close(waits)
        claim.leave()
        assert held(folder) == [(RUN, UUIDS[0])]
        os.close(go)
        assert child.wait() == 0
    assert held(folder) == []
    assert list(folder.iterdir()) == []


def test_forgetting_a_claim_does_not_end_it(folder):
    descriptor = take(folder).fileno()
    assert held(folder) == [(RUN, UUIDS[0])]
    os.close(descriptor)
    assert held(folder) == []


MIG = Inventory(
    gpus=(
        Gpu(
            index=0,
            uuid="GPU-a",
            name="a GPU",
            mig_instances=(
                MigInstance(uuid="MIG-1", profile="1g.10gb"),
                MigInstance(uuid="MIG-2", profile="1g.10gb"),
            ),
        ),
        Gpu(index=1, uuid="GPU-b", name="a GPU"),
        Gpu(index=2, uuid="MIG-3", name="an instance", parent="GPU-c"),
    )
)


@pytest.mark.parametrize(
    ("claimed", "taken"),
    [
        ("GPU-a", {"GPU-a", "MIG-1", "MIG-2"}),
        ("MIG-1", {"GPU-a", "MIG-1"}),
        ("GPU-b", {"GPU-b"}),
        ("MIG-3", {"GPU-c", "MIG-3"}),
        ("GPU-c", {"GPU-c", "MIG-3"}),
        ("GPU-elsewhere", {"GPU-elsewhere"}),
    ],
)
def test_a_claim_counts_for_the_gpu_and_its_instances(claimed, taken):
    holder = Holder(run=RUN, gpus=(claimed,))
    assert by_gpu([holder], MIG) == dict.fromkeys(taken, (holder,))


def test_a_holder_of_several_instances_is_named_once_for_their_gpu():
    one, two = Holder(run="one", gpus=("MIG-1", "MIG-2")), Holder(run="two", gpus=("GPU-a",))
    assert by_gpu([one, two], MIG)["GPU-a"] == (one, two)


@pytest.mark.parametrize(("theirs", "attempts"), [("GPU-a", 2), ("MIG-1", 2), ("MIG-2", 1), ("GPU-b", 1)])
def test_a_rival_on_the_same_gpu_is_seen_through_its_instances(folder, theirs, attempts):
    instance = MIG.gpus[0].mig_instances[0].as_gpu(MIG.gpus[0])
    calls = []
    with contextlib.ExitStack() as rivals:

        def choose(_holders):
            if not calls:
                descriptor = write_live(folder, "claim-a_00000000.json", claim_of("a", gpus=[theirs]))
                rivals.callback(os.close, descriptor)
            calls.append(1)
            return [instance]

        Claims(folder).take("m", choose, inventory=MIG).release()
    assert len(calls) == attempts
