"""Two runs that choose at the same time never get the same GPU; those that wait are served in order."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from support.claiming import RUN, UUIDS, a_folder_for_all, claim_of, held, take, write_live
from support.contenders import EIGHT, contend, first_free
from support.others import SOMEBODY, Other, require_root, sleep_for_ever

from reprobox.errors import GpusTaken
from reprobox.gpus import claims as module
from reprobox.gpus.claims import Claims


@pytest.fixture
def folder():
    with a_folder_for_all() as folder:
        yield folder


def contenders_take(folder, pause=0.0, **options):
    return lambda run: Claims(folder, **options).take(run, first_free(pause=pause), inventory=EIGHT)


def test_of_many_at_the_same_instant_with_random_kills_no_two_share(folder, tmp_path):
    outcome = contend(tmp_path, contenders_take(folder))
    assert outcome.keys() <= {"alone", "killed"}
    assert outcome["alone"] >= 80
    assert outcome["killed"] > 0
    assert held(folder) == []


@contextlib.contextmanager
def locked_by_somebody(folder):
    """The folder's lock, in the hands of a process that was stopped and so never gives it back."""
    with take(folder):
        pass

    def work(me):
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        me.tell("locked")
        sleep_for_ever()

    with Other(work) as other:
        other.hear()
        other.send(signal.SIGSTOP)
        yield


def test_no_two_share_without_the_lock_either(folder, tmp_path):
    with locked_by_somebody(folder):
        outcome = contend(tmp_path, contenders_take(folder, patience=0))
    assert outcome.keys() <= {"alone", "killed"}
    assert outcome["alone"] >= 80


def test_no_two_share_any_gpu_of_several_without_the_lock(folder, tmp_path):
    def take_three(run):
        return Claims(folder, patience=0).take(run, first_free(3), inventory=EIGHT)

    with locked_by_somebody(folder):
        outcome = contend(tmp_path, take_three, contenders=60, killed=20)
    assert outcome.keys() <= {"alone", "killed"}
    assert outcome["alone"] >= 40


def test_the_oracle_sees_sharing_where_nobody_claims(tmp_path):
    def take_unclaimed(_run):
        return contextlib.nullcontext(SimpleNamespace(gpus=first_free()(())))

    assert contend(tmp_path, take_unclaimed, contenders=30, killed=10)["shared"] > 0


def test_the_oracle_sees_sharing_where_nobody_looks_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_stands", lambda *_: True)
    with locked_by_somebody(folder):
        assert (
            contend(tmp_path, contenders_take(folder, pause=0.005, patience=0), contenders=60, killed=20)["shared"] > 0
        )


def test_who_holds_the_lock_for_ever_blocks_nobody_for_long(folder):
    with locked_by_somebody(folder):
        start = time.monotonic()
        with Claims(folder, patience=0.3).take(RUN, first_free(), inventory=EIGHT) as claim:
            assert 0.3 <= time.monotonic() - start < 5
            assert claim.gpus == EIGHT.gpus[:1]


def test_a_rival_with_a_smaller_name_makes_a_claim_give_way_at_once(folder):
    assert gave_way(folder, rival="a-rival") < module._YIELD_SECONDS


def test_a_rival_with_a_greater_name_is_waited_for(folder):
    """The twin: it is the other's turn to give way; as it does not, it must have its claim already."""
    assert gave_way(folder, rival="z-rival") >= module._YIELD_SECONDS


def gave_way(folder, rival):
    """For how long a claim stood, beside a rival's that appeared after the choice and stays."""
    with contextlib.ExitStack() as rivals:
        choices = []

        def choose(holders):
            chosen = first_free()(holders)
            choices.append(chosen[0].uuid)
            moments.append(time.monotonic())
            if len(choices) == 1:
                descriptor = write_live(folder, f"claim-{rival}_00000000.json", claim_of(rival))
                rivals.callback(os.close, descriptor)
            return chosen

        moments = []
        with Claims(folder).take("m-run", choose, inventory=EIGHT):
            assert choices == UUIDS[:2]
            assert held(folder) == sorted([("m-run", UUIDS[1]), (rival, UUIDS[0])])
    return moments[1] - moments[0]


def test_a_rival_that_gives_way_leaves_the_gpu_to_who_waited(folder):
    def work(me):
        descriptor = write_live(folder, "claim-z-rival_00000000.json", claim_of("z-rival"))
        me.tell("there")
        time.sleep(0.1)
        os.close(descriptor)

    with contextlib.ExitStack() as others:

        def choose(_holders):
            assert others.enter_context(Other(work)).hear() == "there"
            return EIGHT.gpus[:1]

        with Claims(folder).take("m-run", choose, inventory=EIGHT):
            assert held(folder) == [("m-run", UUIDS[0])]


def test_who_is_overtaken_each_time_is_told_so(folder, monkeypatch):
    monkeypatch.setattr(module, "_stands", lambda *_: False)
    monkeypatch.setattr(module, "_ATTEMPTS", 3)
    with pytest.raises(GpusTaken, match="run it again"):
        take(folder)
    assert list(folder.iterdir()) == []


def test_those_who_wait_are_served_in_the_order_they_came(folder):
    claims = Claims(folder)
    with claims.wait_in_line("z-first") as first, claims.wait_in_line("a-second") as second:
        assert (first.ahead(), second.ahead()) == (0, 1)
        assert (first.turn(), second.turn()) == (True, False)
        first.release()
        assert second.turn()


def test_two_waiting_processes_get_the_gpu_one_after_the_other(folder):
    def wait(me):
        claims = Claims(folder)
        with claims.wait_in_line(f"run-{me.pid}") as ticket:
            me.tell("in line")
            while True:
                with contextlib.suppress(GpusTaken):
                    if ticket.turn():
                        claim = claims.take("waited", first_free(8), inventory=EIGHT)
                        break
                time.sleep(0.01)
        me.tell(("had it", time.monotonic()))
        time.sleep(0.1)
        claim.release()

    with contextlib.ExitStack() as others:
        with take(folder):
            waiting = []
            for _ in range(4):
                waiting.append(others.enter_context(Other(wait)))
                waiting[-1].hear()
        moments = [other.hear()[1] for other in waiting]
    assert moments == sorted(moments)
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(moments))


def waiting_process(folder, **options):
    def work(me):
        with Claims(folder).wait_in_line("before"):
            me.tell("in line")
            sleep_for_ever()

    other = Other(work, **options)
    other.hear()
    return other


def test_who_was_killed_while_waiting_is_not_waited_for(folder):
    with waiting_process(folder) as other, Claims(folder).wait_in_line(RUN) as ticket:
        assert ticket.ahead() == 1
        other.send(signal.SIGKILL)
        other.wait()
        assert ticket.turn()


def test_who_was_stopped_while_waiting_holds_nobody_up_and_has_its_place_again_when_it_goes_on(folder):
    with waiting_process(folder) as other, Claims(folder).wait_in_line(RUN) as ticket:
        other.send(signal.SIGSTOP)
        os.waitpid(other.pid, os.WUNTRACED)
        assert ticket.turn()
        other.send(signal.SIGCONT)
        until = time.monotonic() + 10
        while ticket.turn() and time.monotonic() < until:
            time.sleep(0.005)
        assert ticket.ahead() == 1


def test_a_place_in_the_line_cannot_be_dated_back(folder):
    with Claims(folder).wait_in_line(RUN) as ticket:
        time.sleep(0.02)
        name = f"wait-{0:020}-a.json"
        descriptor = write_live(folder, name, b"{}")
        os.utime(folder / name, (0, 0))
        try:
            assert ticket.turn()
            with Claims(folder).wait_in_line("later") as later:
                assert later.ahead() == 2, "it stands in the line all the same"
        finally:
            os.close(descriptor)


def test_a_waiter_may_not_pass_for_stopped_by_naming_a_process_of_another(folder):
    """Only who waits can say which process waits, and only of its own user."""
    require_root()
    take(folder).release()
    with waiting_process(folder, uid=SOMEBODY) as stopped:
        stopped.send(signal.SIGSTOP)
        os.waitpid(stopped.pid, os.WUNTRACED)
        descriptor = write_live(folder, f"wait-{0:020}-a.json", json.dumps({"pid": stopped.pid}).encode())
        time.sleep(0.02)
        try:
            with Claims(folder).wait_in_line(RUN) as ticket:
                assert ticket.ahead() == 1
        finally:
            os.close(descriptor)
