"""A run whose box is gone, goes or stays, or is another engine's: what is put on record of it."""

from __future__ import annotations

import errno
import json
import os

import pytest
from support.earlier_runs import EndedBox, listed

from reprobox.cli.app import run_app
from reprobox.engines import EngineInfo
from reprobox.engines.fake import FakeEngine
from reprobox.errors import EngineError
from reprobox.runs import later, store


def test_a_box_that_is_gone_is_a_run_that_is_lost(runs, capfd):
    record = runs.run(ended=False)
    assert listed(capfd)[record.id]["outcome"] == "lost"
    assert run_app(["runs", "wait"]) == 125
    assert capfd.readouterr() == ("", f"reprobox: {record.manifest()['message']}\n")


class VanishingBox(EndedBox):
    """A running box that somebody removes at the first word about it; the engine lists it for a few questions more."""

    def __init__(self, runs, record, *, listed=2):
        super().__init__(running=True)
        runs.engine.found = self.found = _Listed({record.id: self}, listed)

    def _vanish(self, *_ignored):
        self.found.vanishing = True
        raise EngineError("look at the box: no such container")

    attach = catch_up = _vanish


class _Listed(dict):
    def __init__(self, boxes, listed):
        super().__init__(boxes)
        self.vanishing, self.listed = False, listed

    def get(self, key, default=None):
        self.listed -= self.vanishing
        return super().get(key, default) if self.listed > 0 else default


@pytest.mark.parametrize("verb", ["attach", "wait"])
def test_a_box_that_is_removed_in_this_moment_is_a_run_that_is_lost(runs, capfd, verb):
    record = runs.run(ended=False)
    VanishingBox(runs, record)
    assert run_app(["runs", verb]) == 125
    assert record.manifest()["outcome"] == "lost"
    assert record.manifest()["end"]
    assert capfd.readouterr().err == f"reprobox: {record.manifest()['message']}\n"


def test_a_failure_of_a_box_that_stays_is_told(runs, capfd, monkeypatch):
    monkeypatch.setattr(later, "REMOVAL_SECONDS", 0.2)
    record = runs.run(ended=False)
    VanishingBox(runs, record, listed=1 << 30)
    assert run_app(["runs", "wait"]) == 125
    assert record.manifest()["end"] is None
    assert capfd.readouterr().err == "reprobox: look at the box: no such container\n"


class StuckBox(EndedBox):
    """A box that has ended and that its engine cannot remove."""

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        if error is None and not self.left:
            raise EngineError("the engine could not remove the box", remedy="remove it with `docker rm -f x`")


@pytest.mark.parametrize(("started", "code"), [(True, 7), (False, 125)])
def test_an_end_is_on_record_although_the_box_cannot_be_removed(runs, capfd, monkeypatch, started, code):
    monkeypatch.setattr(later, "REMOVAL_SECONDS", 0.1)
    record = runs.run(ended=False, start=None)
    runs.engine.found[record.id] = StuckBox(started=started)
    assert run_app(["runs", "wait"]) == code
    assert record.manifest()["exit_code"] == code
    assert "docker rm -f x" in capfd.readouterr().err


def test_an_end_that_cannot_be_recorded_is_told_and_its_box_is_kept_for_the_next_look(runs, capfd, monkeypatch):
    record = runs.run(ended=False)
    box = runs.engine.found[record.id] = EndedBox()
    real = store.write_json

    def full(path, document):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_json", full)
    assert run_app(["runs", "wait"]) == 7
    assert "cannot be written (No space left on device)" in capfd.readouterr().err
    assert box.events[-1] == "leave"
    monkeypatch.setattr(store, "write_json", real)
    assert run_app(["runs", "wait"]) == 7
    assert record.manifest()["exit_code"] == 7


class AnotherEngine(FakeEngine):
    """The engine that answers at the address of today."""

    def info(self):
        return EngineInfo(name=self.name, version="0", details={"id": "another"})


ITS_OWN = {"name": "docker", "version": "0", "id": "its own"}


@pytest.mark.parametrize("verb", [["wait"], ["attach"], ["stop"], ["logs", "-f"], ["rm", "-f"]])
def test_another_engine_that_has_no_such_box_says_nothing_of_the_run(runs, capfd, verb):
    runs.engine = AnotherEngine()
    record = runs.run(ended=False, engine=ITS_OWN)
    assert run_app(["runs", *verb, record.id]) == 125
    err = capfd.readouterr().err
    assert "made by another" in err
    assert "DOCKER_HOST" in err
    assert record.manifest()["outcome"] == "running"
    assert record.box_folder.exists()


@pytest.mark.parametrize("verb", ["show", "list"])
def test_what_is_on_record_is_shown_by_another_engine_too(runs, capfd, verb):
    runs.engine = AnotherEngine()
    record = runs.run(ended=False, engine=ITS_OWN)
    assert run_app(["runs", verb, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown if verb == "show" else shown["runs"][0])["outcome"] == "running"
    assert record.box_folder.exists()


@pytest.mark.parametrize("engine", [{**ITS_OWN, "id": "another"}, {"name": "docker"}, {"name": "docker", "id": ""}])
def test_the_runs_own_engine_and_one_that_is_not_known_say_that_it_is_lost(runs, capfd, engine):
    runs.engine = AnotherEngine()
    record = runs.run(ended=False, engine=engine)
    assert listed(capfd)[record.id]["outcome"] == "lost"
