"""Where runs are kept and how they are found again."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from reprobox.errors import RecordError, UsageError
from reprobox.files import write_atomically
from reprobox.project import Project
from reprobox.runs.redaction import redacted
from reprobox.runs.store import RunStore, new_run_id

START = datetime(2026, 11, 21, 3, 55, tzinfo=UTC)


def test_ids_sort_by_time():
    ids = [new_run_id(START + timedelta(milliseconds=i)) for i in range(50)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261121T035500.000-")


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path)
    for i in range(3):
        store.create(new_run_id(START + timedelta(seconds=i))).write({"schema": "reprobox.manifest/1", "n": i})
    return store


@pytest.mark.parametrize(("reference", "n"), [("last", 2), ("last~0", 2), ("last~2", 0), ("20261121T035501", 1)])
def test_a_run_is_found_by_reference(store, reference, n):
    assert store.find(reference).manifest()["n"] == n


@pytest.mark.parametrize("reference", ["last~3", "2026", "2025", "", "last~x", "../.."])
def test_a_reference_that_means_no_run_or_several_is_refused(store, reference):
    with pytest.raises(RecordError, match="runs list"):
        store.find(reference)


def test_the_folder_keeps_itself_out_of_git(store):
    assert (store.home / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other/1"}'])
def test_a_manifest_that_is_not_one_is_refused(store, content):
    record = store.find("last")
    record.manifest_path.write_text(content)
    with pytest.raises(RecordError):
        record.manifest()


def test_a_failed_write_leaves_the_old_content_and_no_stray_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("marker", [".git/", "reprobox.toml", "pyproject.toml"])
def test_the_project_is_the_nearest_marked_ancestor(tmp_path, marker):
    (tmp_path / "a" / "b").mkdir(parents=True)
    if marker.endswith("/"):
        (tmp_path / marker).mkdir()
    else:
        (tmp_path / marker).write_text("[tool.reprobox]\n" if marker == "pyproject.toml" else "")
    project = Project.find(tmp_path / "a" / "b")
    assert project.root == tmp_path.resolve()
    assert str(project.box_directory) == "/workspace/a/b"


def test_an_unmarked_folder_is_its_own_project(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    folder = tmp_path / "a"
    folder.mkdir()
    assert Project.find(folder).root == folder.resolve()


def test_root_and_home_are_no_projects(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, tmp_path.anchor):
        with pytest.raises(UsageError, match="project folder would be"):
            Project.find(type(tmp_path)(folder))


def test_secrets_are_redacted_by_name_and_by_value():
    environment = {
        "HF_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "DB_PASSWORD": "z",
        "PLAIN": "ghp_abcdefghijklmnop",
        "URL": "https://me:secret@host/x",
        "EPOCHS": "3",
        "KEYBOARD": "us",
        "GONE": None,
    }
    assert redacted(environment) == {
        **dict.fromkeys(["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "PLAIN", "URL"], "(redacted)"),
        "EPOCHS": "3",
        "KEYBOARD": "us",
        "GONE": None,
    }
