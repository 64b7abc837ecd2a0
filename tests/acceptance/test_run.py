"""``reprobox run`` on a real Docker Engine, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
from support.engine import boxes_left

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _nothing_is_left(docker, docker_client):
    yield
    assert boxes_left(docker_client, {run.name for run in docker.runs()}) == []
    for run in docker.runs():
        assert json.loads((run / "manifest.json").read_text())["end"], "a run's record was not completed"


def test_torch_compile_works_in_the_box(docker):
    program = "import torch; f = torch.compile(lambda x: (x.sin() * 2).sum()); print(f(torch.ones(8)).item())"
    assert docker.run("python", "-c", program).stdout.startswith("13.46")


def test_files_belong_to_the_caller_and_the_caller_has_a_name(docker):
    program = "import getpass, pathlib; pathlib.Path('made').write_text(getpass.getuser())"
    docker.run("python", "-c", program)
    made = docker.folder / "made"
    assert (made.stat().st_uid, made.stat().st_gid) == (os.getuid(), os.getgid())
    assert made.read_text()


def test_the_callers_subfolder_is_the_working_directory(docker):
    (docker.folder / "a" / "b").mkdir(parents=True)
    assert docker.run("pwd", cwd=docker.folder / "a" / "b").stdout == "/workspace/a/b\n"


def test_a_drawn_seed_is_said_recorded_and_can_be_used_again(docker):
    first = docker.run("python", "-c", "import random; print(random.random())", flags=())
    seed = re.search(r"repeat this run with --seed (\d+)", first.stderr)[1]
    assert docker.manifest()["recipe"] == {**docker.manifest()["recipe"], "seed": int(seed), "seed_was_drawn": True}
    again = docker.run("python", "-c", "import random; print(random.random())", flags=("--seed", seed))
    assert again.stdout == first.stdout
    assert docker.run("python", "-c", "import random; print(random.random())", flags=()).stdout != first.stdout


def test_the_manifest_and_the_runs_command(docker, image):
    docker.run("true", flags=("--seed", "5", "-e", "HF_TOKEN=canary-value", "-e", "PLAIN=1"))
    docker.run("false", check=False)
    manifest = json.loads(docker.reprobox("runs", "show", "last~1", "--json").stdout)
    assert manifest["schema"] == "reprobox.manifest/1"
    assert manifest["image"]["engine_id"] == image
    assert manifest["image"]["image_id"].startswith("sha256:")
    assert manifest["environment"] == {"PLAIN": "1"}
    assert manifest["secrets"] == ["HF_TOKEN"]
    assert manifest["host"]["cpu"]
    assert manifest["start"] < manifest["end"]
    assert "canary-value" not in (docker.runs()[0] / "manifest.json").read_text()
    listed = json.loads(docker.reprobox("runs", "--json").stdout)
    assert [run["exit_code"] for run in listed["runs"]] == [0, 1]
    table = docker.reprobox("runs", "list").stdout
    assert all(run.name in table for run in docker.runs())
    assert "reprobox.manifest/1" in docker.reprobox("runs", "show").stdout
    assert docker.reprobox("runs", "show", "nope", check=False).returncode == 125


@pytest.mark.parametrize("address", ["unix:///no/such.sock", "tcp://127.0.0.1:9"])
def test_no_daemon_is_125_and_one_line_that_says_what_to_do(docker, address):
    done = docker.run("true", check=False, environment={"DOCKER_HOST": address})
    assert (done.returncode, done.stdout) == (125, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--engine local" in done.stderr


def test_a_context_that_is_not_there_is_not_quietly_another_engine(docker):
    environment = {"DOCKER_CONTEXT": "no-such-context"}
    docker.environment.pop("DOCKER_HOST", None)
    done = docker.run("true", check=False, environment=environment)
    assert done.returncode == 125
    assert "no-such-context" in done.stderr


def test_output_that_cannot_be_written_is_a_failure_and_never_a_success(docker):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            docker.argv("echo", "lost"), cwd=docker.folder, env=docker.environment, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 125
    assert b"No space left on device" in done.stderr
    assert docker.manifest()["outcome"] == "failed"


def test_a_closed_stderr_is_no_reason_to_fail(docker):
    done = docker.call("sh", "-c", 'exec "$@" 2>&-', "sh", *docker.argv("echo", "out"))
    assert done.stdout == "out\n"
    assert docker.manifest()["outcome"] == "exited"


def test_bytes_that_the_engine_would_change_are_refused(docker):
    done = docker.run("printf", "%s", b"\xff".decode(errors="surrogateescape"), check=False)
    assert done.returncode == 2
    assert "no UTF-8" in done.stderr


def test_ranks_without_a_common_seed_are_refused(docker):
    done = docker.run("true", flags=(), check=False, environment={"WORLD_SIZE": "2"})
    assert done.returncode == 2
    assert "give every rank the same --seed" in done.stderr


def test_a_signal_while_it_starts_leaves_a_complete_record(docker, tmp_path_factory):
    slow = tmp_path_factory.mktemp("bin") / "git"  # one in the project itself is not taken
    slow.write_text("#!/bin/sh\nsleep 1\n")
    slow.chmod(0o755)
    (docker.folder / ".git").mkdir()
    environment = {**docker.environment, "PATH": f"{slow.parent}:{docker.environment['PATH']}"}
    process = subprocess.Popen(
        docker.argv("sleep", "60"), cwd=docker.folder, env=environment, stderr=subprocess.DEVNULL
    )
    time.sleep(0.9)
    process.send_signal(signal.SIGTERM)
    # Before Python has its handlers the signal itself ends it, which a shell also calls 143.
    assert process.wait(timeout=30) in (143, -signal.SIGTERM)
    for run in docker.runs():
        assert json.loads((run / "manifest.json").read_text())["outcome"] in ("interrupted", "exited")


def test_an_image_that_is_not_ours_is_125(docker, docker_client, image):
    base = docker_client.images.get(image).labels["reprobox.base"].partition("@")[2]
    docker_client.images.get(base).tag("reprobox-test-not-ours", "1")
    try:
        foreign = docker.run("true", flags=("--image", "reprobox-test-not-ours:1"), check=False)
    finally:
        docker_client.images.remove("reprobox-test-not-ours:1")
    assert foreign.returncode == 125
    assert "is not a reprobox image" in foreign.stderr


def test_gpus_that_are_not_there_are_an_error_and_never_a_cpu_run(docker):
    done = docker.run("true", flags=("--gpus", "0"), check=False)
    if done.returncode == 0:
        pytest.fail("this machine has a GPU; the CUDA tests are for it")
    assert done.returncode == 125
    assert "--gpus none" in done.stderr
