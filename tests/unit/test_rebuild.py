"""Building twice and comparing: other surroundings the second time, and what the command line makes of the answer."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from reprobox.cli.app import run_app
from reprobox.cli.sharing import Sharing
from reprobox.images import BuildResult, rebuild
from reprobox.images.context import write_context
from reprobox.images.pipeline import Surroundings
from reprobox.images.rebuild import build_twice, elsewhere

RESULT = BuildResult(
    image_id="sha256:1", engine_id="sha256:1", builder="classic", way="classic+normalised", reused=False, variant="cpu",
    tag="x:1", base="sha256:b", input="0", lock="sha256:0", seconds=1.0,
)  # fmt: skip
SAME = {"same": True, "other_image_id": "sha256:1", "difference": None}
DIFFERENT = {
    "same": False, "other_image_id": "sha256:2",
    "difference": {"layer": 3, "path": "/opt/x", "what": "content from byte 6 on"},
}  # fmt: skip


def surroundings():
    umask = os.umask(0)
    os.umask(umask)
    return Path.cwd(), umask, time.localtime(0).tm_gmtoff, os.environ.get("TZ")


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_the_second_build_has_other_surroundings_and_the_process_its_own_back_afterwards(tmp_path, monkeypatch, zone):
    monkeypatch.delenv("TZ", raising=False)
    if zone:
        monkeypatch.setenv("TZ", zone)
    time.tzset()
    before = surroundings()
    with pytest.raises(KeyError), elsewhere(tmp_path) as within:
        assert all(now != then for now, then in zip(surroundings(), before, strict=True))
        assert within == Surroundings(scratch=tmp_path, backwards=True)
        raise KeyError
    assert surroundings() == before


def test_a_working_folder_that_is_gone_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    _, *before = surroundings()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError), elsewhere(tmp_path):
        pytest.fail("there is no folder to come back to")
    monkeypatch.chdir(tmp_path)
    assert surroundings()[1:] == tuple(before)


def test_a_folder_that_cannot_be_entered_is_the_error_and_everything_is_as_before(tmp_path, monkeypatch):
    monkeypatch.delenv("TZ", raising=False)
    time.tzset()
    before = surroundings()
    with pytest.raises(FileNotFoundError, match="absent"), elsewhere(tmp_path / "absent"):
        pytest.fail("there is no such folder")
    assert surroundings() == before


def test_a_working_folder_that_goes_meanwhile_is_the_error_and_the_rest_is_as_before(tmp_path, monkeypatch):
    _, *before = surroundings()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(FileNotFoundError, match="here"), elsewhere(tmp_path):
        here.rmdir()
    assert surroundings()[1:] == tuple(before)


def test_the_context_of_the_second_build_has_another_order_and_the_same_files(tmp_path):
    files = {"a": b"1", "b/c": b"2"}
    for name, backwards in (("one", False), ("two", True)):
        with (tmp_path / name).open("wb") as out:
            write_context(files, out, backwards=backwards)
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one != two
    assert sorted(one) == sorted(two)


def engine(stages=()):
    """As much of an engine as building twice asks for; each question for stages is answered with the next list."""
    answers, removed = iter(stages or ([], [])), []
    return SimpleNamespace(
        ids=lambda **_: tuple(next(answers)), remove=lambda name, **_: removed.append(name), removed=removed
    )


def test_two_builds_with_one_id_are_the_same_and_the_second_ones_stages_go(tmp_path):
    within, store = [], engine(stages=(["kept"], ["kept", "new"]))

    def make(each):
        within.append(each)
        return RESULT

    first, seen = build_twice(make, store=store, scratch=tmp_path / "scratch")
    assert (first, seen.same, seen.difference) == (RESULT, True, None)
    assert within[0] is None
    assert within[1].scratch.parent == tmp_path / "scratch"
    assert store.removed == ["new"]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def build_command(monkeypatch, capsys):
    """Run ``reprobox build`` with what building twice shall have shown; gives exit code, stdout and stderr."""

    def run(verification, *flags):
        monkeypatch.setattr(Sharing, "begin", lambda *_, **__: SimpleNamespace(store=None, quiet=False))
        monkeypatch.setattr(rebuild, "build_verified", lambda *_, **__: replace(RESULT, verification=verification))
        code = run_app(["build", "--verify", *flags])
        return code, *capsys.readouterr()

    return run


def test_two_builds_that_differ_end_with_1_and_name_layer_path_and_difference(build_command):
    code, out, err = build_command(DIFFERENT)
    assert (code, out) == (1, "sha256:1\n")
    assert "the second build gave another image, sha256:2\n" in err
    assert "they first differ in layer 3: /opt/x: content from byte 6 on\n" in err


def test_two_builds_that_agree_end_with_0(build_command):
    code, out, err = build_command(SAME)
    assert (code, out) == (0, "sha256:1\n")
    assert "both builds gave the same image" in err


def test_the_json_document_has_what_building_twice_showed(build_command):
    code, out, _ = build_command(DIFFERENT, "--json")
    assert code == 1
    assert json.loads(out)["verification"] == DIFFERENT
