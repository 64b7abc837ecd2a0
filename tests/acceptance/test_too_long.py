"""A command that is given more than Linux hands over is not started: 125, and the name of what is too long."""

from __future__ import annotations

import subprocess
import sys

import pytest

LINUX_TAKES = "x" * 131_071
TOO_LONG = "x" * 131_072
MOST = "x" * 131_000


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.engine), pytest.param("local", marks=pytest.mark.local)]
)
def cli(request):
    return request.getfixturevalue(request.param)


def given(cli, how, value):
    """How a run is given ``value``: its flags, its command, and the variables of this process."""
    file = cli.write("env", f"CONFIG={value}\n")
    secret = cli.write("secret", value)
    flags, command, environment = {
        "a word": ([], ["sh", "-c", "true", value], {}),
        "a variable of a file": (["--env-file", str(file)], ["true"], {}),
        "a secret of a file": (["--secret", f"CONFIG={secret}"], ["true"], {}),
    }[how]
    return cli.run(*command, flags=("--seed", "1", *flags), environment=environment, check=False)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("a variable of a file", "the variable CONFIG"),
        ("a secret of a file", "the secret CONFIG"),
    ],
)
def test_what_is_too_long_is_named_and_nothing_is_started(cli, how, what):
    done = given(cli, how, TOO_LONG)
    assert done.returncode == 125, done.stderr[-300:]
    assert f"{what} is " in done.stderr
    assert "xxx" not in done.stderr
    assert cli.runs() == []


@pytest.mark.parametrize("how", ["a word", "a variable of a file", "a secret of a file"])
def test_what_is_just_short_enough_is_handed_over(cli, how):
    done = given(cli, how, MOST)
    assert done.returncode == 0, done.stderr[-300:]


def test_words_that_are_too_many_are_refused_with_the_longest(cli):
    done = cli.run("true", *["y" * 100_000] * 17, "z" * 120_000, *["y" * 100] * 2200, check=False)
    assert done.returncode == 125, done.stderr[-300:]
    assert "word 19 of the command is the longest" in done.stderr


@pytest.mark.local
def test_the_longest_word_is_what_linux_says():
    assert subprocess.run([sys.executable, "-c", "", LINUX_TAKES], check=False).returncode == 0
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run([sys.executable, "-c", "", LINUX_TAKES + "x"], check=False)
