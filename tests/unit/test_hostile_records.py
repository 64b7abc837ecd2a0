"""Records that came with a repository: whatever they hold or point at, nothing else is read, written, ended or hung on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
from support.earlier_runs import EarlierRuns, EndedBox, listed

from reprobox.cli.app import run_app
from reprobox.errors import RecordError
from reprobox.runs.store import LARGEST_MANIFEST

ELSEWHERE = "what lies elsewhere"


@pytest.fixture
def elsewhere(tmp_path):
    """A file outside the project, which no record may reach."""
    path = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    path.write_text(ELSEWHERE)
    return path


@pytest.fixture
def other(tmp_path_factory, runs):
    """Another project of the same user, on the same engine."""
    earlier = EarlierRuns(tmp_path_factory.mktemp("other"))
    earlier.engine = runs.engine
    return earlier


def linked(record, name, target):
    path = record.folder / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)


NO_MANIFESTS = {
    "a link to what has no end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a folder": lambda path: path.symlink_to("/"),
    "a pipe that nobody writes": os.mkfifo,
    "a folder": os.mkdir,
    "too large": lambda path: path.write_bytes(b" " * (LARGEST_MANIFEST + 1)),
    "nested too deeply": lambda path: path.write_text('{"schema": "reprobox.manifest/1", "a": ' + "[" * 100_000),
    "no number of JSON": lambda path: path.write_text('{"schema": "reprobox.manifest/1", "exit_code": NaN}'),
}


@pytest.mark.parametrize("make", list(NO_MANIFESTS.values()), ids=list(NO_MANIFESTS))
def test_a_manifest_that_is_none_is_listed_as_unreadable_and_hides_no_other(runs, capfd, make):
    first, bad = runs.run(), runs.run()
    bad.manifest_path.unlink()
    make(bad.manifest_path)
    found = listed(capfd)
    assert (found[first.id]["exit_code"], found[bad.id]["outcome"]) == (0, "unreadable")
    assert run_app(["runs", "show"]) == 125
    assert capfd.readouterr().err.count("\n") == 1
    assert run_app(["runs", "rm", "last"]) == 0
    assert list(listed(capfd)) == [first.id]


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "20200101T000000.000-0000"},
        {"exit_code": 10**30},
        {"exit_code": -1},
        {"exit_code": True},
        {"end": 3},
        {"start": {}},
        {"engine": {"name": ["docker"]}},
        {"engine": {"name": "docker", "id": 3}},
        {"streams": {"log": "kept", "stdout_bytes": "many"}},
        {"options": {"terminal": "yes"}},
        {"command": [1]},
    ],
    ids=json.dumps,
)
def test_a_manifest_of_other_types_is_unreadable(runs, fields):
    record = runs.run(**fields)
    with pytest.raises(RecordError):
        record.manifest()


@pytest.mark.parametrize("command", [["list"], ["wait"], ["show"], ["rm", "-f", "last"], ["stop"]])
def test_a_lock_that_is_a_link_leads_to_no_file_elsewhere(runs, capfd, elsewhere, command):
    record = runs.run(ended=False)
    linked(record, "lock", elsewhere)
    runs.engine.found[record.id] = EndedBox()
    assert run_app(["runs", *command]) in (0, 125)
    assert "itself failed" not in capfd.readouterr().err
    assert elsewhere.read_text() == ELSEWHERE


def test_a_lock_that_is_a_pipe_is_not_waited_for(runs, capfd):
    record = runs.run(ended=False)
    os.mkfifo(record.folder / "lock")
    assert record.id in listed(capfd)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "/"])
@pytest.mark.parametrize("name", ["stdout.log", "stderr.log", "stdout.log.33554432"])
def test_a_log_that_is_a_link_is_not_shown(runs, capfd, name, target):
    record = runs.run()
    (record.folder / "stdout.log").write_text("said\n")
    linked(record, name, target)
    assert run_app(["runs", "logs"]) in (0, 125)
    assert capfd.readouterr().out in ("", "said\n")


@pytest.mark.parametrize("path", ["/etc/passwd", "../elsewhere", "/", "/dev/zero", ".."])
def test_outputs_outside_the_project_are_not_hashed(runs, capfd, elsewhere, path):
    target = str(elsewhere) if path == "../elsewhere" else path
    record = runs.run(ended=False, project="/", outputs={target: None, f"../{elsewhere.name}": None, "inside": None})
    (runs.folder / "inside").write_text("x")
    runs.engine.found[record.id] = EndedBox()
    found = listed(capfd)[record.id]
    assert found["exit_code"] == 7
    hashes = {name: value for name, value in found["outputs"].items() if value}
    assert hashes == {"inside": hashlib.sha256(b"x").hexdigest()}


def test_reports_are_not_taken_over_through_a_link(runs, capfd, tmp_path):
    home = tmp_path.parent / f"{tmp_path.name}-home"
    (home / "out").mkdir(parents=True)
    (home / "out" / "ledger").write_text(ELSEWHERE)
    for place in ("box", "out"):
        record = runs.run(ended=False)
        if place == "box":
            shutil.rmtree(record.box_folder)
            linked(record, "box", home)
        else:
            shutil.rmtree(record.reports)
            linked(record, "box/out", home / "out")
        runs.engine.found[record.id] = EndedBox()
        assert listed(capfd)[record.id]["exit_code"] == 7
        assert not record.box_folder.is_symlink()
        assert (home / "out" / "ledger").read_text() == ELSEWHERE


def test_a_run_that_is_a_link_to_another_projects_is_not_this_projects(runs, capfd, other):
    theirs = other.run(ended=False)
    runs.store.folder.mkdir(parents=True, exist_ok=True)
    (runs.store.folder / theirs.id).symlink_to(theirs.folder)
    before = theirs.manifest_path.read_bytes()
    box = runs.engine.found[theirs.id] = EndedBox()
    assert listed(capfd) == {}
    assert run_app(["runs", "rm", "-f", "last"]) == 125
    assert theirs.manifest_path.read_bytes() == before
    assert box.events == []


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("command", [["list"], ["wait"], ["show"], ["rm", "-f", "last"], ["stop"], ["attach"]])
def test_a_record_of_another_projects_run_ends_no_box_of_it(runs, capfd, other, command, running):
    theirs = other.run(ended=False)
    box = runs.engine.found[theirs.id] = EndedBox(running=running)
    box.project = str(other.folder)
    shutil.copytree(theirs.folder, runs.store.folder / theirs.id)
    assert run_app(["runs", *command]) in (0, 125)
    assert "itself failed" not in capfd.readouterr().err
    assert (box.events, box.running) == ([], running)
    assert theirs.manifest()["end"] is None
