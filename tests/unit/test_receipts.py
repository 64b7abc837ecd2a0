"""Receipts of many processes, merged into one document and one line; what cannot be read is passed over."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprobox.runs import receipts as module
from reprobox.runs.receipt_reader import LARGEST_BYTES, Event
from reprobox.runs.receipts import read_receipts


@pytest.fixture
def write(tmp_path):
    """Write a receipt (or raw text) into a run's folder."""

    def write(pid, text=None, **fields):
        document = {"schema": "reprobox.receipt/1", "pid": pid, "start_ns": pid, "events": [], **fields}
        (tmp_path / f"receipt-x-host-{pid}-{pid}.json").write_text(json.dumps(document) if text is None else text)

    return write


def reseed(line=14, **more):
    return {
        "kind": "reseed",
        "generator": "torch",
        "value": "1337",
        "file": "train.py",
        "line": line,
        "count": 1,
        **more,
    }


def test_a_run_without_python_says_so(tmp_path):
    receipts = read_receipts(tmp_path)
    assert receipts.summary() == "receipt: no Python process was seen"
    assert receipts.to_json()["processes"] == 0


def test_the_line_is_the_designs(tmp_path, write):
    write(1, events=[reseed()])
    assert (
        read_receipts(tmp_path).summary() == "receipt: 1 process reseeded by train.py:14 (torch, 1337); nothing escaped"
    )


@pytest.mark.parametrize(
    "text",
    ["", '{"schema": "reprobox.receipt/1", "pid"', "[]", '"text"', "null", '{"schema": "reprobox.receipt/2"}', "\xff{"],
)
def test_a_torn_or_newer_receipt_is_passed_over(tmp_path, write, text):
    write(1, events=[reseed()])
    whole = read_receipts(tmp_path).to_json()
    write(2, text=text)
    assert read_receipts(tmp_path).to_json() == {**whole, "unreadable": 1}
    assert read_receipts(tmp_path).summary().endswith("(torch, 1337); 1 receipt could not be read")


@pytest.mark.parametrize(
    "fields",
    [
        {"events": None},
        {"events": "text"},
        {"events": [None, 3, {}]},
        {"events": [{"kind": "reseed"}]},
        {"events": [{"kind": "pool-draw"}, {"kind": "pool"}]},
        {"children": None},
        {"children": [{}]},
        {"start_ns": None, "complete": True},
        {"complete": True, "generators": None},
        {"events": [reseed(count=None)]},
        {"schema": None},
    ],
    ids=json.dumps,
)
def test_a_receipt_that_makes_no_sense_is_passed_over(tmp_path, write, fields):
    write(1, events=[reseed()], complete=True, generators={"torch": "00"})
    write(2, **fields)
    receipts = read_receipts(tmp_path)
    assert receipts.to_json()["processes"] == 1
    assert "reseeded by train.py:14 (torch, 1337)" in receipts.summary()


def test_unknown_fields_and_kinds_are_kept_for_the_reader(tmp_path, write):
    write(1, events=[{"kind": "later", "what": 1, "count": 2}], later=True)
    assert read_receipts(tmp_path).to_json()["events"] == {
        "later": [{"kind": "later", "what": 1, "count": 2, "processes": 1}]
    }


def test_the_same_event_in_several_processes_is_one_with_their_number(tmp_path, write):
    for pid in (1, 2, 3):
        write(pid, events=[reseed(count=pid)])
    write(4, events=[reseed(line=20)])
    receipts = read_receipts(tmp_path)
    first, second = receipts.events("reseed")
    assert (first["processes"], first["count"]) == (3, 6)
    assert (second["processes"], second["line"]) == (1, 20)
    assert (
        receipts.summary() == "receipt: 3 processes reseeded by train.py:14 (torch, 1337) and 1 more; nothing escaped"
    )


def test_a_process_that_never_signed_has_escaped(tmp_path, write):
    write(10, children=[{"pid": 11, "program": "python -S x.py"}, {"pid": 12, "program": "python y.py"}])
    (tmp_path / "ledger").write_text("main 10 python train.py\nhook 10\nhook 12\nmain 13 ./odd script\n")
    receipts = read_receipts(tmp_path)
    assert receipts.escaped == {11: "python -S x.py", 13: "./odd script"}
    assert receipts.summary().endswith("; 2 processes escaped (./odd script)")


def test_a_torn_ledger_counts_what_can_be_read(tmp_path):
    (tmp_path / "ledger").write_bytes(b"main 10 python t.py\nhook 1\nhook\n\n\xff\xfe\nmain x y\nhook 10\nho")
    assert read_receipts(tmp_path).escaped == {}


def test_an_unseeded_generator_of_a_library_is_recorded_and_not_in_the_line(tmp_path, write):
    event = {"kind": "unseeded", "generator": "random.Random", "file": "lib.py", "line": 3, "count": 1}
    write(1, seeds=[{}], events=[{**event, "origin": "library"}])
    receipts = read_receipts(tmp_path)
    assert receipts.to_json()["events"]["unseeded"]
    assert receipts.summary() == "receipt: 1 process seeded, nothing changed; nothing escaped"
    write(2, events=[{**event, "origin": "user"}])
    assert "1 unseeded generator: random.Random at lib.py:3; " in read_receipts(tmp_path).summary()


def test_the_generators_are_those_of_the_first_process_that_ended_in_order(tmp_path, write):
    write(1, complete=False, generators={"random": "torn"})
    write(2, complete=True, lineage="f0", generators={"random": "a child's"})
    write(3, complete=True, lineage="", generators={"random": "the first's"})
    write(4, complete=True, lineage="", generators={"random": "a later one's"})
    assert read_receipts(tmp_path).to_json()["generators"] == {"random": "the first's"}


KINDS = {
    "flag": ({"flag": "cudnn.benchmark", "after": True}, "1 flag: cudnn.benchmark set to True at t.py:1"),
    "split": ({"what": "random_split"}, "1 split that ranks would disagree on: random_split at t.py:1"),
    "nondeterministic": ({"op": "put_"}, "1 op without a deterministic kernel: put_ at t.py:1"),
    "entropy": ({"source": "os.urandom"}, "1 draw of real entropy: os.urandom at t.py:1"),
    "hash-seed": ({"message": "m"}, "1 process without the hash seed"),
    "failure": ({"message": "m"}, "1 failure inside the hook"),
    "knob": ({"knob": "K", "value": "2", "wanted": "4"}, "K is 2 where the recipe has 4"),
}
NOT_WHOLE = {"hash-seed", "failure", "knob"}
"""The kinds that say that a part of the recipe did not reach a process: no word that nothing escaped then."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_event_has_its_words_in_the_line(tmp_path, write, kind):
    fields, words = KINDS[kind]
    write(1, events=[{"kind": kind, "file": "t.py", "line": 1, "count": 1, **fields}])
    escaped = "" if kind in NOT_WHOLE else "; nothing escaped"
    assert read_receipts(tmp_path).summary() == f"receipt: {words}{escaped}"


HOSTILE = {
    "start methods of two types": {"start_method": 3},
    "a kind that is a number": {"events": [{"kind": 1}]},
    "pids that are words": {"children": [{"pid": "x", "program": "y"}]},
    "a pid that is true": {"children": [{"pid": True, "program": "y"}]},
    "a program that is a list": {"children": [{"pid": 1, "program": ["y"]}]},
    "a digest that is a number": {"complete": True, "generators": {"random": 1}},
    "a count below one": {"events": [reseed(count=-5)]},
    "a count beyond all counting": {"events": [reseed(count=10**40)]},
    "a place that is a dict": {"events": [reseed(file={"a": 1})]},
    "lineage that is a list": {"lineage": [[]], "complete": True},
    "a start that is true": {"start_ns": True},
    "events that are a dict": {"events": {"kind": "reseed"}},
    "more fields than an event has": {"events": [reseed(**{f"f{i}": i for i in range(100)})]},
}


@pytest.mark.parametrize("fields", list(HOSTILE.values()), ids=list(HOSTILE))
def test_a_receipt_of_other_types_is_counted_and_changes_nothing_else(tmp_path, write, fields):
    write(1, events=[reseed()], start_method="fork")
    whole = read_receipts(tmp_path).to_json()
    write(2, **fields)
    receipts = read_receipts(tmp_path)
    assert receipts.to_json() == {**whole, "unreadable": 1}
    assert "nothing escaped" not in receipts.summary()


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"schema":' * 50_000, '{"schema": "reprobox.receipt/1", "start_ns": 1e999}', "1" * 5000, "NaN"],
    ids=["deep lists", "deep objects", "a number beyond all", "a number of 5000 digits", "no number"],
)
def test_json_that_is_too_deep_or_holds_no_number_is_passed_over(tmp_path, write, text):
    write(1, text=text)
    assert read_receipts(tmp_path).to_json()["unreadable"] == 1


def test_a_receipt_that_is_too_large_is_passed_over(tmp_path, write):
    write(1, text=json.dumps({"schema": "reprobox.receipt/1", "start_ns": 1}) + " " * LARGEST_BYTES)
    assert read_receipts(tmp_path).to_json()["unreadable"] == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["receipt-x-host-1-1.json", "ledger"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make, name):
    make(tmp_path / name)
    receipts = read_receipts(tmp_path)
    assert receipts.to_json()["unreadable"] == 1
    assert "could not be read" in receipts.summary()


def test_of_many_receipts_as_many_are_read_as_a_run_may_have(tmp_path, write, monkeypatch):
    monkeypatch.setattr(module, "MOST_RECEIPTS", 3)
    for pid in range(1, 6):
        write(pid)
    receipts = read_receipts(tmp_path).to_json()
    assert (receipts["processes"], receipts["unreadable"]) == (3, 2)


def test_of_many_different_events_and_escapes_a_thousand_are_listed(tmp_path, write):
    kinds = [{"kind": f"kind{i}", "n": i} for i in range(1500)]
    write(1, events=kinds, children=[{"pid": pid, "program": "python"} for pid in range(1, 1201)])
    receipts = read_receipts(tmp_path).to_json()
    assert (len(receipts["events"]), receipts["more_events"]) == (1000, 500)
    assert (len(receipts["escaped"]), receipts["more_escaped"]) == (1000, 200)


def test_each_event_is_looked_at_once_however_many_kinds_there_are(tmp_path, write, monkeypatch):
    looked = []
    key = Event.key
    monkeypatch.setattr(Event, "key", property(lambda event: looked.append(1) or key.fget(event)))
    for pid in (1, 2):
        write(pid, events=[{"kind": f"kind{i}", "n": i} for i in range(500)])
    read_receipts(tmp_path).to_json()
    read_receipts(tmp_path).summary()
    assert len(looked) == 2 * 2 * 500


def test_a_long_text_is_cut(tmp_path, write):
    write(1, events=[reseed(value="9" * 100_000)])
    assert len(read_receipts(tmp_path).summary()) < 2000


def test_a_ledger_that_cannot_be_read_says_nothing_of_escapes(tmp_path, write):
    write(1, children=[{"pid": 2, "program": "python"}])
    os.mkfifo(tmp_path / "ledger")
    receipts = read_receipts(tmp_path)
    assert receipts.escaped == {}
    assert "escaped" not in receipts.summary()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("start_ns", "complete", "lineage", "seeds", "start_method", "generators", "events", "children")
EVENTS = st.lists(
    st.dictionaries(st.sampled_from(["kind", "count", "file", "line", "pool", "value"]), ANYTHING), max_size=3
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), ANYTHING), events=EVENTS | ANYTHING)
def test_whatever_a_receipt_holds_the_manifest_and_the_line_can_be_written(tmp_path, write, fields, events):
    write(1, **{**fields, "events": events})
    receipts = read_receipts(tmp_path)
    json.dumps(receipts.to_json(), allow_nan=False, sort_keys=True)
    assert receipts.summary().startswith("receipt: ")
