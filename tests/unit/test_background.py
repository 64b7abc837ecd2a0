"""A process that minds a run on its own: how it ends is how its command line ends, until the command has begun."""

from __future__ import annotations

import os
import signal

import pytest

from reprobox.runs.background import in_background


@pytest.fixture(autouse=True)
def _handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_before_the_command_begins_ends_as_in_a_shell(number):
    def work(_started):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 0

    assert in_background(work) == 128 + number


@pytest.mark.parametrize("code", [0, 2, 125])
def test_one_that_ends_before_the_command_begins_ends_with_its_own_code(code):
    assert in_background(lambda _started: code) == code
