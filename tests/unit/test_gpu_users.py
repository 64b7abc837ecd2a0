"""Which run a process on a GPU belongs to, and the boxes of an engine that may be away."""

from __future__ import annotations

import time

import pytest
from support.overviews import RUN, EngineOfBoxes, uuid

from reprobox.engines import GpuBox
from reprobox.errors import EngineUnavailable
from reprobox.runs import gpu_users
from reprobox.runs.gpu_users import BoxesSeen, runs_of_processes
from reprobox.runs.store import new_run_id

CONTAINER = "5f" * 32


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


BOX = GpuBox(run_id=RUN, gpus=(uuid(0),), state="running")


def test_boxes_are_asked_for_at_each_look():
    engine = EngineOfBoxes()
    seen = BoxesSeen(lambda: engine)
    assert seen.now() == ()
    engine.boxes_told = (BOX,)
    assert seen.now() == (BOX,)
    assert (seen.hung, seen.error, engine.asked) == (False, None, 2)


def test_an_engine_that_hangs_is_waited_for_once_and_its_last_answer_stands(monkeypatch):
    monkeypatch.setattr(gpu_users, "PATIENCE_SECONDS", 0.2)
    engine = EngineOfBoxes(BOX)
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
    engine = EngineOfBoxes(BOX)
    engine.error = error
    seen = BoxesSeen(lambda: engine)
    assert [seen.now() for _ in range(3)] == [()] * 3
    assert (seen.hung, engine.asked) == (False, 1)
    assert "no engine" in str(seen.error)
    engine.error = None
    monkeypatch.setattr(seen, "_ask_at", 0)
    assert seen.now() == (BOX,)
    assert seen.error is None
