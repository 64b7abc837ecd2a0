"""The place in an output found again in the engine's log, whatever the log has lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reprobox.engines.splice import KEPT_BYTES, Delivered

BINARY = st.binary(max_size=200)
REPEATING = st.tuples(st.binary(min_size=1, max_size=3), st.integers(0, 4000)).map(lambda p: p[0] * p[1])
OUTPUT = st.lists(st.one_of(BINARY, REPEATING), max_size=4).map(b"".join)


def delivered(*pieces):
    place = Delivered()
    for piece in pieces:
        place.add(piece)
    return place


def lines(first, last):
    return b"".join(b"line %06d\n" % i for i in range(first, last))


@given(output=OUTPUT, cut=st.integers(0, 20_000), size=st.integers(1, 9000))
def test_with_the_whole_log_the_rest_is_exactly_the_remainder(output, cut, size):
    prefix = output[:cut]
    place = delivered(*(prefix[i : i + size] for i in range(0, len(prefix), size)))
    assert place.count == len(prefix)
    assert place.rest_of(output) == (output[len(prefix) :], True)


@given(pieces=st.lists(OUTPUT, max_size=6))
def test_what_is_remembered_does_not_grow_and_is_the_end_of_what_was_delivered(pieces):
    place = delivered(*pieces)
    assert place.tail == b"".join(pieces)[-KEPT_BYTES:]


def test_nothing_delivered_means_the_whole_log():
    assert delivered().rest_of(b"all") == (b"all", True)
    assert delivered(b"").rest_of(b"") == (b"", True)


@given(total=st.integers(1500, 3000), seen=st.integers(1000, 1500), lost=st.integers(1, 500))
def test_a_log_whose_beginning_was_cut_goes_on_where_it_was_left(total, seen, lost):
    log = lines(lost, total)
    assert delivered(lines(0, seen)).rest_of(log) == (lines(seen, total), True)


@given(seen=st.integers(2, 1500), lost=st.integers(1, 100))
def test_a_log_that_lost_its_end_and_did_not_go_on_gives_nothing_and_is_not_sure(seen, lost):
    rest, sure = delivered(lines(0, seen)).rest_of(lines(0, max(0, seen - lost)))
    assert not sure
    assert b"".join(sorted(set(rest.splitlines(keepends=True)))) == rest, "a line is repeated"
    assert not rest


@given(seen=st.integers(2, 300), lost=st.integers(1, 100), more=st.integers(1, 50))
def test_a_log_that_lost_a_stretch_and_went_on_gives_what_came_after_it(seen, lost, more):
    log = lines(0, max(1, seen - lost)) + lines(seen, seen + more)
    rest, sure = delivered(lines(0, seen)).rest_of(log)
    assert not sure
    assert rest.endswith(lines(seen, seen + more))


def test_a_log_that_shares_nothing_with_what_was_delivered_is_given_whole_and_is_not_sure():
    rest, sure = delivered(lines(0, 3000)).rest_of(b"something else\n" * 10)
    assert (rest, sure) == (b"something else\n" * 10, False)


@given(output=OUTPUT, log=OUTPUT)
def test_whatever_the_log_holds_the_rest_is_a_part_of_it(output, log):
    rest, _ = delivered(output).rest_of(log)
    assert log.endswith(rest)


def late(data):
    place = Delivered(late=True)
    place.add(data)
    return place


def test_nothing_delivered_to_who_came_late_means_nothing_of_the_log_and_from_then_on_all():
    place = late(b"")
    assert place.rest_of(b"said before\n") == (b"", False)
    assert place.rest_of(b"said before\nand after\n") == (b"and after\n", True)


def test_who_came_late_goes_on_after_what_was_delivered_and_is_told_where_that_is_there_twice():
    assert late(b"c\n").rest_of(b"a\nb\nc\nd\n") == (b"d\n", True)
    assert late(b"c\n").rest_of(b"a\nc\nc\nd\n") == (b"d\n", False)
    assert late(b"aa").rest_of(b"aaa") == (b"", False)


@given(before=OUTPUT, seen=OUTPUT, rest=OUTPUT)
def test_who_came_late_is_never_given_what_was_said_before_and_once_it_is_sure_all_that_came_after(before, seen, rest):
    got, sure = late(seen).rest_of(before + seen + rest)
    assert rest.endswith(got)
    assert not sure or got == rest
