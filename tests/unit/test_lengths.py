"""What no program can be started with is refused by name, before anything is started."""

from __future__ import annotations

import pytest

from reprobox.engines.base import Ulimit
from reprobox.errors import BoxError
from reprobox.runs.lengths import LONGEST_BYTES, refuse_what_is_too_long, stack_of_a_box


def test_a_word_that_is_too_long_is_named():
    longest = "x" * (LONGEST_BYTES - 1)
    refuse_what_is_too_long([longest], {}, {})
    with pytest.raises(
        BoxError, match=r"word 2 of the command is 131072 bytes long.*131071 at most; give it in a file"
    ):
        refuse_what_is_too_long(["train", longest + "x"], {}, {})


@pytest.mark.parametrize(
    ("environment", "secrets", "what"),
    [
        ({"CONFIG": "x" * (LONGEST_BYTES - len("CONFIG="))}, {}, "the variable CONFIG"),
        ({"CONFIG": "ä" * (LONGEST_BYTES // 2)}, {}, "the variable CONFIG"),
        ({}, {"TOKEN": b"x" * LONGEST_BYTES}, "the secret TOKEN"),
        ({"TOKEN": "x"}, {"TOKEN": b"x" * LONGEST_BYTES}, "the secret TOKEN"),
    ],
)
def test_a_variable_and_a_secret_that_are_too_long_are_named(environment, secrets, what):
    with pytest.raises(BoxError, match=f"{what} is [0-9]+ bytes long") as error:
        refuse_what_is_too_long(["true"], environment, secrets)
    assert error.value.exit_code == 125
    assert "xxx" not in str(error.value)


def test_the_longest_variable_and_secret_are_taken():
    refuse_what_is_too_long([], {"A": "x" * (LONGEST_BYTES - 3)}, {"B": b"x" * (LONGEST_BYTES - 3) + b"\n"})
    refuse_what_is_too_long([], {"REMOVED": None}, {})


def test_words_that_are_too_many_altogether_are_refused_with_the_longest():
    words = ["x" * 1000] * 3000
    with pytest.raises(BoxError, match=r"altogether, and Linux hands over 2097152 at most; word 1 of the command is"):
        refuse_what_is_too_long(words, {}, {})
    refuse_what_is_too_long(words, {}, {}, stack=64 << 20)
    with pytest.raises(BoxError, match="altogether"):
        refuse_what_is_too_long(["true"], {}, {}, inherited={"A": "x" * (3 << 20)})


def test_the_stack_of_a_box_is_the_one_that_was_asked_for():
    assert stack_of_a_box(()) == 8 << 20
    assert stack_of_a_box((Ulimit(name="stack", soft=1 << 20, hard=-1), Ulimit(name="core", soft=0, hard=0))) == 1 << 20
    assert stack_of_a_box((Ulimit(name="stack", soft=-1, hard=-1),)) == 24 << 20
