"""A job in a container of its own, whose folders the engine does not have; and a machine whose Python has no torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.podman import AS_ROOT

HIDDEN = ["unshare", "--mount", "--", "sh", "-c", 'mount -t tmpfs tmpfs "$1"; shift; cd "$1"; shift; exec "$@"', "sh"]
PROJECT_SEEN = "; start that container with the project at the path it has on the engine's machine"


def hidden(cli, tmp_path, *command, flags=()):
    """Carry a run out in a folder that this process alone has, as a job in a container has its own."""
    folder = tmp_path / "job"
    folder.mkdir()
    script = 'mkdir -p project; cd project; touch reprobox.toml; exec "$@"'
    given = cli.argv(*command, flags=("--seed", "1", "--self-test", "always", *flags))
    words = [*HIDDEN, folder, folder, "sh", "-c", script, "sh", *given]
    return subprocess.run(words, env=cli.environment, capture_output=True, text=True, timeout=120)


@pytest.mark.engine
def test_a_project_that_docker_does_not_see_is_said_before_the_self_test(docker, tmp_path):
    assert "self-test" not in refused(docker, tmp_path)
    assert docker.boxes() == []


@pytest.mark.podman
@AS_ROOT
def test_a_project_that_podman_does_not_see_is_said(podman, tmp_path):
    """After the self-test: Podman makes a folder for what it lacks, and finds out when it prepares the box."""
    refused(podman, tmp_path)
    assert podman.service.containers() == []


def refused(cli, tmp_path):
    """See that the run is refused in one sentence, and return what it said."""
    done = hidden(cli, tmp_path, "python", "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (125, "")
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"reprobox: the engine has no {tmp_path}/job/")
    assert PROJECT_SEEN in sentence
    return done.stderr


@pytest.mark.local
@pytest.mark.parametrize("verb", ["run", "selftest"])
def test_without_torch_on_this_machine_it_is_said_which_python_was_asked_and_what_to_type(local, tmp_path, verb):
    made = [sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"]
    subprocess.run(made, check=True)
    python = tmp_path / "bare" / "bin" / "python"
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    if verb == "run":
        flags = ("--seed", "1", "--self-test", "always")
        done = local.run("python", "-c", "print('ran')", flags=flags, environment=path)
        assert done.stdout == "ran\n"
        assert f"and only the recipe is applied; python is {python}\n" in done.stderr
    else:
        done = local.reprobox("selftest", "--engine", "local", environment=path, check=False)
        assert done.returncode == 125
    assert (
        f"{python} has no torch; activate the environment that has it, or type {python} -m pip install torch"
        in done.stderr
    )


@pytest.mark.local
def test_a_program_that_this_machine_lacks_is_looked_up_on_path(local):
    done = local.run("nosuchprogram", check=False)
    assert done.returncode == 127
    assert "programs are looked up on PATH" in done.stderr
