"""When a signal reaches the box, which the kernel would not give to a box that is not up yet."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from reprobox.engines import BoxSpec
from reprobox.engines.fake import FakeBox, Script
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
