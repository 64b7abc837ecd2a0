"""A run looked at later: whatever state its files were left in, nothing is a traceback and no other run is hidden."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading

import pytest
from support.earlier_runs import EndedBox, listed

from reprobox.cli.app import run_app
from reprobox.errors import EngineUnavailable, RecordError
from reprobox.runs import later, store
from reprobox.runs.minder import Minder
from reprobox.runs.receipts import read_receipts

RECEIPT = {
    "schema": "reprobox.receipt/1",
    "pid": 7,
    "start_ns": 1,
    "start_method": "spawn",
    "seeds": {"random": 1},
    "generators": {"random": "ab"},
    "events": [{"kind": "reseed", "generator": "random", "value": 3, "file": "t.py", "line": 1, "count": 1}],
    "children": [{"pid": 9, "program": "python x"}],
}
ALLOWED = (0, 125)


def test_a_manifest_cut_at_any_byte_is_listed_as_unreadable_and_hides_no_other(runs, capfd):
    first, cut, last = (runs.run() for _ in range(3))
    fields = ("schema", "id", "command", "recipe", "engine", "outcome", "end", "exit_code")
    cut.write({name: value for name, value in cut.manifest().items() if name in fields})
    whole = cut.manifest_path.read_bytes()
    for length in range(len(whole) - 1):
        cut.manifest_path.write_bytes(whole[:length])
        found = listed(capfd)
        assert list(found) == [first.id, cut.id, last.id]
        assert found[cut.id]["outcome"] == "unreadable", length
        assert (found[first.id]["exit_code"], found[last.id]["exit_code"]) == (0, 0)
    cut.manifest_path.write_bytes(whole)
    assert listed(capfd)[cut.id]["exit_code"] == 0


def test_a_whole_manifest_cut_at_any_byte_is_a_record_that_cannot_be_read(runs):
    record = runs.run()
    whole = record.manifest_path.read_bytes()
    for length in range(len(whole) - 1):
        record.manifest_path.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            record.manifest()


@pytest.mark.parametrize("command", [["show"], ["logs"], ["logs", "-f"], ["wait"], ["stop"], ["attach"], ["list"]])
def test_every_command_on_a_cut_manifest_is_one_sentence(runs, capfd, command):
    cut = runs.run()
    whole = cut.manifest_path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        cut.manifest_path.write_bytes(whole[:length])
        assert run_app(["runs", *command]) in ALLOWED
        err = capfd.readouterr().err
        assert "itself failed" not in err
        assert err.count("\n") <= 1


def test_a_record_that_cannot_be_read_can_be_removed(runs):
    cut = runs.run()
    cut.manifest_path.write_bytes(b"{")
    assert run_app(["runs", "rm", "last"]) == 0
    assert not cut.folder.exists()


def test_a_record_that_cannot_be_read_is_not_removed_while_somebody_minds_its_run(runs, capfd):
    cut = runs.run()
    cut.manifest_path.write_bytes(b"{")
    with cut.held():
        assert run_app(["runs", "rm", "last"]) == 2
        assert "has not ended" in capfd.readouterr().err
        assert run_app(["runs", "rm", "-f", "last"]) == 125
        assert cut.folder.exists()


def damages(name):
    whole = {
        "lock": Minder.this().to_text().encode(),
        "stage": b"exec\n",
        "ledger": b"7 python\n9 python x\n",
        "receipt-7.json": json.dumps(RECEIPT).encode(),
    }[name]
    return [*(whole[:length] for length in range(len(whole) + 1)), b"\xff\xfe\x00", b"\n" * 3, b"[1]", b"null"]


@pytest.mark.parametrize("name", ["lock", "stage", "ledger", "receipt-7.json"])
def test_a_run_that_nobody_minds_is_completed_whatever_byte_its_files_end_at(runs, capfd, name):
    other = runs.run()
    record = runs.run(ended=False)
    keep = runs.folder / "keep"
    shutil.copytree(record.folder, keep)
    for damage in damages(name):
        shutil.rmtree(record.folder)
        shutil.copytree(keep, record.folder)
        (record.folder / "lock" if name == "lock" else record.reports / name).write_bytes(damage)
        runs.engine.found[record.id] = EndedBox()
        found = listed(capfd)
        assert list(found) == [other.id, record.id]
        assert found[record.id]["exit_code"] == 7, damage
        assert found[record.id]["end"]
        assert not (record.folder / "lock").exists()
        assert not record.box_folder.exists()
        assert runs.engine.found[record.id].events[-1] == "remove"


@pytest.mark.parametrize("name", ["stage", "ledger", "receipt-7.json"])
def test_a_finished_run_is_shown_whatever_byte_its_files_end_at(runs, capfd, name):
    record = runs.run()
    for damage in damages(name):
        (record.folder / name).write_bytes(damage)
        assert listed(capfd)[record.id]["exit_code"] == 0
        assert record.stage() in (None, *store.STAGES)
        read_receipts(record.folder).summary()
        json.dumps(read_receipts(record.folder).to_json())


def test_a_run_that_somebody_holds_is_running_whatever_its_lock_says(runs, capfd):
    record = runs.run(ended=False)
    with (record.folder / "lock").open("w+b", buffering=0) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for text in (b"123456\n", *damages("lock")):
            lock.seek(0)
            lock.truncate()
            lock.write(text)
            assert listed(capfd)[record.id]["outcome"] == "running", text
            assert record.holder() is not None, text


def test_a_lock_that_goes_while_it_is_looked_at_is_nobodys(runs, monkeypatch):
    record = runs.run(ended=False)
    with record.held():
        real = fcntl.flock

        def flock(lock, how):
            try:
                real(lock, how)
            except BlockingIOError:
                (record.folder / "lock").unlink()  # the holder has just finished
                raise

        monkeypatch.setattr(fcntl, "flock", flock)
        assert record.holder() in (None, Minder.this())


def test_one_process_holds_a_run_at_a_time_whoever_waited_for_whom(runs):
    record = runs.run()
    inside, most = 0, 0
    guard = threading.Lock()

    def hold():
        nonlocal inside, most
        for _ in range(60):
            with record.held():
                with guard:
                    inside += 1
                    most = max(most, inside)
                os.sched_yield()
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_two_that_wait_at_once_both_get_the_end_and_it_is_recorded_once(runs):
    record = runs.run(ended=False)
    box = runs.engine.found[record.id] = EndedBox()
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(later.wait(record, print)["exit_code"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [7] * 4
    assert box.events == ["wait", "remove"]


def test_a_box_that_was_never_started_is_a_failure_and_is_removed(runs, capfd):
    record = runs.run(ended=False, outcome="created", start=None)
    box = runs.engine.found[record.id] = EndedBox(started=False)
    assert (listed(capfd)[record.id]["outcome"], listed(capfd)[record.id]["exit_code"]) == ("failed", 125)
    assert box.events == ["remove"]


def test_a_run_that_goes_on_is_left_alone_by_the_list(runs, capfd):
    record = runs.run(ended=False)
    box = runs.engine.found[record.id] = EndedBox(running=True)
    assert listed(capfd)[record.id]["outcome"] == "running"
    assert box.events == []


def test_an_engine_that_is_away_hides_nothing_that_is_on_record(runs, capfd, monkeypatch):
    record = runs.run(ended=False)

    def away(_name):
        raise EngineUnavailable("away")

    monkeypatch.setattr(later, "open_engine", away)
    assert listed(capfd)[record.id]["outcome"] == "running"
    assert run_app(["runs", "wait"]) == 125


def test_an_engine_that_is_away_is_waited_for_once_however_many_runs_it_has(runs, capfd, monkeypatch):
    asked = []

    def away(name):
        asked.append(name)
        raise EngineUnavailable("it hangs")

    unfinished = [runs.run(ended=False) for _ in range(3)]
    monkeypatch.setattr(later, "open_engine", away)
    assert list(listed(capfd)) == [record.id for record in unfinished]
    assert len(asked) == 1


def test_a_finished_run_whose_box_folder_could_not_be_removed_keeps_its_end(runs, capfd, monkeypatch):
    record = runs.run()
    record.box_folder.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)  # another user's files are in it
    assert listed(capfd)[record.id]["outcome"] == "exited"
    assert later.wait(record, print)["exit_code"] == 0


def test_removing_a_run_twice_in_one_line_is_no_failure_of_reprobox(runs, capfd):
    record = runs.run()
    assert run_app(["runs", "rm", record.id, "last"]) in (0, 2)
    assert "itself failed" not in capfd.readouterr().err


def test_attaching_to_a_run_that_is_over_says_so(runs):
    with pytest.raises(RecordError, match="no running box"):
        later.attach(runs.run(), None, print)
