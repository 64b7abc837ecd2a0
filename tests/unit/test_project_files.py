"""The project files at and below a project: what of them a box may not write, and what a run did to the others."""

from __future__ import annotations

import os

import pytest

from reprobox.runs import project_files as module
from reprobox.runs.project_files import changes_told, project_file_changes, project_files, protected_files

TABLE = "[tool.reprobox]\nseed = 1\n"


def differences(root, act):
    before = project_files(root)
    act()
    return project_file_changes(before, root)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "below" / "deep").mkdir(parents=True)
    (tmp_path / "reprobox.toml").write_text("seed = 1\n")
    (tmp_path / "below" / "pyproject.toml").write_text(TABLE)
    return tmp_path


def test_a_run_that_leaves_them_alone_changed_nothing(root):
    assert set(project_files(root)) == {"reprobox.toml", "below/pyproject.toml"}
    assert differences(root, lambda: (root / "train.py").write_text("")) == {}
    assert changes_told({}) is None


ACTS = {
    "changed": (lambda root: (root / "reprobox.toml").write_text("seed = 2\n"), {"reprobox.toml": "changed"}),
    "gone": (lambda root: (root / "reprobox.toml").unlink(), {"reprobox.toml": "gone"}),
    "new": (lambda root: (root / "reprobox.lock").write_text(""), {"reprobox.lock": "new"}),
    "nested": (
        lambda root: (root / "below" / "deep" / "reprobox.toml").write_text(""),
        {"below/deep/reprobox.toml": "new"},
    ),
    "moved": (
        lambda root: (root / "below").rename(root / "b"),
        {"b/pyproject.toml": "new", "below/pyproject.toml": "gone"},
    ),
    "a table": (lambda root: (root / "pyproject.toml").write_text(TABLE), {"pyproject.toml": "new"}),
    "an escaped table": (
        lambda root: (root / "pyproject.toml").write_text('["to\\u006fl"."repr\\u006fbox"]\nseed = 1\n'),
        {"pyproject.toml": "new"},
    ),
    "another table": (
        lambda root: (root / "below" / "pyproject.toml").write_text(TABLE + "engine = 'local'\n"),
        {"below/pyproject.toml": "changed"},
    ),
    "a link": (
        lambda root: (root / "below" / "reprobox.toml").symlink_to("../reprobox.toml"),
        {"below/reprobox.toml": "new"},
    ),
    "a pipe": (lambda root: os.mkfifo(root / "below" / "reprobox.toml"), {"below/reprobox.toml": "new"}),
}


@pytest.mark.parametrize("what", ACTS)
def test_what_was_changed_made_or_nested_is_told(root, what):
    act, wanted = ACTS[what]
    changes = differences(root, lambda: act(root))
    assert changes == wanted
    line = changes_told(changes)
    assert all(f"{name} is {how}" in line for name, how in wanted.items())


QUIET = {
    "a pyproject.toml without the table": lambda root: (root / "pyproject.toml").write_text("[project]\nname = 'x'\n"),
    "another part of a pyproject.toml": lambda root: (root / "below" / "pyproject.toml").write_text(
        TABLE + "[tool.other]\nx = 1\n"
    ),
    "no TOML": lambda root: (root / "pyproject.toml").write_text("reprobox = = 1"),
    "a folder of the name": lambda root: (root / "below" / "reprobox.toml").mkdir(),
    "a repository's own files": lambda root: (
        (root / ".git").mkdir(),
        (root / ".git" / "reprobox.toml").write_text(""),
    ),
}


@pytest.mark.parametrize("what", QUIET)
def test_what_decides_no_run_is_not_told(root, what):
    assert differences(root, lambda: QUIET[what](root)) == {}


def test_a_name_drives_no_terminal(root):
    folder = root / "a\x1b[2J\nreprobox: all is well"
    folder.mkdir()
    line = changes_told(differences(root, lambda: (folder / "reprobox.toml").write_text("")))
    assert line.isprintable()


def test_many_are_told_in_one_line(root):
    names = [f"{number}/reprobox.toml" for number in range(7)]
    assert "2 more are different" in changes_told(dict.fromkeys(names, "new"))


def test_too_much_to_look_at_is_told_once_and_nothing_is_made_up(root, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ENTRIES", 10)
    before = project_files(root)
    for number in range(20):
        (root / "below" / "deep" / str(number)).mkdir()
    changes = project_file_changes(before, root)
    assert changes == {module.UNSEEN: "unseen"}
    assert "too many files" in changes_told(changes)
    assert project_file_changes(project_files(root), root) == {}


@pytest.mark.parametrize("limit", ["_MOST_FILES", "_MOST_BYTES"])
def test_no_more_than_a_limit_of_them_is_read(root, monkeypatch, limit):
    monkeypatch.setattr(module, limit, 5)
    for number in range(20):
        (root / f"x{number}").mkdir()
        (root / f"x{number}" / "reprobox.toml").write_text("seed = 1\n")
    found = project_files(root)
    assert module.UNSEEN in found
    assert len(found) <= 6


def test_a_record_that_knows_nothing_of_them_tells_nothing(root):
    assert project_file_changes(None, root) == {}
    assert project_file_changes({"reprobox.toml": ["x"]}, root)["reprobox.toml"] == "changed"


def test_the_files_that_are_there_are_protected_and_no_other(root, tmp_path_factory):
    assert protected_files(root) == [root / "reprobox.toml"]
    (root / "reprobox.lock").write_text("")
    assert protected_files(root) == [root / "reprobox.toml", root / "reprobox.lock"]
    (root / "reprobox.toml").rename(root / "below" / "real.toml")
    (root / "reprobox.toml").symlink_to("below/real.toml")
    assert protected_files(root)[0] == root / "below" / "real.toml"
    outside = tmp_path_factory.mktemp("outside") / "x.toml"
    outside.write_text("")
    (root / "reprobox.toml").unlink()
    (root / "reprobox.toml").symlink_to(outside)
    assert protected_files(root) == [root / "reprobox.lock"]
