"""The command's output beside its record: head, tail, the line between, and every moment at which it could be cut off."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from reprobox.runs.logs import RunLogs, StreamLog, read_log, read_on

HEAD, TAIL = 10, 8


def output(count):
    """Bytes that differ from their neighbours, some of them no UTF-8."""
    return bytes((i * 37 + i // 256) % 256 for i in range(count))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for function in (StreamLog.__init__, read_log, read_on):
        for name, size in (("head", HEAD), ("tail", TAIL)):
            if name in function.__kwdefaults__:
                monkeypatch.setitem(function.__kwdefaults__, name, size)


def kept(path):
    return b"".join(read_log(path))


def read_from(path, position):
    """What ``read_on`` gives; a piece may come with the place after it."""
    return b"".join(piece if isinstance(piece, bytes) else piece[1] for piece in read_on(path, position))


def as_kept(data):
    """What a log of HEAD and TAIL holds of ``data``."""
    left_out = len(data) - HEAD - TAIL
    if left_out <= 0:
        return data
    return data[:HEAD] + b"\n[reprobox: %d bytes are left out here]\n" % left_out + data[-TAIL:]


def in_chunks(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stdout.log"


@pytest.mark.parametrize("length", [0, 1, HEAD - 1, HEAD, HEAD + 1, HEAD + TAIL, HEAD + TAIL + 1, 27, 34, 35, 100, 257])
def test_head_and_tail_are_kept_in_every_size_of_chunks(tmp_path, length):
    data = output(length)
    for size in range(1, max(2, length + 1)):
        path = tmp_path / str(size) / "stdout.log"
        path.parent.mkdir()
        log = StreamLog(path)
        for chunk in in_chunks(data, size):
            log.write(chunk)
        assert log.count == length
        assert kept(path) == as_kept(data), f"while it is written, in chunks of {size}"
        log.close()
        assert path.read_bytes() == as_kept(data), f"in chunks of {size}"
        assert os.listdir(path.parent) == ["stdout.log"]


def test_a_short_output_is_kept_as_it_is_and_its_log_has_no_segments(path):
    log = StreamLog(path)
    log.write(b"x" * HEAD)
    assert os.listdir(path.parent) == ["stdout.log"]
    log.close()
    assert path.read_bytes() == b"x" * HEAD


def test_no_more_than_head_and_two_tails_are_on_disk(path):
    log = StreamLog(path)
    for i in range(300):
        log.write(bytes([i % 256]))
        assert sum(file.stat().st_size for file in path.parent.iterdir()) <= HEAD + 2 * TAIL


@pytest.mark.parametrize("length", [0, 3, HEAD, HEAD + 1, 18, 19, 26, 27, 60])
def test_a_log_whose_writer_was_killed_is_gone_on_with_at_every_point(tmp_path, length):
    data = output(80)
    for size in (1, 3, 7, 80):
        path = tmp_path / str(size) / "stdout.log"
        path.parent.mkdir()
        first = StreamLog(path)
        for chunk in in_chunks(data[:length], size):
            first.write(chunk)
        os.close(first._file)  # killed: nothing is joined
        second = StreamLog(path)
        assert second.count == length
        for chunk in in_chunks(data[length:], size):
            second.write(chunk)
        assert kept(path) == as_kept(data)
        second.close()
        assert path.read_bytes() == as_kept(data)
        assert os.listdir(path.parent) == ["stdout.log"]


class Killed(BaseException):
    """In the place of SIGKILL: no handler of the code under test may run after it."""


def calls_of(monkeypatch, action):
    """Return each change to the disk that ``action`` makes, by number; a test kills at one of them."""
    count = 0
    die_at = None

    def counting(function):
        def call(*arguments, **options):
            nonlocal count
            if count == die_at:
                raise Killed
            count += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "open", counting(os.open))
    monkeypatch.setattr(os, "write", counting(os.write))
    for name in ("replace", "unlink", "open"):
        monkeypatch.setattr(Path, name, counting(getattr(Path, name)))

    def go(at):
        nonlocal count, die_at
        count, die_at = 0, at
        try:
            action()
        except Killed:
            return False
        finally:
            die_at = None
        return True

    return go


def test_a_writer_killed_between_any_two_steps_leaves_a_log_that_reads_right_and_can_be_gone_on_with(
    tmp_path, monkeypatch
):
    data = output(60)
    folder = tmp_path / "log"
    path = folder / "stdout.log"

    def write_and_close():
        log = StreamLog(path)
        for chunk in in_chunks(data, 5):
            log.write(chunk)
        log.close()

    go = calls_of(monkeypatch, write_and_close)
    wrong = []
    for step in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ended = go(step)
        joined = path.exists() and path.stat().st_size > HEAD
        resumed = StreamLog(path)
        there = len(data) if joined else resumed.count
        if kept(path) != as_kept(data[:there]):
            wrong.append((step, "as it was left", sorted(os.listdir(folder))))
        resumed.write(data[there:])
        resumed.close()
        if path.read_bytes() != as_kept(data) or os.listdir(folder) != ["stdout.log"]:
            wrong.append((step, "gone on with", sorted(os.listdir(folder))))
        if ended:
            break
    else:
        pytest.fail("the log was never finished")
    assert wrong == []


def test_a_reader_follows_a_log_that_is_being_written_from_every_position(path):
    data = output(HEAD + 3 * TAIL + 3)
    log = StreamLog(path)
    written = 0
    for chunk in in_chunks(data, 3):
        log.write(chunk)
        written += len(chunk)
        oldest = log._segments[0] if log._segments else None
        there_from = int(oldest.name.rpartition(".")[2]) if oldest else 0
        for position in range(written + 2):
            got = read_from(path, position)
            in_head = data[position : min(HEAD, written)]
            rest = data[max(position, there_from, min(HEAD, written)) : written] if oldest else b""
            assert got == in_head + rest, (written, position)


def test_a_reader_that_keeps_up_gets_every_byte_once_while_segments_come_and_go(path):
    data = output(400)
    log = StreamLog(path)
    got = b""
    for chunk in in_chunks(data, TAIL - 1):
        log.write(chunk)
        got += read_from(path, len(got))
    assert got == data


def test_a_log_that_grows_while_it_is_read_is_read_without_an_error(path):
    data = output(400)
    log = StreamLog(path)
    log.write(data[:40])
    pieces = read_log(path)
    got = next(pieces)
    log.write(data[40:])
    got += b"".join(pieces)  # the segments it was about to read are gone
    assert got.startswith(data[:HEAD])


def test_the_line_between_head_and_tail_says_how_many_bytes_are_missing(path):
    log = StreamLog(path)
    log.write(b"a" * HEAD + b"b" * 1000 + b"c" * TAIL)
    log.close()
    assert path.read_bytes() == b"a" * HEAD + b"\n[reprobox: 1000 bytes are left out here]\n" + b"c" * TAIL


def test_a_log_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep me")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stdout.log").symlink_to(victim)
    said = []
    run_logs = RunLogs(folder, keep=True, say=said.append)
    run_logs.write("stdout", b"x")
    run_logs.close()
    assert victim.read_bytes() == b"keep me"
    assert len(said) == 1


def test_a_full_disk_gives_the_logs_up_with_one_notice_and_the_counts_go_on(tmp_path, monkeypatch):
    said = []
    run_logs = RunLogs(tmp_path, keep=True, say=said.append)
    run_logs.write("stdout", b"before")

    def full(_descriptor, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for _ in range(5):
            run_logs.write("stdout", b"12345")
            run_logs.write("stderr", b"1")
    run_logs.close()
    assert len(said) == 1
    assert re.search("No space left on device.*goes on", said[0])
    assert run_logs.to_json() == {
        "log": "incomplete (No space left on device)",
        "stdout_bytes": 31,
        "stderr_bytes": 5,
    }
    assert (tmp_path / "stdout.log").read_bytes() == b"before"


def test_a_log_that_is_given_up_leaves_no_descriptor_open(tmp_path, monkeypatch):
    before = set(os.listdir("/proc/self/fd"))
    run_logs = RunLogs(tmp_path, keep=True, say=lambda _line: None)

    def full(_descriptor, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        run_logs.write("stdout", b"x")
    run_logs.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_a_log_nothing_is_written_and_the_bytes_are_counted(tmp_path):
    run_logs = RunLogs(tmp_path, keep=False, say=lambda _line: None)
    run_logs.write("stderr", b"abc")
    run_logs.close()
    assert os.listdir(tmp_path) == []
    assert run_logs.to_json() == {"log": "off", "stdout_bytes": 0, "stderr_bytes": 3}


def test_what_was_delivered_is_known_again_from_the_log(tmp_path):
    RunLogs(tmp_path, keep=True, say=lambda _line: None).write("stdout", b"one\ntwo\n")
    place = RunLogs(tmp_path, keep=True, say=lambda _line: None).delivered("stdout")
    assert (place.count, place.tail) == (8, b"one\ntwo\n")
    assert place.rest_of(b"one\ntwo\nthree\n") == (b"three\n", True)


@pytest.fixture
def no_joining(monkeypatch):
    """Let no log be joined: the disk is full."""
    real = Path.open

    def opened(path, mode="r", *arguments, **options):
        if path.name.endswith("-joined"):
            file = real(path, mode, *arguments, **options)
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)


def test_logs_that_cannot_be_joined_stay_as_they_are_and_the_true_reason_is_told_once(tmp_path, no_joining):
    said = []
    data = output(60)
    logs = RunLogs(tmp_path, keep=True, say=said.append)
    for stream in ("stdout", "stderr"):
        logs.write(stream, data)
    logs.close()
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert logs.state == "incomplete (No space left on device)"
    assert [path.name for path in tmp_path.iterdir() if "joined" in path.name] == []
    assert [kept(tmp_path / f"{stream}.log") for stream in ("stdout", "stderr")] == [as_kept(data)] * 2


def test_a_log_that_could_not_be_joined_does_not_keep_the_other_from_it(tmp_path, no_joining):
    logs = RunLogs(tmp_path, keep=True, say=lambda _: None)
    logs.write("stdout", output(60))
    logs.write("stderr", output(5))
    logs.close()
    assert (tmp_path / "stderr.log").read_bytes() == output(5)


def test_a_log_closes_no_file_but_its_own_however_often_it_is_closed(path):
    log = StreamLog(path)
    log.close()
    with open(path, "rb") as other:  # it has the number that the log's file had
        log.leave()
        log.close()
        assert os.fstat(other.fileno())
