"""What reprobox itself shows, where nobody reads it or no room is left: a sentence or nothing, and never a traceback."""

from __future__ import annotations

import subprocess

import pytest
from support.cli import BIN

pytestmark = pytest.mark.local

COMMANDS = [
    ["--version"],
    ["--help"],
    ["runs"],
    ["runs", "--json"],
    ["recipe"],
    ["recipe", "--json"],
    ["run", "--help"],
]


@pytest.fixture
def show(local):
    def show(command, stdout):
        return subprocess.run(
            [BIN / "reprobox", *command],
            cwd=local.folder,
            env=local.environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )

    return show


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_told_in_a_sentence(show, command):
    with open("/dev/full", "w") as full:
        done = show(command, full)
    assert done.returncode == 125, done.stderr
    assert done.stderr == (
        "reprobox: what was to be shown cannot be written (No space left on device); make room where the output goes\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_141_and_no_word(show, command):
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        done = show(command, reader.stdin)
    assert (done.returncode, done.stderr) == (141, "")
