"""How many processes a box may have by default."""

from __future__ import annotations

import pytest

from reprobox import limits
from reprobox.engines.fake import FakeEngine
from reprobox.recipe import Recipe
from reprobox.selftest import proof


@pytest.mark.parametrize(
    ("kernel", "processes"),
    [
        ({"pid_max": 4194304, "threads-max": 190000}, 32768),
        ({"pid_max": 32768, "threads-max": 190000}, 16384),
        ({"pid_max": 4194304, "threads-max": 15000}, 7500),
        ({}, 32768),
    ],
)
def test_a_box_gets_half_of_what_the_kernel_allows_at_most(monkeypatch, kernel, processes):
    monkeypatch.setattr(limits, "_number", lambda path: kernel.get(path.name, 0))
    assert limits.default_processes() == processes


def test_the_box_of_a_self_test_is_limited_as_well():
    spec = proof._spec(proof.Subject(engine=FakeEngine(), image=None, recipe=Recipe(seed=1)), [])
    assert spec.options.pids_limit == limits.default_processes()
