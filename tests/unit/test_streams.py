"""The caller's standard streams: the keys that leave, split over reads, and readers and terminals that go away."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import termios
import threading

import pytest

from reprobox.errors import OutputError
from reprobox.runs.streams import LEAVE_KEYS, Input, Output, Terminal


class Box:
    """Remembers what it is fed."""

    def __init__(self):
        self.pieces = []
        self.ended = threading.Event()
        self.left = threading.Event()

    def feed(self, data):
        self.pieces.append(data)

    def end_input(self):
        self.ended.set()

    @property
    def fed(self):
        return b"".join(self.pieces)


def fed_in(reads, monkeypatch, *, with_keys=True):
    """Feed a box what ``reads`` say that one read each returns."""
    box = Box()
    source = Input(box, box.left.set if with_keys else None)
    waiting = iter([*reads, b""])
    monkeypatch.setattr(source, "_read", lambda: next(waiting))
    source._pump()
    return box


def splits(text):
    """Return every way of reading ``text`` in one to ``len(text)`` reads."""
    for count in range(len(text)):
        for cuts in itertools.combinations(range(1, len(text)), count):
            bounds = [0, *cuts, len(text)]
            yield [text[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("text", [b"ab\x10\x11cd", b"\x10\x11", b"\x10\x10\x11x", b"\x11\x10\x11"])
def test_the_keys_leave_however_they_are_split_over_reads(monkeypatch, text):
    for reads in splits(text):
        box = fed_in(reads, monkeypatch)
        assert box.left.is_set(), reads
        assert box.fed == text[: text.index(LEAVE_KEYS)], reads
        assert not box.ended.is_set(), "leaving is no end of input"


@pytest.mark.parametrize("text", [b"a\x10b", b"\x10\x10x", b"\x11\x10", b"\x10 \x11", b"abc", b"\x10"])
def test_without_both_keys_every_byte_reaches_the_command_in_order(monkeypatch, text):
    for reads in splits(text):
        box = fed_in(reads, monkeypatch)
        assert not box.left.is_set(), reads
        assert box.fed == text, reads
        assert box.ended.is_set()


def test_a_lone_first_key_waits_for_the_next_one(monkeypatch):
    box = fed_in([b"a\x10", b"b"], monkeypatch)
    assert box.pieces[0] == b"a"
    assert box.fed == b"a\x10b"


def test_without_a_terminal_the_keys_are_the_commands(monkeypatch):
    text = b"a\x10\x11b"
    for reads in splits(text):
        box = fed_in(reads, monkeypatch, with_keys=False)
        assert box.fed == text
        assert not box.left.is_set()


def test_input_is_handed_on_and_its_end_with_it():
    reader, writer = os.pipe()
    box = Box()
    with Input(box, descriptor=reader):
        os.write(writer, b"\xff\x00one")
        os.close(writer)
        assert box.ended.wait(5)
    assert box.fed == b"\xff\x00one"
    os.close(reader)


def test_an_end_of_the_run_ends_the_reading_and_takes_no_more_of_the_input():
    reader, writer = os.pipe()
    box = Box()
    source = Input(box, descriptor=reader)
    with source:
        pass
    assert not source._thread.is_alive()
    os.write(writer, b"for the next program")
    assert os.read(reader, 100) == b"for the next program"
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_standard_input_that_is_closed_is_an_end_of_input():
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    box = Box()
    with Input(box, descriptor=reader if reader not in map(int, os.listdir("/proc/self/fd")) else 10_000):
        assert box.ended.wait(5)
    assert box.fed == b""


def test_many_inputs_leave_no_descriptor_open():
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with Input(Box(), descriptor=reader):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_reader_that_has_gone_is_told_once_and_for_all():
    reader, writer = os.pipe()
    output = Output(stdout=writer, stderr=writer)
    assert output.write("stdout", b"x")
    os.close(reader)
    assert not output.write("stdout", b"x")
    assert not output.write("stdout", b"x")
    os.close(writer)


def test_a_slow_reader_that_does_not_block_gets_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    output = Output(stdout=writer, stderr=writer)
    data = bytes(range(256)) * 16_384
    got = []

    def read():
        while piece := os.read(reader, 1 << 16):
            got.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    assert output.write("stdout", data)
    os.close(writer)
    thread.join()
    assert b"".join(got) == data
    os.close(reader)


def test_a_full_disk_is_an_error_that_says_so():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError, match="No space left"):
        Output(stdout=full.fileno(), stderr=full.fileno()).write("stdout", b"x")


@pytest.mark.parametrize("ends", [True, False])
def test_that_the_command_was_stopped_is_said_where_it_was(ends):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError) as error:
        Output(stdout=full.fileno(), ends_the_command=ends).write("stdout", b"x")
    assert ("so the command was stopped" in str(error.value)) is ends
    assert ("run it again" in str(error.value)) is ends


@pytest.fixture
def terminal():
    master, inner = pty.openpty()
    yield master, inner
    for descriptor in (master, inner):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(descriptor)


def test_a_terminal_is_raw_within_and_as_it_was_after_even_after_a_failure(terminal):
    _, inner = terminal
    before = termios.tcgetattr(inner)
    with pytest.raises(ZeroDivisionError), Terminal(inner):
        assert not termios.tcgetattr(inner)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        1 / 0  # noqa: B018
    assert termios.tcgetattr(inner) == before


def test_a_terminal_that_went_away_is_no_error_at_the_end(terminal):
    master, inner = terminal
    with Terminal(inner):
        os.close(master)


def test_the_size_is_the_terminals_and_one_that_does_not_say_is_24_by_80(terminal):
    _, inner = terminal
    termios.tcsetwinsize(inner, (33, 101))
    assert Terminal(inner).size() == (33, 101)
    with open(os.devnull, "rb") as nothing:
        assert Terminal(nothing.fileno()).size() == (24, 80)
