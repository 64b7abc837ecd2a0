"""Which Podman answers: one that was named, one instead of Docker, or a service that the command line starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cli import BIN
from support.daemon import until
from support.podman import AS_USER

pytestmark = pytest.mark.podman


def unchosen(argv):
    """``argv`` without the engine that it names."""
    at = argv.index("--engine")
    return [*argv[:at], *argv[at + 2 :]]


@pytest.fixture
def without_docker(podman):
    """What a command line begins with that is to find nothing at Docker's socket; and nobody names another."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        podman.environment.pop(name, None)
    podman.environment["DOCKER_CONFIG"] = str(podman.folder)
    docker_socket = os.path.realpath("/var/run/docker.sock")
    if not os.path.exists(docker_socket):
        return []
    return ["unshare", "-m", "--", "sh", "-c", f'mount --bind /dev/null {docker_socket} && exec "$@"', "sh"]


def test_where_no_docker_answers_podman_is_used_and_that_is_said(podman, without_docker):
    done = podman.call(*without_docker, *unchosen(podman.argv("echo", "out")))
    assert done.stdout == "out\n"
    assert "no Docker answers; using Podman" in done.stderr
    assert podman.manifest()["engine"]["name"] == "podman"


@AS_USER
@pytest.mark.parametrize("named", ["DOCKER_HOST", "DOCKER_CONTEXT", "context"])
def test_a_docker_that_was_named_is_never_replaced(podman, without_docker, named):
    if named == "DOCKER_HOST":
        podman.environment[named] = f"unix://{podman.folder}/dead.sock"
    elif named == "DOCKER_CONTEXT":
        podman.environment[named] = "dead"
    else:
        podman.write("config.json", '{"currentContext": "dead"}')
    done = podman.call(*without_docker, *unchosen(podman.argv("true")), check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert "dead" in done.stderr
    assert podman.runs() == []


@AS_USER
def test_a_podman_that_was_named_and_does_not_answer_is_125_and_one_line(podman):
    address = f"unix://{podman.folder}/dead.sock"
    done = podman.run("true", environment={"CONTAINER_HOST": address}, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "--engine docker" in line


# The command line as it is, with a Podman service of its own that does not wait for a minute.
IMPATIENT = "import sys; import reprobox.engines.podman as podman; podman.SERVICE_IDLE_SECONDS = 2; from reprobox.cli import main; sys.exit(main())"


@pytest.fixture
def no_service(podman):
    """The environment of somebody who has the program and nothing that listens."""
    if podman.service.uid == 0 and Path("/run/podman/podman.sock").exists():
        pytest.skip("this machine's own Podman listens, and would be used")
    del podman.environment["CONTAINER_HOST"]
    yield podman
    assert until(lambda: own_services(podman) == [], seconds=30), "its own service has not ended"


def impatient(podman, argv):
    """``argv`` with a Podman service of its own that ends soon."""
    at = argv.index(str(BIN / "reprobox"))
    return [*argv[:at], str(BIN / "python"), "-c", IMPATIENT, *argv[at + 1 :]]


def own_services(podman):
    """Processes that are a service which the command line started."""
    words = f"unix://{podman.service.runtime}/reprobox-podman-{podman.service.uid}.sock".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and words in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_where_nothing_listens_a_service_is_started_used_again_and_ends_by_itself(no_service):
    services = []
    for _ in range(2):
        done = no_service.call(*impatient(no_service, no_service.argv("echo", "out")))
        assert done.stdout == "out\n"
        services.append(own_services(no_service))
    assert services[0] == services[1] != []
    assert until(lambda: own_services(no_service) == [], seconds=30)


@AS_USER
def test_a_run_outlives_the_patience_of_its_own_service(no_service):
    done = no_service.call(
        *impatient(no_service, no_service.argv("sh", "-c", "sleep 5; echo late; exit 3")), check=False
    )
    assert (done.returncode, done.stdout) == (3, "late\n")


@AS_USER
def test_a_detached_run_outlives_its_own_service(no_service):
    no_service.call(*impatient(no_service, no_service.argv("sh", "-c", "sleep 5; echo late; exit 4", flags=("-d",))))
    argv = [*no_service.service.as_user, str(BIN / "reprobox"), "runs", "wait"]
    assert no_service.call(*impatient(no_service, argv), check=False).returncode == 4
    assert no_service.reprobox("runs", "logs").stdout == "late\n"


@AS_USER
def test_two_that_start_at_once_share_one_service(no_service):
    argv = impatient(no_service, no_service.argv("echo", "out"))
    options = {
        "cwd": no_service.folder,
        "env": no_service.environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    both = [subprocess.Popen(argv, **options) for _ in range(2)]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert [(out, code) for out, _, code in ended] == [(b"out\n", 0)] * 2, ended


@AS_USER
def test_a_service_that_does_not_start_is_125_and_one_line(no_service):
    broken = no_service.service.folder() / "podman"  # one in the project itself is not taken
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = no_service.run(
        "true", environment={"PATH": f"{broken.parent}:{no_service.environment['PATH']}"}, check=False
    )
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert "Podman's API does not start" in line


@AS_USER
def test_no_podman_at_all_is_125_and_one_line(podman, without_docker):
    del podman.environment["CONTAINER_HOST"]
    podman.environment["PATH"] = str(BIN)
    argv = podman.argv("true")
    if argv[0] == "setpriv":
        argv[0] = shutil.which("setpriv")
    done = podman.call(*argv, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    (line,) = done.stderr.splitlines()
    assert "there is no Podman on this machine" in line
