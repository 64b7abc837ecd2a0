"""What ``reprobox doctor`` makes of a machine and of its network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reprobox.doctor.machine import judge_clock, judge_git, judge_python, judge_shm
from reprobox.doctor.network import judge_proxies, judge_registry
from reprobox.git import NO_GIT, TOO_LONG, Checkout

GIB = 1 << 30


# The machine


@pytest.mark.parametrize(
    ("box", "host", "verdict"),
    [
        (8 * GIB, 16 * GIB, "ok"),
        (64 << 20, 16 * GIB, "warn"),
        (64 * GIB, 16 * GIB, "warn"),
        (8 * GIB, 64 << 20, "warn"),
        (8 * GIB, None, "warn"),
        (None, 16 * GIB, "ok"),
        (None, 64 << 20, "warn"),
        (None, None, "fail"),
    ],
)
def test_shared_memory_is_judged_for_those_who_use_it(box, host, verdict):
    assert judge_shm(box, host, 32 * GIB).verdict == verdict


def test_a_clock_is_judged_by_itself_the_engine_and_the_kernel():
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert judge_clock(now, now + timedelta(seconds=59), 0).verdict == "ok"
    assert judge_clock(now, now - timedelta(seconds=61), 0).verdict == "warn"
    assert judge_clock(now, None, 16_000_000).verdict == "warn"
    assert judge_clock(now, None, None).verdict == "ok"
    assert judge_clock(now.replace(year=1970), now.replace(year=1970), 0).verdict == "fail"
    assert judge_clock(now.replace(year=2100), None, 0).verdict == "fail"


@pytest.mark.parametrize(
    ("checkout", "verdict", "seen"),
    [
        (Checkout(commit="0123456789abcdef", dirty=True), "ok", "at 0123456789ab"),
        (Checkout(dirty=False), "ok", "no commit yet"),
        (Checkout(reason="git cannot read it"), "warn", "record no commit (git cannot read it)"),
        (Checkout(commit="0123456789abcdef", reason="a filter"), "warn", "and not whether files differ"),
        (Checkout(reason=NO_GIT), "warn", "there is no git"),
        (Checkout(reason=TOO_LONG), "warn", "after 4 s"),
    ],
)
def test_git_is_judged_by_what_it_tells(checkout, verdict, seen):
    finding = judge_git("/p", checkout)
    assert finding.verdict == verdict
    assert seen in finding.seen


@pytest.mark.parametrize(
    ("program", "code", "said", "verdict"),
    [
        ("/bin/python", 0, 'a warning\n["2.9.1", null]\n', "ok"),
        ("/bin/python", 0, '["2.9.1", "13.0"]', "ok"),
        ("/bin/python", 0, '["2.9.1", null]\na warning at the exit\n["one"]\n3\n', "ok"),
        ("/bin/python", 0, "no answer\n", "fail"),
        ("/bin/python", 0, "", "fail"),
        ("/bin/python", 1, "ModuleNotFoundError: No module named 'torch'", "warn"),
        ("/bin/python", 1, "ImportError: libcudart.so.13", "fail"),
        ("/bin/python", -11, "", "fail"),
        (None, 0, "", "warn"),
    ],
)
def test_a_python_is_judged_by_how_its_torch_loads(program, code, said, verdict):
    assert judge_python(program, code, said).verdict == verdict


def test_a_python_is_judged_by_this_machines_gpus_too():
    whole = '["2.9.1", "13.0"]'
    assert judge_python("/bin/python", 0, whole, driver="580.65.06").verdict == "ok"
    old = judge_python("/bin/python", 0, whole, driver="570.1")
    assert old.verdict == "fail"
    assert "torch 2.9.1's CUDA 13.0" in old.seen
    assert judge_python("/bin/python", 0, '["2.9.1", null]', driver="580.65.06").verdict == "warn"


# The network


@pytest.mark.parametrize(
    ("shell", "engine", "verdict"),
    [
        ({}, {}, "ok"),
        ({}, None, "ok"),
        ({"http": "http://p:1", "no": "localhost"}, None, "ok"),
        ({"http": "http://p:1"}, None, "warn"),
        ({"http": "http://p:1", "no": "*"}, {"http": "http://p:1"}, "ok"),
        ({"https": "http://p:1", "no": ".corp, 127.0.0.1"}, {"https": "http://q:1"}, "ok"),
        ({"https": "http://p:1", "no": "localhost"}, {}, "warn"),
        ({}, {"https": "http://p:1"}, "warn"),
    ],
)
def test_proxies_are_judged_by_whether_all_go_the_same_way(shell, engine, verdict):
    none = dict.fromkeys(("http", "https", "no"), "")
    assert judge_proxies({**none, **shell}, None if engine is None else {**none, **engine}).verdict == verdict


@pytest.mark.parametrize("proxy", ["http://ada:secret@p:1", "ada:secret@p:1"])
def test_a_proxys_password_is_never_shown(proxy):
    finding = judge_proxies({"http": proxy, "https": "", "no": "localhost"}, None)
    assert finding.seen.endswith("p:1")
    assert "secret" not in finding.seen
    assert "ada" not in finding.seen


@pytest.mark.parametrize(
    ("answer", "has_image", "verdict"),
    [
        (200, False, "ok"),
        (401, False, "ok"),
        (404, False, "fail"),
        (429, False, "fail"),
        (503, True, "warn"),
        ("connection refused", False, "fail"),
        ("connection refused", True, "warn"),
    ],
)
def test_a_registry_is_judged_by_its_answer_and_by_whether_it_is_needed(answer, has_image, verdict):
    finding = judge_registry("ghcr.io", answer, has_image=has_image)
    assert finding.verdict == verdict
    assert "ghcr.io" in finding.seen
