"""Receipts of many processes, merged into one document and one line; what cannot be read is passed over."""

from __future__ import annotations

import json

import pytest

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
    assert read_receipts(tmp_path).to_json() == whole


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
