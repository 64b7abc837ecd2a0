"""Ending a run from another process: its engine or the process that minds it is told, and nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import threading

import pytest
from support.earlier_runs import EndedBox

from reprobox.cli.app import run_app
from reprobox.runs import later
from reprobox.runs.minder import Minder


@pytest.fixture
def sent(monkeypatch):
    """The signals that were sent, and reached nobody."""
    signals = []
    monkeypatch.setattr(later.os, "kill", lambda pid, number: signals.append((pid, number)))
    return signals


@contextlib.contextmanager
def minded(record, text):
    with (record.folder / "lock").open("w+b", buffering=0) as lock:
        lock.write(text)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


OTHERS = {
    "nothing yet": b"",
    "a number": b"1\n",
    "this process's number": f"{os.getpid()}\n".encode(),
    "another boot": Minder.this().to_text().replace(Minder.this().boot, "another").encode(),
    "another namespace": dataclasses.replace(Minder.this(), namespace=1).to_text().encode(),
    "another start": dataclasses.replace(Minder.this(), started=1).to_text().encode(),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_a_stop_signals_no_strangers_process(runs, capfd, monkeypatch, sent, text):
    monkeypatch.setattr(later, "UNKNOWN_SECONDS", 0.05)
    record = runs.run(ended=False)
    with minded(record, text):
        assert run_app(["runs", "stop"]) == 125
    assert sent == []
    err = capfd.readouterr().err
    assert "minded elsewhere" in err
    assert "stop it there" in err


def test_a_stop_signals_the_process_that_minds_the_run_until_it_ends_and_kills_by_the_third(runs, sent):
    record = runs.run(ended=False)
    with minded(record, Minder.this().to_text().encode()):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        thread.join(0.2)
    thread.join(5)
    assert sent == [(os.getpid(), signal.SIGTERM)] * 3


def test_a_stop_waits_for_a_process_that_has_not_written_down_yet_which_it_is(runs, monkeypatch, sent):
    record = runs.run(ended=False)
    with minded(record, b""):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        (record.folder / "lock").write_text(Minder.this().to_text())
        thread.join(0.2)
    thread.join(5)
    assert sent


def test_a_stop_between_creation_and_start_reaches_the_process_that_is_about_to_start_it(runs, sent):
    record = runs.run(ended=False, outcome="created", start=None)
    box = runs.engine.found[record.id] = EndedBox(started=False)
    with minded(record, Minder.this().to_text().encode()):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        thread.join(0.2)
    thread.join(5)
    assert sent
    assert box.events == ["remove"]


def test_a_stop_of_a_box_that_runs_is_the_engines_and_nobody_is_signalled(runs, sent):
    record = runs.run(ended=False)
    runs.engine.found[record.id] = EndedBox(running=True)
    assert later.stop(record, 0, print)["exit_code"] == 7
    assert sent == []
