"""Which process minds a run, told apart from every other that has its number."""

from __future__ import annotations

import dataclasses
import os

import pytest

from reprobox.runs import minder
from reprobox.runs.minder import Minder


def test_this_process_is_here_and_is_read_back_as_it_was_written():
    this = Minder.this()
    assert this.pid == os.getpid()
    assert Minder.parse(this.to_text()) == this
    assert this.is_here


@pytest.mark.parametrize(
    "other", [{"boot": "another"}, {"namespace": 1}, {"started": 1}, {"pid": 1}, {"pid": 999_999_999}]
)
def test_a_process_of_another_machine_or_container_or_time_is_not_here(other):
    assert not dataclasses.replace(Minder.this(), **other).is_here


@pytest.mark.parametrize("text", ["", "\n", "x", "1 2", "1 b x 2\n", "-1", "\ufffd\ufffd\0"])
def test_what_is_not_written_yet_and_a_number_alone_is_nobody_who_is_known(text):
    assert not Minder.parse(text).is_here


def test_the_number_of_this_very_process_alone_is_nobody_who_is_known():
    assert not Minder.parse(f"{os.getpid()}\n").is_here


def test_an_older_locks_number_is_read():
    assert Minder.parse("4711\n").pid == 4711


def test_where_the_kernel_says_nothing_a_lock_has_the_number_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(minder, "_BOOT_ID", tmp_path / "none")
    assert Minder.this().to_text() == f"{os.getpid()}\n"
    assert not Minder.this().is_here
