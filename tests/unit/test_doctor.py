"""The checks of ``reprobox doctor`` carried out: what becomes of one that breaks, hangs or needs another."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from reprobox.doctor import CHECKS, Check, Finding, Verdict, examine
from reprobox.doctor.box import judge_box
from reprobox.doctor.check import fail, ok, skipped, warn
from reprobox.doctor.gpu import LEAST_DRIVER, judge_cuda
from reprobox.doctor.machine import judge_shm
from reprobox.engines import ImageInfo
from reprobox.engines.fake import FakeEngine
from reprobox.errors import EngineError
from reprobox.git import Checkout
from reprobox.gpus.inventory import Inventory
from reprobox.settings import Settings


def found(patient, *checks, **options):
    return {check.name: finding for check, finding in examine(patient, checks, **options)}


def test_a_check_that_breaks_is_a_failed_one_and_the_next_is_looked_at(patient):
    def breaks(_):
        raise ZeroDivisionError("of the check")

    answers = found(patient, Check(name="a", look=breaks), Check(name="b", look=lambda _: ok("well")))
    assert answers["a"].verdict is Verdict.FAIL
    assert "ZeroDivisionError: of the check" in answers["a"].seen
    assert answers["b"] == ok("well")


def test_an_error_of_ours_is_told_with_its_remedy(patient):
    def refuses(_):
        raise EngineError("it refuses", remedy="ask it nicely")

    assert found(patient, Check(name="a", look=refuses))["a"] == fail("it refuses", "ask it nicely")


def test_a_check_that_hangs_is_given_up_and_what_it_began_is_undone(patient):
    over = threading.Event()
    undone = []
    hangs = Check(
        name="a",
        look=lambda _: over.wait(30),
        seconds=0.2,
        hung=("nobody answers", "knock again"),
        undo=lambda _: undone.append(True),
    )
    began = time.monotonic()
    answer = found(patient, hangs)["a"]
    over.set()
    assert time.monotonic() - began < 5
    assert (answer.verdict, answer.remedy) == (Verdict.FAIL, "knock again")
    assert "nobody answers" in answer.seen
    assert undone == [True]


def test_a_check_that_was_given_up_has_no_say_when_its_undoing_ends_it(patient):
    over = threading.Event()

    def undo(_):
        over.set()
        time.sleep(0.3)

    hangs = Check(name="a", look=lambda _: (over.wait(30), ok("well"))[1], seconds=0.1, undo=undo)
    assert found(patient, hangs)["a"].verdict is Verdict.FAIL


def test_a_check_that_ends_is_not_undone(patient):
    undone = []
    found(patient, Check(name="a", look=lambda _: ok("well"), undo=lambda _: undone.append(True)))
    assert undone == []


def test_all_checks_together_have_a_limit_too(patient):
    over = threading.Event()
    hangs = [Check(name=name, look=lambda _: over.wait(30), seconds=5) for name in "abcd"]
    began = time.monotonic()
    answers = found(patient, *hangs, Check(name="e", look=lambda _: ok("well"), needs=("d",)), altogether=0.3)
    over.set()
    assert time.monotonic() - began < 5
    assert [answers[name].verdict for name in "abcde"] == ["fail", *["skipped"] * 4]
    assert "no time left" in answers["b"].seen
    assert answers["e"].seen == "needs d, which was not looked at"


def test_what_needs_a_failed_check_is_skipped_and_what_needs_a_warned_of_one_is_not(patient):
    checks = [
        Check(name="bad", look=lambda _: fail("broken")),
        Check(name="odd", look=lambda _: warn("odd")),
        Check(name="absent", look=lambda _: skipped("not here")),
        Check(name="a", look=lambda _: ok("well"), needs=("odd", "bad")),
        Check(name="b", look=lambda _: ok("well"), needs=("odd", "absent")),
        Check(name="c", look=lambda _: fail("never asked"), only=lambda _: "it has no such thing", needs=("bad",)),
    ]
    answers = found(patient, *checks)
    assert answers["a"] == skipped("needs bad, which failed")
    assert answers["b"] == ok("well")
    assert answers["c"] == skipped("it has no such thing")


def test_an_interruption_ends_it_at_once_and_undoes_what_was_begun(patient):
    over = threading.Event()
    undone = []

    def interrupt():
        raise KeyboardInterrupt

    hangs = Check(name="a", look=lambda _: over.wait(30), seconds=20, undo=lambda _: undone.append(True))
    with pytest.raises(KeyboardInterrupt):
        found(patient, hangs, interrupt=interrupt)
    over.set()
    assert undone == [True]


def test_the_table_needs_only_what_it_has_looked_at_before():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for at, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:at]), check.name
        assert check.seconds <= 20


def test_the_whole_table_is_carried_out_on_an_engine_that_tells_little(patient, monkeypatch):
    label = {"reprobox.box-protocol": "2", "reprobox.variant": "cpu"}
    engine = FakeEngine(
        images={"small:1": ImageInfo(engine_id="sha256:1", image_id="sha256:1", repo_digests=(), labels=label)}
    )
    monkeypatch.setattr("reprobox.doctor.engine.choose_engine", lambda *_, **__: engine)
    monkeypatch.setattr("reprobox.doctor.gpu.take_inventory", lambda: Inventory(missing="there is no driver"))
    monkeypatch.setattr("reprobox.doctor.gpu._loaded_version", lambda: None)
    monkeypatch.setattr("reprobox.doctor.gpu._count_on_bus", lambda: 0)
    monkeypatch.setattr("reprobox.doctor.machine.ask_git", lambda *_, **__: Checkout())
    monkeypatch.setattr("reprobox.engines.builders._answer", lambda *_: None)
    patient.settings = Settings.load({"image": "small:1"}, patient.directory, {})
    answers = found(patient, *CHECKS)
    assert not [name for name, finding in answers.items() if "itself broke" in finding.seen]
    assert answers["image"].verdict is Verdict.OK
    assert answers["gpus"] == skipped("no NVIDIA GPU: there is no driver")


def test_a_finding_of_failure_always_says_what_to_do():
    assert isinstance(fail("x", "y"), Finding)
    for finding in (judge_box("no library", 0, 1), judge_cuda("400.1", "13.0"), judge_shm(None, None, 1)):
        assert finding.verdict is Verdict.FAIL
        assert finding.remedy


# The documentation


def test_the_reference_has_every_check_in_its_order_and_the_table_of_drivers():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "doctor.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) == [check.name for check in CHECKS]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {int(cuda): driver for cuda, driver in rows} == LEAST_DRIVER
