"""When a signal reaches the box, which the kernel would not give to a box that is not up yet."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from reprobox.engines import BoxSpec
from reprobox.engines.fake import FakeBox, Script
from reprobox.engines.local import LocalBox
from reprobox.errors import EngineError
from reprobox.runs import interrupts as module
from reprobox.runs.interrupts import Interrupts

PATIENCE = 10


class Box(FakeBox):
    """A box that loses what is sent before it is up, as the first process of a container does."""

    def __init__(self):
        super().__init__(BoxSpec(run_id="r", name="r", command=("true",), directory="/", environment={}), Script())
        self.up = threading.Event()
        self.asked = threading.Event()
        self.got = threading.Event()

    def is_up(self):
        self.asked.set()
        return self.up.is_set()

    def signal(self, number):
        super().signal(number)
        self.got.set()


@pytest.fixture
def box():
    return Box()


@pytest.fixture
def interrupts():
    with Interrupts(lambda _line: None) as made:
        yield made


def test_a_signal_waits_until_the_box_is_up(box, interrupts, monkeypatch):
    monkeypatch.setattr(module, "HOLD_SECONDS", PATIENCE)
    interrupts.interrupt(signal.SIGTERM)
    interrupts.forward_to(box, give_up=lambda: None, is_up=box.is_up)
    assert box.asked.wait(PATIENCE)
    assert not box.got.wait(0.2)
    box.up.set()
    assert box.got.wait(PATIENCE)
    assert box.signals == [signal.SIGTERM]


def test_a_box_that_says_nothing_gets_its_signal_all_the_same(box, interrupts, monkeypatch):
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.2)
    interrupts.interrupt(signal.SIGTERM)
    interrupts.forward_to(box, give_up=lambda: None, is_up=box.is_up)
    assert box.got.wait(PATIENCE)


def test_an_engine_that_refuses_a_signal_is_told_in_its_words_and_not_given_up(box, monkeypatch):
    def refuse(_number):
        raise EngineError("the command runs as another user", remedy="end it as that user")

    said, given_up = [], threading.Event()
    monkeypatch.setattr(box, "signal", refuse)
    with Interrupts(said.append) as interrupts:
        interrupts.forward_to(box, give_up=given_up.set)
        for _ in range(3):
            interrupts.interrupt(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while len(said) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [line for line in said if "another user" in line] == [
        "the command runs as another user; end it as that user"
    ] * 3
    assert not any("does not answer" in line for line in said)
    assert not given_up.is_set()


def test_a_signal_that_may_not_be_sent_is_a_sentence(monkeypatch):
    def refuse(_group, _number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", refuse)
    box = LocalBox(BoxSpec(run_id="r", name="r", command=("true",), directory="/", environment={}))
    box._process = SimpleNamespace(pid=1)
    with pytest.raises(EngineError, match="another user, so SIGTERM may not be sent"):
        box.signal(signal.SIGTERM)


def test_signals_that_mean_what_the_command_makes_of_them_are_not_counted_and_never_kill_it(box, interrupts):
    sent = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
    interrupts.forward_to(box, give_up=lambda: None)
    for number in sent:
        interrupts.interrupt(number)
    deadline = time.monotonic() + PATIENCE
    while len(box.signals) < len(sent) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert box.signals == sent


def test_without_a_word_on_it_the_box_is_taken_to_be_up(box, interrupts):
    interrupts.interrupt(signal.SIGTERM)
    interrupts.forward_to(box, give_up=lambda: None)
    assert box.got.wait(PATIENCE)


def test_the_end_of_the_run_does_not_wait_for_a_box_that_never_was_up(box, monkeypatch):
    monkeypatch.setattr(module, "HOLD_SECONDS", PATIENCE)
    before = time.monotonic()
    with Interrupts(lambda _line: None) as interrupts:
        interrupts.interrupt(signal.SIGTERM)
        interrupts.forward_to(box, give_up=lambda: None, is_up=box.is_up)
        assert box.asked.wait(PATIENCE)
    assert time.monotonic() - before < PATIENCE / 2
