"""The folder in which all users of a machine meet: how it is made, and when it is not trusted."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
from support.claiming import RUN, UUIDS, a_folder_for_all, held, take
from support.contenders import EIGHT, first_free
from support.others import NOBODY, SOMEBODY, Other, require_root, sleep_for_ever

from reprobox.errors import ClaimError
from reprobox.gpus import shared_folder
from reprobox.gpus.claims import Claims


@pytest.fixture
def folder():
    with a_folder_for_all() as folder:
        yield folder


def test_the_folder_is_open_to_all_users_in_spite_of_the_umask(folder):
    with Other(lambda _: take(folder).release(), umask=0o777) as other:
        assert other.wait() == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_looking_makes_no_folder(folder):
    assert Claims(folder).holders() == ()
    assert not folder.exists()


def test_users_that_make_the_folder_at_the_same_instant_meet_in_it(folder):
    require_root()
    for _ in range(10):
        starter, go = os.pipe()

        def work(me, starter=starter, go=go):
            os.close(go)
            os.read(starter, 1)
            claim = take(folder)
            me.tell([gpu.uuid for gpu in claim.gpus])
            sleep_for_ever()

        with contextlib.ExitStack() as ending:
            others = [ending.enter_context(Other(work, uid=uid, umask=0o077)) for uid in (SOMEBODY, NOBODY, None) * 2]
            os.close(starter)
            os.close(go)
            chosen = sorted(uuid for other in others for uuid in other.hear())
            assert chosen == UUIDS[:6]
        shutil.rmtree(folder)


def test_a_folder_that_is_cleaned_away_while_one_chooses_is_made_again(folder):
    calls = []

    def choose(holders):
        if not calls:
            folder.rmdir()
        calls.append(1)
        return first_free()(holders)

    with Claims(folder).take(RUN, choose, inventory=EIGHT):
        assert held(folder) == [(RUN, UUIDS[0])]
    assert len(calls) == 2


def test_a_file_the_choice_misses_is_not_taken_for_a_missing_folder(folder):
    def choose(_holders):
        raise FileNotFoundError("libnvidia-ml.so.1")

    with pytest.raises(FileNotFoundError, match="libnvidia"):
        Claims(folder).take(RUN, choose, inventory=EIGHT)


def _link(folder):
    (folder.parent / "real").mkdir(mode=0o700)
    folder.symlink_to("real")


def _of_another(folder):
    require_root()
    folder.mkdir(0o755)
    os.chown(folder, NOBODY, NOBODY)


def _not_sticky(folder):
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (_link, "a link or no folder"),
        (lambda folder: folder.symlink_to("nowhere"), "a link or no folder"),
        (lambda folder: folder.write_text(""), "a link or no folder"),
        (os.mkfifo, "a link or no folder"),
        (_not_sticky, "not sticky"),
        (_of_another, "belongs to nobody and is not open"),
    ],
    ids=["link", "dangling", "file", "pipe", "not-sticky", "another's"],
)
def test_what_cannot_be_trusted_is_refused_with_the_reason(folder, put, reason):
    put(folder)
    for use in (lambda: take(folder), Claims(folder).holders, lambda: Claims(folder).wait_in_line(RUN)):
        with pytest.raises(ClaimError, match=reason) as refused:
            use()
        assert refused.value.remedy
    assert not (folder.parent / "nowhere").exists()


def test_a_folder_of_ones_own_is_good_enough(folder):
    folder.mkdir(mode=0o700)
    with take(folder):
        assert held(folder) == [(RUN, UUIDS[0])]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_or_written_is_said(folder):
    with pytest.raises(ClaimError, match="No such file"):
        take(folder / "deeper")
    require_root()
    folder.mkdir(mode=0o755)

    def work(me):
        try:
            take(folder)
        except ClaimError as error:
            me.tell(error.message)

    with Other(work, uid=NOBODY) as other:
        assert "Permission denied" in other.hear()


def test_a_full_disk_is_said_and_leaves_nothing(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_folder.os, "fchmod", full)
    with pytest.raises(ClaimError, match="No space left"):
        take(folder)
    assert list(folder.iterdir()) == []


def test_a_claim_is_left_alone_by_those_who_clean_up_old_files(folder):
    with take(folder) as claim:
        assert stat.S_IMODE(claim.path.stat().st_mode) == 0o1644


def test_what_a_killed_maker_left_is_removed_after_an_hour(folder):
    take(folder).release()
    for name, age in ((".tmp-old", 3700), (".tmp-new", 10)):
        (folder / name).write_text("")
        os.utime(folder / name, (time.time() - age,) * 2)
    held(folder)
    assert [path.name for path in folder.iterdir()] == [".tmp-new"]


@pytest.mark.parametrize(
    ("mode", "made", "place"),
    [
        (0o1777, False, "/run/lock/reprobox"),
        (0o755, False, "/tmp/reprobox-gpus"),
        (0o777, False, "/tmp/reprobox-gpus"),
        (None, False, "/tmp/reprobox-gpus"),
        (0o755, True, "/run/lock/reprobox"),
    ],
    ids=["Debian", "Fedora", "not sticky", "no such folder", "made by root"],
)
def test_all_users_of_a_machine_meet_at_one_place(tmp_path, monkeypatch, mode, made, place):
    lock = tmp_path / "lock"
    if mode is not None:
        lock.mkdir()
        lock.chmod(mode)
    if made:
        (lock / "reprobox").mkdir()
    monkeypatch.setattr(shared_folder, "_LOCK_FOLDER", lock)
    assert shared_folder.machine_folder() == Path(place.replace("/run/lock", str(lock)))
