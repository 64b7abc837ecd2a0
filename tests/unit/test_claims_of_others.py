"""No user of a machine can forge, remove or keep alive another's claim, or break one's own with what it puts there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.claiming import RUN, UUIDS, a_folder_for_all, claim_of, held, holding, take, write_live
from support.contenders import EIGHT
from support.others import NOBODY, SOMEBODY, Other, require_root, sleep_for_ever

from reprobox.errors import ClaimError
from reprobox.gpus import shared_folder
from reprobox.gpus.claims import Claims
from reprobox.host import user_name


@pytest.fixture
def folder():
    with a_folder_for_all() as folder:
        yield folder


@pytest.mark.parametrize(("first", "second"), [(None, NOBODY), (NOBODY, None), (NOBODY, SOMEBODY), (SOMEBODY, NOBODY)])
def test_users_see_and_respect_each_others_claims_whatever_their_umask(folder, first, second):
    require_root()

    def work(me):
        me.tell([(holder.user, holder.gpus) for holder in Claims(folder).holders()])
        with take(folder, "second") as claim:
            me.tell([gpu.uuid for gpu in claim.gpus])

    with holding(folder, uid=first, umask=0o077), Other(work, uid=second, umask=0o077) as other:
        assert other.hear() == [(user_name(first or 0), (UUIDS[0],))]
        assert other.hear() == [UUIDS[1]]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


def test_a_dead_claim_of_another_user_is_neither_believed_nor_in_the_way(folder):
    require_root()
    with holding(folder, uid=SOMEBODY):
        pass  # killed

    def work(me):
        me.tell(held(folder))
        with take(folder) as claim:
            me.tell([gpu.uuid for gpu in claim.gpus])

    with Other(work, uid=NOBODY) as other:
        assert other.hear() == []
        assert other.hear() == UUIDS[:1]
        assert other.wait() == 0
    assert len(list(folder.iterdir())) == 1, "the sticky folder kept what is another's"
    assert held(folder) == []
    assert list(folder.iterdir()) == [], "root may remove it"


def test_nobody_can_keep_the_dead_claim_of_another_user_alive(folder):
    require_root()
    with holding(folder, uid=SOMEBODY):
        pass
    (left,) = folder.iterdir()

    def work(me):
        descriptor = os.open(left, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_SH)
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, shared_folder._FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        with pytest.raises(PermissionError):
            os.open(left, os.O_RDWR)
        me.tell("tried")
        sleep_for_ever()

    with Other(work, uid=NOBODY) as other:
        assert other.hear() == "tried"
        assert held(folder) == []


def test_a_forged_claim_names_who_wrote_it(folder):
    require_root()
    with take(folder, "mine"):

        def work(me):
            forged = claim_of("mine", user="root", uid=0, pid=1, gpus=UUIDS)
            write_live(folder, "claim-mine_ffffffff.json", forged)
            me.tell("written")
            sleep_for_ever()

        with Other(work, uid=NOBODY) as other:
            assert other.hear() == "written"
            by_user = {holder.user: holder.gpus for holder in Claims(folder).holders()}
            nobody, root = (user_name(uid) for uid in (NOBODY, 0))
            assert by_user == {root: (UUIDS[0],), nobody: tuple(UUIDS)}


def test_another_user_can_neither_remove_nor_replace_a_claim(folder):
    require_root()
    with holding(folder, uid=SOMEBODY):
        (path,) = folder.iterdir()

        def work(me):
            (folder / "mine").write_text("x")
            for attempt in (path.unlink, lambda: (folder / "mine").rename(path), lambda: path.write_text("x")):
                with pytest.raises(PermissionError):
                    attempt()

        with Other(work, uid=NOBODY) as other:
            assert other.wait() == 0
        assert held(folder) == [(RUN, UUIDS[0])]


def test_nothing_is_opened_to_be_made_that_could_be_there_already(folder, monkeypatch):
    """A kernel with ``fs.protected_regular`` refuses that in a sticky folder, also where the file could be read."""
    flags = []
    real = os.open

    def recording(path, flag, *rest, **options):
        flags.append(flag)
        return real(path, flag, *rest, **options)

    monkeypatch.setattr(shared_folder.os, "open", recording)
    with take(folder), Claims(folder).wait_in_line(RUN) as ticket:
        assert ticket.turn()
        assert held(folder)
    making = [flag for flag in flags if flag & os.O_CREAT]
    assert making
    assert all(flag & os.O_EXCL for flag in making)


def _sparse(folder, path):
    with path.open("wb") as file:
        file.truncate(1 << 30)


HOSTILE = {
    "pipe": lambda folder, path: os.mkfifo(path),
    "link": lambda folder, path: path.symlink_to("/etc/passwd"),
    "link to a pipe": lambda folder, path: (os.mkfifo(folder / "pipe"), path.symlink_to("pipe")),
    "folder": lambda folder, path: path.mkdir(),
    "huge": _sparse,
    "empty": lambda folder, path: path.write_bytes(b""),
    "dead": lambda folder, path: path.write_bytes(claim_of()),
}


@pytest.mark.parametrize("put", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", [f"claim-{RUN}_00000000.json", f"wait-{0:020}-{RUN}.json"], ids=["claim", "ticket"])
def test_what_is_no_live_file_is_passed_over(folder, put, name):
    take(folder).release()
    put(folder, folder / name)
    with take(folder, "mine") as claim, Claims(folder).wait_in_line("mine") as ticket:
        assert claim.gpus == EIGHT.gpus[:1]
        assert held(folder) == [("mine", UUIDS[0])]
        assert ticket.turn()
    assert Path("/etc/passwd").stat().st_size > 0


def test_what_is_no_file_is_not_even_opened(folder, monkeypatch):
    """Opening can hang: a folder may lead to a file system that its user serves, or does not."""
    take(folder).release()
    opened = []
    real = os.open

    def recording(path, *rest, **options):
        opened.append(str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(shared_folder.os, "open", recording)
    (folder / f"claim-{RUN}_00000000.json").mkdir()
    (folder / f"claim-{RUN}_00000001.json").write_text("dead")
    assert held(folder) == []
    assert opened == [str(folder), f"claim-{RUN}_00000001.json"]


@pytest.mark.parametrize("since", ["2026-11-21T10:00:00", "yesterday", None, 3])
def test_a_claim_without_a_moment_in_time_is_believed_without_it(folder, since):
    take(folder).release()
    descriptor = write_live(folder, f"claim-{RUN}_00000000.json", claim_of(since=since))
    try:
        (holder,) = Claims(folder).holders()
        assert holder.since is None
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EMFILE, "Too many open files"), (errno.ENOMEM, "Cannot allocate"), (errno.EIO, None)]
)
def test_a_claim_that_this_process_has_no_means_to_see_is_not_taken_for_none(folder, monkeypatch, number, reason):
    real = os.open

    def failing(path, *rest, **options):
        if str(path).startswith("claim-"):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **options)

    with take(folder):
        monkeypatch.setattr(shared_folder.os, "open", failing)
        with pytest.raises(ClaimError, match=reason) if reason else contextlib.nullcontext():
            assert held(folder) == []


LIVE = {
    "nothing": b"",
    "no JSON": b"\x00\xff{",
    "no object": b"[1]",
    "deep": b"[" * 60000,
    "deep object": b'{"a":' * 10000,
    "long number": b'{"run":' + b"9" * 60000 + b"}",
    "too large": claim_of(command="x" * (64 << 10)),
    "another run": claim_of("other"),
    "no list": claim_of(gpus="GPU-0"),
    "none": claim_of(gpus=[]),
    "too many": claim_of(gpus=["GPU-0"] * 257),
    "numbers": claim_of(gpus=[0]),
    "an escape": claim_of(gpus=["GPU-\x1b[2J"]),
    "surrogates": claim_of(gpus=["\ud800"]),
}


@pytest.mark.parametrize("data", LIVE.values(), ids=LIVE)
def test_a_live_file_that_is_no_claim_is_passed_over(folder, data):
    take(folder).release()
    descriptor = write_live(folder, f"claim-{RUN}_00000000.json", data)
    try:
        assert held(folder) == []
    finally:
        os.close(descriptor)


def test_a_live_claim_made_by_hand_is_believed(folder):
    """The twin of the others: such a file is passed over for what it holds, and for nothing else."""
    take(folder).release()
    descriptor = write_live(folder, f"claim-{RUN}_00000000.json", claim_of(schema="reprobox.claim/2", more=[{}]))
    try:
        assert held(folder) == [(RUN, UUIDS[0])]
    finally:
        os.close(descriptor)


def test_a_claim_that_may_not_be_read_is_passed_over(folder):
    require_root()
    take(folder).release()
    descriptor = write_live(folder, f"claim-{RUN}_00000000.json", claim_of(), mode=0o600)
    try:
        with Other(lambda me: me.tell(held(folder)), uid=NOBODY) as other:
            assert other.hear() == []
        assert held(folder) == [(RUN, UUIDS[0])]
    finally:
        os.close(descriptor)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {"run": st.just(RUN) | ANYTHING},
    optional={
        name: ANYTHING | st.lists(st.sampled_from(UUIDS) | st.text(), max_size=3)
        for name in ("schema", "gpus", "pid", "since", "exclusive", "command")
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | FIELDS.map(lambda fields: json.dumps(fields).encode()))
def test_whatever_a_live_file_holds_is_no_error_and_can_be_shown(folder, data):
    take(folder).release()
    name = f"claim-{RUN}_00000000.json"
    descriptor = write_live(folder, name, data)
    try:
        for holder in Claims(folder).holders():
            assert holder.run == RUN
            assert all(re.fullmatch(r"[A-Za-z0-9/-]+", uuid) for uuid in holder.gpus)
            assert holder.pid is None or holder.pid > 0
            assert (holder.command or "").isprintable()
            assert str(holder.since).isprintable()
            assert type(holder.exclusive) is bool
    finally:
        (folder / name).unlink()
        os.close(descriptor)
